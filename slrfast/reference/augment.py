"""Spatial augmentation of clips in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen


def augment(
    x: Tensor,
    confidence: Tensor,
    linear: Tensor,
    center: Tensor,
    part: Tensor,
    affected: Tensor,
    drop: Tensor,
    swap: Tensor,
    swap_index: Tensor,
) -> tuple[Tensor, Tensor]:
    """(x - c) M^T + c for visible affected joints, then dropping, then swapping; fields as in AugmentTensors."""
    points, linear, center = widen(x, linear[:, part], center[:, part])
    matrix, center = linear[:, None], center[:, None]
    dx, dy = (points - center).unbind(-1)
    mapped = torch.stack(
        (matrix[..., 0, 0] * dx + matrix[..., 0, 1] * dy, matrix[..., 1, 0] * dx + matrix[..., 1, 1] * dy), -1
    )
    moved = affected[:, None] & (confidence > 0)
    x = torch.where(moved[..., None], mapped + center, points).to(x.dtype)
    x = x.masked_fill(drop[:, None, :, None], 0.0)
    confidence = confidence.masked_fill(drop[:, None], 0.0)
    swap = swap[:, None, None]
    x = torch.where(swap[..., None], x[:, :, swap_index], x)
    return x, torch.where(swap, confidence[:, :, swap_index], confidence)


def augment_grad(
    grad: Tensor,
    confidence: Tensor,
    linear: Tensor,
    part: Tensor,
    affected: Tensor,
    drop: Tensor,
    swap: Tensor,
    swap_index: Tensor,
) -> Tensor:
    """The gradient of x for that of the first result of :func:`augment`."""
    wide, matrix = widen(grad, linear[:, part])
    unswapped = torch.zeros_like(wide).index_add_(2, swap_index, wide)
    wide = torch.where(swap[:, None, None, None], unswapped, wide).masked_fill(drop[:, None, :, None], 0.0)
    moved, matrix, (gx, gy) = affected[:, None] & (confidence > 0), matrix[:, None], wide.unbind(-1)
    mapped = torch.stack(  # no matrix product, which autocast and TF32 would round
        (matrix[..., 0, 0] * gx + matrix[..., 1, 0] * gy, matrix[..., 0, 1] * gx + matrix[..., 1, 1] * gy), -1
    )
    return torch.where(moved[..., None], mapped, wide).to(grad.dtype)
