import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slrfast
from slrfast import ops
from slrfast.ops import _dispatch
from slrfast.reference import otsu_mask as reference

OP = "otsu_mask"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(b=2, t=3, h=9, w=11, *, dtype=torch.float32, device="cpu", seed=0):
    """A dark and a bright half with noise, some of it out of [0, 1]; and a background."""
    generator = torch.Generator().manual_seed(seed)
    frames = 0.25 + 0.2 * torch.randn(b, t, 3, h, w, generator=generator, dtype=torch.float64)
    frames[..., w // 2 :] += 0.5
    still = torch.rand(3, h, w, generator=generator, dtype=torch.float64)
    return frames.to(device, dtype), still.to(device, dtype)


def grey(value, color):
    """A clip whose three channels all have these values."""
    return torch.tensor(value, dtype=color).view(1, 1, 1, 1, -1).expand(1, 1, 3, 1, -1)


def levels_of(frames, still):
    """Grey levels as the op defines them, in numpy, in its own type and order."""
    wide = np.float64 if torch.float64 in (frames.dtype, None if still is None else still.dtype) else np.float32
    x = frames.cpu().double().numpy().astype(wide)
    if still is not None:
        x = np.abs(x - still.cpu().double().numpy().astype(wide))
    luma = wide(0.299) * x[:, :, 0] + wide(0.587) * x[:, :, 1] + wide(0.114) * x[:, :, 2]
    luma = np.clip(np.nan_to_num(luma, nan=0.0, posinf=1.0, neginf=0.0), wide(0), wide(1))
    return (luma * wide(255) + wide(0.5)).astype(np.int64)


def check(mask, frames, still=None):
    """Every threshold of every clip is tried: the variance within both sides, the smallest of which Otsu takes."""
    levels = levels_of(frames, still)
    assert mask.dtype == torch.bool and tuple(mask.shape) == levels.shape and mask.device == frames.device
    for clip, found in zip(levels, mask.cpu().numpy(), strict=True):
        best, wanted = math.inf, np.ones(clip.shape, bool)
        for threshold in range(255):
            front, back = clip[clip > threshold], clip[clip <= threshold]
            if len(front) and len(back):
                within = len(front) * front.var() + len(back) * back.var()
                if within < best - 1e-9 * max(best, 1.0) or best == math.inf:
                    best, wanted = within, clip > threshold
        np.testing.assert_array_equal(found, wanted)


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    values = torch.tensor([0.1, 0.1, 0.2, 0.9, 0.8, 0.1], device=device)
    mask = ops.otsu_mask(values.view(1, 2, 1, 1, 3).expand(1, 2, 3, 1, 3))
    assert mask.flatten().tolist() == [False, False, False, True, True, False]


def test_colours_have_their_weights(device):
    """Pure red, green and blue are 76, 150 and 29 of 255."""
    frames = torch.eye(3, device=device).view(1, 1, 3, 1, 3)
    assert ops.otsu_mask(frames).flatten().tolist() == [False, True, False]
    levels = reference.grey_levels(frames.cpu(), None)
    assert levels.flatten().tolist() == [76, 150, 29]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subtract", [False, True])
def test_equals_loops(device, dtype, subtract):
    frames, still = draw(dtype=dtype, device=device)
    check(ops.otsu_mask(frames, still if subtract else None), frames, still if subtract else None)


def test_every_clip_has_its_threshold_and_all_its_frames_share_it(device):
    dark = torch.tensor([0.0, 0.1, 0.0, 0.1], device=device)
    clips = torch.stack((dark, dark + 0.8, torch.cat((dark[:2], dark[2:] + 0.8)))).view(3, 2, 1, 1, 2)
    mask = ops.otsu_mask(clips.expand(3, 2, 3, 1, 2)).flatten(1)
    assert mask.tolist() == [[False, True, False, True]] * 2 + [[False, False, True, True]]


def test_dtypes_mix(device):
    frames, still = draw(device=device)
    for dtype in DTYPES:
        for other in DTYPES:
            x, y = frames.to(dtype), still.to(other)
            check(ops.otsu_mask(x, y), x, y)


def test_the_background_is_subtracted_without_sign(device):
    frames = torch.tensor([0.5, 0.1, 0.9, 0.5], device=device).view(1, 1, 1, 1, 4).expand(1, 1, 3, 1, 4)
    still = torch.full((3, 1, 4), 0.5, device=device)
    assert ops.otsu_mask(frames, still).flatten().tolist() == [False, True, True, False]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads):
    (frames, still), before = draw(3, 7, 50, 70), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = ops.otsu_mask(frames, still)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, reference.otsu_mask(frames, still))


# ---- gradient: there is none ----------------------------------------------------------------------------------------


