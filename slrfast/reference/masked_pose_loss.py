"""The error of reconstructed masked keypoints, weighted by confidence, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen


def masked_pose_loss(prediction: Tensor, target: Tensor, mask: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Loss [B]: sum over the masked keypoints of c |y - x|^2; and their number [B]."""
    difference, weight = _parts(prediction, target, mask, confidence)
    return (weight * difference.square()).flatten(1).sum(1), mask.flatten(1).sum(1)


def masked_pose_loss_grad(
    prediction: Tensor, target: Tensor, mask: Tensor, confidence: Tensor, want_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Both, and d loss[b] / d prediction[b] [B, T, V, 2], empty when unwanted."""
    loss, count = masked_pose_loss(prediction, target, mask, confidence)
    if not want_grad:
        return loss, count, loss.new_empty(0)
    difference, weight = _parts(prediction, target, mask, confidence)
    return loss, count, (2 * difference * weight).contiguous()


def _parts(prediction: Tensor, target: Tensor, mask: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """The differences [B, T, V, 2] and their weights [B, T, V, 1], both zero where nothing is masked."""
    prediction, target, confidence = widen(prediction, target, confidence)
    chosen = mask[..., None]
    return torch.where(chosen, prediction - target, 0.0), torch.where(chosen, confidence[..., None], 0.0)
