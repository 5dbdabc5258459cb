import math
import re

import pytest
import torch
from torch.testing import assert_close

from slrfast import ops
from slrfast.ops import AugmentTensors
from slrfast.reference import augment as reference

OP = "augment"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def oracle(x, confidence, plan):
    """Joint by joint, in Python floats."""
    clips, frames, joints, _ = x.shape
    out, sure = torch.zeros(x.shape, dtype=torch.float64), torch.zeros(confidence.shape, dtype=torch.float64)
    for b in range(clips):
        for t in range(frames):
            for v in range(joints):
                source = int(plan.swap_index[v]) if plan.swap[b] else v
                if plan.drop[b, source]:
                    continue
                px, py = x[b, t, source].tolist()
                sure[b, t, v] = confidence[b, t, source].item()
                if plan.affected[b, source] and sure[b, t, v] > 0:
                    part = int(plan.part[source])
                    (m00, m01), (m10, m11) = plan.linear[b, part].tolist()
                    cx, cy = plan.center[b, part].tolist()
                    dx, dy = px - cx, py - cy
                    px, py = m00 * dx + m01 * dy + cx, m10 * dx + m11 * dy + cy
                out[b, t, v] = torch.tensor([px, py])
    return out, sure


@pytest.fixture
def draw(randn):
    """Coordinates with missing joints, confidences, and a plan that does a bit of everything."""

    def make(clips=4, frames=6, joints=9, dtype=torch.float32, device="cpu"):
        x = randn(clips, frames, joints, 2, dtype=dtype, device=device)
        confidence = randn(clips, frames, joints, device=device).clamp_min(0)
        x = x * (confidence > 0)[..., None]
        plan = AugmentTensors(
            linear=randn(clips, 3, 2, 2, device=device),
            center=randn(clips, 3, 2, device=device),
            part=torch.arange(joints, device=device) % 3,
            affected=randn(clips, joints, device=device) > -0.5,
            drop=randn(clips, joints, device=device) > 0.7,
            swap=torch.arange(clips, device=device) % 2 == 1,
            swap_index=torch.arange(joints, device=device).roll(2),
        )
        return x, confidence, plan

    return make


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    def tensor(*values):
        return torch.tensor(values, device=device)

    x = tensor([[[3.0, 1.0], [0.0, 0.0], [5.0, 6.0], [7.0, 8.0]]])
    confidence = tensor([[0.5, 0.0, 0.25, 1.0]])
    plan = AugmentTensors(
        linear=tensor([[[0.0, -1.0], [1.0, 0.0]]]),  # a quarter turn about (2, 1)
        center=tensor([[2.0, 1.0]]),
        part=tensor(0, 0, 0, 0),
        affected=tensor([True, True, False, True]),
        drop=tensor([False, False, False, True]),
        swap=tensor(False),
        swap_index=tensor(2, 3, 0, 1),
    )
    y, sure = ops.augment(x, confidence, plan)
    assert y.tolist() == [[[[2.0, 2.0], [0.0, 0.0], [5.0, 6.0], [0.0, 0.0]]]]
    assert sure.tolist() == [[[0.5, 0.0, 0.25, 0.0]]]
    y, sure = ops.augment(x, confidence, plan._replace(swap=tensor(True)))
    assert y.tolist() == [[[[5.0, 6.0], [0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]]]
    assert sure.tolist() == [[[0.25, 0.0, 0.5, 0.0]]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_loops(device, draw, dtype):
    x, confidence, plan = draw(dtype=dtype, device=device)
    y, sure = ops.augment(x, confidence, plan)
    expected, expected_sure = oracle(x, confidence, plan)
    assert y.dtype == dtype and sure.dtype == torch.float32
    tolerance = max(torch.finfo(dtype).eps, 1e-5)
    assert_close(y.double().cpu(), expected, rtol=tolerance, atol=1e-5)
    assert_close(sure.double().cpu(), expected_sure)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("joints", [3, 49])
def test_every_backend_has_the_bits_of_the_reference(device, draw, dtype, joints):
    x, confidence, plan = draw(clips=3, frames=17, joints=joints, dtype=dtype, device=device)
    one_map = plan._replace(
        linear=plan.linear[:, :1].expand(-1, 3, -1, -1), center=plan.center[:, :1].expand(-1, 3, -1)
    )
    for sure in (confidence, confidence.to(dtype)):
        for each in (
            plan,
            one_map,
            one_map._replace(drop=torch.zeros_like(plan.drop)),
            plan._replace(linear=plan.linear.double()),
            plan._replace(linear=plan.linear.bfloat16(), center=plan.center.half()),
            plan._replace(swap_index=torch.zeros_like(plan.swap_index)),
        ):
            got, expected = ops.augment(x, sure, each), reference.augment(x, sure, *each)
            for a, b in zip(got, expected, strict=True):
                assert a.dtype == b.dtype and a.is_contiguous() and torch.equal(a, b)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(draw, threads):
    x, confidence, plan = draw(clips=40, frames=64, joints=49)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = ops.augment(x, confidence, plan)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(got, reference.augment(x, confidence, *plan), strict=True))


def test_arguments_stay_as_they_are(draw):
    x, confidence, plan = draw()
    before = [tensor.clone() for tensor in (x, confidence, *plan)]
    ops.augment(x, confidence, plan)
    assert all(a.equal(b) for a, b in zip(before, (x, confidence, *plan), strict=True))


# ---- backward -------------------------------------------------------------------------------------------------------


def test_gradcheck(draw):
    x, confidence, plan = draw(clips=2, frames=2, dtype=torch.float64)
    plan = plan._replace(linear=plan.linear.double(), center=plan.center.double())
    assert torch.autograd.gradcheck(lambda z: ops.augment(z, confidence, plan)[0], x.requires_grad_())


def test_dropped_joints_get_no_gradient(device, draw):
    x, confidence, plan = draw(device=device)
    x.requires_grad_()
    ops.augment(x, confidence, plan)[0].sum().backward()
    dropped = plan.drop[:, None].expand(confidence.shape)
    assert not x.grad[dropped].any() and x.grad[~dropped].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_the_adjoint(device, draw, randn, dtype):
    """The gradient of the reference's autograd in float64, rounded once; also where joints are read twice or never."""
    x, confidence, plan = draw(dtype=dtype, device=device)
    grad = randn(*x.shape, dtype=dtype, device=device)
    for index in (plan.swap_index, plan.swap_index // 2):
        each = plan._replace(swap_index=index)
        x.requires_grad_()
        (got,) = torch.autograd.grad(ops.augment(x, confidence, each)[0], x, grad)
        wide = x.detach().double().requires_grad_()
        (truth,) = torch.autograd.grad(reference.augment(wide, confidence, *each)[0], wide, grad.double())
        assert got.dtype == dtype
        assert_close(got.double(), truth, rtol=max(torch.finfo(dtype).eps, 1e-5), atol=1e-5)


def test_autocast_rounds_no_gradient(device, draw, randn):
    x, confidence, plan = draw(device=device)
    grad = randn(*x.shape, device=device)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(ops.augment(x, confidence, plan)[0], x, grad)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        (got,) = torch.autograd.grad(ops.augment(x, confidence, plan)[0], x, grad)
    assert torch.equal(got, expected)


def test_no_gradient_for_confidence_nor_plan_nor_a_second_time(draw, saved_shapes):
    x, confidence, plan = draw()
    assert not any(out.requires_grad for out in ops.augment(x, confidence, plan))
    x.requires_grad_()
    with pytest.warns(UserWarning, match="augment: confidence requires grad, but no gradient flows to it"):
        y, sure = ops.augment(x, confidence.requires_grad_(), plan)
    assert y.requires_grad and not sure.requires_grad
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    shapes = saved_shapes(lambda: ops.augment(x, confidence.detach(), plan))
    assert x.shape not in shapes and shapes[0] == confidence.shape


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(device, draw):
    x, confidence, plan = draw(device=device)
    for one in (x, x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        torch.library.opcheck(torch.ops.slrfast.augment.default, (one, confidence, *plan))
        torch.library.opcheck(torch.ops.slrfast.augment_grad.default, (one, confidence, plan.linear, *plan[2:]))


def test_compiles_whole_and_under_autocast(device, draw, compiled):
    x, confidence, plan = draw(device=device)
    x.requires_grad_()
    expected = ops.augment(x, confidence, plan)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = compiled(ops.augment)(x, confidence, plan)
    assert_close(got, expected)
    assert_close(torch.autograd.grad(got[0].sum(), x), torch.autograd.grad(expected[0].sum(), x))


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clips", "frames", "joints"), [(1, 1, 1), (0, 3, 4), (2, 0, 4), (2, 3, 0), (3, 25, 49)])
def test_ragged_sizes(device, draw, clips, frames, joints):
    x, confidence, plan = draw(clips, frames, joints, device=device)
    y, sure = ops.augment(x, confidence, plan)
    expected, expected_sure = oracle(x, confidence, plan)
    assert_close(y.double().cpu(), expected, rtol=1e-5, atol=1e-5)
    assert_close(sure.double().cpu(), expected_sure)


def test_any_strides(device, draw):
    x, confidence, plan = draw(device=device)
    views = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), confidence.mT.contiguous().mT
    assert_close(ops.augment(*views, plan), ops.augment(x, confidence, plan))


def test_nan_stays_in_its_joint(draw):
    x, confidence, plan = draw()
    x[0, 1, 4, 0] = math.nan
    plan = plan._replace(drop=torch.zeros_like(plan.drop))
    broken = ops.augment(x, confidence, plan)[0].isnan().any(-1).nonzero().tolist()
    assert broken == [[0, 1, 4]]
    plan.drop[0, 4] = True
    assert ops.augment(x, confidence, plan)[0].isfinite().all()


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change", "error", "message"),
    [
        ("linear", lambda t: t[:, :, 0], ValueError, "linear must have shape [B, P, 2, 2], got [4, 3, 2]"),
        ("center", lambda t: t[:, :2], ValueError, "center must have shape [B, P, 2] with P = 3, got [4, 2, 2]"),
        ("part", lambda t: t[:8], ValueError, "part must have shape [V] with V = 9, got [8]"),
        ("part", lambda t: t.int(), TypeError, "part must be torch.int64, got torch.int32"),
        ("part", lambda t: t + 1, ValueError, "part must be in [0, 2], got [1, 2, 3, 1, 2, 3, 1, 2, 3]"),
        ("swap_index", lambda t: t - 1, ValueError, "swap_index must be in [0, 8], got [6, 7, -1, 0, 1, 2, 3, 4, 5]"),
        ("affected", lambda t: t.float(), TypeError, "affected must be torch.bool, got torch.float32"),
        ("drop", lambda t: t[:2], ValueError, "drop must have shape [B, V] with B = 4, got [2, 9]"),
        ("swap", lambda t: t.to("meta"), ValueError, "swap must be on the device of x (cpu), got meta"),
        ("linear", lambda t: t.long(), TypeError, "linear must be float64, float32, bfloat16 or float16"),
    ],
)
def test_errors_of_the_plan(draw, field, change, error, message):
    x, confidence, plan = draw()
    with pytest.raises(error, match=re.escape(f"augment: {message}")):
        ops.augment(x, confidence, plan._replace(**{field: change(getattr(plan, field))}))


def test_errors_of_the_clips(draw):
    x, confidence, plan = draw()
    with pytest.raises(ValueError, match=re.escape("augment: x must have shape [B, T, V, 2], got [4, 6, 9, 1]")):
        ops.augment(x[..., :1], confidence, plan)
    with pytest.raises(ValueError, match=re.escape("confidence must have shape [B, T, V] with T = 6, got [4, 5, 9]")):
        ops.augment(x, confidence[:, :5], plan)
    with pytest.raises(TypeError, match="augment: x must be float64, float32, bfloat16 or float16, got torch.int64"):
        ops.augment(x.long(), confidence, plan)
    with pytest.raises(TypeError, match="confidence must be torch.float32 or as x torch.float32, got torch.float64"):
        ops.augment(x, confidence.double(), plan)
    with pytest.raises(TypeError, match="augment: plan must be an AugmentTensors, got tuple"):
        ops.augment(x, confidence, tuple(plan))
