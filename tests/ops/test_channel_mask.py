import math

import pytest
import torch

import slrfast
from slrfast import ops
from slrfast.ops import _dispatch
from slrfast.reference import channel_mask as reference

OP = "channel_mask"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(b=2, t=8, d=300, *, dtype=torch.float32, device="cpu", seed=0, scale=1.0):
    """Channels around a mean of their own, with deviations from 0 to about 1."""
    generator = torch.Generator().manual_seed(seed)
    deviation = torch.rand(b, 1, d, generator=generator, dtype=torch.float64)
    z = torch.randn(b, t, d, generator=generator, dtype=torch.float64) * deviation
    mean = torch.randn(b, 1, d, generator=generator, dtype=torch.float64)
    return (scale * (z + mean)).to(device, dtype)


def deviations(z):
    """Standard deviations, channel by channel, in float64."""
    found = torch.zeros(z.shape[0], z.shape[2], dtype=torch.float64)
    for b in range(z.shape[0]):
        for d in range(z.shape[2]):
            values = [float(v) for v in z[b, :, d]]
            if len(values) > 1:
                mean = math.fsum(values) / len(values)
                found[b, d] = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return found


def check(got, z, threshold, quantile=False):
    """Kept is what deviates enough, but for channels within rounding of the limit; the rest of z is 0."""
    z, (masked, keep) = z.cpu(), (tensor.cpu() for tensor in got)
    sigma = deviations(z)
    limit = torch.full((len(z), 1), float(threshold), dtype=torch.float64)
    if quantile:
        limit = sigma.sort(1).values[:, min(int(threshold * z.shape[2]), z.shape[2] - 1)][:, None]
    clear = (sigma - limit).abs() > 1e-5 * limit.clamp_min(1e-3)
    assert keep.dtype == torch.bool and keep.shape == sigma.shape
    assert torch.equal(keep[clear], (sigma >= limit)[clear])
    assert masked.dtype == z.dtype and torch.equal(masked, torch.where(keep[:, None], z, torch.zeros_like(z)))
    return keep


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    # deviations 0, 1, 1 / sqrt 2 = 0.707, 0.5 sqrt 2 = 0.707 of two frames: |difference| / sqrt 2
    z = torch.tensor([[[5.0, 0.0, 1.0], [5.0, math.sqrt(2.0), 2.0]]], device=device)
    found = ops.channel_mask(z, 0.9)
    assert isinstance(found, ops.ChannelMask) and found.keep.tolist() == [[False, True, False]]
    assert found.z[0, :, 0].tolist() == [0.0, 0.0] and torch.equal(found.z[0, :, 1], z[0, :, 1])
    assert ops.channel_mask(z).keep.tolist() == [[False, True, True]]  # 0.5 by default
    assert ops.channel_mask(z, 2 / 3, quantile=True).keep.tolist() == [[False, True, False]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_loops(device, dtype):
    z = draw(dtype=dtype, device=device)
    keep = check(ops.channel_mask(z, 0.5), z, 0.5)
    assert 0.2 < keep.float().mean() < 0.8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_quantile(device, dtype, share):
    z = draw(d=100, dtype=dtype, device=device)
    found = ops.channel_mask(z, share, quantile=True)
    assert found.keep.sum(1).tolist() == [100 - int(share * 100)] * 2
    if share < 1:
        check(found, z, share, quantile=True)
    else:
        assert not found.z.any()


def test_equal_deviations_stay_together(device):
    z = torch.tensor([0.0, 2.0], device=device).view(1, 2, 1).repeat(1, 1, 8)
    z[..., 6:] = 1.0
    assert ops.channel_mask(z, 0.2, quantile=True).keep[0].tolist() == [True] * 8  # the smallest of all are not removed
    assert ops.channel_mask(z, 0.5, quantile=True).keep[0].tolist() == [True] * 6 + [False] * 2


def test_the_limit_is_kept(device):
    """Numbers that every backend computes exactly: four frames of -1, -1, 1, 1 deviate by sqrt(4 / 3)."""
    z = torch.tensor([-3.0, 3.0, 3.0, -3.0, 0.0], device=device).view(1, 5, 1)  # 36 / 4 = 9
    assert ops.channel_mask(z, 3.0).keep.all() and not ops.channel_mask(z, math.nextafter(3.0, 4.0) + 1e-6).keep.any()
    assert ops.channel_mask(torch.ones(1, 4, 2, device=device), 0.0).keep.all()


def test_a_large_mean_hides_no_deviation(device):
    z = draw(t=32, device=device) + 1000
    check(ops.channel_mask(z, 0.5), z, 0.5)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads):
    z, before = draw(3, 32, 5000), torch.get_num_threads()
    expected = ops.channel_mask(z)
    torch.set_num_threads(threads)
    try:
        found = ops.channel_mask(z)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found, expected))


# ---- gradient: there is none ----------------------------------------------------------------------------------------


