"""The warning that no gradient flows to a bank, which all memory-bank ops share."""

import warnings

import pytest
import torch

from slrfast import checks, ops

BANK = torch.ones(3, 2)
QUERY = torch.ones(1, 2)
CALLS = {
    "info_nce": lambda bank: ops.info_nce(QUERY, QUERY, bank),
    "neighbor_kl": lambda bank: ops.neighbor_kl(QUERY, BANK, QUERY, bank, 2),
    "topk_similarity": lambda bank: ops.topk_similarity(QUERY, bank, 2),
    "mined_bce": lambda bank: ops.mined_bce(QUERY, bank, torch.zeros(1, 1, dtype=torch.int64)),
    "bank_losses": lambda bank: ops.bank_losses(QUERY, QUERY, bank, None),
    "enqueue_": lambda bank: ops.enqueue_(bank, torch.tensor(0), QUERY),
}


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield caught


@pytest.mark.parametrize("op", CALLS)
def test_names_the_op_the_bank_and_the_line_that_called(op, caught):
    CALLS[op](torch.nn.Parameter(BANK.clone()))
    (warning,) = caught
    name = "student_bank" if op == "neighbor_kl" else "bank"
    expected = f"{op}: {name} requires grad, but no gradient flows to it; pass {name}.detach()"
    assert str(warning.message) == expected and warning.category is UserWarning
    assert warning.filename == __file__ and warning.lineno == CALLS[op].__code__.co_firstlineno


def test_once_per_line(caught):
    bank = torch.nn.Parameter(BANK.clone())
    for _ in range(3):
        ops.info_nce(QUERY, QUERY, bank)
    ops.info_nce(QUERY, QUERY, bank)
    assert len(caught) == 2


@pytest.mark.parametrize("op", CALLS)
def test_silent_without_reason(op, caught):
    CALLS[op](BANK.clone())
    CALLS[op](torch.nn.Parameter(BANK.clone()).detach())
    with torch.no_grad():
        CALLS[op](torch.nn.Parameter(BANK.clone()))
    assert caught == []


def test_silent_in_a_compiled_graph(caught, compiled):
    bank = torch.nn.Parameter(BANK.clone())

    def function(query):
        checks.no_gradient("op", bank=bank)
        return ops.info_nce(query, query, bank)

    assert compiled(function)(QUERY).item() == pytest.approx(ops.info_nce(QUERY, QUERY, BANK).item())
    assert [warning for warning in caught if "requires grad" in str(warning.message)] == []
