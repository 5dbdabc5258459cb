import math
import re

import pytest
import torch
from torch.testing import assert_close

import slrfast
from slrfast import ops
from slrfast.reference import info_nce as reference

OP = "info_nce"


def oracle(query, positive, bank, temperature):
    """Loss and rank, row by row, in Python floats."""
    losses, ranks = [], []
    for q, k in zip(query.tolist(), positive.tolist(), strict=True):
        own = sum(a * b for a, b in zip(q, k, strict=True)) / temperature
        scores = [sum(a * b for a, b in zip(q, row, strict=True)) / temperature for row in bank.tolist()]
        top = max([own, *scores])
        losses.append(top + math.log(sum(math.exp(s - top) for s in [own, *scores])) - own)
        ranks.append(sum(s > own for s in scores))
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(ranks)


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    query = torch.tensor([[1.0, 0.0]], device=device)
    bank = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], device=device)
    loss = ops.info_nce(query, query, bank, temperature=0.5)
    assert loss.item() == pytest.approx(math.log(math.exp(2) + 1 + math.exp(-2)) - 2)


@pytest.mark.parametrize(
    ("query_type", "bank_type", "result_type"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_equals_loops(device, randn, query_type, bank_type, result_type):
    query, positive = (randn(5, 6, dtype=query_type, device=device) for _ in range(2))
    bank = randn(11, 6, dtype=bank_type, device=device)
    loss, rank = ops.info_nce(query, positive, bank, temperature=0.3, reduction="none", return_rank=True)
    expected, expected_rank = oracle(query, positive, bank, 0.3)
    assert loss.dtype == result_type and rank.dtype == torch.int64
    assert_close(loss.double().cpu(), expected, rtol=1e-5, atol=1e-5)
    assert_close(rank.cpu(), expected_rank)


def test_reductions(randn):
    query, positive, bank = randn(5, 6), randn(5, 6), randn(11, 6)
    rows = ops.info_nce(query, positive, bank, reduction="none")
    assert rows.shape == (5,)
    assert_close(ops.info_nce(query, positive, bank), rows.mean())
    assert_close(ops.info_nce(query, positive, bank, reduction="sum"), rows.sum())


def test_equals_cross_entropy_of_moco(device, randn):
    query, positive, queue = (randn(*s, device=device) for s in ((7, 16), (7, 16), (16, 50)))
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ queue], 1) / 0.07
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(7, dtype=torch.int64, device=device))
    assert_close(ops.info_nce(query, positive, queue.T), expected)


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_equal_those_of_the_equation(device, randn, reduction):
    query, positive = (randn(5, 6, device=device, requires_grad=True) for _ in range(2))
    bank, weight = randn(11, 6, device=device), randn(5, device=device)
    loss = ops.info_nce(query, positive, bank, temperature=0.3, reduction=reduction)
    got = torch.autograd.grad((loss * weight).sum(), (query, positive))
    rows = reference.info_nce(query.double(), positive.double(), bank.double(), 0.3)
    loss = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    expected = torch.autograd.grad((loss * weight).sum(), (query, positive))
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_gradient_has_the_dtype_of_its_argument(randn):
    query = randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    positive = randn(4, 8, dtype=torch.float16, requires_grad=True)
    bank = randn(9, 8)
    got = torch.autograd.grad(ops.info_nce(query, positive, bank, temperature=1.0), (query, positive))
    assert [g.dtype for g in got] == [torch.bfloat16, torch.float16]
    loss = reference.info_nce(query, positive, bank, 1.0).mean()
    assert_close(got, torch.autograd.grad(loss, (query, positive)))


def test_bank_may_be_overwritten_before_backward(device, randn):
    query = randn(5, 6, device=device, requires_grad=True)
    positive, bank = randn(5, 6, device=device), randn(11, 6, device=device)
    (expected,) = torch.autograd.grad(ops.info_nce(query, positive, bank), query)
    loss = ops.info_nce(query, positive, bank)
    with slrfast.backend("reference"):
        ops.enqueue_(bank, torch.tensor(3, device=device), randn(8, 6, device=device))
    assert_close(torch.autograd.grad(loss, query)[0], expected, rtol=0, atol=0)


