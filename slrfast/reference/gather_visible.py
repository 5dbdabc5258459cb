"""Packing the visible frames of clips in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_visible(x: Tensor, mask: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Packed [S, D], the visible frames of x [B, T, D] one after the other, and the clips' offsets [B + 1]."""
    index, offsets = visible_frames(mask, lengths)
    return x.flatten(0, 1)[index], offsets


def visible_frames(mask: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions b T + t [S] of the frames that are in their clip and not masked, rising; and the offsets [B + 1]."""
    visible = ~mask
    if lengths is not None:
        visible &= torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    return visible.flatten().nonzero().flatten(), torch.nn.functional.pad(visible.sum(1).cumsum(0), (1, 0))
