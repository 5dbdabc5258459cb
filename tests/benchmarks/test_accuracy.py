"""The accuracy runs: which clips train and which test, the ridge baseline, the table."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.accuracy import ridge, run, table
from benchmarks.accuracy.data import _absolute
from benchmarks.accuracy.recipes import RECIPES, ROWS, finetuning, system_config
from slrfast.data import Clip, ClipDataset, SyntheticSigns
from slrfast.data.batch import PoseBatch
from slrfast.tasks.recognition import Recognizer


def clips_of(rows):
    """Clips of (label, group, split)."""
    xy, confidence = torch.rand(5, 49, 2), torch.ones(5, 49)
    clips = [Clip(xy, confidence, label, f"{i}", group, split=split) for i, (label, group, split) in enumerate(rows)]
    return ClipDataset(clips, [f"c{i}" for i in range(400)])


def test_duplicates_of_test_clips_train_nothing():
    clips = clips_of([(0, "", "train"), (1, "7", "train"), (0, "7", "val"), (1, "8", "train"), (150, "", "val")])
    assert run.pretraining_clips(clips) == [0, 3]
    assert run.divisions("wlasl100", clips) == [([0, 3], [2])]
    assert run.divisions("wlasl300", clips) == [([0, 3], [2, 4])]


def test_each_signer_is_left_out_once_and_transitions_are_not_recognised():
    clips = clips_of([(0, "S1", "sign"), (1, "S2", "sign"), (-1, "S1", "transition"), (1, "S1", "sign")])
    assert run.divisions("nepali", clips) == [([1], [0, 3]), ([0, 3], [1])]


def test_ridge_solves_its_equation():
    x, queries, labels = torch.randn(12, 5), torch.randn(4, 5), torch.arange(12) % 3
    mean, deviation = x.double().mean(0), x.double().std(0)
    z, q = (x - mean) / deviation, (queries - mean) / deviation
    target = torch.nn.functional.one_hot(labels, 3).double()
    weight = torch.linalg.solve(z.T @ z + 2.0 * torch.eye(5), z.T @ (target - target.mean(0)))
    torch.testing.assert_close(ridge.scores(x, labels, queries, 3, 2.0), q @ weight + target.mean(0))


def test_ridge_tells_synthetic_signs_apart():
    clips = SyntheticSigns(num_classes=3, clips_per_class=8, num_signers=4)
    train = [i for i in range(len(clips)) if clips[i].group != "signer0"]
    test = [i for i in range(len(clips)) if clips[i].group == "signer0"]
    labels = torch.tensor(clips.labels)
    scores = ridge.scores(ridge.features(clips, train), labels[train], ridge.features(clips, test), 3, 10.0)
    assert (scores.argmax(1) == labels[test]).float().mean() > 0.8


def test_hands_are_put_back_where_they_were():
    frames, size = 2, (1000.0, 500.0)
    hand = np.random.default_rng(0).uniform(-0.5, 0.5, (frames, 21, 2)).astype(np.float32)
    hand[:, 0] = 0
    part = {
        "pose": np.zeros((frames, 33, 3), np.float32), "right": hand, "left": np.zeros_like(hand),
        "right_meta": np.tile(np.float32([0.3, 0.4, 0.1]), (frames, 1)), "left_meta": np.zeros((frames, 3), np.float32),
    }  # fmt: skip
    pose = _absolute(part, size)
    assert pose.size == (640, 320)
    expected = (hand * 0.1 + [0.3, 0.4]) * [640, 320]
    np.testing.assert_allclose(pose.xy[:, 0, :21], expected, rtol=1e-4, atol=1e-3)
    assert pose.confidence[:, 0, :21].all() and not pose.confidence[:, 0, 21:42].any()
    assert pose.confidence[0, 0].sum() == 22  # the hand, and its root as the trunk's wrist


@pytest.mark.parametrize("name", ROWS)
def test_every_row_builds_in_both_sizes_and_trains_in_the_small_one(name):
    row = ROWS[name]
    recipe = RECIPES[row.recipe]
    config = replace(system_config(row, "small"), **({"bank_size": 8} if row.recipe != "SLP" else {}),
                     **({"neighbors": 4} if row.recipe == "STC" else {}))  # fmt: skip
    system_config(row, "paper")
    system = recipe.system(config)
    batch = PoseBatch.random(2, min_frames=20, max_frames=24, keypoints=recipe.layout)
    assert torch.isfinite(system.training_step(batch)["loss"])
    model = Recognizer(finetuning(row, "small", "wlasl100"), system, [f"c{i}" for i in range(10)])
    assert torch.isfinite(model.training_step(batch)["loss"])
    finetuning(row, "paper", "wlasl100")


def cell(what, row, seed, **ways):
    parts = [{"clips": 4, **{way: {"top1_instance": value} for way, value in ways.items()}}]
    return {"set": what, "row": row, "seed": seed, "parts": parts}


def test_table_has_means_spreads_and_differences_of_common_seeds(tmp_path, monkeypatch):
    cells = [cell("wlasl100", "ridge", 0, ridge=0.35), {"set": "pretrain", "row": "STC", "seed": 0}]
    cells += [cell("wlasl100", "STC", s, finetune=f, probe=0.4) for s, f in enumerate((0.5, 0.6))]
    cells += [cell("wlasl100", "scratch", s, finetune=0.45, probe=0.2) for s in range(2)]
    found = {"accuracy": "small", "machine": "cpu-x", "commit": "abc", "cells": cells}
    text = table.render(found)
    assert "| ridge | 35.0 |  | 1 |" in text
    fewer = [cell for cell in cells if (cell["row"], cell["seed"]) != ("STC", 0)]
    assert "| STC, above the same network from scratch | +15.0 | +20.0 |" in table.render(found | {"cells": fewer})
    assert "| STC | 55.0 ± 7.1 | 40.0 ± 0.0 | 2 |" in text
    assert "| | WLASL100, fine-tuned | WLASL100, linear probe |" in text
    assert "| STC, above the same network from scratch | +10.0 ± 5.0 | +20.0 ± 0.0 |" in text
    assert "| STC, above ridge | +20.0 ± 5.0 | +5.0 ± 0.0 |" in text
    assert "joints alone" not in text
    assert "Nepali" not in text
    shown = []
    monkeypatch.setattr(table.Figure, "savefig", lambda figure, *_, **__: shown.append(figure))
    fewer = [cell("wlasl300", "STC", 0, finetune=0.3, probe=0.2)]
    table.draw(found | {"cells": cells + fewer}, tmp_path / "a.png")
    first = shown[0].axes[0]
    rows = {label.get_text(): place for place, label in zip(first.get_yticks(), first.get_yticklabels(), strict=True)}
    assert rows == {"STC": 0, "scratch": 1, "ridge": 2}  # of every panel: they share the axis
    (bar,) = [bar for bar in shown[0].axes[1].patches if bar.get_width() == 30.0]
    assert bar.get_y() < 0.2 < bar.get_y() + bar.get_height()
    monkeypatch.undo()
    table.draw(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_cells_are_recorded_with_machine_and_commit(tmp_path, monkeypatch):
    runs = run.Runs(tmp_path, tmp_path, "small", "cpu")
    runs.write(runs.cell("wlasl100", "STC, joint alone", 2), {"parts": []})
    monkeypatch.setattr(run.harness, "RESULTS", tmp_path / "results")
    found = json.loads(run.record(runs).read_text())
    assert found["accuracy"] == "small" and found["machine"] and found["commit"]
    assert [(c["set"], c["row"], c["seed"]) for c in found["cells"]] == [("wlasl100", "STC, joint alone", 2)]
