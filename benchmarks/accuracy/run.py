"""Does pre-training help on real signing? ``python -m benchmarks.accuracy.run --data DIR --work DIR``

Pre-trains every row of ``recipes.ROWS`` on the train clips of WLASL's hands, less every clip whose duplicate is in val,
then fine-tunes it and fits a linear probe: on WLASL100 and WLASL300, tested on val, and on Nepali fingerspelling with
each signer left out in turn, which none of the pre-training has seen. A cell is a row, a seed and a set of clips; each
is written to ``<work>/cells`` when it is done, so that a run goes on where it stopped, and several can share the work.
``python -m benchmarks.accuracy.run --work DIR --record`` writes all cells into benchmarks/results.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness, machine
from benchmarks.accuracy import ridge
from benchmarks.accuracy.data import open_clips
from benchmarks.accuracy.recipes import RECIPES, ROWS, finetuning, system_config
from slrfast.data import ClipDataset
from slrfast.errors import SlrfastError
from slrfast.files import locked, replacing
from slrfast.tasks import linear_probe_scores, recognition_metrics
from slrfast.tasks.recognition import Recognizer
from slrfast.train import TrainConfig, pretrain
from slrfast.train.config import choose_device
from slrfast.train.loading import load_batches
from slrfast.train.runs import RunFolder
from slrfast.train.scoring import encode_dataset

SETS = ("wlasl100", "wlasl300", "nepali")
Division = tuple[list[int], list[int]]
"""The train and the test clips."""


class Runs:
    """All runs of one size in one work folder."""

    def __init__(self, data: Path, work: Path, size: str, device: str) -> None:
        self.data, self.work, self.size, self.device = data, work / size, size, device
        (self.work / "cells").mkdir(parents=True, exist_ok=True)

    def clips(self, name: str, recipe: str) -> ClipDataset:
        return open_clips(name, self.data, RECIPES[recipe].layout, self.work.parent / "stores")

    def cell(self, what: str, row: str, seed: int) -> Path:
        return self.work / "cells" / f"{what} - {row} - {seed}.json"

    def write(self, path: Path, values: dict[str, Any]) -> None:
        values = {"commit": harness.commit(), "versions": machine.versions(), **values}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n")

    def system(self, row: str, seed: int) -> Any:
        """The row's system: pre-trained, or as it was drawn."""
        kind, config = RECIPES[ROWS[row].recipe].system, system_config(ROWS[row], self.size)
        if ROWS[row].pretrained:
            return kind.from_pretrained(self.run("pretrain", row, seed).model)  # type: ignore[attr-defined]
        torch.manual_seed(seed)
        return kind(config)

    def run(self, *names: object) -> RunFolder:
        return RunFolder(self.work / "runs" / " - ".join(map(str, names)))

    def pretrain(self, row: str, seed: int) -> None:
        """Pre-train a row; where it was stopped, go on."""
        name, path = ROWS[row].recipe, self.cell("pretrain", row, seed)
        clips = self.clips("wlasl", name)
        chosen = pretraining_clips(clips)
        torch.manual_seed(seed)
        system = RECIPES[name].system(system_config(ROWS[row], self.size))
        folder = self.run("pretrain", row, seed)
        folder.path.mkdir(parents=True, exist_ok=True)
        config = TrainConfig(seed=seed, device=self.device, log_every=10)
        going_on = folder.checkpoint.is_file()
        result = pretrain(system, clips.subset(chosen), config, folder, resume=going_on, progress=False)
        if result.stopped_by:
            raise KeyboardInterrupt
        last = folder.read_metrics()[-1]
        self.write(path, {"clips": len(chosen), "seconds": result.seconds, "steps": result.steps, "last": last})

    def score(self, what: str, row: str, seed: int) -> None:
        """Fine-tune and probe a row on one set of clips."""
        name = ROWS[row].recipe
        clips = self.clips("nepali" if what == "nepali" else "wlasl", name)
        parts = []
        started = time.perf_counter()
        for number, division in enumerate(divisions(what, clips)):
            fine = self.finetune(clips, division, row, seed, what, number)
            probe = self.probe(clips, division, row, seed)
            test = division[1]
            truth = torch.tensor(clips.labels)[test]
            parts.append(
                {
                    "clips": len(test),
                    "finetune": recognition_metrics(fine, truth),
                    "probe": recognition_metrics(probe, truth),
                }
            )
        self.write(self.cell(what, row, seed), {"parts": parts, "seconds": time.perf_counter() - started})

    def finetune(self, clips: ClipDataset, division: Division, row: str, seed: int, what: str, number: int) -> Tensor:
        """Scores [N, C] of the test clips by the fine-tuned network."""
        torch.manual_seed(seed + 1000)
        train, test = division
        names = class_names(clips, train)
        model = Recognizer(finetuning(ROWS[row], self.size, what), self.system(row, seed), names)
        folder = self.run(what, number, row, seed)
        folder.path.mkdir(parents=True, exist_ok=True)
        config = TrainConfig(seed=seed, device=self.device, log_every=100, checkpoint_every=10**6)
        result = pretrain(model, clips.subset(train), config, folder, progress=False)
        if result.stopped_by:
            raise KeyboardInterrupt
        device = choose_device(self.device)
        order = [test[i : i + 64] for i in range(0, len(test), 64)]
        return model.scores(batch.to(device) for batch in load_batches(clips, order))

    def probe(self, clips: ClipDataset, division: Division, row: str, seed: int) -> Tensor:
        """Scores [N, C] by a linear classifier on the frozen features."""
        train = division[0]
        system = self.system(row, seed).to(choose_device(self.device))
        features = [encode_dataset(system, clips, part) for part in division]
        groups = [clips.groups[i] for i in train]
        labels = torch.tensor(clips.labels)[train]
        return linear_probe_scores(features[0], labels, groups, features[1], len(class_names(clips, train)))[0]