def test_no_gradient_flows(device, saved_shapes):
    frames, still = (tensor.requires_grad_() for tensor in draw(device=device))
    assert saved_shapes(lambda: ops.otsu_mask(frames, still)) == []
    assert not ops.otsu_mask(frames, still).requires_grad


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(device):
    frames, still = draw(device=device)
    strided = frames.transpose(1, 2).contiguous().transpose(1, 2)
    for arguments in ((frames, None), (frames, still), (strided, still)):
        torch.library.opcheck(torch.ops.slrfast.otsu_mask.default, arguments)


def test_compiles_whole_with_dynamic_shapes_and_under_autocast(device, compiled):
    function = compiled(lambda x, y: ops.otsu_mask(x * 0.9, y))
    for width in (11, 14):
        frames, still = draw(w=width, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = function(frames, still)
        assert got.any() and torch.equal(got, ops.otsu_mask(frames * 0.9, still))


def test_fake_tensors_never_reach_a_kernel():
    from torch._subclasses.fake_tensor import FakeTensorMode

    frames, still = draw()
    with FakeTensorMode() as mode:
        found = ops.otsu_mask(mode.from_tensor(frames), mode.from_tensor(still))
    assert tuple(found.shape) == (2, 3, 9, 11) and found.dtype == torch.bool


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
            ops.otsu_mask(*tensors)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = ops.otsu_mask(*tensors)
        for tensor, other in zip(tensors, draw(device="cuda", seed=5), strict=True):
            tensor.copy_(other)
        graph.replay()
        check(found, *tensors)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1), (1, 1, 1, 2), (1, 5, 1, 7), (3, 1, 33, 41), (0, 2, 3, 3), (2, 0, 3, 3), (2, 2, 0, 3)],
    ids=str,
)
def test_ragged_sizes(device, sizes):
    frames, still = draw(*sizes, device=device)
    for background in (None, still):
        mask = ops.otsu_mask(frames, background)
        assert tuple(mask.shape) == sizes
        if frames.numel():
            check(mask, frames, background)


def test_a_clip_of_one_grey_is_all_front(device):
    """Nothing parts it, so nothing is taken away; rounding noise is one grey."""
    for value in (0.0, 0.5, 1.0, -3.0, 7.0):
        frames = torch.full((1, 2, 3, 4, 4), value, device=device)
        assert ops.otsu_mask(frames).all() and ops.otsu_mask(frames, frames[0, 0]).all()
        assert ops.otsu_mask(frames + 1e-5 * torch.rand(frames.shape).to(device) - 0.5e-5).all() or value == 0.5


@pytest.mark.parametrize(("value", "front"), [(math.nan, False), (math.inf, True), (-math.inf, False)])
def test_pixels_that_are_not_finite(device, value, front):
    frames = torch.tensor([0.1, 0.1, 0.9, 0.9], device=device).view(1, 1, 1, 1, 4).repeat(1, 1, 3, 1, 1)
    frames[..., 3] = value
    assert ops.otsu_mask(frames).flatten().tolist() == [False, False, True, front]


def test_any_strides(device):
    frames, still = draw(device=device)
    expected = ops.otsu_mask(frames, still)
    strided = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3), still.permute(1, 2, 0).contiguous()
    assert torch.equal(ops.otsu_mask(strided[0], strided[1].permute(2, 0, 1)), expected)
    clip = frames.transpose(1, 2).contiguous().transpose(1, 2)
    assert not clip.is_contiguous() and torch.equal(ops.otsu_mask(clip, still), expected)


def test_inputs_are_left_alone(device):
    tensors = draw(device=device)
    copies = [tensor.clone() for tensor in tensors]
    ops.otsu_mask(*tensors).fill_(True)
    assert all(map(torch.equal, tensors, copies))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 12), st.integers(0, 40)),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 2),
    subtract=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_calls_equal_the_reference_bit_by_bit(sizes, dtypes, subtract, seed):
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    frames, still = draw(*sizes, seed=seed)
    frames, still = frames.to(dtypes[0]), still.to(dtypes[1]) if subtract else None
    with slrfast.backend("native"):
        found = ops.otsu_mask(frames, still)
    assert torch.equal(found, reference.otsu_mask(frames, still))


# ---- errors ---------------------------------------------------------------------------------------------------------

X, S = torch.zeros(1, 2, 3, 4, 5), torch.zeros(3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((X[0],), ValueError, "frames must have shape [B, T, 3, H, W], got [2, 3, 4, 5]"),
        ((X[:, :, :2],), ValueError, "frames must have shape [B, T, 3, H, W], got [1, 2, 2, 4, 5]"),
        ((X, S[:, 1:]), ValueError, "still must have shape [3, H, W] with H = 4, got [3, 3, 5]"),
        ((X.byte(),), TypeError, "frames must be float64, float32, bfloat16 or float16, got torch.uint8"),
        ((X, S.int()), TypeError, "still must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((X, S.to("meta")), ValueError, "still must be on the device of frames (cpu), got meta"),
        ((X.numpy(),), TypeError, "frames must be a torch.Tensor, got ndarray"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error) as raised:
        ops.otsu_mask(*arguments)
    assert str(raised.value).startswith("otsu_mask: ") and words in str(raised.value)
