"""The compiled module's kernels over clips, fed with tensors.

A raw call of an op may come with any shapes: addresses are taken with type and shape.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from slrfast.kernels import native
from slrfast.kernels.native import DTYPES, LIBRARY


def resample(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, mode: str) -> Tensor:
    """Run the CPU kernel of ``slrfast::resample``."""
    frames, *windows = _contiguous(frames, offsets, start, length)
    total, joints, channels = frames.shape
    out = frames.new_empty((*start.shape, out_frames, joints, channels))
    row, given, function = joints * channels, [DTYPES.get(frames.dtype)], LIBRARY.resample_cpu
    if mode == "nearest":
        row, given, function = row * frames.element_size(), [], LIBRARY.resample_nearest_cpu
    end = out_frames, out.data_ptr(), torch.get_num_threads()
    function(*given, frames.data_ptr(), total, row, *_windows(*windows), *end)
    return out


def augment(x: Tensor, confidence: Tensor, linear: Tensor, center: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::augment``; where dtypes differ, in the one that is computed in."""
    dtypes, (clips, frames, joints, _) = (x.dtype, confidence.dtype), x.shape
    wide = reduce(torch.promote_types, (linear.dtype, center.dtype), native.sum_dtype(x))
    common = x.dtype if dtypes[0] == dtypes[1] and wide == native.sum_dtype(x) else wide
    x, confidence, *plan = _contiguous(x.to(common), confidence.to(common), linear.to(wide), center.to(wide), *others)
    x_out, confidence_out = torch.empty_like(x), torch.empty_like(confidence)
    LIBRARY.augment_cpu(
        DTYPES[common], _at(x, common, clips, frames, joints, 2), _at(confidence, common, clips, frames, joints),
        clips, frames, joints, *_changes(wide, clips, joints, *plan), x_out.data_ptr(), confidence_out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return x_out.to(dtypes[0]), confidence_out.to(dtypes[1])


def pose_views(xy: Tensor, confidence: Tensor, *args) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::pose_views``."""
    offsets, start, length, linear, center, *others, out_frames, direction = args
    wide, (xy, confidence, *windows) = native.sum_dtype(xy), _contiguous(xy, confidence, offsets, start, length)
    plan, (total, joints, _) = _contiguous(linear.to(wide), center.to(wide), *others), xy.shape
    size = start.numel() * out_frames * joints
    numbers = xy.new_empty(size * (3 if direction < 0 else 5))
    visible = torch.empty((*start.shape, out_frames, linear.shape[1]), dtype=torch.bool)
    points, moves, sure = (numbers.data_ptr() + k * size * xy.element_size() for k in (0, 2, 2 if direction < 0 else 4))
    LIBRARY.pose_views_cpu(
        DTYPES[xy.dtype], _at(xy, xy.dtype, total, joints, 2), _at(confidence, xy.dtype, total, joints), total, joints,
        *_windows(*windows), out_frames, *_changes(wide, start.numel(), joints, *plan), direction == 1, points,
        moves if direction >= 0 else 0, sure, visible.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return numbers, visible


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _windows(offsets: Tensor, start: Tensor, length: Tensor) -> tuple[int, ...]:
    clips, *views = start.shape[-1], *start.shape[:-1]
    at = (_at(tensor, torch.int64, *views, clips) for tensor in (start, length))
    return _at(offsets, torch.int64, clips + 1), clips, *at, math.prod(views)


def _changes(
    wide: torch.dtype, clips: int, joints: int, linear: Tensor, center: Tensor, part: Tensor, affected: Tensor,
    drop: Tensor, swap: Tensor, swap_index: Tensor,
) -> tuple[int, ...]:  # fmt: skip
    parts, long, truth = linear.shape[1], torch.int64, torch.bool
    maps = _at(linear, wide, clips, parts, 2, 2), _at(center, wide, clips, parts, 2), parts
    flags = _at(affected, truth, clips, joints), _at(drop, truth, clips, joints), _at(swap, truth, clips)
    return *maps, _at(part, long, joints), *flags, _at(swap_index, long, joints)


def motion_mask(
    x: Tensor, confidence: Tensor, lengths: Tensor | None, random_keys: Tensor, interval: int, *numbers: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::motion_mask``."""
    dtypes, (clips, frames, joints, _) = (x.dtype, confidence.dtype), x.shape
    if dtypes[0] != dtypes[1]:
        x, confidence = native.compact(x, confidence, wide=())
    x, confidence = x.contiguous(), confidence.contiguous()
    (keys,), lengths = native.compact(random_keys, wide=()), None if lengths is None else lengths.contiguous()
    residual, weight = torch.empty_like(x), torch.empty_like(confidence)
    mask = torch.empty((clips, frames), dtype=torch.bool)
    LIBRARY.motion_mask_cpu(
        DTYPES[x.dtype], _at(x, x.dtype, clips, frames, joints, 2), _at(confidence, x.dtype, clips, frames, joints),
        0 if lengths is None else _at(lengths, torch.int64, clips), DTYPES[keys.dtype],
        _at(keys, keys.dtype, clips, frames), clips, frames, joints, interval, *numbers, residual.data_ptr(),
        weight.data_ptr(), mask.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return residual.to(dtypes[0]), weight.to(dtypes[1]), mask


def masked_motion_loss(
    prediction: Tensor, residual: Tensor, weight: Tensor, mask: Tensor, scale: float, squared: bool, average: bool,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the CPU kernel of ``slrfast::masked_motion_loss``."""
    prediction, residual, weight = native.compact(prediction, residual, weight, wide=())
    mask, (clips, frames, joints, _), dtype = mask.contiguous(), prediction.shape, prediction.dtype
    shape, last = (clips, frames, joints, 2), (2,) * (weight.dim() == 4)
    loss = prediction.new_empty(clips)
    grad = torch.empty_like(prediction) if want_grad else prediction.new_empty(0)
    LIBRARY.masked_motion_loss_cpu(
        DTYPES[dtype], _at(prediction, dtype, *shape), _at(residual, dtype, *shape),
        _at(weight, dtype, *shape[:3], *last), len(last), _at(mask, torch.bool, clips, frames), clips, frames, joints,
        scale, squared, average, loss.data_ptr(), grad.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return loss, grad


def _at(tensor: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """The address of a compact tensor on the CPU, of that type and shape."""
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_cpu:
        got = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device.type}"
        raise ValueError(f"a CPU kernel over clips takes {dtype} {list(shape)} here, got {got}")
    return tensor.data_ptr()
