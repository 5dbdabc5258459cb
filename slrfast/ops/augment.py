"""Spatial augmentation of clips: linear maps per body part, joint dropping and hand swapping."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_clips
from slrfast.ops import _changes, _dispatch
from slrfast.ops._changes import AugmentTensors
from slrfast.reference import augment as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_MAPS = "Tensor part, Tensor affected, Tensor drop, Tensor swap, Tensor swap_index"
_library.define(
    f"augment(Tensor x, Tensor confidence, Tensor linear, Tensor center, {_MAPS}) -> (Tensor x, Tensor confidence)"
)
_library.define(f"augment_grad(Tensor grad, Tensor confidence, Tensor linear, {_MAPS}) -> Tensor")


def _fake(x: Tensor, confidence: Tensor, *args) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), confidence.new_empty(confidence.shape)


def _fake_grad(grad: Tensor, *args) -> Tensor:
    return grad.new_empty(grad.shape)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import augment as kernel

    return kernel.augment(*args)


_dispatch.register("augment", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native_clips.augment, "triton": _triton, "reference": reference.augment}


def _forward(x: Tensor, *args) -> tuple[Tensor, Tensor]:
    return _FORWARD[_dispatch.choose("augment", x.device.type)](x, *args)


_library.impl("augment", _forward, "CompositeExplicitAutograd")
_library.impl("augment_grad", reference.augment_grad, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::augment", _fake, lib=_library)
torch.library.register_fake("slrfast::augment_grad", _fake_grad, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _Augment(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, confidence: Tensor, linear: Tensor, center: Tensor, *others: Tensor):
        ctx.save_for_backward(confidence, linear, *others)
        x, confidence = torch.ops.slrfast.augment(x, confidence, linear, center, *others)
        ctx.mark_non_differentiable(confidence)
        return x, confidence

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, _):
        return torch.ops.slrfast.augment_grad(grad, *ctx.saved_tensors), *[None] * 8


# ---- public ---------------------------------------------------------------------------------------------------------


def augment(x: Tensor, confidence: Tensor, plan: AugmentTensors) -> tuple[Tensor, Tensor]:
    """Transform, drop and swap the joints of every clip as a plan says.

    For an affected joint that is visible (confidence > 0) y = M (x - c) + c, with the M and c of its part; a missing
    joint stays where it is. Then dropped joints go to (0, 0) with confidence 0, then swapped clips are read through
    the permutation, confidence alike. STC's spatial augmentations (rotation, scale, shear, joint mask, flip).

    Args:
        x: [B, T, V, 2] coordinates in any unit, any strides; float64, float32, bfloat16 or float16. Gradient flows.
            For several views of a clip, one after the other: B is views times clips.
        confidence: [B, T, V] float32 or in the dtype of ``x``, > 0 where a joint was seen. No gradient flows.
        plan: drawn by ``data.AugmentPlan`` or made by hand, for B clips.
    Returns:
        Both tensors after augmentation, new, contiguous, in their own dtypes.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit; on CPU, and on CUDA under
            SLRFAST_DEBUG=1, but not inside torch.compile: ``part`` or ``swap_index`` out of range.
    Numerics:
        Accumulates in float32 (float64 if ``x`` or the plan is) and rounds once to the dtype of ``x``; deterministic,
        bitwise the same on every backend, also under autocast. Once differentiable; saves confidence and plan for the
        backward pass, no coordinates.

    >>> quarter_turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> no, zero = torch.tensor([[False]]), torch.tensor([0])
    >>> plan = AugmentTensors(quarter_turn[None, None], torch.zeros(1, 1, 2), zero, ~no, no, no[0], zero)
    >>> augment(torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2), torch.ones(1, 1, 1), plan)
    (tensor([[[[0., 1.]]]]), tensor([[[1.]]]))
    """
    op = "augment"
    _changes.check(op, plan, x=(x, "B T V 2"), confidence=(confidence, "B T V"))
    checks.floating(op, x=x)
    if confidence.dtype not in (x.dtype, torch.float32):
        raise TypeError(checks.message(op, "confidence", f"be torch.float32 or as x {x.dtype}", confidence.dtype))
    checks.no_gradient(op, confidence=confidence, linear=plan.linear, center=plan.center)
    if x.requires_grad and torch.is_grad_enabled():
        return _Augment.apply(x, confidence.detach(), plan.linear.detach(), plan.center.detach(), *plan[2:])
    return torch.ops.slrfast.augment(x, confidence, *plan)
