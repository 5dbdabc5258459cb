"""What several systems draw and follow alike: learning rates by the epoch, and the windows of two views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def stepwise(rate: float, epoch: float, milestones: Sequence[float], warmup: float = 0.0) -> float:
    """A tenth of the rate after every milestone, after a linear warm-up if any."""
    decay = math.prod(0.1 for milestone in milestones if epoch >= milestone)
    return rate * decay * (min(1.0, epoch / warmup) if warmup else 1.0)


def linear(rate: float, epoch: float, warmup: float, epochs: float) -> float:
    """From zero to the rate during the warm-up, then to zero at the end."""
    if epoch < warmup:
        return rate * epoch / warmup
    return rate * max(0.0, 1 - (epoch - warmup) / max(epochs - warmup, 1e-9))


def two_windows(
    lengths: Tensor, least: float, least_frames: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Where two temporal crops of every clip start and how long they are, each [2, B]; one draw makes both.

    Args:
        lengths: frames of the clips, int64 [B].
        least: the share of a clip that a crop keeps at least.
        least_frames: and so many frames, where the clip has them.
        generator: on the device of ``lengths``.
    """
    fraction, position = torch.rand((2, 2, len(lengths)), generator=generator, device=lengths.device)
    keep = (least + (1 - least) * fraction) * lengths
    keep = keep.long().clamp_(min=least_frames).minimum(lengths)
    return (position * (lengths - keep + 1)).long(), keep
