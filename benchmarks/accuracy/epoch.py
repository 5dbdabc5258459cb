"""What of a fine-tuning epoch its loader and its metrics take: ``python -m benchmarks.accuracy.epoch [--record]``

Real clips in a packed store, WLASL's where $SLRFAST_DATA names them; labels are drawn, since time does not depend on
them. An epoch is one of the loop that ``slrfast finetune islr`` runs, its log and checkpoint included; the same batches
are then loaded alone, and the scores of as many test clips judged alone. The sizes are the small STC at batches of 32,
and the paper's at batches of 64, which is measured over one step and stated per epoch of the same clips.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.real_clips import real_clips
from slrfast.data import ClipDataset, PoseDataset, pack
from slrfast.systems import STC, STCConfig
from slrfast.tasks import recognition_metrics
from slrfast.tasks.confusion import class_table, confusion_matrix
from slrfast.tasks.recognition import Recognizer, RecognizerConfig
from slrfast.train import TrainConfig, pretrain
from slrfast.train.loading import load_batches
from slrfast.train.loop import BatchOrder
from slrfast.train.runs import RunFolder

CLIPS, CLASSES, ROUNDS = 1024, 100, 5
"""WLASL100 has about as many clips to train on."""


@dataclass(frozen=True)
class Size:
    """A network, the size of its batches, and of how many of them an epoch is measured; None is all."""

    name: str
    config: Callable[[], STCConfig]
    batch_size: int
    steps: int | None = None


SIZES = (
    Size("small", STCConfig.small, 32),
    Size("paper", STCConfig.paper, 64, steps=1),
)


def labelled(clips: list[Any]) -> ClipDataset:
    """The clips with drawn labels, every class as often as the others."""
    labels = np.random.default_rng(0).permutation(np.arange(len(clips)) % CLASSES).tolist()
    made = [replace(clip, label=label, name=str(i)) for i, (clip, label) in enumerate(zip(clips, labels, strict=True))]
    return ClipDataset(made, [f"class {i}" for i in range(CLASSES)])


def measure(size: Size, clips: PoseDataset, folder: Path, device: str) -> dict[str, Any]:
    """Seconds of an epoch, of its loading alone and of the metrics of its test scores alone.

    The network is measured once, on ``size.steps`` steps where it is large; loading and metrics are medians.
    """
    torch.manual_seed(0)
    used = clips if size.steps is None else clips.subset(range(size.steps * size.batch_size))
    config = RecognizerConfig.stc(epochs=1, batch_size=size.batch_size)
    model = Recognizer(config, STC(size.config()), clips.class_names)
    run = RunFolder(folder / size.name)
    run.create(overwrite=True)
    result = pretrain(model, used, TrainConfig(device=device, log_every=10), run, progress=False)
    if result.stopped_by:
        raise KeyboardInterrupt
    steps = len(clips) // size.batch_size
    epoch = result.seconds * steps / result.steps
    order = list(BatchOrder(len(clips), size.batch_size, 0, 0, steps))
    scores = torch.randn(len(clips), len(clips.class_names), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(clips.labels)

    def load() -> None:
        for batch in load_batches(clips, order, device=device):
            batch.to(device)

    def judge() -> None:
        recognition_metrics(scores, labels)
        confusion_matrix(scores, labels)
        class_table(scores, labels, clips.class_names)

    seconds = {"epoch": epoch, "loader": median(load), "metrics": median(judge)}
    return {
        "name": size.name,
        "batch_size": size.batch_size,
        "clips": len(clips),
        "measured_steps": result.steps,
        "steps": steps,
        "seconds": seconds,
        "share": (seconds["loader"] + seconds["metrics"]) / epoch,
    }


def median(work: Callable[[], None]) -> float:
    """Seconds of a call, after one that is not counted."""
    times = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def run(device: str, names: list[str]) -> dict[str, Any]:
    """All sizes, as it is recorded."""
    source, clips = real_clips(CLIPS)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        pack(labelled(clips), Path(folder) / "store")
        store = PoseDataset(Path(folder) / "store")
        for size in SIZES:
            if size.name in names:
                cases.append(measure(size, store, Path(folder), device))
    return {"epoch": "islr", **harness.facts(device), "data": source, "cases": cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sizes", nargs="+", choices=[size.name for size in SIZES], default=["small", "paper"])
    parser.add_argument("--record", action="store_true", help="write it into benchmarks/results")
    parser.add_argument("--out", type=Path, help="write it into this folder")
    options = parser.parse_args()
    evidence = run(options.device, options.sizes)
    for case in evidence["cases"]:
        parts = ", ".join(f"{name} {value:.3f} s" for name, value in case["seconds"].items())
        print(f"{case['name']}: {parts}; loader and metrics are {100 * case['share']:.2f} % of the epoch")
    if options.record or options.out:
        print(harness.write("epoch", evidence, options.out))


if __name__ == "__main__":
    main()
