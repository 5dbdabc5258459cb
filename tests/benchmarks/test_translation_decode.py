"""The benchmark of translation at a size that takes no time: torch's decoder and ours are the same network."""

import pytest
import torch

from benchmarks import harness
from benchmarks.systems import translation_decode

SMALL = {"LENGTHS": (1, 5), "CLIPS": {"cpu": 3}, "FRAMES": 7, "DIM": 16, "HEADS": 2, "FFN": 24, "VOCABULARY": 30}


def test_candidates_agree_with_float64(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(translation_decode, name, value)
    for case, length in zip(translation_decode.cases("cpu"), SMALL["LENGTHS"], strict=True):
        assert max(harness.errors(case).values()) < 1e-5
        (tokens,), (theirs,) = (case.candidates[name]() for name in ("slrfast", "eager"))
        assert tokens.shape == (3, length) and torch.equal(tokens, theirs) and tokens.min() > 0


def test_a_wrong_cache_is_noticed(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(translation_decode, name, value)
    monkeypatch.setattr(translation_decode.DecoderCache, "select", lambda self, rows: None)
    _, case = translation_decode.cases("cpu")
    with pytest.raises(harness.WrongAnswer, match="slrfast is off by"):
        harness.errors(case)
