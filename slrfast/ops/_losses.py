"""What the losses with a gradient computed in the forward pass share: attaching that gradient, and the reduction."""

from __future__ import annotations

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss: Tensor, source: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = source.dtype
        return loss.view_as(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        (gradient,) = ctx.saved_tensors
        return grad, (grad[:, None] * gradient).to(ctx.dtype), None


def wants_grad(tensor: Tensor) -> bool:
    """Whether a gradient for this argument may be asked for later."""
    return torch.is_grad_enabled() and tensor.requires_grad


def attach(loss: Tensor, source: Tensor, gradient: Tensor) -> Tensor:
    """``loss`` [B] whose derivative d loss[b] / d source[b] is ``gradient`` [B, D], the one tensor that is saved."""
    return _Attach.apply(loss, source, gradient)


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """The mean or sum over the rows, or the rows themselves."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
