"""Grey levels and Otsu's threshold of clips in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen

LEVELS = 256
RED, GREEN, BLUE = 0.299, 0.587, 0.114


def otsu_mask(frames: Tensor, still: Tensor | None) -> Tensor:
    """Mask [B, T, H, W] of frames [B, T, 3, H, W], all of a clip by one threshold."""
    levels = grey_levels(frames, still)
    hits = levels.flatten(1).long()
    histogram = hits.new_zeros(len(frames), LEVELS).scatter_add_(1, hits, hits.new_ones(()).expand_as(hits))
    return levels > otsu_threshold(histogram).view(-1, 1, 1, 1)


def grey_levels(frames: Tensor, still: Tensor | None) -> Tensor:
    """[B, T, H, W] uint8: luma of the frames, or of how far they are from ``still`` [3, H, W], in 256 levels."""
    if still is None:
        (x,) = widen(frames)
    else:
        x, still = widen(frames, still)
        x = (x - still).abs()
    red, green, blue = x.unbind(2)
    grey = (RED * red + GREEN * green + BLUE * blue).nan_to_num(0.0)
    return (grey.clamp(0.0, 1.0) * (LEVELS - 1) + 0.5).to(torch.uint8)


def otsu_threshold(histogram: Tensor) -> Tensor:
    """Otsu's threshold of histograms [B, 256], [B] int64 in -1..254: the first that parts the two sides the most.

    What lies above it is in front; -1, so that everything is, for a histogram of one level or none.
    """
    counts = histogram.double()
    weighted = (counts * torch.arange(LEVELS, device=counts.device)).cumsum(1)
    below = counts.cumsum(1)
    count, total, part, whole = below[:, :-1], below[:, -1:], weighted[:, :-1], weighted[:, -1:]
    between = (part * total - whole * count).square() / (count * (total - count))
    between = torch.where((count > 0) & (count < total), between, -1.0)
    best = between.argmax(1)
    return torch.where(between.amax(1) < 0, -1, best)