def test_saves_one_gradient_per_argument(randn, saved_shapes):
    query, positive, bank = randn(5, 6, requires_grad=True), randn(5, 6), randn(11, 6)
    assert saved_shapes(lambda: ops.info_nce(query, positive, bank)) == [(5, 6)]
    positive.requires_grad_()
    assert saved_shapes(lambda: ops.info_nce(query, positive, bank)) == [(5, 6), (5, 6)]
    with torch.no_grad():
        assert saved_shapes(lambda: ops.info_nce(query, positive, bank)) == []


def test_no_gradient_to_the_bank(randn):
    query, positive, bank = randn(5, 6, requires_grad=True), randn(5, 6), randn(11, 6, requires_grad=True)
    with pytest.warns(UserWarning, match=re.escape("info_nce: bank requires grad, but no gradient flows to it; pass")):
        ops.info_nce(query, positive, bank).backward()
    assert query.grad is not None and positive.grad is None and bank.grad is None
    assert not ops.info_nce(query.detach(), positive, bank.detach()).requires_grad


def test_no_second_derivative(randn):
    query = randn(5, 6, requires_grad=True)
    loss = ops.info_nce(query, randn(5, 6), randn(11, 6)).square()
    (grad,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradcheck(randn):
    query, positive = (randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bank = randn(7, 4, dtype=torch.float64)
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda q, p, r=reduction: ops.info_nce(q, p, bank, temperature=0.5, reduction=r), (query, positive)
        )


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("want_grad", "want_rank"), [(True, True), (False, False)])
def test_opcheck(device, randn, want_grad, want_rank):
    query, positive, bank = (randn(*s, device=device) for s in ((5, 6), (5, 6), (11, 6)))
    permuted = query.T.contiguous().T, positive, bank.T.contiguous().T
    for tensors in ((query, positive, bank), permuted):
        torch.library.opcheck(torch.ops.slrfast.info_nce.default, (*tensors, 0.07, want_grad, want_rank))


def test_compiles_whole(device, randn, compiled):
    query, positive = (randn(5, 6, device=device, requires_grad=True) for _ in range(2))
    bank = randn(11, 6, device=device)

    def step(q, p):
        return ops.info_nce(q, p, bank, return_rank=True)

    loss, rank = step(query, positive)
    got_loss, got_rank = compiled(step)(query, positive)
    assert_close((got_loss, got_rank), (loss, rank))
    expected = torch.autograd.grad(loss, (query, positive))
    assert_close(torch.autograd.grad(got_loss, (query, positive)), expected)


def test_autocast_leaves_the_result_alone(device, randn, compiled):
    query = randn(5, 6, device=device, requires_grad=True)
    positive, bank = randn(5, 6, device=device), randn(11, 6, device=device)
    expected = ops.info_nce(query, positive, bank)
    (expected_grad,) = torch.autograd.grad(expected, query)
    for function in (ops.info_nce, compiled(ops.info_nce)):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = function(query, positive, bank)
        assert loss.dtype == torch.float32
        assert_close(loss, expected)
        assert_close(torch.autograd.grad(loss, query)[0], expected_grad)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "n", "d"), [(1, 1, 1), (1, 252, 7), (3, 507, 123), (3, 70, 140), (2, 0, 4), (0, 5, 4), (2, 5, 0)]
)
def test_ragged_sizes(device, randn, b, n, d):
    query, positive = (randn(b, d, device=device, requires_grad=True) for _ in range(2))
    bank = randn(n, d, device=device)
    loss, rank = ops.info_nce(query, positive, bank, temperature=1.0, reduction="none", return_rank=True)
    expected, expected_rank = oracle(query, positive, bank, 1.0)
    assert_close(loss.double().cpu(), expected, rtol=1e-5, atol=1e-5)
    assert_close(rank.cpu(), expected_rank.to(torch.int64))
    got = torch.autograd.grad(loss.sum(), (query, positive))
    rows = reference.info_nce(query.double(), positive.double(), bank.double(), 1.0)
    assert_close(got, torch.autograd.grad(rows.sum(), (query, positive)), rtol=1e-4, atol=1e-5)


