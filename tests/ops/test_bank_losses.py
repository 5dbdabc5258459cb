import math
import re

import pytest
import torch
from torch.testing import assert_close

import slrfast
from slrfast import ops
from slrfast.reference import bank_losses as reference

OP = "bank_losses"
TEMPERATURES = dict(temperature=0.7, mined_temperature=0.3)


def softplus(z):
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def oracle(query, positive, bank, positives, temperature, mined_temperature):
    """Both losses, row by row, in Python floats."""
    contrastive, mined = [], []
    for q, k, chosen in zip(query.tolist(), positive.tolist(), positives.tolist(), strict=True):
        own = sum(a * b for a, b in zip(q, k, strict=True)) / temperature
        products = [sum(a * b for a, b in zip(q, row, strict=True)) for row in bank.tolist()]
        logits = [own, *(product / temperature for product in products)]
        top = max(logits)
        contrastive.append(top + math.log(sum(math.exp(logit - top) for logit in logits)) - own)
        z = [product / mined_temperature for product in products]
        mined.append(sum(softplus(-z[i] if i in chosen else z[i]) for i in range(len(z))) / len(z))
    return [torch.tensor(rows, dtype=torch.float64) for rows in (contrastive, mined)]


@pytest.fixture
def draw(randn, device):
    """query [R, D], positive [R, D], bank [N, D] and positives [R, M] with repeats and padding."""

    def make(r=5, n=11, d=6, m=4, dtype=torch.float32, bank_dtype=None):
        query, positive = (randn(r, d, dtype=dtype, device=device) for _ in range(2))
        bank = randn(n, d, dtype=bank_dtype or dtype, device=device)
        positives = torch.randint(-1, n, (r, m), generator=torch.Generator().manual_seed(0))
        return query, positive, bank, positives.to(device)

    return make


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    query = torch.tensor([[1.0, 0.0]], device=device)
    bank = torch.tensor([[0.5, 1.0], [-1.0, 0.0]], device=device)
    contrastive, mined = ops.bank_losses(
        query, query, bank, torch.tensor([[0]], device=device), temperature=0.5, mined_temperature=0.25
    )
    assert contrastive.item() == pytest.approx(math.log(math.exp(2) + math.exp(1) + math.exp(-2)) - 2)
    assert mined.item() == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-4))) / 2)


