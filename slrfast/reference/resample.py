"""Cutting and resampling packed clips in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen


def resample(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, mode: str) -> Tensor:
    """Frames [B, out_frames, V, C] of the clips' windows; positions are exact, in units of 1 / (2 out_frames)."""
    first = (offsets[:-1] + start)[:, None]
    length = length[:, None]
    i = torch.arange(out_frames, device=frames.device)
    if mode == "nearest":
        return frames[first + i * length // out_frames]
    unit = 2 * out_frames
    position = ((2 * i + 1) * length - out_frames).clamp(min=0)
    j = position // unit
    before, after = frames[first + j], frames[first + torch.minimum(j + 1, length - 1)]
    before, after, remainder = widen(before, after, position % unit)
    return torch.lerp(before, after, (remainder / unit)[:, :, None, None]).to(frames.dtype)
