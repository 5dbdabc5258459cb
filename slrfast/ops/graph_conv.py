"""Graph convolution over the joints of a frame."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.graphs import SkeletonGraph
from slrfast.kernels import native
from slrfast.ops import _dispatch, _skeleton
from slrfast.reference import graph_conv as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define("graph_conv(Tensor x, Tensor weight, Tensor? bias, Tensor edges, Tensor coefficients) -> Tensor")
_library.define(
    "graph_conv_grad(Tensor grad, Tensor x, Tensor weight, Tensor edges, Tensor coefficients)"
    " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)"
)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, edges: Tensor, coefficients: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], weight.shape[2]))


def _fake_grad(
    grad: Tensor, x: Tensor, weight: Tensor, edges: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty((weight.shape[0], weight.shape[2]))


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> Tensor:
    from slrfast.kernels.triton import graph_conv as kernel

    return kernel.graph_conv(*args)


def _triton_grad(*args) -> tuple[Tensor, Tensor, Tensor]:
    from slrfast.kernels.triton import graph_conv as kernel

    return kernel.graph_conv_grad(*args)


_dispatch.register("graph_conv", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.graph_conv, "triton": _triton, "reference": reference.graph_conv}
_GRAD = {"native": native.graph_conv_grad, "triton": _triton_grad, "reference": reference.graph_conv_grad}


def _forward(x: Tensor, *args) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _FORWARD[_dispatch.choose("graph_conv", x.device.type)](x, *args)


def _grad(grad: Tensor, *args) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(grad.device.type, enabled=False):
        return _GRAD[_dispatch.choose("graph_conv", grad.device.type)](grad, *args)


_library.impl("graph_conv", _forward, "CompositeExplicitAutograd")
_library.impl("graph_conv_grad", _grad, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::graph_conv", _fake, lib=_library)
torch.library.register_fake("slrfast::graph_conv_grad", _fake_grad, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _GraphConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, edges: Tensor, coefficients: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, edges, coefficients)
        return torch.ops.slrfast.graph_conv(x, weight, bias, edges, coefficients)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        grads = torch.ops.slrfast.graph_conv_grad(grad, *ctx.saved_tensors)
        wanted = (g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False))
        return *wanted, None, None


# ---- public ---------------------------------------------------------------------------------------------------------


def graph_conv(x: Tensor, weight: Tensor, bias: Tensor | None, graph: SkeletonGraph) -> Tensor:
    """Average every joint's neighbours, partition by partition, and map each average linearly.

    out[r, w] = sum_p ((sum_v A_p[v, w] x[r, v]) weight[p] + (sum_v A_p[v, w]) bias[p]), with A the graph's
    partitioned adjacency: ST-GCN's spatial convolution, which STC, MASA, CCL-SLR and SLP embed frames with.

    Args:
        x: [R, V, Cin], one row per frame, any strides; float64, float32, bfloat16 or float16. Gradient flows.
        weight: [P, Cin, Cout] in the dtype of ``x`` (any floating dtype under autocast, unless ``x`` is float64).
            Gradient flows.
        bias: [P, Cout] or None. Gradient flows.
        graph: V nodes, P partitions; its tensors are made once per device, so call once before a CUDA graph capture.
    Returns:
        [R, V, Cout] in the dtype of ``x``, or autocast's, which leaves float64 alone.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit the graph or each other.
    Numerics:
        Accumulates in float32 (float64 for float64); once differentiable; deterministic for a given number of threads.
        The CPU kernel multiplies each partition on the side with fewer joints, so joints without an edge cost
        nothing, and holds a tile of 8 to 256 frames per thread beyond its result: some 1 MB, or 8 frames if that is
        more.

    >>> from slrfast.graphs import SkeletonGraph
    >>> graph = SkeletonGraph.from_edges(["wrist", "tip"], bones=[(0, 1)])
    >>> x = torch.tensor([[[2.0], [4.0]]])
    >>> graph_conv(x, torch.ones(4, 1, 1), None, graph).flatten()
    tensor([3., 3.])
    """
    op = "graph_conv"
    patterns = dict(x="R V Cin", weight="P Cin Cout", bias="P Cout")
    tensors = {name: t for name, t in (("x", x), ("weight", weight), ("bias", bias)) if t is not None}
    sizes = checks.shapes(op, **{name: (tensor, patterns[name]) for name, tensor in tensors.items()})
    _skeleton.check(op, graph, sizes["V"], sizes["P"])
    checks.floating(op, **tensors)
    checks.same_device(op, **tensors)
    rounded = _skeleton.autocast_dtype(x)
    if rounded is None:
        checks.dtype(op, x.dtype, **tensors)
    else:
        x = x.to(rounded)
    return _GraphConv.apply(x, weight, bias, *_skeleton.edges(graph, x.device))
