import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import slrfast
from slrfast import ops
from slrfast.ops import _dispatch
from slrfast.reference import masked_motion_loss as reference

OP = "masked_motion_loss"
KINDS = ("l2", "l1")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(b=4, t=9, v=5, *, dtype=torch.float32, other=None, per_coordinate=False, device="cpu", seed=0):
    """Prediction, residual, weight and mask; nothing is masked in the second clip."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    weight = randn(b, t, v, *[2] * per_coordinate).abs()
    mask = torch.rand(b, t, generator=generator) < 0.5
    mask[1:2] = False
    numbers = randn(b, t, v, 2).to(dtype), randn(b, t, v, 2, scale=30.0).to(other or dtype), weight.to(other or dtype)
    return tuple(tensor.to(device) for tensor in (*numbers, mask))


def oracle(prediction, residual, weight, mask, *, kind="l2", scale=1 / 256, reduction="mean"):
    """Entry by entry, in Python floats."""
    losses = []
    for y, m, w, chosen in zip(*(tensor.tolist() for tensor in (prediction, residual, weight, mask)), strict=True):
        total = 0.0
        for i in [i for i, masked in enumerate(chosen) if masked]:
            for v in range(len(y[i])):
                for c in range(2):
                    d = (y[i][v][c] - scale * m[i][v][c]) * (w[i][v] if weight.dim() == 3 else w[i][v][c])
                    total += d * d if kind == "l2" else abs(d)
        losses.append(total / max(sum(chosen), 1) if reduction != "sum" else total)
    losses = torch.tensor(losses, dtype=torch.float64)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    prediction, residual = torch.zeros(2, 2, 1, 2, device=device), torch.zeros(2, 2, 1, 2, device=device)
    prediction[0, 0, 0], residual[0, 0, 0] = torch.tensor([3.0, 0.0]), torch.tensor([2.0, 2.0])
    prediction[0, 1, 0], residual[0, 1, 0] = torch.tensor([0.0, 1.0]), torch.tensor([4.0, 2.0])
    weight = torch.tensor([[[1.0], [0.5]], [[7.0], [7.0]]], device=device)
    mask = torch.tensor([[True, True], [False, False]], device=device)
    arguments = prediction, residual, weight, mask
    # distances with scale 1/2: (2, -1), (-1, 0); clip 1 has nothing masked
    assert ops.masked_motion_loss(*arguments, scale=0.5, reduction="none").tolist() == [(4 + 1 + 1) / 2, 0]
    assert ops.masked_motion_loss(*arguments, scale=0.5).item() == 1.5
    assert ops.masked_motion_loss(*arguments, scale=0.5, reduction="sum").item() == 6
    assert ops.masked_motion_loss(*arguments, scale=0.5, kind="l1", reduction="none").tolist() == [2, 0]
    assert ops.masked_motion_loss(*arguments, scale=0.5, kind="l1", reduction="sum").item() == 4
    each = torch.stack((weight, torch.zeros_like(weight)), -1)  # only x counts
    assert ops.masked_motion_loss(prediction, residual, each, mask, scale=0.5, reduction="sum").item() == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "other", "result"),
    [
        *((dtype, dtype, torch.float64 if dtype == torch.float64 else torch.float32) for dtype in DTYPES),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_equals_loops(device, dtype, other, result, kind):
    for per_coordinate in (False, True):
        tensors = draw(dtype=dtype, other=other, per_coordinate=per_coordinate, device=device)
        for reduction in ("none", "mean", "sum"):
            loss = ops.masked_motion_loss(*tensors, kind=kind, scale=0.1, reduction=reduction)
            assert loss.dtype == result and loss.is_contiguous()
            expected = oracle(*tensors, kind=kind, scale=0.1, reduction=reduction)
            assert_close(loss.double().cpu(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_less_exact_than_the_reference(device, kind):
    tensors = draw(8, 64, 49, device=device)
    truth = reference.masked_motion_loss(*(t.double() for t in tensors[:3]), tensors[3], 1 / 256, kind == "l2", True)
    plain = reference.masked_motion_loss(*tensors, 1 / 256, kind == "l2", True)
    loss = ops.masked_motion_loss(*tensors, kind=kind, reduction="none")
    assert (loss - truth).abs().max() <= 1.5 * (plain - truth).abs().max() + 1e-6 * truth.max()


def test_takes_what_motion_mask_returns(device):
    generator = torch.Generator().manual_seed(0)
    x = (100 * torch.rand(3, 12, 7, 2, generator=generator)).to(device)
    found = ops.motion_mask(x, torch.ones_like(x[..., 0]), None, torch.rand(3, 12, generator=generator).to(device))
    assert found.mask.any()
    assert ops.masked_motion_loss(found.residual / 256, *found) == 0
    still = torch.zeros_like(x)
    assert_close(ops.masked_motion_loss(still, *found).double().cpu(), oracle(still, *found), rtol=1e-5, atol=0)


def test_is_deterministic(device):
    tensors = draw(8, 64, 49, device=device)
    assert torch.equal(ops.masked_motion_loss(*tensors), ops.masked_motion_loss(*tensors))


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_equals_that_of_the_equation(device, kind, reduction):
    for per_coordinate in (False, True):
        prediction, *rest = draw(per_coordinate=per_coordinate, device=device)
        prediction.requires_grad_()
        got = torch.autograd.grad(ops.masked_motion_loss(prediction, *rest, kind=kind, reduction=reduction), prediction)
        wide = [tensor.double() for tensor in (prediction, *rest[:2])]
        loss = reference.masked_motion_loss(*wide, rest[2], 1 / 256, kind == "l2", reduction != "sum")
        truth = torch.autograd.grad(loss.mean() if reduction == "mean" else loss.sum(), prediction)
        assert_close(got, truth, rtol=1e-5, atol=1e-7)
        assert not got[0][~rest[2]].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_has_the_bits_of_the_reference(device, dtype, kind):
    prediction, *rest = draw(dtype=dtype, other=torch.float32, device=device)
    wanted = torch.randn(4, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    loss = ops.masked_motion_loss(prediction.requires_grad_(), *rest, kind=kind, scale=0.1, reduction="none")
    (got,) = torch.autograd.grad(loss, prediction, wanted)
    _, expected = reference.masked_motion_loss_grad(prediction, *rest, 0.1, kind == "l2", True, True)
    assert got.dtype == dtype and torch.equal(got, (wanted[:, None, None, None] * expected).to(dtype))


def test_gradient_flows_to_the_prediction_only(saved_shapes):
    tensors = draw()
    prediction, residual, weight = (tensor.requires_grad_() for tensor in tensors[:3])
    assert saved_shapes(lambda: ops.masked_motion_loss(*tensors)) == [(4, 9, 5, 2)]
    ops.masked_motion_loss(*tensors).backward()
    assert prediction.grad is not None and residual.grad is None and weight.grad is None
    assert not ops.masked_motion_loss(prediction.detach(), *tensors[1:]).requires_grad
    with torch.no_grad():
        assert not ops.masked_motion_loss(*tensors).requires_grad


def test_no_second_derivative():
    prediction, *rest = draw()
    prediction.requires_grad_()
    loss = ops.masked_motion_loss(prediction, *rest).square()
    (grad,) = torch.autograd.grad(loss, prediction, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_backward_twice_through_one_graph():
    prediction, *rest = draw()
    loss = ops.masked_motion_loss(prediction.requires_grad_(), *rest)
    first, second = (torch.autograd.grad(loss, prediction, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(device, kind):
    prediction, *rest = draw(2, 4, 2, dtype=torch.float64, device=device)
    rest[2][0] = True
    for reduction in ("mean", "sum", "none"):
        options = {"kind": kind, "scale": 0.1, "reduction": reduction}
        call = lambda y, o=options: ops.masked_motion_loss(y, *rest, **o)  # noqa: E731
        assert torch.autograd.gradcheck(call, prediction.requires_grad_())


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want_grad", [True, False])
def test_opcheck(device, want_grad):
    tensors = draw(device=device)
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in tensors]
    for some in (tensors, strided):
        torch.library.opcheck(torch.ops.slrfast.masked_motion_loss.default, (*some, 0.1, True, True, want_grad))


def test_compiles_whole_with_dynamic_shapes_and_under_autocast(device, compiled):
    function = compiled(lambda y, *rest: ops.masked_motion_loss(y * 2, *rest))
    for frames in (6, 9):
        prediction, *rest = draw(3, frames, device=device)
        prediction.requires_grad_()
        expected = ops.masked_motion_loss(prediction * 2, *rest)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = function(prediction, *rest)
        assert_close(got, expected)
        assert_close(torch.autograd.grad(got, prediction), torch.autograd.grad(expected, prediction))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", _dispatch.TABLES[OP]["cuda"])
def test_captured_in_a_cuda_graph(name):
    if reason := _dispatch.unavailable(name, "cuda"):
        pytest.skip(reason)
    with slrfast.backend(name):
        prediction, *rest = draw(device="cuda")
        prediction.requires_grad_()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.autograd.grad(ops.masked_motion_loss(prediction, *rest), prediction)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = ops.masked_motion_loss(prediction, *rest)
            (grad,) = torch.autograd.grad(loss, prediction)
        with torch.no_grad():
            for tensor, other in zip((prediction, *rest), draw(device="cuda", seed=3), strict=True):
                tensor.copy_(other)
        graph.replay()
        assert_close(loss.double().cpu(), oracle(prediction, *rest))
        assert_close(grad, torch.autograd.grad(ops.masked_motion_loss(prediction, *rest), prediction)[0])


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (2, 507, 1), (1, 9, 133), (3, 70, 16), (2, 3, 2500), (2, 0, 3), (2, 5, 0)], ids=str
)
def test_ragged_sizes(device, sizes):
    prediction, *rest = draw(*sizes, device=device)
    rest[2][0] = True
    prediction.requires_grad_()
    loss = ops.masked_motion_loss(prediction, *rest, reduction="none")
    assert_close(loss.double().cpu(), oracle(prediction, *rest, reduction="none"), rtol=2e-6, atol=1e-6)
    (got,) = torch.autograd.grad(loss.sum(), prediction)
    assert torch.equal(got, reference.masked_motion_loss_grad(prediction, *rest, 1 / 256, True, True, True)[1])


def test_no_clips_have_no_mean(device):
    tensors = draw(0, device=device)
    assert ops.masked_motion_loss(*tensors).isnan() and ops.masked_motion_loss(*tensors, reduction="sum") == 0


def test_any_strides(device):
    prediction, residual, weight, mask = draw(device=device)
    strided = (
        prediction.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_(),
        torch.stack((residual, residual), 2)[:, :, 1],
        weight[:, :1].expand_as(weight),
        mask.T.contiguous().T,
    )
    assert not any(tensor.is_contiguous() for tensor in strided)
    compact = (prediction.requires_grad_(), residual, weight[:, :1].repeat(1, 9, 1), mask)
    results = []
    for tensors in (strided, compact):
        loss = ops.masked_motion_loss(*tensors)
        results.append((loss, torch.autograd.grad(loss, tensors[0])[0]))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_masked_is_not_looked_at(device, value):
    prediction, residual, weight, mask = draw(device=device)
    expected = ops.masked_motion_loss(prediction, residual, weight, mask)
    outside = ~mask[..., None, None]
    dirty = prediction.masked_fill(outside, value).requires_grad_(), residual.masked_fill(outside, value)
    loss = ops.masked_motion_loss(*dirty, weight.masked_fill(~mask[..., None], value), mask)
    assert torch.equal(loss, expected)
    (grad,) = torch.autograd.grad(loss, dirty[0])
    assert grad.isfinite().all() and not grad[~mask].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_non_finite_value_spoils_its_clip_only(device, kind, argument):
    tensors = list(draw(device=device))
    tensors[3][2, 4] = True
    tensors[argument][2, 4, 1] = math.nan
    loss = ops.masked_motion_loss(*tensors, kind=kind, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_of_zero_has_no_gradient(device, kind):
    _, residual, weight, mask = draw(device=device)
    prediction = (residual / 256).requires_grad_()
    loss = ops.masked_motion_loss(prediction, residual, weight, mask, kind=kind)
    assert loss == 0 and not torch.autograd.grad(loss, prediction)[0].any()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(0, 4), st.integers(0, 30), st.integers(0, 20)),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_random_calls_equal_the_reference(sizes, dtypes, flags, scale, seed):
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    tensors = draw(*sizes, dtype=dtypes[0], other=dtypes[1], per_coordinate=flags[0], seed=seed)
    with slrfast.backend("native"):
        got = torch.ops.slrfast.masked_motion_loss(*tensors, scale, *flags[1:], True)
    expected = reference.masked_motion_loss_grad(*tensors, scale, *flags[1:], True)
    assert_close(got[0], expected[0], rtol=1e-5, atol=0)
    assert torch.equal(got[1], expected[1])


# ---- errors ---------------------------------------------------------------------------------------------------------

Y, W, M = torch.zeros(2, 5, 3, 2), torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Y[0], Y, W, M), {}, ValueError, "prediction must have shape [B, T, V, 2], got [5, 3, 2]"),
        ((Y, Y[:, :4], W, M), {}, ValueError, "residual must have shape [B, T, V, 2] with T = 5, got [2, 4, 3, 2]"),
        ((Y, Y, W[:, :, :2], M), {}, ValueError, "weight must have shape [B, T, V] with V = 3, got [2, 5, 2]"),
        ((Y, Y, Y[..., :1], M), {}, ValueError, "weight must have shape [B, T, V, 2], got [2, 5, 3, 1]"),
        ((Y, Y, None, M), {}, TypeError, "weight must be a torch.Tensor, got NoneType"),
        ((Y, Y, W, M[:1]), {}, ValueError, "mask must have shape [B, T] with B = 2, got [1, 5]"),
        (
            (Y.int(), Y, W, M),
            {},
            TypeError,
            "prediction must be float64, float32, bfloat16 or float16, got torch.int32",
        ),
        ((Y, Y, W.bool(), M), {}, TypeError, "weight must be float64, float32, bfloat16 or float16, got torch.bool"),
        ((Y, Y, W, M.long()), {}, TypeError, "mask must be torch.bool, got torch.int64"),
        ((Y, Y.to("meta"), W, M), {}, ValueError, "residual must be on the device of prediction (cpu), got meta"),
        ((Y, Y, W, M), {"kind": "huber"}, ValueError, "kind must be one of 'l2', 'l1', got 'huber'"),
        ((Y, Y, W, M), {"scale": 0.0}, ValueError, "scale must be finite and > 0, got 0.0"),
        ((Y, Y, W, M), {"scale": "1"}, TypeError, "scale must be a number, got str"),
        (
            (Y, Y, W, M),
            {"reduction": "batch"},
            ValueError,
            "reduction must be one of 'mean', 'sum', 'none', got 'batch'",
        ),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(f"masked_motion_loss: {message}")):
        ops.masked_motion_loss(*arguments, **options)
