"""The benchmarks of SLP's ops at sizes that take no time: every candidate gives what float64 gives."""

import dataclasses
import importlib

import pytest

from benchmarks import harness

SIZES = {
    "masked_pose_loss": {"SHAPES": {"small": (3, 20)}},
    "sign_text_similarity": {"SHAPES": {"all": (3, 4, 7, False), "ragged": (3, 9, 8, True)}, "D": 16},
}


@pytest.mark.parametrize("op", SIZES)
def test_candidates_agree_with_float64(op, monkeypatch):
    module = importlib.import_module(f"benchmarks.ops.{op}")
    for name, value in SIZES[op].items():
        monkeypatch.setattr(module, name, value)
    cases = list(module.cases("cpu"))
    for case in cases:
        calls = {name: call for name, call in case.candidates.items() if "compile" not in name}
        assert {"slrfast", "eager"} <= set(calls)
        found = harness.errors(dataclasses.replace(case, candidates=calls, rounding=1e-5))
        assert all(error <= (0.03 if "bf16" in name else 1e-5) for name, error in found.items())
        assert case.truth()[-1].any() and case.bytes > 0 and case.flops > 0
    assert cases


def test_memory_is_measured(monkeypatch):
    module = importlib.import_module("benchmarks.ops.sign_text_similarity")
    monkeypatch.setattr(module, "SHAPES", {"small": (2, 3, 4, False)})
    (case,) = module.cases("cpu")
    assert set(case.memory()["peak_bytes"]) == {"slrfast", "eager"}
