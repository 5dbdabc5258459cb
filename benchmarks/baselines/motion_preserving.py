"""What Motion-Preserving Masking does to latents and frames, as one writes it in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_mask(z: Tensor, threshold: float) -> Tensor:
    """Latents [B, T, D] times the indicator of channels whose standard deviation over time is at least p."""
    return z * (z.std(dim=1, keepdim=True) >= threshold)


def channel_mask_quantile(z: Tensor, share: float) -> Tensor:
    """The same with the share of channels that is removed."""
    std = z.std(dim=1)
    least = std.kthvalue(int(share * z.shape[2]) + 1, dim=1, keepdim=True).values
    return z * (std >= least)[:, None]


def otsu_mask(frames: Tensor, still: Tensor | None = None) -> Tensor:
    """Frames [B, T, 3, H, W] in [0, 1] to bool [B, T, H, W]: grey, 256 levels, Otsu per clip."""
    if still is not None:
        frames = (frames - still).abs()
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=frames.dtype, device=frames.device)
    grey = (frames * weights.view(3, 1, 1)).sum(2)
    levels = (grey.clamp(0, 1) * 255).round().to(torch.uint8)
    return torch.stack([clip > otsu_threshold(clip) for clip in levels])


def otsu_threshold(levels: Tensor) -> Tensor:
    """The level that parts a clip's histogram the most."""
    histogram = torch.bincount(levels.flatten().long(), minlength=256).double()
    probability = histogram / histogram.sum()
    omega = probability.cumsum(0)
    mu = (probability * torch.arange(256, device=levels.device)).cumsum(0)
    between = (mu[-1] * omega - mu) ** 2 / (omega * (1 - omega))
    return between.nan_to_num(0.0, 0.0, 0.0).argmax()
