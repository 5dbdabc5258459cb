import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slrfast
from slrfast import ops
from slrfast.ops import _dispatch
from slrfast.reference import motion_mask as reference

OP = "motion_mask"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEFAULTS = {
    "interval": 3,
    "confidence_threshold": 0.4,
    "motion_threshold": 5.0,
    "joint_fraction": 0.5,
    "mask_ratio": 0.9,
    "norm": False,
}


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(b=4, t=20, v=7, *, dtype=torch.float32, confidence_dtype=None, device="cpu", seed=0):
    """Clips of which about half of the frames move; lengths between 0 and t; keys with ties."""
    generator = torch.Generator().manual_seed(seed)
    speed = 16 * torch.rand(b, t, 1, 1, generator=generator, dtype=torch.float64)
    x = 128 + speed * torch.randn(b, t, v, 2, generator=generator, dtype=torch.float64)
    confidence = torch.rand(b, t, v, generator=generator, dtype=torch.float64).pow(0.3)
    lengths = torch.randint(0, t + 1, (b,), generator=generator)
    keys = (2 * t * torch.rand(b, t, generator=generator)).floor()
    tensors = x.to(dtype), confidence.to(confidence_dtype or dtype), lengths, keys
    return tuple(tensor.to(device) for tensor in tensors)


def candidates(x, confidence, lengths, **options):
    """Residual, weight and candidates, entry by entry, in the numbers that the definition names."""
    options = DEFAULTS | options
    wide = np.float64 if torch.float64 in (x.dtype, confidence.dtype) else np.float32
    r = confidence.cpu().double().numpy().astype(wide)
    x = x.cpu().double().numpy().astype(wide)
    residual, weight = np.zeros_like(x), np.zeros_like(r)
    found = [[] for _ in x]
    threshold = wide(options["confidence_threshold"])
    for b, clip in enumerate(x):
        length = len(clip) if lengths is None else int(lengths[b])
        for i in range(length - options["interval"]):
            later, moving, entries = i + options["interval"], 0, 0
            for v in range(x.shape[2]):
                first, second = (r[b, t, v] if r[b, t, v] >= threshold else wide(0) for t in (i, later))
                weight[b, i, v] = first * second
                residual[b, i, v] = x[b, later, v] - x[b, i, v]
                m, w = [float(m) for m in residual[b, i, v]], float(weight[b, i, v])
                sizes = [math.sqrt(m[0] * m[0] + m[1] * m[1])] if options["norm"] else [abs(m[0]), abs(m[1])]
                moving += sum(size * w >= options["motion_threshold"] for size in sizes)
                entries += len(sizes)
            if entries and moving / entries >= options["joint_fraction"]:
                found[b].append(i)
    return torch.from_numpy(residual), torch.from_numpy(weight), found


def check(got, x, confidence, lengths, keys, **options):
    residual, weight, found = candidates(x, confidence, lengths, **options)
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    for b, frames in enumerate(found):
        ranked = sorted(frames, key=lambda i, b=b: (math.inf if math.isnan(keys[b, i]) else float(keys[b, i]), i))
        mask[b, ranked[: math.floor((DEFAULTS | options)["mask_ratio"] * len(frames))]] = True
    assert got.residual.dtype == x.dtype and got.weight.dtype == confidence.dtype and got.mask.dtype == torch.bool
    assert all(tensor.is_contiguous() and tensor.device == x.device for tensor in got)
    assert torch.equal(got.residual.cpu(), residual.to(x.dtype))
    assert torch.equal(got.weight.cpu(), weight.to(confidence.dtype))
    assert torch.equal(got.mask.cpu(), mask)
    return found


