"""Temporal cropping and resampling of packed clips."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.ops import _dispatch
from slrfast.reference import resample as reference

_dispatch.register("resample", cpu=("reference",), cuda=("reference",))
_FORWARD = {"reference": reference.resample}


def resample(
    frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, *, mode: str = "linear"
) -> Tensor:
    """Resample one window of every packed clip to a fixed number of frames.

    Clip b is frames[offsets[b] : offsets[b + 1]], its window the L = length[b] frames from start[b] on. "linear" reads
    the window at s_i = max((i + 0.5) L / out_frames - 0.5, 0) and blends frames floor(s_i) and min(floor(s_i) + 1,
    L - 1) (half-pixel centres, as torch's interpolate without aligned corners); zeroed joints are blended like
    others. "nearest" copies frame floor(i L / out_frames), for visibility masks. STC and MASA data pipelines.

    Args:
        frames: [F, V, C], all clips one after another, any strides; float64, float32, bfloat16 or float16, for
            "nearest" any dtype. Gradient flows.
        offsets: [B + 1] int64, 0 first, F last, rising.
        start: [B] int64, the window's first frame, counted from the clip's.
        length: [B] int64, frames in the window, >= 1, inside the clip.
        out_frames: >= 1.
        mode: "linear" or "nearest".
    Returns:
        [B, out_frames, V, C] in the dtype and unit of ``frames``.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, out_frames < 1, an unknown
            mode; on CPU, and on CUDA under SLRFAST_DEBUG=1, but not inside torch.compile: a window outside its clip.
    Numerics:
        Positions are exact (integer arithmetic), blending accumulates in float32 (float64 for float64), deterministic.

    >>> frames = torch.tensor([0.0, 10.0, 20.0, 30.0]).reshape(4, 1, 1)
    >>> one_clip, start, length = torch.tensor([0, 4]), torch.tensor([1]), torch.tensor([2])
    >>> resample(frames, one_clip, start, length, 4).flatten()
    tensor([10.0000, 12.5000, 17.5000, 20.0000])
    """
    op = "resample"
    sizes = checks.shapes(
        op, frames=(frames, "F V C"), start=(start, "B"), length=(length, "B"), offsets=(offsets, "B+1")
    )
    checks.require(sizes["B+1"] == sizes["B"] + 1, op, "offsets", f"have {sizes['B'] + 1} entries", sizes["B+1"])
    checks.dtype(op, torch.int64, offsets=offsets, start=start, length=length)
    checks.same_device(op, frames=frames, offsets=offsets, start=start, length=length)
    checks.choice(op, ("linear", "nearest"), mode=mode)
    checks.integer_between(op, 1, 2**31 - 1, out_frames=out_frames)
    if mode == "linear":
        checks.floating(op, frames=frames)
    if checks.may_read(offsets):
        _check_windows(frames, offsets, start, length)
    return _FORWARD[_dispatch.choose(op, frames.device.type)](frames, offsets, start, length, out_frames, mode)


def _check_windows(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor) -> None:
    checks.rising("resample", frames.shape[0], offsets=offsets.tolist())
    sizes = offsets.diff()
    outside = (start < 0) | (length < 1) | (start + length > sizes)
    if bool(outside.any()):
        b = int(outside.nonzero()[0])
        window = f"start {int(start[b])} and length {int(length[b])} for clip {b} of {int(sizes[b])} frames"
        checks.require(False, "resample", "start and length", "name at least one frame inside the clip", window)
