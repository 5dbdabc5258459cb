"""The benchmarks of the memory-bank losses at sizes that take no time: every candidate gives what float64 gives."""

import dataclasses
import importlib

import pytest
import torch

from benchmarks import harness, memory
from benchmarks.baselines import bank

SIZES = {
    "info_nce": {"SHAPES": {"small": (2, 3, 40, 8)}},
    "neighbor_kl": {"SHAPES": {"one": (3, 40, 8, 20, 1), "both": (3, 40, 8, 20, 2)}},
    "topk_similarity": {"SHAPES": {"few": (3, 40, 8, 4), "all": (3, 40, 8, 40)}},
    "mined_bce": {"B": 3, "N": 40, "D": 8, "MINED": 4},
    "bank_losses": {"B": 3, "N": 40, "D": 8, "MINED": 4},
    "feature_kl": {"SHAPES": {"small": (3, 8)}},
    "enqueue": {"SHAPES": {"small": (4, 40, 8)}},
}


def check(case):
    """Without compiling; float32 sums of this length agree to 1e-5, and bfloat16 to a tenth."""
    calls = {name: call for name, call in case.candidates.items() if "compile" not in name}
    limits = {name: 0.1 if "bf16" in name else 1e-5 for name in calls}
    own = {name: limit for name, limit in limits.items() if "bf16" in name or not harness.is_ours(name)}
    found = harness.errors(dataclasses.replace(case, candidates=calls, tolerances=own, rounding=1e-5))
    assert all(found[name] <= limits[name] for name in calls) and {"slrfast", "eager"} <= set(calls)


@pytest.mark.parametrize("op", SIZES)
def test_candidates_agree_with_float64(op, monkeypatch):
    module = importlib.import_module(f"benchmarks.ops.{op}")
    for name, value in SIZES[op].items():
        monkeypatch.setattr(module, name, value)
    cases = list(module.cases("cpu"))
    assert cases
    for case in cases:
        check(case)


def test_the_whole_loss_is_the_same_sum_in_all_candidates(monkeypatch):
    from benchmarks.systems import stc_loss

    small = dataclasses.replace(stc_loss.config(), bank_size=64, neighbors=32, embedding=16, batch_size=4)
    monkeypatch.setattr(stc_loss, "config", lambda dtype="float32": dataclasses.replace(small, bank_dtype=dtype))
    cases = list(stc_loss.cases("cpu"))
    assert [case.threads for case in cases] == [2, 1]
    check(cases[0])


def test_the_momentum_update_is_checked_from_one_start(monkeypatch):
    from benchmarks.systems import ema, stc_loss

    small = stc_loss.config()
    monkeypatch.setattr(ema.STCConfig, "paper", lambda: small)
    (case,) = ema.cases("cpu")
    check(case)
    with pytest.raises(harness.WrongAnswer):  # a second step is not the one that the truth makes
        check(case)


def test_peak_memory_counts_what_a_call_allocates():
    from benchmarks.systems import bank_memory

    b, n, d = 64, 8192, 4
    own, whole = memory.peaks(bank_memory.MODULE, bank_memory.LOSSES, "cpu", b, n, d).values()
    logits = 4 * b * n
    assert 2 * logits < own["eager"] < 20 * logits and 0 <= own["slrfast"]
    assert all(whole[name] >= own[name] + 4 * n * d for name in own)  # and the bank


def test_dense_labels_are_the_union_of_what_both_modalities_mine():
    queues = [torch.eye(4)[:, order] for order in ([0, 1, 2, 3], [3, 2, 1, 0])]
    g = [torch.tensor([[9.0, 8.0, 1.0, 0.0]])] * 2
    loss = bank.mined_bce([torch.zeros(1, 4)] * 2, queues, g, queues, 2, 0.5)
    assert torch.cat([bank.mine(x, queue, 2) for x, queue in zip(g, queues, strict=True)]).tolist() == [[0, 1], [3, 2]]
    assert loss.item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item())  # all logits 0
    towards = bank.dense_bce(torch.eye(4)[:1], queues[0], torch.eye(4)[:1], 1.0)
    away = bank.dense_bce(torch.eye(4)[:1], queues[0], torch.eye(4)[1:2], 1.0)
    assert (away - towards).item() == pytest.approx(1 / 4)  # one logit of 1, as a mean over the bank