def line(*steps, v=1, device="cpu"):
    """One clip whose joints all go through these positions, both coordinates the same."""
    return torch.tensor(steps, device=device).reshape(1, -1, 1, 1).expand(1, -1, v, 2).contiguous()


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    x = torch.zeros(1, 6, 2, 2, device=device)
    x[0, :, 0, 0] = torch.tensor([0.0, 6.0, 0.0, 0.0, 8.0, 8.0])
    x[0, :, 1, 1] = torch.tensor([0.0, 0.0, 0.0, 9.0, 9.0, 0.0])
    confidence = torch.ones(1, 6, 2, device=device)
    confidence[0, 3, 0], confidence[0, 4, 1] = 0.39, 0.5
    keys = torch.tensor([[0.2, 0.3, 0.5, 0.4, 0.1, 0.0]], device=device)
    # of four entries one moves in the frames 0, 1 and 2; none in frame 3 (8 * 0) and in frame 4 (9 * 0.5)
    found = ops.motion_mask(x, confidence, None, keys, interval=1, joint_fraction=0.25, mask_ratio=0.7)
    assert found.residual[0, :, 0, 0].tolist() == [6.0, -6.0, 0.0, 8.0, 0.0, 0.0]
    assert found.residual[0, :, 1, 1].tolist() == [0.0, 0.0, 9.0, 0.0, -9.0, 0.0]
    assert found.weight[0, :, 0].tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert found.weight[0, :, 1].tolist() == [1.0, 1.0, 1.0, 0.5, 0.5, 0.0]
    assert found.mask[0].tolist() == [True, True, False, False, False, False]  # floor(0.7 * 3)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_loops(device, dtype, norm):
    for confidence_dtype in {dtype, torch.float32, torch.float16}:
        tensors = draw(dtype=dtype, confidence_dtype=confidence_dtype, device=device)
        found = check(ops.motion_mask(*tensors, norm=norm), *tensors, norm=norm)
        assert 0 < sum(map(len, found)) < tensors[2].sum() - 3 * 4


@pytest.mark.parametrize(
    "options",
    [
        *({"interval": interval} for interval in (1, 19, 20, 2**31 - 1)),
        {"confidence_threshold": 0.8},
        *({"motion_threshold": threshold} for threshold in (0.0, 20.0)),
        *({"joint_fraction": fraction} for fraction in (0.0, 1.0)),
        {"joint_fraction": 3 / 7, "norm": True},
        *({"mask_ratio": ratio} for ratio in (0.0, 1 / 3, 1.0)),
    ],
    ids=str,
)
def test_every_number_counts(device, options):
    tensors = draw(device=device, seed=1)
    check(ops.motion_mask(*tensors, **options), *tensors, **options)
    every = (*tensors[:2], None, tensors[3])
    check(ops.motion_mask(*every, **options), *every, **options)


def test_is_deterministic(device):
    tensors = draw(8, 64, 49, device=device)
    assert all(map(torch.equal, ops.motion_mask(*tensors), ops.motion_mask(*tensors)))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads):
    tensors, before = draw(64, 64, 49), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = ops.motion_mask(*tensors)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found, reference.motion_mask(*tensors, *DEFAULTS.values())))


# ---- the choice -----------------------------------------------------------------------------------------------------


def test_exactly_floor_of_the_ratio(device):
    x = 300.0 * (torch.arange(40.0, device=device) % 2).reshape(1, 40, 1, 1).expand(8, 40, 3, 2)
    keys = torch.rand(8, 40, generator=torch.Generator().manual_seed(0)).to(device)
    lengths = torch.arange(0, 40, 5, device=device)
    for ratio in (0.0, 0.1, 0.29, 0.5, 0.9, 1.0):
        mask = ops.motion_mask(x, torch.ones_like(x[..., 0]), lengths, keys, interval=1, mask_ratio=ratio).mask
        assert mask.sum(1).tolist() == [math.floor(ratio * max(length - 1, 0)) for length in lengths.tolist()]


def test_every_subset_is_equally_likely():
    """Six candidates among ten frames, three of them masked: 20 subsets, 8000 draws, 99.9 % of chi-square(19)."""
    still = {2, 5, 6}
    positions = np.cumsum([0.0] + [0.0 if i in still else 10.0 for i in range(9)])
    x = torch.from_numpy(positions).float().reshape(1, 10, 1, 1).expand(8000, 10, 2, 2)
    keys = torch.rand(8000, 10, generator=torch.Generator().manual_seed(7))
    mask = ops.motion_mask(x, torch.ones(8000, 10, 2), None, keys, interval=1, mask_ratio=0.5).mask
    moving = [i for i in range(9) if i not in still]
    assert not mask[:, [*still, 9]].any() and (mask.sum(1) == 3).all()
    counts = np.unique(mask[:, moving].long() @ (2 ** torch.arange(6)), return_counts=True)[1]
    assert len(counts) == math.comb(6, 3) and ((counts - 400) ** 2 / 400).sum() < 43.8
    frames = mask[:, moving].sum(0).double()  # and so is every frame: 99.9 % of chi-square(5)
    assert 5 / 6 * ((frames - 4000) ** 2 / 2000).sum() < 20.5


