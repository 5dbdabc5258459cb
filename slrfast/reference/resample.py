"""Cutting and resampling packed clips in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen


def resample(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, mode: str) -> Tensor:
    """Frames [..., B, out_frames, V, C] of the clips' windows [..., B]."""
    frames = frames.contiguous()
    if mode == "nearest":
        return frames[nearest(offsets, start, length, out_frames)]
    index, blended, fraction = places(frames, offsets, start, length, out_frames)
    before, after = widen(frames[index], frames[index + blended])
    fraction = fraction[..., None, None]
    return torch.where(blended[..., None, None], before + (after - before) * fraction, before).to(frames.dtype)


def resample_grad(
    grad: Tensor, total: int, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, mode: str
) -> Tensor:
    """The adjoint of :func:`resample`: the gradient of the ``total`` packed frames."""
    if mode == "nearest":
        return _sums(total, (nearest(offsets, start, length, out_frames), widen(grad)[0])).to(grad.dtype)
    index, blended, fraction = places(grad, offsets, start, length, out_frames)
    (wide,) = widen(grad)
    share, alone = torch.where(blended, fraction, 0.0)[..., None, None], ~blended[..., None, None]
    later = (wide * share).masked_fill(alone, 0.0)  # or inf * 0
    return _sums(total, (index, wide * (1 - share)), (index + blended, later)).to(grad.dtype)


def places(
    frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Per frame of the result: one of the packed frames, whether the next one is blended in, and how much of it.

    Positions are exact, in units of 1 / (2 out_frames).
    """
    length, unit = length[..., None], 2 * out_frames
    i = torch.arange(out_frames, device=frames.device)
    position = ((2 * i + 1) * length - out_frames).clamp(min=0)
    j, rest = position // unit, position % unit
    _, wide = widen(frames[:0], rest)
    blended = (rest > 0) & (j + 1 < length)
    return (offsets[:-1] + start)[..., None] + j, blended, wide / torch.full_like(wide, unit)


def nearest(offsets: Tensor, start: Tensor, length: Tensor, out_frames: int) -> Tensor:
    """Per frame of the result: the packed frame start + floor(i length / out_frames)."""
    i = torch.arange(out_frames, device=start.device)
    return (offsets[:-1] + start)[..., None] + i * length[..., None] // out_frames


def _sums(total: int, *parts: tuple[Tensor, Tensor]) -> Tensor:
    """Rows added up at their indices, in the same order every time."""
    index, rows = (
        torch.cat([part[i].reshape(-1, *part[i].shape[parts[0][0].dim() :]) for part in parts]) for i in (0, 1)
    )
    zeros = rows.new_zeros((total, *rows.shape[1:]))
    if zeros.is_cuda:  # sorts, where index_add_ would use atomics
        return zeros.index_put_((index,), rows, accumulate=True)
    return zeros.index_add_(0, index, rows)