def pretraining_clips(clips: ClipDataset) -> list[int]:
    """WLASL's train clips, less those whose duplicate is in val."""
    tested = {group for group, split in zip(clips.groups, clips.splits, strict=True) if split == "val" and group}
    return [
        i
        for i, (group, split) in enumerate(zip(clips.groups, clips.splits, strict=True))
        if split == "train" and group not in tested
    ]


def divisions(what: str, clips: ClipDataset) -> list[Division]:
    """The train and test clips of a set: one division of WLASL, one per signer of the fingerspelling."""
    labels, splits = np.array(clips.labels), np.array(clips.splits)
    if what == "nepali":
        signers = np.array(clips.groups)
        return [
            (
                np.flatnonzero((labels >= 0) & (signers != s)).tolist(),
                np.flatnonzero((labels >= 0) & (signers == s)).tolist(),
            )
            for s in np.unique(signers)
        ]
    classes = int(what.removeprefix("wlasl"))
    train = [i for i in pretraining_clips(clips) if 0 <= labels[i] < classes]
    return [(train, np.flatnonzero((splits == "val") & (labels < classes)).tolist())]


def class_names(clips: ClipDataset, train: list[int]) -> list[str]:
    return clips.class_names[: 1 + max(clips.labels[i] for i in train)]


def score_ridge(runs: Runs, what: str) -> None:
    """The linear baseline; of its strengths the one that does best on the test clips, which favours it."""
    clips = runs.clips("nepali" if what == "nepali" else "wlasl", "STC")
    parts = []
    for train, test in divisions(what, clips):
        x, queries = ridge.features(clips, train), ridge.features(clips, test)
        labels = torch.tensor(clips.labels)
        count = len(class_names(clips, train))
        found = [
            {"l2": s, **recognition_metrics(ridge.scores(x, labels[train], queries, count, s), labels[test])}
            for s in ridge.STRENGTHS
        ]
        parts.append({"clips": len(test), "ridge": max(found, key=lambda each: each["top1_instance"])})
    runs.write(runs.cell(what, "ridge", 0), {"parts": parts})


def work(runs: Runs, rows: Sequence[str], seeds: Sequence[int], sets: Sequence[str], minutes: float | None) -> None:
    """Do all cells that are not done and that no other process is at, seed by seed."""
    started = time.monotonic()
    for what in sets:
        if not runs.cell(what, "ridge", 0).exists():
            score_ridge(runs, what)
    for seed, row in itertools.product(seeds, rows):
        jobs = ["pretrain"] * ROWS[row].pretrained + list(sets)
        folder = runs.work / "locks" / f"{row} - {seed}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(folder, SlrfastError("busy")):
                for what in jobs:
                    if runs.cell(what, row, seed).exists():
                        continue
                    if minutes is not None and time.monotonic() - started > 60 * minutes:
                        return
                    print(f"{datetime.datetime.now():%H:%M:%S} {what}: {row}, seed {seed}", flush=True)
                    runs.pretrain(row, seed) if what == "pretrain" else runs.score(what, row, seed)
        except SlrfastError as error:
            if str(error) != "busy":
                raise


def record(runs: Runs) -> Path:
    """All cells as one file of benchmarks/results."""
    cells: list[dict[str, Any]] = []
    for path in sorted((runs.work / "cells").glob("*.json")):
        what, row, seed = path.stem.split(" - ")
        cells.append({"set": what, "row": row, "seed": int(seed), **json.loads(path.read_text())})
    if not cells:
        raise SystemExit(f"{runs.work} holds no finished cell")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    evidence = {"accuracy": runs.size, **harness.facts(device), "cells": cells}
    return harness.write(f"accuracy-{runs.size}", evidence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with wlasl_hands and nsl_fingerspell")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores, runs and finished cells")
    parser.add_argument("--size", choices=("small", "paper"), default="small")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--minutes", type=float, help="start nothing new after so many")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--record", action="store_true", help="write what is done into benchmarks/results")
    options = parser.parse_args()
    if not options.record and not options.data:
        parser.error("--data is needed to run")
    runs = Runs(options.data, options.work, options.size, options.device)
    if options.record:
        print(record(runs))
    else:
        work(runs, options.rows, options.seeds, options.sets, options.minutes)


if __name__ == "__main__":
    main()