def test_smallest_keys_win_the_first_of_equal_ones_and_nan_is_last(device):
    x, confidence = line(*range(0, 100, 10), device=device).float(), torch.ones(1, 10, 1, device=device)
    for keys, ratio, chosen in (
        ([9, 1, 8, 2, 7, 3, 6, 4, 5, 0], 0.5, [1, 3, 5, 7]),
        ([1, 0, 1, 0, 1, 0, 1, 0, 1, 0], 0.7, [0, 1, 2, 3, 5, 7]),
        ([0.0] * 10, 0.5, [0, 1, 2, 3]),
        ([-0.0, 0.0] * 5, 0.5, [0, 1, 2, 3]),
        ([math.nan, 1, math.inf, math.nan, -math.inf, 2, math.inf, 3, math.nan, 0], 0.7, [0, 1, 2, 4, 5, 7]),
        ([math.nan] * 10, 0.3, [0, 1]),
        ([math.inf] * 10, 0.3, [0, 1]),
        ([-math.inf] * 10, 0.3, [0, 1]),
    ):
        for dtype in DTYPES:
            numbers = torch.tensor([keys], dtype=dtype, device=device)
            mask = ops.motion_mask(x, confidence, None, numbers, interval=1, mask_ratio=ratio).mask
            assert mask[0].nonzero().flatten().tolist() == chosen


def test_double_keys_are_compared_as_such(device):
    x, confidence = line(0.0, 10.0, 20.0, 30.0, device=device), torch.ones(1, 4, 1, device=device)
    keys = torch.tensor([[1 + 2e-12, 1 + 1e-12, 1.0, 0.0]], dtype=torch.float64, device=device)
    assert ops.motion_mask(x, confidence, None, keys, interval=1, mask_ratio=0.5).mask[0].tolist() == [0, 0, 1, 0]


def test_limits_belong_to_what_counts(device):
    """At a threshold is enough; just below, where float32 would round up to it, is not."""
    one = torch.ones(1, 2, 1, device=device)
    keys = torch.zeros(1, 2, device=device)
    options = {"interval": 1, "mask_ratio": 1.0, "joint_fraction": 1.0}
    assert ops.motion_mask(line(0.0, 5.0, device=device), one, None, keys, **options).mask[0, 0]
    x = torch.full((1, 2, 1, 2), math.nextafter(5.0, 0.0), dtype=torch.float64, device=device)
    x[0, 0] = 0
    assert not ops.motion_mask(x, one, None, keys, **options).mask.any()
    sure, x = torch.tensor([1 - 2.0**-23, 1.0], device=device).reshape(1, 2, 1), line(0.0, 5 + 2.0**-21, device=device)
    assert (x[0, 1, 0, 0] * sure[0, 0, 0]).item() == 5.0  # rounded
    assert not ops.motion_mask(x, sure, None, keys, **options).mask.any()
    assert ops.motion_mask(line(0.0, 10.0, device=device), 0.5 * one, None, keys, **options).weight[0, 0, 0] == 0.25
    threshold = one * torch.tensor(0.7, device=device)
    found = ops.motion_mask(line(0.0, 99.0, device=device), threshold, None, keys, confidence_threshold=0.7, **options)
    assert found.mask[0, 0]


def test_coordinates_or_joints_are_counted(device):
    x = torch.zeros(1, 2, 1, 2, device=device)
    x[0, 1, 0] = torch.tensor([3.0, 4.0])
    x[0, 1, 0, 0] = -3.0
    one, keys = torch.ones(1, 2, 1, device=device), torch.zeros(1, 2, device=device)
    options = {"interval": 1, "mask_ratio": 1.0, "joint_fraction": 1.0}
    assert not ops.motion_mask(x, one, None, keys, **options).mask.any()
    assert ops.motion_mask(x, one, None, keys, norm=True, **options).mask[0, 0]
    assert ops.motion_mask(x, one, None, keys, motion_threshold=4.0, interval=1, mask_ratio=1.0).mask[0, 0]


def test_padding_is_never_chosen_nor_seen(device):
    x, confidence, lengths, keys = draw(6, 24, 5, device=device, seed=3)
    outside = torch.arange(24, device=device) >= lengths[:, None]
    found = ops.motion_mask(x, confidence, lengths, keys, joint_fraction=0.1, mask_ratio=1.0)
    assert found.mask.any() and not (found.mask & (torch.arange(24, device=device) >= lengths[:, None] - 3)).any()
    for number in (1e4, math.nan, math.inf):
        dirty = x.masked_fill(outside[..., None, None], number), confidence.masked_fill(outside[..., None], number)
        again = ops.motion_mask(*dirty, lengths, keys, joint_fraction=0.1, mask_ratio=1.0)
        assert all(map(torch.equal, found, again))


# ---- gradient: there is none ----------------------------------------------------------------------------------------


