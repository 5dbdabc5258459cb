"""The benchmark of a fine-tuning epoch: what it times is the real loop on all clips, and what it writes can be read."""

import json

import pytest
import torch

from benchmarks import harness
from benchmarks.accuracy import epoch
from slrfast.data import PoseDataset, SyntheticSigns, pack
from slrfast.systems import STCConfig


@pytest.fixture
def clips(tmp_path, monkeypatch):
    monkeypatch.setattr(epoch, "CLASSES", 3)
    monkeypatch.setattr(epoch, "ROUNDS", 1)
    signs = SyntheticSigns(num_classes=3, clips_per_class=4)
    monkeypatch.setattr(epoch, "real_clips", lambda count: ("synthetic", [signs[i] for i in range(12)]))
    pack(epoch.labelled([signs[i] for i in range(12)]), tmp_path / "store")
    return PoseDataset(tmp_path / "store")


def tiny():
    return STCConfig.small(frames=4, bank_size=16, neighbors=8)


def test_part_of_an_epoch_is_stated_for_the_whole(clips, tmp_path, monkeypatch):
    seen, judged = [], []
    load, metrics = epoch.load_batches, epoch.recognition_metrics

    def loaded(*args, **how):
        for batch in load(*args, **how):
            seen.extend(batch.index.tolist())
            yield batch

    monkeypatch.setattr(epoch, "load_batches", loaded)
    monkeypatch.setattr(epoch, "recognition_metrics", lambda *args: judged.append(len(args[0])) or metrics(*args))
    made = epoch.measure(epoch.Size("tiny", tiny, 4, steps=2), clips, tmp_path, "cpu")
    assert made["measured_steps"] == 2 and made["steps"] == 3 and made["clips"] == 12
    assert sorted(seen) == sorted([*range(12)] * 2) and judged == [12, 12]
    lines = [json.loads(line) for line in (tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()]
    seconds = made["seconds"]
    assert lines[-1]["step"] == 2 and seconds["epoch"] == pytest.approx(1.5 * lines[-1]["seconds"], rel=0.5)
    assert made["share"] == pytest.approx((seconds["loader"] + seconds["metrics"]) / seconds["epoch"])
    assert sorted(torch.tensor(clips.labels).bincount().tolist()) == [4, 4, 4]


def test_what_is_recorded(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(epoch, "SIZES", (epoch.Size("small", tiny, 4),))
    evidence = epoch.run("cpu", ["small"])
    path = harness.write("epoch", evidence, tmp_path / "results")
    told = json.loads(path.read_text())
    assert path.name == f"epoch-{told['commit']}.json" and told["epoch"] == "islr" and told["data"] == "synthetic"
    assert [case["name"] for case in told["cases"]] == ["small"] and min(told["cases"][0]["seconds"].values()) > 0
