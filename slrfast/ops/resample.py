"""Temporal cropping and resampling of packed clips."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_clips
from slrfast.ops import _dispatch, _windows
from slrfast.reference import resample as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_WINDOWS = "Tensor offsets, Tensor start, Tensor length, int out_frames, str mode"
_library.define(f"resample(Tensor frames, {_WINDOWS}) -> Tensor")
_library.define(f"resample_grad(Tensor grad, int total, {_WINDOWS}) -> Tensor")


def _fake(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, mode: str) -> Tensor:
    return frames.new_empty((*start.shape, out_frames, *frames.shape[1:]))


def _fake_grad(
    grad: Tensor, total: int, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, mode: str
) -> Tensor:
    return grad.new_empty((total, *grad.shape[-2:]))


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> Tensor:
    from slrfast.kernels.triton import resample as kernel

    return kernel.resample(*args)


_dispatch.register("resample", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native_clips.resample, "triton": _triton, "reference": reference.resample}


def _forward(frames: Tensor, *args) -> Tensor:
    return _FORWARD[_dispatch.choose("resample", frames.device.type)](frames, *args)


_library.impl("resample", _forward, "CompositeExplicitAutograd")
_library.impl("resample_grad", reference.resample_grad, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::resample", _fake, lib=_library)
torch.library.register_fake("slrfast::resample_grad", _fake_grad, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, mode: str
    ) -> Tensor:
        ctx.save_for_backward(offsets, start, length)
        ctx.arguments = frames.shape[0], out_frames, mode
        return torch.ops.slrfast.resample(frames, offsets, start, length, out_frames, mode)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        total, out_frames, mode = ctx.arguments
        return torch.ops.slrfast.resample_grad(grad, total, *ctx.saved_tensors, out_frames, mode), *[None] * 5


# ---- public ---------------------------------------------------------------------------------------------------------


def resample(
    frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, *, mode: str = "linear"
) -> Tensor:
    """Resample windows of every packed clip to a fixed number of frames.

    Clip b is frames[offsets[b] : offsets[b + 1]], a window of it the L = length[..., b] frames from start[..., b] on;
    leading dimensions are views, of which every clip may have several. "linear" reads the window at
    s_i = max((i + 0.5) L / out_frames - 0.5, 0) and blends frames floor(s_i) and min(floor(s_i) + 1, L - 1)
    (half-pixel centres, as torch's interpolate without aligned corners); zeroed joints are blended like others.
    "nearest" copies frame floor(i L / out_frames), for visibility masks. STC and MASA data pipelines.

    Args:
        frames: [F, V, C], all clips one after another, any strides; float64, float32, bfloat16 or float16, for
            "nearest" any dtype. Gradient flows.
        offsets: [B + 1] int64, 0 first, F last, rising.
        start: [..., B] int64, the window's first frame, counted from the clip's.
        length: [..., B] int64, frames in the window, >= 1, inside the clip.
        out_frames: >= 1.
        mode: "linear" or "nearest".
    Returns:
        [..., B, out_frames, V, C] in the dtype and unit of ``frames``, contiguous.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, out_frames < 1, an unknown
            mode; on CPU, and on CUDA under SLRFAST_DEBUG=1, but not inside torch.compile: a window outside its clip.
    Numerics:
        Positions are exact (integer arithmetic), blending a + (b - a) w accumulates in float32 (float64 for float64)
        and rounds once to the dtype of ``frames``; deterministic, bitwise the same on every backend. A frame of weight
        zero is not read. Once differentiable; saves nothing but the windows for the backward pass.

    >>> frames = torch.tensor([0.0, 10.0, 20.0, 30.0]).reshape(4, 1, 1)
    >>> one_clip, start, length = torch.tensor([0, 4]), torch.tensor([1]), torch.tensor([2])
    >>> resample(frames, one_clip, start, length, 4).flatten()
    tensor([10.0000, 12.5000, 17.5000, 20.0000])
    """
    op = "resample"
    checks.shapes(op, frames=(frames, "F V C"))
    _windows.check(op, frames, offsets, start, length)
    checks.choice(op, ("linear", "nearest"), mode=mode)
    checks.integer_between(op, 1, 2**31 - 1, out_frames=out_frames)
    if mode == "linear":
        checks.floating(op, frames=frames)
    if frames.requires_grad and torch.is_grad_enabled():
        return _Resample.apply(frames, offsets, start, length, out_frames, mode)
    return torch.ops.slrfast.resample(frames, offsets, start, length, out_frames, mode)