def test_no_gradient_flows(device, saved_shapes):
    x, confidence, lengths, keys = draw(device=device)
    call = lambda: ops.motion_mask(x.requires_grad_(), confidence.requires_grad_(), lengths, keys.requires_grad_())  # noqa: E731
    assert saved_shapes(call) == [] and not any(tensor.requires_grad for tensor in call())


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(device):
    x, confidence, lengths, keys = draw(device=device)
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (x, confidence, keys)]
    for tensors in ((x, confidence, lengths, keys), (*strided[:2], None, strided[2])):
        torch.library.opcheck(torch.ops.slrfast.motion_mask.default, (*tensors, *DEFAULTS.values()))


def test_compiles_whole_with_dynamic_shapes_and_under_autocast(device, compiled):
    function = compiled(lambda x, *rest: ops.motion_mask(x * 2, *rest, joint_fraction=0.3))
    for frames in (12, 17):
        x, *rest = draw(3, frames, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = function(x, *rest)
        assert isinstance(got, ops.MotionMask) and got.mask.any()
        assert all(map(torch.equal, got, ops.motion_mask(x * 2, *rest, joint_fraction=0.3)))


def test_fake_tensors_never_reach_a_kernel():
    from torch._subclasses.fake_tensor import FakeTensorMode

    tensors = draw()
    with FakeTensorMode() as mode:
        found = ops.motion_mask(*map(mode.from_tensor, tensors))
    assert [tuple(tensor.shape) for tensor in found] == [(4, 20, 7, 2), (4, 20, 7), (4, 20)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", _dispatch.TABLES[OP]["cuda"])
def test_captured_in_a_cuda_graph(name):
    if reason := _dispatch.unavailable(name, "cuda"):
        pytest.skip(reason)
    with slrfast.backend(name):
        tensors = draw(device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            ops.motion_mask(*tensors)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = ops.motion_mask(*tensors)
        for tensor, other in zip(tensors, draw(device="cuda", seed=5), strict=True):
            tensor.copy_(other)
        graph.replay()
        check(found, *tensors)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1), (1, 3, 2), (1, 4, 1), (2, 507, 1), (1, 9, 133), (3, 64, 16), (0, 5, 3), (2, 0, 3), (2, 5, 0)],
    ids=str,
)
def test_ragged_sizes(device, sizes):
    tensors = draw(*sizes, device=device)
    check(ops.motion_mask(*tensors, joint_fraction=0.2), *tensors, joint_fraction=0.2)


@pytest.mark.parametrize("frames", [4096, 9000])
def test_long_clips(device, frames):
    """Also longer than what one Triton program holds."""
    tensors = draw(2, frames, 1, device=device)
    found = ops.motion_mask(*tensors)
    assert found.mask.any()
    assert all(map(torch.equal, found, reference.motion_mask(*tensors, *DEFAULTS.values())))


def test_any_strides(device):
    x, confidence, lengths, keys = draw(4, 20, 7, device=device)
    expected = ops.motion_mask(x, confidence, lengths, keys)
    strided = (
        x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        torch.stack((confidence, confidence), 1)[:, 1],
        lengths.repeat_interleave(2)[::2],
        keys.T.contiguous().T,
    )
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert all(map(torch.equal, ops.motion_mask(*strided), expected))
    same, copied = x[:1].expand_as(x), x[:1].repeat(4, 1, 1, 1)
    rest = strided[1:]
    assert all(map(torch.equal, ops.motion_mask(same, *rest), ops.motion_mask(copied, *rest)))


def test_inputs_are_left_alone(device):
    tensors = draw(device=device)
    copies = [tensor.clone() for tensor in tensors]
    for tensor in ops.motion_mask(*tensors):
        tensor.fill_(1)
    assert all(map(torch.equal, tensors, copies))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_coordinates_that_are_not_finite(device, value):
    """NaN moves nothing; infinitely far is far; two frames only are concerned."""
    x = line(0.0, 10.0, 20.0, 30.0, 40.0, 50.0, device=device)
    x[0, 2] = value
    keys = torch.zeros(1, 6, device=device)
    found = ops.motion_mask(x, torch.ones(1, 6, 1, device=device), None, keys, interval=1, mask_ratio=1.0)
    far = not math.isnan(value)
    assert found.mask[0].tolist() == [True, far, far, True, True, False]
    assert found.residual[0, :, 0, 0].isfinite().tolist() == [True, False, False, True, True, True]
    unseen = ops.motion_mask(x, torch.zeros(1, 6, 1, device=device), None, keys, interval=1, mask_ratio=1.0)
    assert not unseen.mask.any() and not unseen.weight.any()  # inf * 0 is no motion


