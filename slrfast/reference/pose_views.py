"""Views of packed clips in plain torch: resampled, then augmented."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.augment import augment
from slrfast.reference.motion import motion
from slrfast.reference.precision import widen
from slrfast.reference.resample import resample


def pose_views(
    xy: Tensor,
    confidence: Tensor,
    offsets: Tensor,
    start: Tensor,
    length: Tensor,
    linear: Tensor,
    center: Tensor,
    part: Tensor,
    affected: Tensor,
    drop: Tensor,
    swap: Tensor,
    swap_index: Tensor,
    out_frames: int,
    direction: int,
) -> tuple[Tensor, Tensor]:
    """Positions, motion (0 is backward, 1 forward, -1 none) and confidence of the windows [..., B], one after another.

    And what is visible, [..., B, out_frames, P].
    """
    dtype = xy.dtype
    xy, confidence = widen(xy, confidence)
    linear, center = linear.to(xy.dtype), center.to(xy.dtype)
    windows = offsets, start, length, out_frames

    def flat(x: Tensor, mode: str = "linear") -> Tensor:
        return resample(x, *windows, mode).flatten(0, start.dim() - 1)

    changes = part, affected, drop, swap, swap_index
    sure = flat(confidence.unsqueeze(-1)).squeeze(-1)
    points, kept = augment(flat(xy), sure, linear, center, *changes)
    moves = xy.new_empty(0)
    if direction >= 0:
        border = torch.zeros(len(xy) + 1, dtype=torch.bool, device=xy.device).index_fill_(0, offsets, True)
        undefined = border[1:] if direction else border[:-1]
        moves = flat(motion(xy, 1, not direction).masked_fill(undefined[:, None, None], 0.0))
        moves, _ = augment(moves, torch.ones_like(sure), linear, torch.zeros_like(center), *changes)
    seen = flat(confidence.unsqueeze(-1) > 0, "nearest").squeeze(-1)
    seen = torch.where(swap[:, None, None], seen[..., swap_index], seen)
    member = part[:, None] == torch.arange(linear.shape[1], device=part.device)
    visible = (seen[..., None] & member).any(-2)
    numbers = torch.cat([x.flatten() for x in (points, moves, kept)]).to(dtype)
    return numbers, visible.reshape(*start.shape, out_frames, linear.shape[1])
