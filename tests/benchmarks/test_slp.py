"""SLP's step, packed and padded: both are compared with float64 before they are timed."""

import dataclasses

import pytest
import torch

from benchmarks import harness
from benchmarks.baselines import slp as baseline
from slrfast.data import Clip, PoseBatch

TINY = {
    "gcn_channels": (4, 4, 8, 8, 8), "dim": 8, "branch_dim": 8, "heads": 2, "layers": 1, "manual_ffn": 16,
    "non_manual_ffn": 12, "decoder_hidden": 12, "embedding": 6, "text_dim": 5,
}  # fmt: skip


@pytest.fixture
def cases(monkeypatch):
    from benchmarks.systems import slp

    def few(count):
        noise = [PoseBatch.random(1, min_frames=n, max_frames=n, seed=n) for n in (5, 9, 16)[:count]]
        return "short", [Clip(one.xy, one.confidence) for one in noise]

    monkeypatch.setattr(slp, "QUARTER", TINY)
    monkeypatch.setattr(slp, "CLIPS", {"cpu": (3, 16)})
    monkeypatch.setattr(slp, "real_clips", few)
    return list(slp.cases("cpu"))


def test_packed_and_padded_steps_agree_with_float64(cases):
    real, paper = cases
    assert real.shapes == {"lengths": [5, 9, 16], "padded": (3, 16, 79, 2), "words": real.shapes["words"]}
    assert real.name.startswith("short lengths, 38% of the padded frames are padding")  # 18 of 48
    assert paper.shapes["lengths"][-1] == 256 and paper.shapes["lengths"][:-1] == sorted(paper.shapes["lengths"][:-1])
    assert paper.shapes["lengths"][0] == 25 and paper.shapes["lengths"][-2] == 100
    found = harness.errors(dataclasses.replace(real, rounding=1e-5))
    assert set(found) == {"slrfast", "padded"} and found["slrfast"] < 1e-4
    assert not torch.equal(real.candidates["slrfast"]()[2], real.checked["slrfast"]()[2])  # dropout


def test_a_step_that_attends_to_padding_is_not_timed(cases, monkeypatch):
    encoded = baseline.encoded

    def slipped(system, xy, present):
        return encoded(system, xy, torch.ones_like(present) if xy.dtype == torch.float32 else present)

    monkeypatch.setattr(baseline, "encoded", slipped)
    with pytest.raises(harness.WrongAnswer, match="padded"):
        harness.errors(cases[0])
