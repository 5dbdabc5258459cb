"""Max pooling over the joints of each body part."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.graphs import SkeletonGraph
from slrfast.kernels import native
from slrfast.ops import _dispatch, _skeleton
from slrfast.reference import part_max as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define("part_max(Tensor x, Tensor members) -> (Tensor pooled, Tensor chosen)")
_library.define("part_max_grad(Tensor grad, Tensor chosen, Tensor members, int nodes) -> Tensor")


def _fake(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    pooled = x.new_empty((x.shape[0], members.shape[0], x.shape[2]))
    return pooled, pooled.new_empty(pooled.shape, dtype=torch.uint8)


def _fake_grad(grad: Tensor, chosen: Tensor, members: Tensor, nodes: int) -> Tensor:
    return grad.new_empty((grad.shape[0], nodes, grad.shape[2]))


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import part_max as kernel

    return kernel.part_max(*args)


def _triton_grad(*args) -> Tensor:
    from slrfast.kernels.triton import part_max as kernel

    return kernel.part_max_grad(*args)


_dispatch.register("part_max", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.part_max, "triton": _triton, "reference": reference.part_max}
_GRAD = {"native": native.part_max_grad, "triton": _triton_grad, "reference": reference.part_max_grad}


def _forward(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    return _FORWARD[_dispatch.choose("part_max", x.device.type)](x, members)


def _grad(grad: Tensor, *args) -> Tensor:
    return _GRAD[_dispatch.choose("part_max", grad.device.type)](grad, *args)


_library.impl("part_max", _forward, "CompositeExplicitAutograd")
_library.impl("part_max_grad", _grad, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::part_max", _fake, lib=_library)
torch.library.register_fake("slrfast::part_max_grad", _fake_grad, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _PartMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, members: Tensor) -> Tensor:
        pooled, chosen = torch.ops.slrfast.part_max(x, members)
        ctx.save_for_backward(chosen, members)
        ctx.nodes = x.shape[1]
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        return torch.ops.slrfast.part_max_grad(grad, *ctx.saved_tensors, ctx.nodes), None


# ---- public ---------------------------------------------------------------------------------------------------------


def part_max(x: Tensor, graph: SkeletonGraph) -> Tensor:
    """Pool the joints of every part of a skeleton by their maximum (STC specification, row 4).

    out[r, q] = max over the nodes v of part q of x[r, v].

    Args:
        x: [R, V, C], one row per frame, any strides; float64, float32, bfloat16 or float16. Gradient flows.
        graph: V nodes and at least one part; a node may be in several.
    Returns:
        [R, number of parts, C] in the dtype of ``x``.
    Raises:
        TypeError: another dtype or no graph. ValueError: another number of nodes, or a graph without parts.
    Numerics:
        Exact. The gradient goes to the first of equal joints; one byte per result is saved. A NaN is the maximum.

    >>> from slrfast.graphs import HAND21
    >>> part_max(torch.arange(21.0).reshape(1, 21, 1), HAND21).flatten()  # five fingers, then the palm
    tensor([ 4.,  8., 12., 16., 20., 17.])
    """
    sizes = checks.shapes("part_max", x=(x, "R V C"))
    checks.floating("part_max", x=x)
    _skeleton.check("part_max", graph, sizes["V"])
    checks.require(len(graph.parts) > 0, "part_max", "graph", "have parts", graph.parts)
    return _PartMax.apply(x, *_skeleton.members(graph, x.device))
