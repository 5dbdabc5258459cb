import math
import re

import pytest
import torch
from torch.testing import assert_close

import slrfast
from slrfast import ops
from slrfast.reference import mined_bce as reference

OP = "mined_bce"


def softplus(z):
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def oracle(query, bank, positives, temperature):
    """Loss, row by row and bank row by bank row, in Python floats, with the labels of the equation."""
    losses = []
    for q, chosen in zip(query.tolist(), positives.tolist(), strict=True):
        loss = 0.0
        for i, row in enumerate(bank.tolist()):
            z = sum(a * b for a, b in zip(q, row, strict=True)) / temperature
            loss += softplus(-z) if i in chosen else softplus(z)
        losses.append(loss / len(bank))
    return torch.tensor(losses, dtype=torch.float64)


def equation(query, bank, positives, temperature):
    """Loss [B] by torch's own binary cross-entropy with dense labels."""
    labels = torch.zeros(query.shape[0], bank.shape[0] + 1, dtype=query.dtype, device=query.device)
    labels = labels.scatter_(1, positives.where(positives >= 0, bank.shape[0]), 1.0)[:, :-1]
    logits = query @ bank.T / temperature
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


@pytest.fixture
def positives(device):
    """[5, 4] into a bank of 11 rows: first and last row, repeats, padding anywhere, nothing at all, all different."""
    rows = [[0, 10, 3, 7], [4, 4, 4, 4], [-1, 2, -1, 2], [-1, -1, -1, -1], [9, 1, 9, -1]]
    return torch.tensor(rows, device=device)


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    query = torch.tensor([[1.0, 0.0]], device=device)
    bank = torch.tensor([[0.5, 1.0], [-1.0, 0.0], [0.0, 9.0]], device=device)
    loss = ops.mined_bce(query, bank, torch.tensor([[0]], device=device), temperature=0.5)
    # z = (1, -2, 0), y = (1, 0, 0)
    expected = -math.log(1 / (1 + math.exp(-1))) - math.log(1 - 1 / (1 + math.exp(2))) - math.log(0.5)
    assert loss.item() == pytest.approx(expected / 3)


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
def test_equals_loops(device, randn, positives, query_type, bank_type, result_type):
    query, bank = randn(5, 6, dtype=query_type, device=device), randn(11, 6, dtype=bank_type, device=device)
    loss = ops.mined_bce(query, bank, positives, temperature=0.3, reduction="none")
    assert loss.dtype == result_type
    assert_close(loss.double().cpu(), oracle(query, bank, positives, 0.3), rtol=1e-5, atol=1e-5)


def test_reductions(randn):
    query, bank, positives = randn(5, 6), randn(11, 6), torch.arange(10).view(5, 2)
    rows = ops.mined_bce(query, bank, positives, reduction="none")
    assert rows.shape == (5,)
    assert_close(ops.mined_bce(query, bank, positives), rows.mean())
    assert_close(ops.mined_bce(query, bank, positives, reduction="sum"), rows.sum())


def test_union_of_two_minings_equals_the_maximum_of_their_labels(device, randn):
    query, bank = randn(7, 16, device=device), randn(50, 16, device=device)
    minings = [torch.randn(7, 50, generator=torch.Generator().manual_seed(s)).topk(10).indices for s in (0, 1)]
    labels = torch.stack([torch.zeros(7, 50).scatter_(1, mining, 1.0) for mining in minings]).amax(0).to(device)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(query @ bank.T / 0.02, labels)
    assert_close(ops.mined_bce(query, bank, torch.cat(minings, 1).to(device)), expected)


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradient_equals_that_of_the_equation(device, randn, positives, reduction):
    query = randn(5, 6, device=device, requires_grad=True)
    bank, weight = randn(11, 6, device=device), randn(5, device=device)
    loss = ops.mined_bce(query, bank, positives, temperature=0.3, reduction=reduction)
    (got,) = torch.autograd.grad((loss * weight).sum(), query)
    rows = equation(query.double(), bank.double(), positives, 0.3)
    loss = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    (expected,) = torch.autograd.grad((loss * weight).sum(), query)
    assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_the_reference_without_a_gradient_is_the_equation(randn):
    query, bank = randn(5, 6, dtype=torch.float64, requires_grad=True), randn(11, 6, dtype=torch.float64)
    positives = torch.tensor([[0, 3], [3, 3], [-1, 1], [-1, -1], [10, -1]])
    got, expected = (f(query, bank, positives, 0.05) for f in (reference.mined_bce, equation))
    assert_close(got, expected, rtol=1e-12, atol=1e-14)
    weight = randn(5, dtype=torch.float64)
    grads = [torch.autograd.grad((loss * weight).sum(), query) for loss in (got, expected)]
    assert_close(*grads, rtol=1e-12, atol=1e-14)