def test_confidence_that_is_not_a_number_is_none(device):
    x, keys = line(0.0, 10.0, 20.0, device=device), torch.zeros(1, 3, device=device)
    confidence = torch.tensor([1.0, math.nan, -1.0], device=device).reshape(1, 3, 1)
    assert not ops.motion_mask(x, confidence, None, keys, interval=1, mask_ratio=1.0).weight.any()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(0, 4), st.integers(0, 40), st.integers(0, 20)),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 3),
    options=st.fixed_dictionaries(
        {
            "interval": st.integers(1, 12),
            "confidence_threshold": st.floats(0, 1),
            "motion_threshold": st.floats(0, 12),
            "joint_fraction": st.floats(0, 1),
            "mask_ratio": st.floats(0, 1),
            "norm": st.booleans(),
        }
    ),
    seed=st.integers(0, 2**31),
)
def test_random_calls_equal_the_reference_bit_by_bit(sizes, dtypes, options, seed):
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    x, confidence, lengths, keys = draw(*sizes, dtype=dtypes[0], confidence_dtype=dtypes[1], seed=seed)
    tensors = x, confidence, lengths if seed % 2 else None, keys.to(dtypes[2])
    with slrfast.backend("native"):
        found = ops.motion_mask(*tensors, **options)
    assert all(map(torch.equal, found, reference.motion_mask(*tensors, *(options[name] for name in DEFAULTS))))
    assert (found.mask.sum(1) <= np.floor(options["mask_ratio"] * sizes[1])).all()


# ---- errors ---------------------------------------------------------------------------------------------------------

X, R, L, K = torch.zeros(2, 5, 3, 2), torch.zeros(2, 5, 3), torch.tensor([5, 4]), torch.zeros(2, 5)
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[0], R, L, K), {}, ValueError, "x must have shape [B, T, V, 2], got [5, 3, 2]"),
        ((X[..., :1], R, L, K), {}, ValueError, "x must have shape [B, T, V, 2], got [2, 5, 3, 1]"),
        ((X, R[:, 1:], L, K), {}, ValueError, "confidence must have shape [B, T, V] with T = 5, got [2, 4, 3]"),
        ((X, R, L, K[:1]), {}, ValueError, "random_keys must have shape [B, T] with B = 2, got [1, 5]"),
        ((X, R, L[:1], K), {}, ValueError, "lengths must have shape [B] with B = 2, got [1]"),
        ((X, R, [5, 4], K), {}, TypeError, "lengths must be a torch.Tensor, got list"),
        ((X.int(), R, L, K), {}, TypeError, "x must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((X, R.bool(), L, K), {}, TypeError, "confidence must be float64, float32, bfloat16 or float16"),
        ((X, R, L, K.long()), {}, TypeError, "random_keys must be float64, float32, bfloat16 or float16"),
        ((X, R, L.int(), K), {}, TypeError, "lengths must be torch.int64, got torch.int32"),
        ((X, R.to("meta"), L, K), {}, ValueError, "confidence must be on the device of x (cpu), got meta"),
        ((X, R, L.to("meta"), K), {}, ValueError, "lengths must be on the device of x (cpu), got meta"),
        ((X, R, L + 1, K), {}, ValueError, "lengths must be in [0, 5], got 6 for clip 0"),
        ((X, R, torch.tensor([0, -1]), K), {}, ValueError, "lengths must be in [0, 5], got -1 for clip 1"),
        ((X, R, L, K), {"interval": 0}, ValueError, "interval must be in [1, 2147483647], got 0"),
        ((X, R, L, K), {"interval": 3.0}, TypeError, "interval must be an integer, got float"),
        (
            (X, R, L, K),
            {"confidence_threshold": -1},
            ValueError,
            "confidence_threshold must be finite and >= 0, got -1",
        ),
        ((X, R, L, K), {"motion_threshold": INF}, ValueError, "motion_threshold must be finite and >= 0, got inf"),
        ((X, R, L, K), {"motion_threshold": "5"}, TypeError, "motion_threshold must be a number, got str"),
        ((X, R, L, K), {"joint_fraction": NAN}, ValueError, "joint_fraction must be in [0, 1], got nan"),
        ((X, R, L, K), {"mask_ratio": 1.1}, ValueError, "mask_ratio must be in [0, 1], got 1.1"),
        ((X, R, L, K), {"mask_ratio": True}, TypeError, "mask_ratio must be a number, got bool"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(f"motion_mask: {message}")):
        ops.motion_mask(*arguments, **options)
