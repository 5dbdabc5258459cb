"""The benchmark of CCL-SLR's whole loss at sizes that take no time: every candidate gives what float64 gives."""

import dataclasses

import pytest

from benchmarks import harness
from benchmarks.systems import ccl_loss


@pytest.fixture
def cases(monkeypatch):
    small = dataclasses.replace(
        ccl_loss.config(), bank_size=64, embedding=16, batch_size=4, positives=3, rgb_width=2, dim=16
    )
    monkeypatch.setattr(ccl_loss, "config", lambda dtype="float32": dataclasses.replace(small, bank_dtype=dtype))
    found = list(ccl_loss.cases("cpu"))
    assert [case.threads for case in found] == [2, 1]
    return found


def without_compiling(case):
    calls = {name: call for name, call in case.candidates.items() if "compile" not in name}
    assert {"slrfast", ccl_loss.BF16, ccl_loss.BF16_QUERIES, "eager", ccl_loss.SHARED} == set(calls)
    limits = {name: 0.2 for name in calls if "bf16" in name}  # of so few rows a neighbour more or less is much
    return dataclasses.replace(case, candidates=calls, tolerances=limits, rounding=1e-6)


def test_candidates_agree_with_float64(cases):
    found = harness.errors(without_compiling(cases[0]))
    assert max(found[name] for name in ("slrfast", "eager", ccl_loss.SHARED)) < 1e-5


def test_a_loss_without_a_term_is_not_timed(cases, monkeypatch):
    from slrfast.systems.ccl import CCL

    positives = CCL.positives
    monkeypatch.setattr(CCL, "positives", lambda self, query: positives(self, query)[:, :3])  # of one modality
    with pytest.raises(harness.WrongAnswer, match="slrfast"):
        harness.errors(without_compiling(cases[0]))


def test_the_least_that_has_to_be_done(cases):
    b, n, d, g = 4, 64, 16, 64 + 32
    assert cases[0].flops == 2 * b * n * g + 2 * (4 * b * n * d + 4 * b * n * d + 2 * b * n * d)
    assert cases[0].bytes >= 4 * n * (g + 2 * d)