def test_gradient_has_the_dtype_of_the_query(randn):
    query = randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    bank, positives = randn(9, 8), torch.arange(8).view(4, 2)
    (got,) = torch.autograd.grad(ops.mined_bce(query, bank, positives, temperature=1.0), query)
    (expected,) = torch.autograd.grad(equation(query.float(), bank, positives, 1.0).mean(), query)
    assert got.dtype == torch.bfloat16
    assert_close(got, expected)


def test_bank_may_be_overwritten_before_backward(device, randn, positives):
    query, bank = randn(5, 6, device=device, requires_grad=True), randn(11, 6, device=device)
    (expected,) = torch.autograd.grad(ops.mined_bce(query, bank, positives), query)
    loss = ops.mined_bce(query, bank, positives)
    with slrfast.backend("reference"):
        ops.enqueue_(bank, torch.tensor(3, device=device), randn(8, 6, device=device))
    positives.zero_()
    assert_close(torch.autograd.grad(loss, query)[0], expected, rtol=0, atol=0)


def test_saves_the_gradient_only(randn, saved_shapes):
    query, bank, positives = randn(5, 6, requires_grad=True), randn(11, 6), torch.arange(10).view(5, 2)
    assert saved_shapes(lambda: ops.mined_bce(query, bank, positives)) == [(5, 6)]
    with torch.no_grad():
        assert saved_shapes(lambda: ops.mined_bce(query, bank, positives)) == []


def test_no_gradient_to_the_bank(randn):
    query, bank, positives = randn(5, 6, requires_grad=True), randn(11, 6, requires_grad=True), torch.arange(5)[:, None]
    with pytest.warns(UserWarning, match=re.escape("mined_bce: bank requires grad, but no gradient flows to it; pass")):
        ops.mined_bce(query, bank, positives).backward()
    assert query.grad is not None and bank.grad is None
    assert not ops.mined_bce(query.detach(), bank.detach(), positives).requires_grad


def test_no_second_derivative(randn):
    query = randn(5, 6, requires_grad=True)
    loss = ops.mined_bce(query, randn(11, 6), torch.arange(5)[:, None]).square()
    (grad,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradcheck(randn):
    query, bank = randn(3, 4, dtype=torch.float64, requires_grad=True), randn(7, 4, dtype=torch.float64)
    positives = torch.tensor([[6, 0, 6], [-1, 2, 3], [-1, -1, -1]])
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda q, r=reduction: ops.mined_bce(q, bank, positives, temperature=0.5, reduction=r), query
        )


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want_grad", [True, False])
def test_opcheck(device, randn, positives, want_grad):
    tensors = randn(5, 6, device=device), randn(11, 6, device=device), positives
    for arguments in (tensors, [tensor.T.contiguous().T for tensor in tensors]):
        torch.library.opcheck(torch.ops.slrfast.mined_bce.default, (*arguments, 0.02, want_grad))


def test_compiles_whole_and_under_autocast(device, randn, compiled, positives):
    query, bank = randn(5, 6, device=device, requires_grad=True), randn(11, 6, device=device)
    expected = ops.mined_bce(query, bank, positives)
    (expected_grad,) = torch.autograd.grad(expected, query)
    for function in (ops.mined_bce, compiled(ops.mined_bce)):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = function(query, bank, positives)
        assert loss.dtype == torch.float32
        assert_close(loss, expected)
        assert_close(torch.autograd.grad(loss, query)[0], expected_grad)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "n", "d", "m"),
    [
        (1, 1, 1, 1),
        (1, 252, 7, 252),
        (3, 507, 123, 20),
        (3, 70, 140, 20),
        (2, 5, 4, 0),
        (0, 5, 4, 2),
        (3, 5, 0, 2),
        (2, 3, 4, 70),
    ],
)
def test_ragged_sizes(device, randn, b, n, d, m):
    query, bank = randn(b, d, device=device, requires_grad=True), randn(n, d, device=device)
    positives = torch.randint(-1, n, (b, m), generator=torch.Generator().manual_seed(0)).to(device)
    loss = ops.mined_bce(query, bank, positives, temperature=1.0, reduction="none")
    assert_close(loss.double().cpu(), oracle(query, bank, positives, 1.0), rtol=1e-5, atol=1e-5)
    (got,) = torch.autograd.grad(loss.sum(), query)
    (expected,) = torch.autograd.grad(equation(query.double(), bank.double(), positives, 1.0).sum(), query)
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_no_rows_have_no_mean(device, randn):
    loss = ops.mined_bce(randn(0, 4, device=device), randn(5, 4, device=device), torch.zeros(0, 2).long().to(device))
    assert loss.isnan()


