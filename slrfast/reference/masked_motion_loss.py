"""The distance of predicted motion to the residuals of masked frames in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen


def masked_motion_loss(
    prediction: Tensor, residual: Tensor, weight: Tensor, mask: Tensor, scale: float, squared: bool, average: bool
) -> Tensor:
    """Loss [B]: over the masked frames the sum of ((y - scale m) w)^2, or |..|, / their number with ``average``."""
    distance, _ = _distances(prediction, residual, weight, mask, scale)
    distance = distance.square() if squared else distance.abs()
    return distance.flatten(1).sum(1) * _share(mask, average, distance.dtype)


def masked_motion_loss_grad(
    prediction: Tensor,
    residual: Tensor,
    weight: Tensor,
    mask: Tensor,
    scale: float,
    squared: bool,
    average: bool,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Loss [B] and d loss[b] / d prediction[b] [B, T, V, 2], empty when unwanted."""
    loss = masked_motion_loss(prediction, residual, weight, mask, scale, squared, average)
    if not want_grad:
        return loss, loss.new_empty(0)
    distance, weight = _distances(prediction, residual, weight, mask, scale)
    share = _share(mask, average, distance.dtype)[:, None, None, None]
    grad = (2 * distance if squared else distance.sign()) * weight * share
    return loss, torch.where(mask[..., None, None], grad, 0.0).contiguous()


def _distances(
    prediction: Tensor, residual: Tensor, weight: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """What the loss is made of, zero outside of the masked frames, and the weights; both [B, T, V, 2]."""
    prediction, residual, weight = widen(prediction, residual, weight)
    weight = weight if weight.dim() == 4 else weight[..., None]
    return torch.where(mask[..., None, None], (prediction - scale * residual) * weight, 0.0), weight


def _share(mask: Tensor, average: bool, dtype: torch.dtype) -> Tensor:
    """[B]: one over the number of masked frames (at least 1), or one."""
    count = mask.sum(1).double().clamp_min(1) if average else torch.ones(len(mask), device=mask.device)
    return (1 / count).to(dtype)
