"""The loader benchmark's gate: the field's code makes the same crops and, told the same changes, the same views."""

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.baselines import loader as field
from benchmarks.harness import Case
from benchmarks.systems import loader
from slrfast.data import SyntheticSigns


@pytest.fixture
def small(monkeypatch):
    for name, value in {"BATCH": 3, "CLIPS": 6, "CLASSES": 2}.items():
        monkeypatch.setattr(loader, name, value)
    monkeypatch.setattr(
        harness, "measure", lambda case: {"error": harness.errors(case), "seconds": dict.fromkeys(case.candidates, 0.5)}
    )


def test_every_case_passes_its_gate(small):
    names = []
    for case in loader.cases("cpu"):
        if isinstance(case, Case):
            names.append(case.name)
            assert harness.errors(case)["slrfast"] < 1e-6
            for name in case.candidates:
                case.candidates[name]()
        else:
            assert case["batches_per_second"]["slrfast"] == 4 and case["times_a_step_of_60_ms"]["eager"] == 0.24
            assert max(case["error"].values()) == 0
    assert [name.split()[0] for name in names] == ["two", "crops", "from"]


def test_the_gate_notices_another_window(small, monkeypatch):
    draw = loader.drawn
    monkeypatch.setattr(loader, "drawn", lambda system, batch, seed: draw(system, batch, seed + 1))
    with pytest.raises(harness.WrongAnswer):
        harness.errors(next(iter(loader.cases("cpu"))))


@pytest.mark.parametrize("size", [(640, 480), (90, 300)])
def test_crops_at_every_border(size):
    signs = SyntheticSigns(num_classes=3, clips_per_class=3, size=size, noise=3)
    for i, clip in enumerate(signs):
        pose = signs.pose(i)
        keypoints = np.concatenate((pose.xy[:, 0], pose.confidence[:, 0, :, None]), -1)
        xy, confidence = field.crop_video({"video_data": {"keypoints": keypoints}, "img_size": np.array([size])})
        assert np.abs(xy - clip.xy.numpy()).max() < 1e-6 and (confidence == clip.confidence.numpy()).all()
