"""Graph convolution over the joints of a frame."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.graphs import SkeletonGraph
from slrfast.ops import _dispatch
from slrfast.reference import graph_conv as reference

_dispatch.register("graph_conv", cpu=("reference",), cuda=("reference",))
_FORWARD = {"reference": reference.graph_conv}


def graph_conv(x: Tensor, weight: Tensor, bias: Tensor | None, graph: SkeletonGraph) -> Tensor:
    """Average every joint's neighbours, partition by partition, and map each average linearly.

    out[r, w] = sum_p ((sum_v A_p[v, w] x[r, v]) weight[p] + (sum_v A_p[v, w]) bias[p]), with A the graph's
    partitioned adjacency: ST-GCN's spatial convolution, which STC, MASA, CCL-SLR and SLP embed frames with.

    Args:
        x: [R, V, Cin], one row per frame, any strides; float64, float32, bfloat16 or float16. Gradient flows.
        weight: [P, Cin, Cout] in the dtype of ``x`` (any floating dtype under autocast). Gradient flows.
        bias: [P, Cout] or None. Gradient flows.
        graph: V nodes, P partitions; its tensors are made once per device and dtype, so call once before a CUDA graph
            capture.
    Returns:
        [R, V, Cout] in the dtype of ``x``, or autocast's.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit the graph or each other.
    Numerics:
        Two matrix products that accumulate in float32 (float64 for float64); aggregates first where Cin <= Cout,
        maps first otherwise, through one intermediate of R * V * P * min(Cin, Cout). Deterministic.

    >>> from slrfast.graphs import SkeletonGraph
    >>> graph = SkeletonGraph.from_edges(["wrist", "tip"], bones=[(0, 1)])
    >>> x = torch.tensor([[[2.0], [4.0]]])
    >>> graph_conv(x, torch.ones(4, 1, 1), None, graph).flatten()
    tensor([3., 3.])
    """
    op = "graph_conv"
    if not isinstance(graph, SkeletonGraph):
        raise TypeError(checks.message(op, "graph", "be a slrfast.graphs.SkeletonGraph", type(graph).__name__))
    patterns = dict(x="R V Cin", weight="P Cin Cout", bias="P Cout")
    tensors = {name: t for name, t in (("x", x), ("weight", weight), ("bias", bias)) if t is not None}
    sizes = checks.shapes(op, **{name: (tensor, patterns[name]) for name, tensor in tensors.items()})
    checks.require(sizes["V"] == graph.num_nodes, op, "x", f"have the graph's {graph.num_nodes} nodes", sizes["V"])
    partitions = graph.num_partitions
    checks.require(sizes["P"] == partitions, op, "weight", f"have the graph's {partitions} partitions", sizes["P"])
    checks.floating(op, **tensors)
    checks.same_device(op, **tensors)
    if not torch.is_autocast_enabled(x.device.type):
        checks.dtype(op, x.dtype, **tensors)
    constants = reference.graph_tensors(graph, x.device, x.dtype)
    return _FORWARD[_dispatch.choose(op, x.device.type)](x, weight, bias, *constants)
