"""Record finished runs of ``slrfast demo`` as evidence: ``python -m benchmarks.demo runs/demo-...``."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import torch

from benchmarks import harness, machine
from slrfast.files import replacing


def record(run: Path, folder: Path | None = None) -> Path:
    """Copy a run's results, with commit, machine and versions, to <folder>/demo-<data>-<commit>.json."""
    results = json.loads((run / "results.json").read_text())
    label = machine.label("cpu")
    folder = folder or harness.RESULTS / label
    folder.mkdir(parents=True, exist_ok=True)
    results.pop("run")
    evidence = {
        "demo": results["data"],
        "machine": label,
        "commit": harness.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
        "results": results,
    }
    path = folder / f"demo-{results['data']}-{evidence['commit']}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(evidence, indent=1) + "\n")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of finished demos")
    for finished in parser.parse_args().runs:
        print(record(finished))
