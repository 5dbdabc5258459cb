"""Loss curves of 200 training steps of STC with slrfast's kernels and with the reference in plain torch.

A small STC with dropout, from the same weights and on the same batches in every run; a seed draws views and dropout
masks. Kernels and reference round differently, and training amplifies that as it amplifies any difference of 1e-7: from
the same seed their losses may be three times as far apart as those of runs from weights that differ by 1e-7, over all
steps and over the first ones, where a wrong kernel shows most; and they have to be closer than those of two seeds.

    python -m benchmarks.systems.loss_curves            # "make report" draws them into docs/loss_curves.png
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from itertools import combinations
from multiprocessing import get_context
from statistics import mean

import numpy as np
import torch

import slrfast
from benchmarks import harness
from slrfast.data import PoseBatch, SyntheticSigns
from slrfast.systems import STC, STCConfig

NAME, STEPS, EARLY, SEEDS = "loss_curves", 200, 20, (1, 2, 3)
AMPLIFIED = 3.0  # how much further apart kernels and reference may be than runs from weights that are 1e-7 apart
MOVED = "slrfast, weights 1e-7 off"
# backend (None: what runs by default), relative change of the first weights
RUNS = {"slrfast": (None, 0.0), "reference": ("reference", 0.0), MOVED: (None, 1e-7)}


def settings() -> STCConfig:
    """Small enough for 1800 steps in three minutes on two cores."""
    return STCConfig.small(
        frames=8, gcn_channels=(8, 8, 16, 32, 32), dim=32, batch_size=8,
        gcn_dropout=0.05, frame_dropout=0.25, transformer_dropout=0.1,
    )  # fmt: skip


def curve(backend: str | None, change: float, seed: int, steps: int = STEPS) -> list[float]:
    """The loss of every step of one run."""
    config, order = settings(), np.random.default_rng(0)
    clips = SyntheticSigns(num_classes=10, clips_per_class=16)
    with torch.random.fork_rng(), slrfast.backend(backend) if backend else nullcontext():
        torch.manual_seed(0)
        system = STC(config)
        with torch.no_grad():
            for parameter in system.query.parameters():
                parameter.mul_(1 + change * torch.randn_like(parameter))
        optimizer = system.optimizer()
        torch.manual_seed(seed)  # of the dropout masks
        views = torch.Generator().manual_seed(seed)
        losses = []
        for _ in range(steps):
            batch = PoseBatch.collate([clips[i] for i in order.choice(len(clips), config.batch_size, replace=False)])
            loss = system.training_step(batch, views)["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            system.update_after_step()
            losses.append(round(loss.item(), 6))
    return losses


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Mean absolute difference of two curves."""
    return mean(abs(x - y) for x, y in zip(a, b, strict=True))


def compare(curves: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """How far slrfast is from the reference and from itself from other weights, and one seed from another."""

    def from_slrfast(name: str) -> float:
        return mean(distance(ours, other) for ours, other in zip(curves["slrfast"], curves[name], strict=True))

    return {
        "same_seed": from_slrfast("reference"),
        "other_weights": from_slrfast(MOVED),
        "other_seed": mean(distance(a, b) for a, b in combinations(curves["reference"], 2)),
    }


def measured(steps: int = STEPS) -> dict:
    """All runs, a core each, and their distances; WrongAnswer where slrfast is too far from the reference."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        runs = {name: [pool.submit(curve, *setting, seed, steps) for seed in SEEDS] for name, setting in RUNS.items()}
        curves = {name: [run.result() for run in own] for name, own in runs.items()}
    early = compare({name: [losses[:EARLY] for losses in own] for name, own in curves.items()})
    found = compare(curves)
    for distances in (early, found):
        same, moved, other = distances.values()
        if not (same <= AMPLIFIED * moved and same < other):
            raise harness.WrongAnswer(
                f"slrfast's losses differ from the reference's by more than rounding: {distances}"
            )
    return {"seeds": list(SEEDS), "distance": found, "early_distance": early, "losses": curves}


def record(folder: str | None = None) -> dict:
    """Run and save."""
    run = {"curves": "STC", **harness.facts("cpu"), "results": measured()}
    harness.write(NAME, run, folder)
    return run["results"]


def test_loss_curves(benchmark) -> None:
    results = benchmark.pedantic(record, rounds=1)
    benchmark.extra_info |= results["distance"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", metavar="FOLDER", help="save there instead")
    print(record(parser.parse_args().out)["distance"])
