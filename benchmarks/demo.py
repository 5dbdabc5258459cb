"""Record finished runs of ``slrfast demo`` as evidence: ``python -m benchmarks.demo runs/demo-...``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import harness


def record(run: Path, folder: Path | None = None) -> Path:
    """Copy a run's results, with commit, machine and versions, to <folder>/demo-<data>-<commit>.json."""
    results = json.loads((run / "results.json").read_text())
    results.pop("run")
    name = f"demo-{results['data']}"
    return harness.write(name, {"demo": results["data"], **harness.facts("cpu"), "results": results}, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of finished demos")
    for finished in parser.parse_args().runs:
        print(record(finished))
