"""What the commands tell people and machines."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from slrfast.errors import one_line
from slrfast.files import replacing
from slrfast.train.loop import PretrainResult
from slrfast.train.options import TrainingOptions
from slrfast.train.runs import RunFolder

STOPPED = {"SIGINT": 130, "SIGPIPE": 141, "SIGTERM": 143}
"""Exit code of a training command that a signal stopped."""


def speaker(as_json: bool) -> Callable[[str], None]:
    """Prints for people: on stdout, or on stderr when stdout is kept for JSON."""
    return lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def report_skipped(skipped: Sequence[tuple[str, str]], path: Path, say: Callable[[str], None]) -> None:
    """List the files that could not be used, in ``path`` and in one line; a list of earlier ones there is replaced."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    lines = [one_line(f"{name}: {reason}") for name, reason in skipped]
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


def write_sentences(
    folder: RunFolder, names: Sequence[str], references: Sequence[Any], hypotheses: Sequence[Any]
) -> str:
    """A line of JSON for every clip, of what it should be and what was found, in the run's file; a note on that."""
    lines = [
        json.dumps({"name": name, "reference": reference, "hypothesis": hypothesis}, ensure_ascii=False)
        for name, reference, hypothesis in zip(names, references, hypotheses, strict=True)
    ]
    with replacing(folder.sentences) as path:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    return f"{folder.sentences.name} in {folder.path} has all references and hypotheses"


def network_size(system: nn.Module) -> str:
    trainable = sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad)
    return f"{trainable / 1e6:.2f} M trainable parameters"
