"""The benchmarks of MASA's ops at sizes that take no time: every candidate gives what float64 gives."""

import dataclasses
import importlib

import pytest

from benchmarks import harness

SIZES = {
    "motion_mask": {"small": (3, 20)},
    "masked_motion_loss": {"small": (3, 20)},
    "gather_visible": {"small": (3, 8, 5)},
    "scatter_tokens": {"small": (3, 8, 5)},
}


@pytest.mark.parametrize("op", SIZES)
def test_candidates_agree_with_float64(op, monkeypatch):
    module = importlib.import_module(f"benchmarks.ops.{op}")
    monkeypatch.setattr(module, "SHAPES", SIZES[op])
    cases = list(module.cases("cpu"))
    for case in cases:
        calls = {name: call for name, call in case.candidates.items() if "compile" not in name}
        assert {"slrfast", "eager"} <= set(calls)
        assert all(error <= 1e-6 for error in harness.errors(dataclasses.replace(case, candidates=calls)).values())
        assert case.truth()[-1].any() and case.bytes > 0
    assert cases
