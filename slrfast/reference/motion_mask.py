"""Motion residuals, their weights and the choice of frames to mask in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.motion import motion
from slrfast.reference.precision import widen


def motion_mask(
    x: Tensor,
    confidence: Tensor,
    lengths: Tensor | None,
    random_keys: Tensor,
    interval: int,
    confidence_threshold: float,
    motion_threshold: float,
    joint_fraction: float,
    mask_ratio: float,
    norm: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual [B, T, V, 2], weight [B, T, V] and mask [B, T] of MASA Algorithm 1."""
    frames, joints = x.shape[1:3]
    pixels, sure = widen(x, confidence)
    sure = torch.where(sure >= confidence_threshold, sure, 0.0)
    first = max(frames - interval, 0)
    end = x.new_full((), first, dtype=torch.int64) if lengths is None else lengths[:, None] - interval
    defined = torch.arange(frames, device=x.device) < end
    residual = torch.where(defined[..., None, None], motion(pixels, interval, False), 0.0)
    weight = sure[:, frames - first :] * sure[:, :first]
    weight = torch.cat((weight, weight.new_zeros((len(x), frames - first, joints))), 1)
    weight = torch.where(defined[..., None], weight, 0.0)

    # products of two float32 numbers are exact in float64: all backends agree on every comparison
    moved, factor = residual.double(), weight.double()
    moved = moved.square().sum(-1).sqrt() * factor if norm else moved.abs() * factor[..., None]
    share = (moved >= motion_threshold).flatten(2).sum(2).double() / (joints if norm else 2 * joints)
    candidate = defined & (share >= joint_fraction)

    order = torch.where(random_keys.isnan(), torch.inf, random_keys).argsort(dim=1, stable=True)
    candidates = candidate.gather(1, order)
    wanted = (candidate.sum(1, keepdim=True).double() * mask_ratio).floor()
    mask = torch.zeros_like(candidate).scatter(1, order, candidates & (candidates.cumsum(1) <= wanted))
    return residual.to(x.dtype), weight.to(confidence.dtype), mask