def test_no_rows_have_no_mean(device, randn):
    assert ops.info_nce(*(randn(n, 4, device=device) for n in (0, 0, 5))).isnan()


def test_any_strides(device, randn):
    query, positive, queue = (randn(*s, device=device) for s in ((10, 6), (6, 5), (6, 22)))
    views = query[::2], positive.T, queue.T[::2]
    assert_close(ops.info_nce(*views), ops.info_nce(*(view.contiguous() for view in views)))


def test_large_logits_do_not_overflow(device):
    query = torch.tensor([[100.0]], device=device, requires_grad=True)
    loss = ops.info_nce(query, -query.detach(), query.detach(), temperature=0.01)
    (grad,) = torch.autograd.grad(loss, query)
    assert (loss.item(), grad.item()) == pytest.approx((2e6, 2e4))


def test_rank_counts_only_strictly_better_rows(device):
    query = torch.tensor([[1.0, 0.0]], device=device)
    bank = torch.tensor([[1.0, 5.0], [2.0, 0.0], [1.0, 0.0], [3.0, 1.0], [0.0, 9.0]], device=device)
    assert ops.info_nce(query, query, bank, return_rank=True)[1].tolist() == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_query_spoils_its_row_only(device, randn, value):
    query, positive, bank = (randn(*s, device=device) for s in ((3, 4), (3, 4), (9, 4)))
    clean = ops.info_nce(query, positive, bank, reduction="none")
    query[1, 2] = value
    query.requires_grad_()
    loss = ops.info_nce(query, positive, bank, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), query)
    assert not loss[1].isfinite() and loss[[0, 2]].equal(clean[[0, 2]])
    assert grad[[0, 2]].isfinite().all() and not grad[1].isfinite().all()


def test_nan_in_the_bank_spoils_every_row(device, randn):
    bank = randn(9, 4, device=device)
    bank[3, 0] = math.nan
    assert ops.info_nce(randn(3, 4, device=device), randn(3, 4, device=device), bank, reduction="none").isnan().all()


# ---- errors ---------------------------------------------------------------------------------------------------------

Q, P, N = torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Q, P[:1], N), {}, ValueError, "positive must have shape [B, D] with B = 2, got [1, 3]"),
        ((Q, P, N[:, :2]), {}, ValueError, "bank must have shape [N, D] with D = 3, got [5, 2]"),
        ((Q[0], P, N), {}, ValueError, "query must have shape [B, D], got [3]"),
        (([[1.0]], P, N), {}, TypeError, "query must be a torch.Tensor, got list"),
        ((Q.int(), P, N), {}, TypeError, "query must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((Q, P, N.long()), {}, TypeError, "bank must be float64, float32, bfloat16 or float16, got torch.int64"),
        ((Q, P.to("meta"), N), {}, ValueError, "positive must be on the device of query (cpu), got meta"),
        ((Q, P, N.to("meta")), {}, ValueError, "bank must be on the device of query (cpu), got meta"),
        ((Q, P, N), {"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0.0"),
        ((Q, P, N), {"temperature": -0.1}, ValueError, "temperature must be finite and > 0, got -0.1"),
        ((Q, P, N), {"temperature": math.nan}, ValueError, "temperature must be finite and > 0, got nan"),
        ((Q, P, N), {"temperature": "1"}, TypeError, "temperature must be a number, got str"),
        ((Q, P, N), {"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(f"info_nce: {message}")):
        ops.info_nce(*arguments, **options)
