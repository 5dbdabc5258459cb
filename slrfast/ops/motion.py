"""Temporal difference of key points: the motion stream of STC and MASA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native
from slrfast.ops import _dispatch
from slrfast.reference import motion as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define("motion(Tensor x, int interval, bool backward) -> Tensor")
_library.define("motion_grad(Tensor grad, int interval, bool backward) -> Tensor")


def _fake(x: Tensor, interval: int, backward: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(x: Tensor, interval: int, backward: bool) -> Tensor:
    from slrfast.kernels.triton import motion as kernel

    return kernel.motion(x, interval, backward)


def _triton_grad(grad: Tensor, interval: int, backward: bool) -> Tensor:
    from slrfast.kernels.triton import motion as kernel

    return kernel.motion_grad(grad, interval, backward)


# Triton runs on CPU tensors only under TRITON_INTERPRET=1 and only when it is asked for.
_dispatch.register("motion", cpu=("native", "reference", "triton"), cuda=("triton", "cuda", "reference"))
_FORWARD = {"native": native.motion, "cuda": native.motion, "triton": _triton, "reference": reference.motion}
_GRAD = {
    "native": native.motion_grad,
    "cuda": native.motion_grad,
    "triton": _triton_grad,
    "reference": reference.motion_grad,
}


def _forward(x: Tensor, interval: int, backward: bool) -> Tensor:
    return _FORWARD[_dispatch.choose("motion", x.device.type)](x, interval, backward)


def _grad(grad: Tensor, interval: int, backward: bool) -> Tensor:
    return _GRAD[_dispatch.choose("motion", grad.device.type)](grad, interval, backward)


for _name, _implementation in (("motion", _forward), ("motion_grad", _grad)):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"slrfast::{_name}", _fake, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _Motion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, interval: int, backward: bool) -> Tensor:
        ctx.arguments = interval, backward
        return torch.ops.slrfast.motion(x, interval, backward)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _differentiable(_MotionGrad, torch.ops.slrfast.motion_grad, grad, *ctx.arguments), None, None


class _MotionGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad: Tensor, interval: int, backward: bool) -> Tensor:
        ctx.arguments = interval, backward
        return torch.ops.slrfast.motion_grad(grad, interval, backward)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _differentiable(_Motion, torch.ops.slrfast.motion, grad, *ctx.arguments), None, None


def _differentiable(function: Any, op: Callable[..., Tensor], x: Tensor, interval: int, backward: bool) -> Tensor:
    """Call the op, through autograd only where a gradient is wanted."""
    if x.requires_grad and torch.is_grad_enabled():
        return function.apply(x, interval, backward)
    return op(x, interval, backward)


# ---- public ---------------------------------------------------------------------------------------------------------


def motion(x: Tensor, *, interval: int = 1, direction: str = "backward") -> Tensor:
    """Difference of every frame to the one ``interval`` frames earlier (or later).

    y[t] = x[t] - x[t - interval] for direction "backward" (STC Eq. 1, with interval 1), y[t] = x[t + interval] - x[t]
    for "forward" (MASA, and the published code of STC). Frames without a partner are zero, so a clip of at most
    ``interval`` frames has no motion at all.

    Args:
        x: [..., T, V, C] coordinates of V key points in any unit, any strides; float64, float32, bfloat16 or float16.
            Gradient flows, to any order.
        interval: distance in frames, >= 1.
        direction: "backward" or "forward".
    Returns:
        Tensor of the shape, dtype and unit of ``x``, contiguous.
    Raises:
        TypeError: ``x`` is no floating tensor or ``interval`` no integer.
        ValueError: ``x`` has fewer than three dimensions, ``interval`` < 1, or an unknown ``direction``.
    Numerics:
        One subtraction per element, in float32 for the half types, rounded once; deterministic, bitwise the same on
        every backend. Nothing is saved for the backward pass; one tensor of the size of ``x`` is allocated.

    >>> import torch
    >>> x = torch.tensor([0.0, 1.0, 3.0, 6.0]).reshape(4, 1, 1)
    >>> motion(x).flatten()
    tensor([0., 1., 2., 3.])
    >>> motion(x, direction="forward").flatten()
    tensor([1., 2., 3., 0.])
    """
    checks.shapes("motion", x=(x, "... T V C"))
    checks.floating("motion", x=x)
    checks.integer_between("motion", 1, 2**31 - 1, interval=interval)
    checks.choice("motion", ("backward", "forward"), direction=direction)
    return _differentiable(_Motion, torch.ops.slrfast.motion, x, interval, direction == "backward")
