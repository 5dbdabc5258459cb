"""What the losses over a bank share: attaching a gradient computed in the forward pass, reduction, mined indices."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks

REDUCTIONS = ("mean", "sum", "none")


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss: Tensor, source: Tensor, gradient: Tensor, reduction: str) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype, ctx.reduction = source.dtype, reduction
        return loss.view_as(loss) if reduction == "none" else reduce(loss, reduction)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        (gradient,) = ctx.saved_tensors
        if ctx.reduction == "mean":
            grad = grad / gradient.shape[0]
        each = grad if grad.dim() == 0 else grad.view(-1, *[1] * (gradient.dim() - 1))
        before = grad.expand(gradient.shape[0]) if ctx.needs_input_grad[0] else None
        return before, (each * gradient).to(ctx.dtype), None, None


def wants_grad(tensor: Tensor) -> bool:
    """Whether a gradient for this argument may be asked for later."""
    return torch.is_grad_enabled() and tensor.requires_grad


def attach(loss: Tensor, source: Tensor, gradient: Tensor, reduction: str = "none") -> Tensor:
    """``loss`` [B], reduced, with d loss[b] / d source[b] = ``gradient``[b], the one tensor that is saved.

    To reduce here rather than afterwards spares small losses half of their backward pass.
    """
    return _Attach.apply(loss, source, gradient, reduction)


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """The mean or sum over the rows, or the rows themselves."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def check_positives(op: str, positives: Tensor, size: int) -> None:
    """Raise ValueError for an index outside [-1, size - 1], where values may be read."""
    if checks.may_read(positives):
        outside = (positives < -1) | (positives >= size)
        if bool(outside.any()):
            checks.require(False, op, "positives", f"be in [-1, {size - 1}]", int(positives[outside][0]))
