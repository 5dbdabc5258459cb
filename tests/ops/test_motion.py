import itertools
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
from slrfast.reference import motion as reference

OP = "motion"
DIRECTIONS = ("backward", "forward")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def oracle(x, interval, direction):
    """The equation, frame by frame, in float64."""
    x = x.detach().double().cpu()
    y = torch.zeros_like(x)
    for t in range(x.shape[-3]):
        early, late = (t - interval, t) if direction == "backward" else (t, t + interval)
        if early >= 0 and late < x.shape[-3]:
            y[..., t, :, :] = x[..., late, :, :] - x[..., early, :, :]
    return y


def check(got, x, interval, direction):
    """Within the error that the reference has in the same dtype, which is one rounding."""
    truth = oracle(x, interval, direction)
    allowed = (reference.motion(x.detach(), interval, direction == "backward").double().cpu() - truth).abs()
    assert got.shape == x.shape and got.dtype == x.dtype and got.is_contiguous()
    assert ((got.detach().double().cpu() - truth).abs() <= 1.5 * allowed + 1e-12).all()


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    x = torch.tensor([[0.0, 5.0], [1.0, 5.0], [3.0, 4.0], [6.0, 2.0]], device=device).reshape(4, 1, 2)
    first = [[0.0, 0.0], [1.0, 0.0], [2.0, -1.0], [3.0, -2.0]]
    assert ops.motion(x).reshape(4, 2).tolist() == first
    assert ops.motion(x, direction="forward").reshape(4, 2).tolist() == [*first[1:], [0.0, 0.0]]
    assert ops.motion(x, interval=3).reshape(4, 2).tolist() == [[0.0, 0.0]] * 3 + [[6.0, -3.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_loops(device, randn, dtype):
    x = randn(3, 7, 5, 2, dtype=dtype, device=device)
    for interval, direction in itertools.product((1, 2, 4, 6, 7, 1000), DIRECTIONS):
        check(ops.motion(x, interval=interval, direction=direction), x, interval, direction)


def test_is_deterministic(device, randn):
    x = randn(8, 64, 49, 2, device=device)
    assert torch.equal(ops.motion(x), ops.motion(x))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_large_input_on_any_number_of_threads(randn, threads):
    x, before = randn(40, 64, 49, 2), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(ops.motion(x), reference.motion(x, 1, True))
        assert torch.equal(ops.motion(x[0], interval=60), reference.motion(x[0], 60, True))
    finally:
        torch.set_num_threads(before)


def test_result_that_no_cache_holds():
    x = torch.arange(85 * 1024 * 98 + 98, dtype=torch.float32).remainder(1009.0)[98:].reshape(85, 1024, 49, 2)
    assert x.numel() * 4 >= 32 << 20
    assert torch.equal(ops.motion(x), reference.motion(x, 1, True))


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_the_adjoint(device, randn, dtype):
    """<grad, motion(x)> differentiated by the reference's autograd."""
    for interval, direction in itertools.product((1, 3, 4, 7), DIRECTIONS):
        x = randn(2, 7, 3, 2, dtype=dtype, device=device, requires_grad=True)
        grad = randn(2, 7, 3, 2, dtype=dtype, device=device)
        (got,) = torch.autograd.grad(ops.motion(x, interval=interval, direction=direction), x, grad)
        wanted = reference.motion(x.double(), interval, direction == "backward")
        (truth,) = torch.autograd.grad(wanted, x, grad.double())
        ulp = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(dtype, 1e-6)
        assert got.dtype == dtype and ((got - truth).abs() <= truth.abs() * ulp).all()


def test_gradient_of_a_sum_and_through_strides(device, randn):
    x = randn(2, 3, 2, 6, device=device, requires_grad=True)
    ops.motion(x.permute(0, 3, 1, 2)).sum().backward()
    assert x.grad[..., 0].eq(-1).all() and x.grad[..., -1].eq(1).all() and x.grad[..., 1:-1].eq(0).all()


def test_saves_nothing_and_skips_autograd_when_unwanted(randn, saved_shapes):
    x = randn(2, 5, 3, 2, requires_grad=True)
    assert saved_shapes(lambda: ops.motion(x)) == []
    assert not ops.motion(x.detach()).requires_grad
    with torch.no_grad():
        assert not ops.motion(x).requires_grad


# ---- gradcheck ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("interval", [1, 2, 3])
def test_gradcheck(device, randn, interval, direction):
    x = randn(4, 1, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.motion(x, interval=interval, direction=direction), x)
    assert torch.autograd.gradgradcheck(lambda x: ops.motion(x, interval=interval, direction=direction), x)


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["motion", "motion_grad"])
def test_opcheck(device, randn, name):
    x = randn(2, 5, 3, 2, device=device)
    for tensor in (x, x.permute(1, 0, 3, 2)):
        torch.library.opcheck(getattr(torch.ops.slrfast, name).default, (tensor, 2, True))


def test_compiles_whole_with_dynamic_shapes_and_under_autocast(device, randn, compiled):
    function = compiled(lambda x: ops.motion(x * 2, interval=2).square().sum())
    for frames in (5, 9):
        x = randn(2, frames, 3, 2, device=device, requires_grad=True)
        expected = ops.motion(x * 2, interval=2).square().sum()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = function(x)
        assert_close(got, expected)
        assert_close(torch.autograd.grad(got, x), torch.autograd.grad(expected, x))


def test_fake_tensors_never_reach_a_kernel(randn):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        x = mode.from_tensor(randn(2, 5, 3, 2)).permute(0, 1, 3, 2)
        y = ops.motion(x)
    assert y.shape == (2, 5, 2, 3) and y.is_contiguous()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", _dispatch.TABLES[OP]["cuda"])
def test_captured_in_a_cuda_graph(name):
    if reason := _dispatch.unavailable(name, "cuda"):
        pytest.skip(reason)
    with slrfast.backend(name):
        x = torch.zeros(2, 5, 3, 2, device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            ops.motion(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ops.motion(x)
        x.copy_(torch.randn(2, 5, 3, 2))
        graph.replay()
        assert torch.equal(y, reference.motion(x, 1, True))


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (2, 1, 1), (507, 1, 1), (1, 3, 252, 1), (2, 2, 2, 123, 1), (0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2)],
)
def test_ragged_sizes(device, randn, shape):
    x = randn(*shape, device=device, requires_grad=True)
    y = ops.motion(x)
    check(y, x, 1, "backward")
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert_close(grad, reference.motion_grad(torch.ones_like(y), 1, True))


def test_any_strides(device, randn):
    base = randn(2, 6, 5, 4, device=device)
    for x in (base.permute(2, 1, 3, 0), base[:, ::2], base[..., 1:3], base[:1].expand(3, 6, 5, 4), base.flip(1)):
        check(ops.motion(x), x, 1, "backward")
        assert_close(ops.motion(x), ops.motion(x.contiguous()), rtol=0, atol=0)


def test_input_is_left_alone(device, randn):
    x = randn(2, 5, 3, 2, device=device)
    before = x.clone()
    ops.motion(x).fill_(9.0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_value_reaches_its_two_frames_only(device, value):
    x = torch.zeros(4, 1, 2, device=device)
    x[1, 0, 0] = value
    assert ops.motion(x)[..., 0].flatten().isfinite().tolist() == [True, False, False, True]
    assert ops.motion(x)[..., 1].isfinite().all()


def test_extreme_values_of_the_half_types(device):
    x = torch.tensor([6e-8, 65504.0, -65504.0, 65504.0], dtype=torch.float16, device=device).reshape(4, 1, 1)
    assert ops.motion(x).flatten().tolist() == [0.0, 65504.0, -math.inf, math.inf]
    tiny = torch.tensor([0.0, 6e-8], dtype=torch.float16, device=device).reshape(2, 1, 1)
    assert ops.motion(tiny)[1] == tiny[1] > 0


@pytest.mark.parametrize("name", ["native"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 9), min_size=3, max_size=5),
    order=st.randoms(use_true_random=False),
    interval=st.integers(1, 10),
    direction=st.sampled_from(DIRECTIONS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_random_calls_equal_the_reference_bit_by_bit(name, shape, order, interval, direction, dtype, seed):
    if reason := _dispatch.unavailable(name, "cpu"):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(seed)
    axes = order.sample(range(len(shape)), len(shape))
    results = []
    base = torch.randn(shape, generator=generator).to(dtype).permute(axes)
    grad = torch.randn(base.shape, generator=generator).to(dtype)
    for backend in (name, "reference"):
        x = base.detach().requires_grad_()
        with slrfast.backend(backend):
            y = ops.motion(x, interval=interval, direction=direction)
            results.append((y.detach(), torch.autograd.grad(y, x, grad)[0]))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


# ---- errors ---------------------------------------------------------------------------------------------------------

X = torch.zeros(4, 3, 2)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "x must be a torch.Tensor, got list"),
        (X[0], {}, ValueError, "x must have shape [..., T, V, C], got [3, 2]"),
        (X.int(), {}, TypeError, "x must be float64, float32, bfloat16 or float16, got torch.int32"),
        (X.to(torch.complex64), {}, TypeError, "x must be float64, float32, bfloat16 or float16, got torch.complex64"),
        (X, {"interval": 0}, ValueError, "interval must be in [1, 2147483647], got 0"),
        (X, {"interval": 1.0}, TypeError, "interval must be an integer, got float"),
        (X, {"interval": True}, TypeError, "interval must be an integer, got bool"),
        (X, {"direction": "up"}, ValueError, "direction must be one of 'backward', 'forward', got 'up'"),
    ],
)
def test_errors(x, options, error, message):
    with pytest.raises(error, match=re.escape(f"motion: {message}")):
        ops.motion(x, **options)