def test_no_gradient_flows(device, saved_shapes):
    z = draw(device=device).requires_grad_()
    assert saved_shapes(lambda: ops.channel_mask(z)) == []
    assert not any(tensor.requires_grad for tensor in ops.channel_mask(z))


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(device):
    z = draw(device=device)
    for tensor in (z, z.transpose(1, 2).contiguous().transpose(1, 2)):
        for quantile in (False, True):
            torch.library.opcheck(torch.ops.slrfast.channel_mask.default, (tensor, 0.5, quantile))


def test_compiles_whole_with_dynamic_shapes_and_under_autocast(device, compiled):
    function = compiled(lambda z: ops.channel_mask(z * 2, 0.7))
    for channels in (64, 90):
        z = draw(d=channels, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = function(z)
        assert isinstance(got, ops.ChannelMask) and got.keep.any()
        assert all(map(torch.equal, got, ops.channel_mask(z * 2, 0.7)))


def test_fake_tensors_never_reach_a_kernel():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        found = ops.channel_mask(mode.from_tensor(draw()))
    assert [tuple(tensor.shape) for tensor in found] == [(2, 8, 300), (2, 300)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", _dispatch.TABLES[OP]["cuda"])
@pytest.mark.parametrize("quantile", [False, True])
def test_captured_in_a_cuda_graph(name, quantile):
    if reason := _dispatch.unavailable(name, "cuda"):
        pytest.skip(reason)
    with slrfast.backend(name):
        z = draw(device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            ops.channel_mask(z, quantile=quantile)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = ops.channel_mask(z, quantile=quantile)
        z.copy_(draw(device="cuda", seed=5))
        graph.replay()
        check(found, z, 0.5, quantile)


# ---- edges ----------------------------------------------------------------------------------------------------------


SIZES = [(1, 1, 1), (1, 2, 1), (2, 1, 130), (3, 5, 127), (1, 33, 257), (1, 300, 3), (0, 4, 3), (2, 0, 3), (2, 4, 0)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("quantile", [False, True])
def test_ragged_sizes(device, sizes, quantile):
    z = draw(*sizes, device=device)
    found = ops.channel_mask(z, 0.5, quantile=quantile)
    if z.numel():
        check(found, z, 0.5, quantile)
    assert found.z.shape == z.shape and found.keep.shape == (sizes[0], sizes[2])
    if sizes[1] < 2 and not quantile:
        assert not found.keep.any() and ops.channel_mask(z, 0.0).keep.all()  # the deviation of one frame is 0


def test_any_strides(device):
    z = draw(3, 8, 40, device=device)
    expected = ops.channel_mask(z)
    for strided in (z.permute(2, 0, 1).contiguous().permute(1, 2, 0), torch.stack((z, z), 3)[..., 1]):
        assert not strided.is_contiguous() and all(map(torch.equal, ops.channel_mask(strided), expected))
    expanded = z[:1].expand_as(z)
    assert all(map(torch.equal, ops.channel_mask(expanded), ops.channel_mask(expanded.contiguous())))


def test_inputs_are_left_alone(device):
    z = draw(device=device)
    copy = z.clone()
    found = ops.channel_mask(z, 0.0)
    found.z.fill_(7)
    assert torch.equal(z, copy)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_channel_that_is_not_finite_is_not_kept(device, value):
    z = draw(1, 8, 20, device=device, scale=4.0)
    z[0, 3, 7] = value
    found = ops.channel_mask(z, 0.1)
    assert not found.keep[0, 7] and not found.z[0, :, 7].any() and found.keep.sum() > 10


# ---- errors ---------------------------------------------------------------------------------------------------------

Z = torch.zeros(1, 2, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.channel_mask(Z[0]), ValueError, "z must have shape [B, T, D], got [2, 3]"),
        (
            lambda: ops.channel_mask(Z.int()),
            TypeError,
            "z must be float64, float32, bfloat16 or float16, got torch.int",
        ),
        (lambda: ops.channel_mask([1.0]), TypeError, "z must be a torch.Tensor, got list"),
        (lambda: ops.channel_mask(Z, -0.1), ValueError, "threshold must be finite and >= 0, got -0.1"),
        (lambda: ops.channel_mask(Z, math.nan), ValueError, "threshold must be finite and >= 0, got nan"),
        (lambda: ops.channel_mask(Z, 1.5, quantile=True), ValueError, "threshold must be in [0, 1], got 1.5"),
        (lambda: ops.channel_mask(Z, "much"), TypeError, "threshold must be a number, got str"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value).startswith("channel_mask: ") and words in str(raised.value)


def test_reference_limits():
    variance = torch.tensor([[3.0, 1.0, 2.0]])
    assert reference.least_variance(variance, 0.5, False).tolist() == [0.25]
    assert reference.least_variance(variance, 0.4, True).tolist() == [2.0]
    assert reference.least_variance(variance, 1.0, True).isnan().all()
