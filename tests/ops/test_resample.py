import math
import re

import pytest
import torch
from torch.testing import assert_close

from slrfast import checks, ops
from slrfast.reference import resample as reference

OP = "resample"
MODES = ("linear", "nearest")


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def oracle(frames, offsets, start, length, out_frames, mode):
    """Frame by frame, in Python floats."""
    clips = []
    for b in range(len(start)):
        first, count = int(offsets[b] + start[b]), int(length[b])
        window = frames[first : first + count].double().cpu()
        out = []
        for i in range(out_frames):
            if mode == "nearest":
                out.append(window[math.floor(i * count / out_frames)])
                continue
            s = max((i + 0.5) * count / out_frames - 0.5, 0.0)
            j = math.floor(s)
            out.append((1 - (s - j)) * window[j] + (s - j) * window[min(j + 1, count - 1)])
        clips.append(torch.stack(out))
    return torch.stack(clips)


@pytest.fixture
def draw(randn):
    """Three packed clips of 9, 1 and 14 frames, and a window of each."""

    def make(dtype=torch.float32, device="cpu", requires_grad=False):
        frames = randn(24, 5, 2, dtype=dtype, device=device, requires_grad=requires_grad)
        windows = ([0, 9, 10, 24], [2, 0, 1], [6, 1, 13])
        return frames, *(torch.tensor(window, device=device) for window in windows)

    return make


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    frames = torch.tensor([9.0, 0.0, 8.0, 16.0, 9.0], device=device).reshape(5, 1, 1)
    window = [torch.tensor(x, device=device) for x in ([0, 5], [1], [3])]
    # source positions max((i + 0.5) 3/6 - 0.5, 0) = 0, 0.25, 0.75, 1.25, 1.75, 2.25
    assert ops.resample(frames, *window, 6).flatten().tolist() == [0, 2, 6, 10, 14, 16]
    assert ops.resample(frames, *window, 6, mode="nearest").flatten().tolist() == [0, 0, 8, 8, 16, 16]
    assert ops.resample(frames, *window, 2).flatten().tolist() == [2, 14]


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("out_frames", [1, 4, 7, 64])
def test_equals_loops(device, draw, mode, out_frames):
    clips = draw(device=device)
    out = ops.resample(*clips, out_frames, mode=mode)
    assert out.shape == (3, out_frames, 5, 2) and out.dtype == torch.float32
    assert_close(out.double().cpu(), oracle(*clips, out_frames, mode), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_rounds_once(device, draw, dtype):
    clips = draw(dtype=dtype, device=device)
    expected = oracle(*clips, 11, "linear")
    assert_close(ops.resample(*clips, 11).cpu(), expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
def test_equals_interpolate(randn, length):
    frames = randn(length, 3, 2)
    window = torch.tensor([0, length]), torch.tensor([0]), torch.tensor([length])
    expected = torch.nn.functional.interpolate(frames.flatten(1).T[None], size=64, mode="linear")[0].T
    assert_close(ops.resample(frames, *window, 64)[0], expected.reshape(64, 3, 2), rtol=1e-4, atol=1e-5)


def test_nearest_copies_masks(draw):
    frames, offsets, start, length = draw()
    seen = frames[:, :, :1] > 0
    out = ops.resample(seen, offsets, start, length, 7, mode="nearest")
    assert out.dtype == torch.bool
    assert_close(out.double(), oracle(seen, offsets, start, length, 7, "nearest"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("joints", [1, 7, 8, 9, 49])
def test_every_backend_has_the_bits_of_the_reference(device, randn, dtype, joints):
    frames = randn(40, joints, 2, dtype=dtype, device=device)
    offsets, start, length = (torch.tensor(x, device=device) for x in ([0, 11, 40], [0, 3], [11, 25]))
    for mode in MODES:
        for out_frames in (1, 8, 25, 33):
            got = ops.resample(frames, offsets, start, length, out_frames, mode=mode)
            assert torch.equal(got, reference.resample(frames, offsets, start, length, out_frames, mode))


@pytest.mark.parametrize("mode", MODES)
def test_leading_dimensions_are_views(device, draw, mode):
    frames, offsets, start, length = draw(device=device)
    starts = torch.stack((start, start, start + torch.tensor([1, 0, 0], device=device)))
    lengths = torch.stack((length, torch.ones_like(length), torch.tensor([2, 1, 5], device=device)))
    shape = (3, 1, 3)
    got = ops.resample(frames, offsets, starts.view(shape), lengths.view(shape), 6, mode=mode)
    assert got.shape == (3, 1, 3, 6, 5, 2) and got.is_contiguous()
    for one, first, count in zip(got, starts, lengths, strict=True):
        assert torch.equal(one[0], ops.resample(frames, offsets, first, count, 6, mode=mode))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(randn, threads):
    frames, before = randn(3000, 49, 2), torch.get_num_threads()
    window = torch.tensor([0, 1000, 3000]), torch.tensor([[7, 0], [0, 500]]), torch.tensor([[900, 2000], [1000, 33]])
    torch.set_num_threads(threads)
    try:
        for mode in MODES:
            got = ops.resample(frames, *window, 301, mode=mode)
            assert torch.equal(got, reference.resample(frames, *window, 301, mode))
    finally:
        torch.set_num_threads(before)


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(draw, mode):
    frames, offsets, *windows = draw(dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.resample(x, offsets, *windows, 5, mode=mode), frames)
    start, length = windows
    windows = torch.stack((start, start * 0)), torch.stack((length, length * 0 + 1))
    assert torch.autograd.gradcheck(lambda x: ops.resample(x, offsets, *windows, 3, mode=mode), frames)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_is_the_adjoint(device, draw, randn, dtype, mode):
    """The gradient of the reference's autograd in float64, rounded once."""
    frames, *windows = draw(dtype=dtype, device=device, requires_grad=True)
    out = ops.resample(frames, *windows, 40, mode=mode)
    grad = randn(*out.shape, dtype=dtype, device=device)
    (got,) = torch.autograd.grad(out, frames, grad)
    wide = frames.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(reference.resample(wide, *windows, 40, mode), wide, grad.double())
    assert got.dtype == dtype
    assert_close(got.double(), truth, rtol=max(torch.finfo(dtype).eps, 1e-5), atol=1e-5)


def test_saves_only_the_windows_and_has_no_second_derivative(draw, saved_shapes):
    frames, *windows = draw(requires_grad=True)
    assert saved_shapes(lambda: ops.resample(frames, *windows, 5)) == [(4,), (3,), (3,)]
    assert not ops.resample(frames.detach(), *windows, 5).requires_grad
    with torch.no_grad():
        assert not ops.resample(frames, *windows, 5).requires_grad
    (grad,) = torch.autograd.grad(ops.resample(frames, *windows, 5).square().sum(), frames, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradient_stays_inside_the_windows(device, draw):
    frames, offsets, start, length = draw(device=device, requires_grad=True)
    ops.resample(frames, offsets, start, length, 30).sum().backward()
    used = frames.grad.abs().sum((1, 2)) > 0
    expected = torch.zeros(24, dtype=torch.bool)
    expected[2:8] = expected[9] = expected[11:24] = True
    assert used.cpu().equal(expected)


def test_an_infinite_gradient_stays_one_where_nothing_is_blended(device):
    frames = torch.zeros(4, 1, 1, device=device, requires_grad=True)
    window = [torch.tensor(x, device=device) for x in ([0, 4], [0], [4])]
    grad = torch.tensor([1.0, math.inf, 2.0, 3.0], device=device).view(1, 4, 1, 1)
    (got,) = torch.autograd.grad(ops.resample(frames, *window, 4), frames, grad)
    assert got.flatten().tolist() == [1.0, math.inf, 2.0, 3.0]


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(device, draw, mode):
    frames, *windows = draw(device=device)
    for one in (frames, frames.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        torch.library.opcheck(torch.ops.slrfast.resample.default, (one, *windows, 6, mode))
    grad = ops.resample(frames, *windows, 6)
    for one in (grad, grad.mT.contiguous().mT):
        torch.library.opcheck(torch.ops.slrfast.resample_grad.default, (one, 24, *windows, 6, mode))


def test_compiles_whole_and_under_autocast(device, draw, compiled):
    frames, *windows = draw(device=device, requires_grad=True)
    expected = ops.resample(frames, *windows, 7)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = compiled(ops.resample)(frames, *windows, 7)
    assert_close(got, expected)
    weight = torch.arange(7.0, device=device)[:, None, None]
    grads = [torch.autograd.grad((out * weight).sum(), frames)[0] for out in (got, expected)]
    assert_close(*grads)


# ---- edges ----------------------------------------------------------------------------------------------------------


def test_any_strides_and_one_clip(device, randn):
    frames = randn(2, 5, 40, device=device).permute(2, 1, 0)[::2]
    window = [torch.tensor(x, device=device) for x in ([0, 20], [3], [17])]
    assert_close(ops.resample(frames, *window, 9), ops.resample(frames.contiguous(), *window, 9))


def test_no_clips(device, randn):
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    offsets = torch.zeros(1, dtype=torch.int64, device=device)
    assert ops.resample(randn(0, 5, 2, device=device), offsets, empty, empty, 8).shape == (0, 8, 5, 2)


def test_positions_are_exact_beyond_float32():
    frames = torch.zeros(24_000_009, 1, 1, dtype=torch.bfloat16)
    frames[20_000_007] = 1.0  # (2 + 0.5) 24,000,009 / 3 - 0.5, an odd number above 2^24
    window = [torch.tensor(x) for x in ([0, 24_000_009], [0], [24_000_009])]
    assert ops.resample(frames, *window, 3).flatten().tolist() == [0.0, 0.0, 1.0]


def test_a_frame_of_weight_zero_is_not_read(device):
    frames = torch.tensor([1.0, math.nan, 3.0, math.inf], device=device).reshape(4, 1, 1)
    window = [torch.tensor(x, device=device) for x in ([0, 4], [0], [4])]
    assert ops.resample(frames, *window, 4).flatten().nan_to_num(-1).tolist()[::2] == [1.0, 3.0]
    one = [torch.tensor(x, device=device) for x in ([0, 4], [3], [1])]
    assert ops.resample(frames, *one, 3).flatten().tolist() == [math.inf] * 3


def test_no_joints_and_windows_of_any_strides(device, draw):
    frames, offsets, start, length = draw(device=device)
    assert ops.resample(frames[:, :0], offsets, start, length, 4).shape == (3, 4, 0, 2)
    starts, lengths = torch.stack((start, start), 1).T, length.expand(2, 3)
    both = ops.resample(frames, offsets.repeat_interleave(2)[::2], starts, lengths, 4)
    assert torch.equal(both[0], both[1]) and torch.equal(both[0], ops.resample(frames, offsets, start, length, 4))
    assert ops.resample(frames, offsets, starts[:0], lengths[:0], 4).shape == (0, 3, 4, 5, 2)


def test_nan_stays_in_its_neighbourhood(randn):
    frames = randn(6, 1, 1)
    frames[3] = math.nan
    window = torch.tensor([0, 6]), torch.tensor([0]), torch.tensor([6])
    assert ops.resample(frames, *window, 12)[0, :, 0, 0].isnan().nonzero().flatten().tolist() == [5, 6, 7, 8]


# ---- errors ---------------------------------------------------------------------------------------------------------

F = torch.zeros(10, 3, 2)


def ints(*values):
    return torch.tensor(values, dtype=torch.int64)


OFFSETS, START, LENGTH = ints(0, 4, 10), ints(1, 0), ints(3, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((F[0], OFFSETS, START, LENGTH, 4), ValueError, "frames must have shape [F, V, C], got [3, 2]"),
        ((F, OFFSETS[:2], START, LENGTH, 4), ValueError, "offsets must have 3 entries, got 2"),
        ((F, OFFSETS, START, [3, 6], 4), TypeError, "length must be a torch.Tensor, got list"),
        ((F, OFFSETS, START, LENGTH[:1], 4), ValueError, "length must have start's shape [2], got [1]"),
        ((F, OFFSETS.int(), START, LENGTH, 4), TypeError, "offsets must be torch.int64, got torch.int32"),
        ((F.long(), OFFSETS, START, LENGTH, 4), TypeError, "frames must be float64, float32, bfloat16 or float16"),
        (
            (F, OFFSETS, START.to("meta"), LENGTH, 4),
            ValueError,
            "start must be on the device of frames (cpu), got meta",
        ),
        ((F, OFFSETS, START, LENGTH, 0), ValueError, "out_frames must be in [1, 2147483647], got 0"),
        ((F, ints(0, 4, 9), START, LENGTH, 4), ValueError, "offsets must rise from 0 to the 10 frames, got [0, 4, 9]"),
        ((F, ints(0, 11, 10), START, LENGTH, 4), ValueError, "offsets must rise from 0 to the 10 frames"),
        ((F, ints(1, 4, 10), START, LENGTH, 4), ValueError, "offsets must rise from 0 to the 10 frames"),
        ((F, OFFSETS, START[:, None], LENGTH[:, None], 4), ValueError, "offsets must have 2 entries, got 3"),
        (
            (F, OFFSETS, ints(1, 0, 1, 7).view(2, 2), LENGTH.expand(2, 2), 4),
            ValueError,
            "start and length must name at least one frame inside the clip, got start 7 and length 6 for clip 1 of 6",
        ),
        ((F, OFFSETS, START, ints(3, 0), 4), ValueError, "got start 0 and length 0 for clip 1 of 6 frames"),
        ((F, OFFSETS, START, ints(4, 6), 4), ValueError, "got start 1 and length 4 for clip 0 of 4 frames"),
        ((F, OFFSETS, ints(-1, 0), LENGTH, 4), ValueError, "got start -1 and length 3 for clip 0 of 4 frames"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match="^resample: .*" + re.escape(message)):
        ops.resample(*arguments)


def test_unknown_mode():
    with pytest.raises(ValueError, match="resample: mode must be one of 'linear', 'nearest', got 'cubic'"):
        ops.resample(F, OFFSETS, START, LENGTH, 4, mode="cubic")


def test_values_are_read_off_the_cpu_only_when_debugging(monkeypatch):
    elsewhere = torch.zeros(1, device="meta")
    monkeypatch.delenv("SLRFAST_DEBUG", raising=False)
    assert checks.may_read(torch.zeros(1)) and not checks.may_read(elsewhere)
    monkeypatch.setenv("SLRFAST_DEBUG", "1")
    assert checks.may_read(elsewhere)
