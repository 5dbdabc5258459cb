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
from slrfast.reference import masked_pose_loss as reference

OP = "masked_pose_loss"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("mean", "sum", "none")


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(b=4, t=9, v=5, *, dtype=torch.float32, other=None, device="cpu", seed=0):
    """Prediction, target, mask and confidence; nothing is masked in the second clip."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(b, t, v, generator=generator) < 0.4
    mask[1:2] = False
    tensors = randn(b, t, v, 2).to(dtype), randn(b, t, v, 2).to(other or dtype), mask, randn(b, t, v).abs()
    return tuple(tensor.to(device) for tensor in (*tensors[:3], tensors[3].to(other or dtype)))


def oracle(prediction, target, mask, confidence, *, reduction="mean"):
    """Keypoint by keypoint, in Python floats."""
    flat = (tensor.flatten(1, 2).tolist() for tensor in (prediction, target, mask, confidence))
    clips = [
        [c * ((y[0] - x[0]) ** 2 + (y[1] - x[1]) ** 2) for y, x, m, c in zip(*clip, strict=True) if m]
        for clip in zip(*flat, strict=True)
    ]
    sums = [math.fsum(clip) for clip in clips]
    if reduction == "none":
        return torch.tensor([x / max(len(c), 1) for x, c in zip(sums, clips, strict=True)], dtype=torch.float64)
    count = max(sum(map(len, clips)), 1) if reduction == "mean" else 1
    return torch.tensor(math.fsum(sums) / count, dtype=torch.float64)


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    prediction = torch.tensor([[[[3.0, 4.0], [1.0, 0.0]]], [[[0.0, 2.0], [7.0, 7.0]]]], device=device)
    target = torch.zeros_like(prediction)
    mask = torch.tensor([[[True, True]], [[True, False]]], device=device)
    confidence = torch.tensor([[[0.5, 1.0]], [[0.25, 1.0]]], device=device)
    tensors = prediction, target, mask, confidence
    assert ops.masked_pose_loss(*tensors, reduction="sum").item() == 12.5 + 1 + 1
    assert ops.masked_pose_loss(*tensors).item() == pytest.approx(14.5 / 3)
    assert ops.masked_pose_loss(*tensors, reduction="none").tolist() == [6.75, 1.0]
    assert ops.masked_pose_loss(prediction, prediction, mask, confidence) == 0


@pytest.mark.parametrize(
    ("dtype", "other", "result"),
    [
        *((dtype, dtype, torch.float64 if dtype == torch.float64 else torch.float32) for dtype in DTYPES),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_equals_loops(device, dtype, other, result):
    tensors = draw(dtype=dtype, other=other, device=device)
    for reduction in REDUCTIONS:
        loss = ops.masked_pose_loss(*tensors, reduction=reduction)
        assert loss.dtype == result and loss.is_contiguous()
        assert_close(loss.double().cpu(), oracle(*tensors, reduction=reduction), rtol=2e-6, atol=1e-6)


def test_no_less_exact_than_the_reference(device):
    tensors = draw(8, 64, 79, device=device)
    y, x, mask, c = tensors
    truth, _ = reference.masked_pose_loss(y.double(), x.double(), mask, c.double())
    plain, count = reference.masked_pose_loss(*tensors)
    loss = ops.masked_pose_loss(*tensors, reduction="none") * count.clamp_min(1)
    assert (loss - truth).abs().max() <= 1.5 * (plain - truth).abs().max() + 1e-6 * truth.max()


def test_is_deterministic(device):
    tensors = draw(2, 150, 79, device=device)
    assert torch.equal(ops.masked_pose_loss(*tensors), ops.masked_pose_loss(*tensors))


def test_packed_clips_are_one(device):
    tensors = draw(3, 8, 5, device=device)
    packed = [tensor.flatten(0, 1)[None] for tensor in tensors]
    assert_close(ops.masked_pose_loss(*packed), ops.masked_pose_loss(*tensors))


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_equals_that_of_the_equation(device, dtype, reduction):
    prediction, target, mask, confidence = draw(dtype=dtype, device=device)
    loss = ops.masked_pose_loss(prediction.requires_grad_(), target, mask, confidence, reduction=reduction)
    wanted = torch.randn(loss.shape, generator=torch.Generator().manual_seed(1)).to(device, loss.dtype)
    (got,) = torch.autograd.grad(loss, prediction, wanted)
    assert got.dtype == dtype and not got[~mask].any()
    wide = prediction.detach().double().requires_grad_()
    sums, count = reference.masked_pose_loss(wide, target.double(), mask, confidence.double())
    truth = {"mean": sums.sum() / count.sum(), "sum": sums.sum(), "none": sums / count.clamp_min(1)}[reduction]
    (expected,) = torch.autograd.grad(truth, wide, wanted.double())
    unit = torch.finfo(dtype).eps
    assert ((got.double() - expected).abs() <= 4 * unit * expected.abs() + 1e-3 * unit).all()


def test_gradient_has_the_bits_of_the_reference(device):
    prediction, *rest = draw(2, 20, 79, device=device)
    loss = ops.masked_pose_loss(prediction.requires_grad_(), *rest, reduction="sum")
    (got,) = torch.autograd.grad(loss, prediction)
    assert torch.equal(got, reference.masked_pose_loss_grad(prediction, *rest, True)[2])


def test_gradient_flows_to_the_prediction_only(saved_shapes):
    tensors = draw()
    prediction, target, confidence = (tensors[i].requires_grad_() for i in (0, 1, 3))
    assert (4, 9 * 5 * 2) in saved_shapes(lambda: ops.masked_pose_loss(*tensors))
    ops.masked_pose_loss(*tensors).backward()
    assert prediction.grad is not None and target.grad is None and confidence.grad is None
    assert not ops.masked_pose_loss(prediction.detach(), *tensors[1:]).requires_grad
    with torch.no_grad():
        assert not ops.masked_pose_loss(*tensors).requires_grad


def test_no_second_derivative():
    prediction, *rest = draw()
    loss = ops.masked_pose_loss(prediction.requires_grad_(), *rest).square()
    (grad,) = torch.autograd.grad(loss, prediction, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradcheck(device):
    prediction, *rest = draw(2, 4, 2, dtype=torch.float64, device=device)
    rest[1][0] = True
    for reduction in REDUCTIONS:
        call = lambda y, r=reduction: ops.masked_pose_loss(y, *rest, reduction=r)  # noqa: E731
        assert torch.autograd.gradcheck(call, prediction.requires_grad_())


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want_grad", [True, False])
def test_opcheck(device, want_grad):
    tensors = draw(device=device)
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in tensors]
    for some in (tensors, strided):
        torch.library.opcheck(torch.ops.slrfast.masked_pose_loss.default, (*some, want_grad))


def test_compiles_whole_with_dynamic_shapes_and_under_autocast(device, compiled):
    function = compiled(lambda y, *rest: ops.masked_pose_loss(y * 2, *rest))
    for frames in (6, 9):
        prediction, *rest = draw(3, frames, device=device)
        prediction.requires_grad_()
        expected = ops.masked_pose_loss(prediction * 2, *rest)
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
            torch.autograd.grad(ops.masked_pose_loss(prediction, *rest), prediction)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = ops.masked_pose_loss(prediction, *rest)
            (grad,) = torch.autograd.grad(loss, prediction)
        with torch.no_grad():
            for tensor, other in zip((prediction, *rest), draw(device="cuda", seed=3), strict=True):
                tensor.copy_(other)
        graph.replay()
        assert_close(loss.double().cpu(), oracle(prediction, *rest), rtol=1e-5, atol=1e-6)
        assert_close(grad, torch.autograd.grad(ops.masked_pose_loss(prediction, *rest), prediction)[0])


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (2, 507, 1), (1, 9, 133), (3, 70, 16), (2, 110, 79), (2, 0, 3), (2, 5, 0), (0, 3, 3)], ids=str
)
def test_ragged_sizes(device, sizes):
    prediction, *rest = draw(*sizes, device=device)
    loss = ops.masked_pose_loss(prediction.requires_grad_(), *rest, reduction="none")
    assert_close(loss.double().cpu(), oracle(prediction, *rest, reduction="none"), rtol=2e-6, atol=1e-6)
    (got,) = torch.autograd.grad(ops.masked_pose_loss(prediction, *rest, reduction="sum"), prediction)
    assert torch.equal(got, reference.masked_pose_loss_grad(prediction, *rest, True)[2])


def test_nothing_masked_is_no_loss(device):
    prediction, target, mask, confidence = draw(device=device)
    for clips in (slice(None), slice(0, 0)):
        some = [t[clips] for t in (prediction, target, torch.zeros_like(mask), confidence)]
        some[0].requires_grad_()
        for reduction in ("mean", "sum"):
            loss = ops.masked_pose_loss(*some, reduction=reduction)
            assert loss == 0 and not torch.autograd.grad(loss, some[0])[0].any()
        assert not ops.masked_pose_loss(*some, reduction="none").any()


def test_any_strides(device):
    prediction, target, mask, confidence = draw(device=device)
    strided = (
        prediction.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_(),
        torch.stack((target, target), 2)[:, :, 1],
        mask.transpose(0, 2).contiguous().transpose(0, 2),
        confidence[:, :1].expand_as(confidence),
    )
    assert not any(tensor.is_contiguous() for tensor in strided)
    compact = [tensor.detach().contiguous() for tensor in strided]
    compact[0].requires_grad_()
    results = []
    for tensors in (strided, compact):
        loss = ops.masked_pose_loss(*tensors)
        results.append((loss, torch.autograd.grad(loss, tensors[0])[0]))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_masked_is_not_looked_at(device, value):
    prediction, target, mask, confidence = draw(device=device)
    expected = ops.masked_pose_loss(prediction, target, mask, confidence)
    dirty = [t.masked_fill(~mask[..., None], value) for t in (prediction, target)]
    loss = ops.masked_pose_loss(dirty[0].requires_grad_(), dirty[1], mask, confidence.masked_fill(~mask, value))
    assert torch.equal(loss, expected)
    (grad,) = torch.autograd.grad(loss, dirty[0])
    assert grad.isfinite().all() and not grad[~mask].any()


@pytest.mark.parametrize("argument", [0, 1, 3])
def test_non_finite_value_spoils_its_clip_only(device, argument):
    tensors = list(draw(device=device))
    tensors[2][2, 4] = True
    tensors[argument][2, 4, 1] = math.nan
    assert ops.masked_pose_loss(*tensors, reduction="none").isnan().tolist() == [False, False, True, False]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(0, 4), st.integers(0, 30), st.integers(0, 90)),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    want_grad=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_calls_equal_the_reference(sizes, dtypes, want_grad, seed):
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    tensors = draw(*sizes, dtype=dtypes[0], other=dtypes[1], seed=seed)
    with slrfast.backend("native"):
        loss, count, grad = torch.ops.slrfast.masked_pose_loss(*tensors, want_grad)
    expected = reference.masked_pose_loss_grad(*tensors, want_grad)
    assert_close(loss, expected[0], rtol=1e-5, atol=0)
    assert torch.equal(count, expected[1]) and torch.equal(grad, expected[2])


# ---- errors ---------------------------------------------------------------------------------------------------------

Y, C, M = torch.zeros(2, 5, 3, 2), torch.zeros(2, 5, 3), torch.zeros(2, 5, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Y[0], Y, M, C), {}, ValueError, "prediction must have shape [B, T, V, 2], got [5, 3, 2]"),
        ((Y, Y[:, :4], M, C), {}, ValueError, "target must have shape [B, T, V, 2] with T = 5, got [2, 4, 3, 2]"),
        ((Y, Y, M[..., 0], C), {}, ValueError, "mask must have shape [B, T, V], got [2, 5]"),
        ((Y, Y, M, C[:1]), {}, ValueError, "confidence must have shape [B, T, V] with B = 2, got [1, 5, 3]"),
        ((Y, Y, M, None), {}, TypeError, "confidence must be a torch.Tensor, got NoneType"),
        (
            (Y.int(), Y, M, C),
            {},
            TypeError,
            "prediction must be float64, float32, bfloat16 or float16, got torch.int32",
        ),
        ((Y, Y, C, C), {}, TypeError, "mask must be torch.bool, got torch.float32"),
        ((Y, Y, M, M), {}, TypeError, "confidence must be float64, float32, bfloat16 or float16, got torch.bool"),
        ((Y, Y.to("meta"), M, C), {}, ValueError, "target must be on the device of prediction (cpu), got meta"),
        ((Y, Y, M, C), {"reduction": "b"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'b'"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(f"masked_pose_loss: {message}")):
        ops.masked_pose_loss(*arguments, **options)