@pytest.mark.parametrize(
    ("dtype", "bank_type", "result_type"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_equals_loops(draw, dtype, bank_type, result_type):
    tensors = draw(dtype=dtype, bank_dtype=bank_type)
    losses = ops.bank_losses(*tensors, **TEMPERATURES)
    assert [loss.dtype for loss in losses] == [result_type] * 2
    for loss, expected in zip(losses, oracle(*tensors, **TEMPERATURES), strict=True):
        assert_close(loss.double().cpu(), expected, rtol=1e-5, atol=1e-5)


def test_equals_the_two_ops(draw):
    query, positive, bank, positives = draw(r=20, n=300, d=16)
    contrastive, mined = ops.bank_losses(query, positive, bank, positives)
    assert_close(contrastive, ops.info_nce(query, positive, bank, reduction="none"))
    assert_close(mined, ops.mined_bce(query, bank, positives, reduction="none"))


@pytest.mark.parametrize("mined", [0, 1, 64, 70])
@pytest.mark.parametrize("bank_type", [torch.float32, torch.bfloat16])
def test_only_the_first_rows_have_positives(draw, mined, bank_type):
    query, positive, bank, positives = draw(r=70, n=300, d=16, bank_dtype=bank_type)
    query.requires_grad_()
    whole, part = (ops.bank_losses(query, positive, bank, rows) for rows in (positives, positives[:mined]))
    assert torch.equal(part[0], whole[0]) and torch.equal(part[1], whole[1][:mined])
    weights = torch.linspace(1, 2, 70, device=query.device)
    (got,) = torch.autograd.grad((part[1] * weights[:mined]).sum() + part[0].sum(), query)
    (expected,) = torch.autograd.grad((whole[1] * weights)[:mined].sum() + whole[0].sum(), query)
    assert_close(got, expected, rtol=1e-6, atol=1e-7)
    assert part[1].shape == (mined,)


def test_without_positives_the_mined_term_is_zero(draw):
    query, positive, bank, _ = draw()
    query.requires_grad_()
    contrastive, mined = ops.bank_losses(query, positive, bank, None)
    assert mined.tolist() == [0.0] * 5 and not mined.requires_grad
    expected = ops.info_nce(query, positive, bank, reduction="none")
    assert_close(contrastive, expected)
    assert_close(torch.autograd.grad(contrastive.sum(), query), torch.autograd.grad(expected.sum(), query))


# ---- backward -------------------------------------------------------------------------------------------------------


def test_gradients_equal_those_of_the_two_ops(draw, randn, device):
    query, positive, bank, positives = draw()
    query.requires_grad_()
    positive.requires_grad_()
    weights = randn(2, 5, device=device)
    losses = ops.bank_losses(query, positive, bank, positives, **TEMPERATURES)
    got = torch.autograd.grad((torch.stack(losses) * weights).sum(), (query, positive))
    wide = query.double(), positive.double(), bank.double()
    rows = reference.bank_losses(*wide, positives, **TEMPERATURES)
    expected = torch.autograd.grad((torch.stack(rows) * weights).sum(), (query, positive))
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_each_loss_has_its_own_gradient(draw):
    query, positive, bank, positives = draw()
    query.requires_grad_()
    losses = ops.bank_losses(query, positive, bank, positives)
    got = [torch.autograd.grad(loss.sum(), query, retain_graph=True)[0] for loss in losses]
    singles = (
        ops.info_nce(query, positive, bank, reduction="sum"),
        ops.mined_bce(query, bank, positives, reduction="sum"),
    )
    assert_close(got, [torch.autograd.grad(loss, query)[0] for loss in singles])


def test_gradient_has_the_dtype_of_the_query(draw):
    query, positive, bank, positives = draw(dtype=torch.bfloat16, bank_dtype=torch.float32)
    query.requires_grad_()
    losses = ops.bank_losses(query, positive, bank, positives)
    (got,) = torch.autograd.grad(sum(losses).sum(), query)
    assert got.dtype == torch.bfloat16


def test_bank_may_be_overwritten_before_backward(draw, randn, device):
    query, positive, bank, positives = draw()
    query.requires_grad_()
    (expected,) = torch.autograd.grad(sum(ops.bank_losses(query, positive, bank, positives)).sum(), query)
    loss = sum(ops.bank_losses(query, positive, bank, positives)).sum()
    with slrfast.backend("reference"):
        ops.enqueue_(bank, torch.tensor(3, device=device), randn(8, 6, device=device))
    positives.zero_()
    assert_close(torch.autograd.grad(loss, query)[0], expected, rtol=0, atol=0)


def test_saves_one_gradient_per_loss_and_argument(draw, saved_shapes):
    query, positive, bank, positives = draw()
    query.requires_grad_()
    assert saved_shapes(lambda: ops.bank_losses(query, positive, bank, positives)) == [(5, 6)] * 2
    assert saved_shapes(lambda: ops.bank_losses(query, positive, bank, None)) == [(5, 6)]
    positive.requires_grad_()
    assert saved_shapes(lambda: ops.bank_losses(query, positive, bank, positives)) == [(5, 6)] * 3
    with torch.no_grad():
        assert saved_shapes(lambda: ops.bank_losses(query, positive, bank, positives)) == []


def test_no_gradient_to_the_bank(draw):
    query, positive, bank, positives = draw()
    query.requires_grad_()
    bank.requires_grad_()
    with pytest.warns(UserWarning, match=re.escape("bank_losses: bank requires grad, but no gradient flows to it")):
        sum(ops.bank_losses(query, positive, bank, positives)).sum().backward()
    assert query.grad is not None and bank.grad is None and positive.grad is None


def test_no_second_derivative(draw):
    query, positive, bank, positives = draw()
    query.requires_grad_()
    for loss in ops.bank_losses(query, positive, bank, positives):
        (grad,) = torch.autograd.grad(loss.square().sum(), query, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


def test_gradcheck(draw):
    query, positive, bank, positives = draw(r=2, n=7, d=3, dtype=torch.float64)
    inputs = query.requires_grad_(), positive.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, p: ops.bank_losses(q, p, bank, positives, **TEMPERATURES), inputs)
    assert torch.autograd.gradcheck(lambda q, p: ops.bank_losses(q, p, bank, None, **TEMPERATURES)[0], inputs)


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want_grad", [True, False])
@pytest.mark.parametrize("mined", [True, False])
def test_opcheck(draw, want_grad, mined):
    *tensors, positives = draw()
    for move in (lambda tensor: tensor, lambda tensor: tensor.T.contiguous().T):
        arguments = [*map(move, tensors), move(positives) if mined else None]
        torch.library.opcheck(torch.ops.slrfast.bank_losses.default, (*arguments, 0.07, 0.02, want_grad))


@pytest.mark.parametrize("mined", [True, False])
def test_compiles_whole_and_under_autocast(device, draw, compiled, mined):
    query, positive, bank, positives = draw()
    query.requires_grad_()
    arguments = query, positive, bank, positives if mined else None
    expected = ops.bank_losses(*arguments)
    (expected_grad,) = torch.autograd.grad(sum(expected).sum(), query)
    for function in (ops.bank_losses, compiled(ops.bank_losses)):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            losses = function(*arguments)
        assert [loss.dtype for loss in losses] == [torch.float32] * 2
        assert_close(losses, expected)
        assert_close(torch.autograd.grad(sum(losses).sum(), query)[0], expected_grad)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "n", "d", "m"),
    [
        (1, 1, 1, 1),
        (1, 252, 7, 252),
        (3, 507, 123, 20),
        (3, 70, 140, 20),
        (2, 5, 4, 0),
        (0, 5, 4, 2),
        (3, 5, 0, 2),
    ],
)
def test_ragged_sizes(draw, r, n, d, m):
    query, positive, bank, positives = draw(r, n, d, m)
    query.requires_grad_()
    losses = ops.bank_losses(query, positive, bank, positives, temperature=2.0, mined_temperature=1.0)
    expected = oracle(query, positive, bank, positives, 2.0, 1.0)
    for loss, rows in zip(losses, expected, strict=True):
        assert_close(loss.double().cpu(), rows, rtol=1e-5, atol=1e-5)
    (got,) = torch.autograd.grad(sum(losses).sum(), query)
    wide = query.double(), positive.double(), bank.double()
    (expected,) = torch.autograd.grad(sum(reference.bank_losses(*wide, positives, 2.0, 1.0)).sum(), query)
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_any_strides(draw, device):
    query, positive, bank, positives = draw(r=10, n=22)
    views = query[::2], positive.T.contiguous().T[::2], bank.T.contiguous().T[::2], positives.remainder(11)[::2]
    assert_close(ops.bank_losses(*views), ops.bank_losses(*(view.contiguous() for view in views)))