def test_any_strides(device, randn):
    query, queue = randn(12, 5, device=device).T[:, ::2], randn(6, 22, device=device).T[::2]
    positives = torch.arange(40, device=device).remainder(11).view(8, 5).T[:, ::2]
    views = query, queue, positives
    assert_close(ops.mined_bce(*views), ops.mined_bce(*(view.contiguous() for view in views)))
    one = positives[:, :1].expand(5, 4)
    assert_close(ops.mined_bce(query, queue, one), ops.mined_bce(query, queue, positives[:, :1]))


def test_large_logits_do_not_overflow(device):
    query = torch.tensor([[100.0]], device=device, requires_grad=True)
    bank, positives = torch.tensor([[100.0], [-100.0], [-100.0]], device=device), torch.tensor([[1]], device=device)
    loss = ops.mined_bce(query, bank, positives, temperature=0.01)
    (grad,) = torch.autograd.grad(loss, query)
    assert (loss.item(), grad.item()) == pytest.approx((2e6 / 3, 2e4 / 3))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_query_spoils_its_row_only(device, randn, positives, value):
    query, bank = randn(5, 6, device=device), randn(11, 6, device=device)
    clean = ops.mined_bce(query, bank, positives, reduction="none")
    query[1, 2] = value
    query.requires_grad_()
    loss = ops.mined_bce(query, bank, positives, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), query)
    others = [0, 2, 3, 4]
    assert not loss[1].isfinite() and loss[others].equal(clean[others]) and grad[others].isfinite().all()


def test_nan_in_the_bank_spoils_every_row(device, randn, positives):
    query, bank = randn(5, 6, device=device, requires_grad=True), randn(11, 6, device=device)
    bank[8, 0] = math.nan
    loss = ops.mined_bce(query, bank, positives, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), query)
    assert loss.isnan().all() and grad.isnan().any(1).all()


def test_inside_a_compiled_graph_an_index_out_of_range_is_padding(device, randn, compiled):
    query, bank = randn(2, 6, device=device, requires_grad=True), randn(11, 6, device=device)
    outside = torch.tensor([[3, 11, 2**40], [-2, -(2**40), 10]], device=device)
    inside = torch.tensor([[3, -1, -1], [-1, -1, 10]], device=device)
    loss, expected = compiled(ops.mined_bce)(query, bank, outside), ops.mined_bce(query, bank, inside)
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(loss, query), torch.autograd.grad(expected, query))


def test_large_scores_of_positives_do_not_cancel(device, randn):
    query = 100 * randn(8, 128, device=device)
    loss = ops.mined_bce(query, query, torch.arange(8, device=device)[:, None], temperature=0.02, reduction="none")
    rest = ~torch.eye(8, dtype=torch.bool, device=device)
    expected = torch.nn.functional.softplus((query.double() @ query.double().T) / 0.02) * rest
    assert_close(loss.double(), expected.sum(1) / 8, rtol=1e-5, atol=1e-5)


def test_shapes_are_inferred_without_values():
    with torch._subclasses.FakeTensorMode():
        query, bank = torch.empty(3, 4), torch.empty(9, 4)
        assert ops.mined_bce(query, bank, torch.zeros(3, 2, dtype=torch.int64), reduction="none").shape == (3,)


# ---- errors ---------------------------------------------------------------------------------------------------------

Q, N, P = torch.zeros(2, 3), torch.zeros(5, 3), torch.tensor([[0, -1], [4, 4]])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Q, N[:, :2], P), {}, ValueError, "bank must have shape [N, D] with D = 3, got [5, 2]"),
        ((Q, N, P[:1]), {}, ValueError, "positives must have shape [B, M] with B = 2, got [1, 2]"),
        ((Q, N, P[:, 0]), {}, ValueError, "positives must have shape [B, M], got [2]"),
        ((Q, N, [[0], [1]]), {}, TypeError, "positives must be a torch.Tensor, got list"),
        ((Q, N[:0], P), {}, ValueError, "bank must have at least one row, got [0, 3]"),
        ((Q.int(), N, P), {}, TypeError, "query must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((Q, N, P.int()), {}, TypeError, "positives must be torch.int64, got torch.int32"),
        ((Q, N, P > 0), {}, TypeError, "positives must be torch.int64, got torch.bool"),
        ((Q, N, P + 1), {}, ValueError, "positives must be in [-1, 4], got 5"),
        ((Q, N, P - 1), {}, ValueError, "positives must be in [-1, 4], got -2"),
        ((Q, N.to("meta"), P), {}, ValueError, "bank must be on the device of query (cpu), got meta"),
        ((Q, N, P.to("meta")), {}, ValueError, "positives must be on the device of query (cpu), got meta"),
        ((Q, N, P), {"temperature": -1.0}, ValueError, "temperature must be finite and > 0, got -1.0"),
        ((Q, N, P), {"temperature": math.nan}, ValueError, "temperature must be finite and > 0, got nan"),
        ((Q, N, P), {"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(f"mined_bce: {message}")):
        ops.mined_bce(*arguments, **options)
