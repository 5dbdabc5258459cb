"""Clips with motion, as the benchmarks of MASA's ops share them."""

from __future__ import annotations

import torch
from torch import Tensor

JOINTS = 49


def clips(count: int, frames: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [B, T, 49, 2] in pixels, confidence, lengths and random keys; half or more become masked."""
    generator = torch.Generator().manual_seed(0)
    speed = torch.rand(count, frames, 1, 1, generator=generator) * 16
    x = 128 + (speed * torch.randn(count, frames, JOINTS, 2, generator=generator)).cumsum(1)
    confidence = torch.rand(count, frames, JOINTS, generator=generator).pow(0.2)
    lengths = torch.randint(frames * 2 // 3, frames + 1, (count,), generator=generator)
    keys = torch.rand(count, frames, generator=generator)
    return tuple(tensor.to(device) for tensor in (x, confidence, lengths, keys))