def test_large_logits_do_not_overflow(device):
    query = torch.tensor([[100.0]], device=device, requires_grad=True)
    bank, positives = torch.tensor([[100.0], [-100.0]], device=device), torch.tensor([[1]], device=device)
    losses = ops.bank_losses(query, -query.detach(), bank, positives, temperature=0.01, mined_temperature=0.01)
    grads = [torch.autograd.grad(loss, query, retain_graph=True)[0].item() for loss in losses]
    assert [loss.item() for loss in losses] == pytest.approx([2e6, 1e6])
    assert grads == pytest.approx([2e4, 1e4])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("argument", [0, 1])
def test_non_finite_row_spoils_its_row_only(draw, value, argument):
    tensors = draw()
    clean = ops.bank_losses(*tensors)
    tensors[argument][1, 2] = value
    tensors[0].requires_grad_()
    losses = ops.bank_losses(*tensors)
    (grad,) = torch.autograd.grad(sum(losses).sum(), tensors[0])
    others = [0, 2, 3, 4]
    assert all(loss[others].equal(before[others]) for loss, before in zip(losses, clean, strict=True))
    assert argument == 1 or not any(loss[1].isfinite() for loss in losses)
    assert grad[others].isfinite().all()


def test_nan_in_the_bank_spoils_every_row(draw):
    query, positive, bank, positives = draw()
    bank[8, 0] = math.nan
    query.requires_grad_()
    losses = ops.bank_losses(query, positive, bank, positives)
    grads = [torch.autograd.grad(loss.sum(), query, retain_graph=True)[0] for loss in losses]
    assert all(loss.isnan().all() for loss in losses) and all(grad.isnan().any(1).all() for grad in grads)


# ---- errors ---------------------------------------------------------------------------------------------------------

Q, N, P = torch.zeros(2, 3), torch.zeros(5, 3), torch.tensor([[0, -1], [4, 4]])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Q, Q[:1], N, P), {}, ValueError, "positive must have shape [R, D] with R = 2, got [1, 3]"),
        ((Q, Q, N[:, :2], P), {}, ValueError, "bank must have shape [N, D] with D = 3, got [5, 2]"),
        ((Q, Q, N, torch.cat((P, P))), {}, ValueError, "positives must have at most the 2 rows of query, got [4, 2]"),
        ((Q, Q, N, [[0], [1]]), {}, TypeError, "positives must be a torch.Tensor, got list"),
        ((Q, Q, N[:0], P), {}, ValueError, "bank must have at least one row, got [0, 3]"),
        ((Q, Q, N[:0], None), {}, ValueError, "bank must have at least one row, got [0, 3]"),
        ((Q.int(), Q, N, P), {}, TypeError, "query must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((Q, Q, N, P.float()), {}, TypeError, "positives must be torch.int64, got torch.float32"),
        ((Q, Q, N, P + 1), {}, ValueError, "positives must be in [-1, 4], got 5"),
        ((Q, Q, N, P - 1), {}, ValueError, "positives must be in [-1, 4], got -2"),
        ((Q, Q, N.to("meta"), P), {}, ValueError, "bank must be on the device of query (cpu), got meta"),
        ((Q, Q, N, P.to("meta")), {}, ValueError, "positives must be on the device of query (cpu), got meta"),
        ((Q, Q, N, P), {"temperature": 0}, ValueError, "temperature must be finite and > 0, got 0"),
        (
            (Q, Q, N, P),
            {"mined_temperature": math.nan},
            ValueError,
            "mined_temperature must be finite and > 0, got nan",
        ),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(f"bank_losses: {message}")):
        ops.bank_losses(*arguments, **options)
