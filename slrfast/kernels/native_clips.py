"""The compiled module's kernels over clips, fed with tensors."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from slrfast.kernels import native
from slrfast.kernels.native import DTYPES, LIBRARY


def resample(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, mode: str) -> Tensor:
    """Run the CPU kernel of ``slrfast::resample``."""
    frames, windows = frames.contiguous(), _contiguous(offsets, start, length)
    out = frames.new_empty((*start.shape, out_frames, *frames.shape[1:]))
    row, given, function = (
        frames.shape[1] * frames.shape[2],
        [DTYPES.get(frames.dtype)],
        LIBRARY.resample_cpu,
    )
    if mode == "nearest":
        row, given, function = row * frames.element_size(), [], LIBRARY.resample_nearest_cpu
    end = out_frames, out.data_ptr(), torch.get_num_threads()
    function(*given, frames.data_ptr(), len(frames), row, *_windows(*windows), *end)
    return out


def augment(x: Tensor, confidence: Tensor, linear: Tensor, center: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::augment``; where dtypes differ, in the one that is computed in."""
    dtypes = x.dtype, confidence.dtype
    wide = reduce(torch.promote_types, (linear.dtype, center.dtype), native.sum_dtype(x))
    common = x.dtype if dtypes[0] == dtypes[1] and wide == native.sum_dtype(x) else wide
    x, confidence, *plan = _contiguous(x.to(common), confidence.to(common), linear.to(wide), center.to(wide), *others)
    x_out, confidence_out = torch.empty_like(x), torch.empty_like(confidence)
    LIBRARY.augment_cpu(
        DTYPES[common], x.data_ptr(), confidence.data_ptr(), *x.shape[:3], *_changes(*plan), x_out.data_ptr(),
        confidence_out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return x_out.to(dtypes[0]), confidence_out.to(dtypes[1])


def pose_views(xy: Tensor, confidence: Tensor, *args) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::pose_views``."""
    offsets, start, length, linear, center, *others, out_frames, direction = args
    wide, (xy, confidence, *windows) = native.sum_dtype(xy), _contiguous(xy, confidence, offsets, start, length)
    plan, joints = _contiguous(linear.to(wide), center.to(wide), *others), xy.shape[1]
    size = start.numel() * out_frames * joints
    numbers = xy.new_empty(size * (3 if direction < 0 else 5))
    visible = torch.empty((*start.shape, out_frames, linear.shape[1]), dtype=torch.bool)
    points, moves, sure = (numbers.data_ptr() + k * size * xy.element_size() for k in (0, 2, 2 if direction < 0 else 4))
    LIBRARY.pose_views_cpu(
        DTYPES[xy.dtype], xy.data_ptr(), confidence.data_ptr(), len(xy), joints, *_windows(*windows), out_frames,
        *_changes(*plan), direction == 1, points, moves if direction >= 0 else 0, sure, visible.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return numbers, visible


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _windows(offsets: Tensor, start: Tensor, length: Tensor) -> tuple[int, ...]:
    clips = len(offsets) - 1
    return offsets.data_ptr(), clips, start.data_ptr(), length.data_ptr(), start.numel() // max(clips, 1)


def _changes(linear: Tensor, center: Tensor, *others: Tensor) -> tuple[int, ...]:
    return linear.data_ptr(), center.data_ptr(), linear.shape[1], *(tensor.data_ptr() for tensor in others)


def motion_mask(
    x: Tensor, confidence: Tensor, lengths: Tensor | None, random_keys: Tensor, interval: int, *numbers: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::motion_mask``."""
    dtypes = x.dtype, confidence.dtype
    if dtypes[0] != dtypes[1]:
        x, confidence = native.compact(x, confidence, wide=())
    x, confidence = x.contiguous(), confidence.contiguous()
    (keys,), lengths = native.compact(random_keys, wide=()), None if lengths is None else lengths.contiguous()
    residual, weight = torch.empty_like(x), torch.empty_like(confidence)
    mask = torch.empty(x.shape[:2], dtype=torch.bool)
    LIBRARY.motion_mask_cpu(
        DTYPES[x.dtype], x.data_ptr(), confidence.data_ptr(), native.address(lengths), DTYPES[keys.dtype],
        keys.data_ptr(), *confidence.shape, interval, *numbers, residual.data_ptr(), weight.data_ptr(), mask.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return residual.to(dtypes[0]), weight.to(dtypes[1]), mask


def masked_motion_loss(
    prediction: Tensor, residual: Tensor, weight: Tensor, mask: Tensor, scale: float, squared: bool, average: bool,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the CPU kernel of ``slrfast::masked_motion_loss``."""
    prediction, residual, weight = native.compact(prediction, residual, weight, wide=())
    mask = mask.contiguous()
    loss = prediction.new_empty(len(prediction))
    grad = torch.empty_like(prediction) if want_grad else prediction.new_empty(0)
    LIBRARY.masked_motion_loss_cpu(
        DTYPES[loss.dtype], prediction.data_ptr(), residual.data_ptr(), weight.data_ptr(), weight.dim() == 4,
        mask.data_ptr(), *prediction.shape[:3], scale, squared, average, loss.data_ptr(), grad.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return loss, grad
