"""MASA's masking and motion loss as the field writes them: part by part, with slice copies, sorting and torch.where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PARTS = (slice(0, 21), slice(21, 42), slice(42, 49))  # right hand, left hand, trunk


def motion_mask(
    x: Tensor,
    confidence: Tensor,
    lengths: Tensor,
    random_keys: Tensor,
    interval: int = 3,
    confidence_threshold: float = 0.4,
    motion_threshold: float = 5.0,
    joint_fraction: float = 0.5,
    mask_ratio: float = 0.9,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Algorithm 1; residuals and weights of the parts, and one mask for all of them, for the whole batch at once."""
    valid = torch.arange(x.shape[1], device=x.device)[None] < (lengths[:, None] - interval)
    residuals, weights, count, entries = [], [], 0, 0
    for part in PARTS:
        gts, conf = x[:, :, part], confidence[:, :, part]
        motion = torch.zeros_like(gts)
        motion[:, :-interval] = gts[:, interval:] - gts[:, :-interval]
        motion = motion * valid[:, :, None, None]
        conf = torch.where(conf >= confidence_threshold, conf, torch.zeros_like(conf))
        weight = torch.zeros_like(conf)
        weight[:, :-interval] = conf[:, :-interval] * conf[:, interval:]
        weight = weight * valid[:, :, None]
        moving = motion.abs() * weight[..., None] >= motion_threshold
        count = count + moving.flatten(2).sum(2)
        entries += moving[0, 0].numel()
        residuals.append(motion)
        weights.append(weight)
    candidate = (count / entries >= joint_fraction) & valid
    keys = torch.where(candidate, random_keys, torch.full_like(random_keys, float("inf")))
    rank = torch.argsort(torch.argsort(keys, dim=1), dim=1)
    num_mask = (candidate.sum(1, keepdim=True) * mask_ratio).long()
    return residuals, weights, rank < num_mask


def motion_mask_by_clip(x: Tensor, confidence: Tensor, lengths: Tensor, random_keys: Tensor, *numbers):
    """The same, with the masked frames of one clip picked after those of the other."""
    ratio = numbers[4] if len(numbers) > 4 else 0.9
    residuals, weights, candidate = motion_mask(x, confidence, lengths, random_keys, *numbers[:4], mask_ratio=1.0)
    mask = torch.zeros_like(candidate)
    for b in range(len(x)):
        frames = candidate[b].nonzero()[:, 0]
        num_mask = int(ratio * len(frames))
        chosen = torch.topk(random_keys[b, frames], num_mask, largest=False)[1]
        mask[b, frames[chosen]] = True
    return residuals, weights, mask


def masked_motion_loss(
    prediction: Tensor, residuals: Sequence[Tensor], weights: Sequence[Tensor], mask: Tensor, scale: float = 1 / 256
) -> Tensor:
    """Eq. 4, the squared distance of every part summed over all frames, and masked at the end."""
    losses = []
    for part, residual, weight in zip(PARTS, residuals, weights, strict=True):
        difference = (prediction[:, :, part] - residual * scale) * weight[..., None]
        losses.append((difference**2 * mask[:, :, None, None]).sum((1, 2, 3)))
    return (sum(losses) / mask.sum(1).clamp(min=1)).mean()


def gather_visible(x: Tensor, mask: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean indexing, as masked auto-encoders do, and offsets for an attention over packed clips."""
    visible = ~mask & (torch.arange(mask.shape[1], device=mask.device) < lengths[:, None])
    return x[visible], torch.nn.functional.pad(visible.sum(1).cumsum(0), (1, 0))


def scatter_tokens(packed: Tensor, token: Tensor, mask: Tensor, visible: Tensor) -> Tensor:
    """The token everywhere, the visible frames written over it, and zeros in the padding."""
    out = token.expand(*mask.shape, -1).clone()
    out[visible] = packed
    return out * (mask | visible)[..., None]
