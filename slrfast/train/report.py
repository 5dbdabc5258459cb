"""What the commands tell people and machines."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from slrfast.data import ClipDataset
from slrfast.errors import one_line
from slrfast.train.loop import PretrainResult
from slrfast.train.options import TrainingOptions

STOPPED = {"SIGINT": 130, "SIGPIPE": 141, "SIGTERM": 143}
"""Exit code of a training command that a signal stopped."""


def speaker(as_json: bool) -> Callable[[str], None]:
    """Prints for people: on stdout, or on stderr when stdout is kept for JSON."""
    return lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def report_skipped(dataset: ClipDataset, path: Path, say: Callable[[str], None]) -> None:
    """List the files that could not be used, in ``path`` and in one line."""
    if not dataset.skipped:
        return
    lines = [one_line(f"{name}: {reason}") for name, reason in dataset.skipped]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    say(f"skipped {len(lines)} unusable files, listed in {path}; the first: {lines[0]}")


def report_stop(result: PretrainResult, options: TrainingOptions, by: str) -> int:
    """Say how to go on after the signal ``by``, and return the exit code."""
    say = speaker(options.json)
    say(f"stopped by {by} after step {result.step} of {result.steps}, all saved; go on with:")
    say(f"  {options.again}")
    if options.json:
        print(json.dumps({"run": str(options.run.path), **dataclasses.asdict(result), "go_on": options.again}))
    return STOPPED[by]


def network_size(system: nn.Module) -> str:
    trainable = sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad)
    return f"{trainable / 1e6:.2f} M trainable parameters"
