"""Cropped, resampled and augmented views of packed clips in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_clips
from slrfast.ops import _changes, _dispatch, _windows
from slrfast.ops._changes import AugmentTensors
from slrfast.reference import pose_views as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "pose_views(Tensor xy, Tensor confidence, Tensor offsets, Tensor start, Tensor length, Tensor linear, "
    "Tensor center, Tensor part, Tensor affected, Tensor drop, Tensor swap, Tensor swap_index, int out_frames, "
    "int direction) -> (Tensor numbers, Tensor visible)"
)


def _fake(
    xy: Tensor, confidence: Tensor, offsets: Tensor, start: Tensor, length: Tensor, linear: Tensor, *args
) -> tuple[Tensor, Tensor]:
    out_frames, direction = args[-2:]
    numbers = start.numel() * out_frames * xy.shape[1] * (3 if direction < 0 else 5)
    return xy.new_empty(numbers), xy.new_empty((*start.shape, out_frames, linear.shape[1]), dtype=torch.bool)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import pose_views as kernel

    return kernel.pose_views(*args)


_dispatch.register("pose_views", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native_clips.pose_views, "triton": _triton, "reference": reference.pose_views}


def _forward(xy: Tensor, *args) -> tuple[Tensor, Tensor]:
    return _FORWARD[_dispatch.choose("pose_views", xy.device.type)](xy, *args)


_library.impl("pose_views", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::pose_views", _fake, lib=_library)


# ---- autograd: none; views are data ---------------------------------------------------------------------------------


# ---- public ---------------------------------------------------------------------------------------------------------


class PoseViews(NamedTuple):
    """Views [..., B] of B clips, each of T frames.

    Attributes:
        xy: [..., B, T, V, 2].
        motion: [..., B, T, V, 2], or None where it was not wanted.
        confidence: [..., B, T, V].
        visible: [..., B, T, P] bool, whether the detector saw a joint of the part.
    """

    xy: Tensor
    motion: Tensor | None
    confidence: Tensor
    visible: Tensor


def pose_views(
    xy: Tensor,
    confidence: Tensor,
    offsets: Tensor,
    start: Tensor,
    length: Tensor,
    plan: AugmentTensors,
    out_frames: int,
    *,
    motion: str | None = "backward",
) -> PoseViews:
    """Crop, resample and augment windows of packed clips, and take their motion, in one pass.

    Positions and confidence are what :func:`~slrfast.ops.resample` and then :func:`~slrfast.ops.augment` make of them.
    The motion of a clip, x[t] - x[t - 1] ("backward", STC Eq. 1) or x[t + 1] - x[t] ("forward"), zero at the end of the
    clip that has no partner, is resampled like positions; then every affected joint is mapped by M about zero, seen or
    not, because a difference has no origin. A part is visible in a frame if one of its joints has a confidence > 0 in
    the nearest frame of the clip; swapped joints count for the part that they come to, dropped ones do not change it.

    Args:
        xy: [F, V, 2] coordinates in any unit, all clips one after another, any strides; float64, float32, bfloat16 or
            float16. No gradient flows: views are data.
        confidence: [F, V] in the dtype of ``xy``.
        offsets, start, length, out_frames: windows [..., B] as :func:`~slrfast.ops.resample` takes them.
        plan: for as many clips as there are windows, in their order; its maps are rounded to the type of computation.
        motion: "backward", "forward", or None for no motion.
    Returns:
        PoseViews, contiguous; everything but ``visible`` in the dtype and unit of ``xy``, and in one piece of memory.
    Raises:
        TypeError, ValueError: as for the two ops; confidence of another dtype; an unknown ``motion``.
    Numerics:
        Computes in float32 (float64 for float64) and rounds once to the dtype of ``xy``; deterministic, bitwise the
        same on every backend, and for float32 and float64 the same as the two ops one after the other.

    >>> half_turn, no = -torch.eye(2).reshape(1, 1, 2, 2), torch.tensor([[False]])
    >>> plan = AugmentTensors(half_turn, torch.zeros(1, 1, 2), torch.tensor([0]), ~no, no, no[0], torch.tensor([0]))
    >>> clip = torch.tensor([[0.0, 0.0], [2.0, 8.0]]).reshape(2, 1, 2)
    >>> window = torch.tensor([0, 2]), torch.tensor([0]), torch.tensor([2])
    >>> views = pose_views(clip, torch.ones(2, 1), *window, plan, 2)
    >>> views.xy[..., 1, 0, :].tolist(), views.motion[..., 1, 0, :].tolist()
    ([[-2.0, -8.0]], [[-2.0, -8.0]])
    """
    op = "pose_views"
    checks.shapes(op, xy=(xy, "F V 2"), confidence=(confidence, "F V"))
    checks.floating(op, xy=xy)
    checks.dtype(op, xy.dtype, confidence=confidence)
    _windows.check(op, xy, offsets, start, length)
    _changes.check(op, plan, xy=(xy, "F V 2"), confidence=(confidence, "F V"), windows=(start.flatten(), "B"))
    checks.integer_between(op, 1, 2**31 - 1, out_frames=out_frames)
    checks.require(
        motion in (None, "backward", "forward"), op, "motion", "be 'backward', 'forward' or None", repr(motion)
    )
    checks.no_gradient(op, xy=xy, confidence=confidence, linear=plan.linear, center=plan.center)
    direction = -1 if motion is None else int(motion == "forward")
    tensors: list[Tensor] = [xy, confidence, offsets, start, length, *plan]
    if torch.is_grad_enabled():
        tensors = [tensor.detach() for tensor in tensors]
    numbers, visible = torch.ops.slrfast.pose_views(*tensors, out_frames, direction)
    shape = (*start.shape, out_frames, xy.shape[1])
    size = start.numel() * out_frames * xy.shape[1]
    points, moves, sure = numbers.split([2 * size, 0 if motion is None else 2 * size, size])
    return PoseViews(
        points.view(*shape, 2), None if motion is None else moves.view(*shape, 2), sure.view(shape), visible
    )
