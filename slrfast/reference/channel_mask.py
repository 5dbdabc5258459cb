"""The channels that vary over time in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen


def channel_mask(z: Tensor, threshold: float, quantile: bool) -> tuple[Tensor, Tensor]:
    """z [B, T, D] without the channels that hardly vary, and keep [B, D]: CCL-SLR Eq. 5, with >= p."""
    z = z.contiguous()
    (wide,) = widen(z)
    variance = wide.var(1) if z.shape[1] > 1 and z.numel() else wide.new_zeros(z.shape[0], z.shape[2])
    keep = variance >= least_variance(variance, threshold, quantile)[:, None]
    return torch.where(keep[:, None], z, 0.0), keep


def least_variance(variance: Tensor, threshold: float, quantile: bool) -> Tensor:
    """What the variances [B, D] are compared with, [B]; NaN where no channel is to be kept."""
    clips, channels = variance.shape
    if not quantile:
        return variance.new_full((clips,), threshold * threshold)
    removed = int(threshold * channels)
    if removed == channels:
        return variance.new_full((clips,), torch.nan)
    if variance.is_cuda:  # where kthvalue is not deterministic, in its indices
        return variance.sort(1).values[:, removed]
    return variance.kthvalue(removed + 1, dim=1).values
