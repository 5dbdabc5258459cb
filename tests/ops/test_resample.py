import math
import re

import pytest
import torch
from torch.testing import assert_close

from slrfast import checks, ops

OP = "resample"


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


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_gradcheck(draw, mode):
    frames, *windows = draw(dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.resample(x, *windows, 5, mode=mode), frames)


def test_gradient_stays_inside_the_windows(device, draw):
    frames, offsets, start, length = draw(device=device, requires_grad=True)
    ops.resample(frames, offsets, start, length, 30).sum().backward()
    used = frames.grad.abs().sum((1, 2)) > 0
    expected = torch.zeros(24, dtype=torch.bool)
    expected[2:8] = expected[9] = expected[11:24] = True
    assert used.cpu().equal(expected)


# ---- compilation ----------------------------------------------------------------------------------------------------


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
        ((F, OFFSETS, START, LENGTH[:1], 4), ValueError, "length must have shape [B] with B = 2, got [1]"),
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
