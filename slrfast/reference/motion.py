"""Temporal difference of key points in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def motion(x: Tensor, interval: int, backward: bool) -> Tensor:
    """y[t] = x[t] - x[t - interval] (backward) or x[t + interval] - x[t] (forward); zero where a frame is missing."""
    frames = x.shape[-3]
    defined = max(frames - interval, 0)
    difference = x.narrow(-3, frames - defined, defined) - x.narrow(-3, 0, defined)
    zeros = x.new_zeros((*x.shape[:-3], frames - defined, *x.shape[-2:]))
    return torch.cat((zeros, difference) if backward else (difference, zeros), dim=-3)


def motion_grad(grad: Tensor, interval: int, backward: bool) -> Tensor:
    """The adjoint of :func:`motion`: grad_x[s] = sum over t of grad[t] * d y[t] / d x[s]."""
    frames = grad.shape[-3]
    defined = max(frames - interval, 0)
    grad = grad.narrow(-3, frames - defined if backward else 0, defined)
    zeros = grad.new_zeros((*grad.shape[:-3], frames - defined, *grad.shape[-2:]))
    return torch.cat((zeros, grad), dim=-3) - torch.cat((grad, zeros), dim=-3)
