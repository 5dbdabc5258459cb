"""The whole graph network of a frame in evaluation mode, normalisations folded into the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slrfast import checks
from slrfast.graphs import SkeletonGraph
from slrfast.kernels import native
from slrfast.ops import _dispatch, _skeleton
from slrfast.reference import part_gcn as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "part_gcn(Tensor x, Tensor?[] parameters, bool[] identity, Tensor edges, Tensor coefficients, Tensor members,"
    " Tensor pooled_edges, Tensor pooled_coefficients, int joint_blocks) -> Tensor"
)


def _fake(x: Tensor, parameters: list[Tensor | None], *rest) -> Tensor:
    last = parameters[-reference.FIELDS]
    assert last is not None
    return x.new_empty((x.shape[0], last.shape[2]))


# ---- backends -------------------------------------------------------------------------------------------------------

_dispatch.register("part_gcn", cpu=("native", "reference"), cuda=("reference",))
_FORWARD = {"native": native.part_gcn, "reference": reference.part_gcn}


def _forward(x: Tensor, *args) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _FORWARD[_dispatch.choose("part_gcn", x.device.type)](x, *args)


_library.impl("part_gcn", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::part_gcn", _fake, lib=_library)


# ---- public ---------------------------------------------------------------------------------------------------------


class FoldedBlock(NamedTuple):
    """A block y = relu(relu(conv(x; weight) + node_bias) map^T + bias + residual(x)).

    ``weight`` is [P, Cin, Cout], ``node_bias`` [V, Cout], ``map`` [Cout, Cout], ``bias`` [Cout] and ``residual``
    [Cout, Cin] or None; with ``identity`` the residual is x.
    """

    weight: Tensor
    node_bias: Tensor
    map: Tensor
    bias: Tensor
    residual: Tensor | None = None
    identity: bool = False


def _check_block(name: str, block: Any, x: Tensor, nodes: int, channels: int, skeleton: SkeletonGraph) -> int:
    """Refuse a block that does not fit its place; its output channels."""
    op, weight = "part_gcn", f"{name}.weight"
    if not isinstance(block, FoldedBlock):
        raise TypeError(checks.message(op, name, "be a slrfast.ops.FoldedBlock", type(block).__name__))
    sizes = checks.shapes(op, **{weight: (block.weight, f"P {channels} Cout")})
    _skeleton.check(op, skeleton, nodes, sizes["P"], weight)
    outputs = sizes["Cout"]
    checks.require(outputs > 0, op, weight, "have at least one output channel", outputs)
    patterns = dict(node_bias=f"{nodes} {outputs}", map=f"{outputs} {outputs}", bias=f"{outputs}")
    if block.residual is not None:
        patterns["residual"] = f"{outputs} {channels}"
    named = {f"{name}.{field}": (getattr(block, field), pattern) for field, pattern in patterns.items()}
    checks.shapes(op, **named)
    tensors = {weight: block.weight, **{key: tensor for key, (tensor, _) in named.items()}}
    checks.floating(op, **tensors)
    checks.same_device(op, x=x, **tensors)
    fits = not block.identity or (block.residual is None and channels == outputs)
    checks.require(fits, op, f"{name}.identity", "go with Cin = Cout and no residual map", (channels, outputs))
    return outputs


def part_gcn(
    x: Tensor, joint_blocks: Sequence[FoldedBlock], part_blocks: Sequence[FoldedBlock], graph: SkeletonGraph
) -> Tensor:
    """Turn every frame into one vector: blocks on the joints, max over each part, blocks on the parts, max over them.

    Args:
        x: [R, V, Cin], one row per frame, any strides; float64, float32, bfloat16 or float16. No gradient: a tensor
            that requires one is a warning.
        joint_blocks: the blocks on the graph, at least one.
        part_blocks: the blocks on ``graph.pooled``, at least one.
        graph: V nodes, with parts and a pooled graph of the same number of partitions.
    Returns:
        [R, Cout of the last block] in the dtype of ``x``, or autocast's, which leaves float64 alone.
    Raises:
        TypeError: a tensor of another dtype, no graph or no block. ValueError: shapes or devices that do not fit, or no
            output channel.
    Numerics:
        As :func:`graph_conv`. The CPU kernel keeps a few frames on chip through all blocks and writes only the result.

    >>> from slrfast import nn
    >>> from slrfast.graphs import HAND21
    >>> network = nn.PartGCN(HAND21, (4, 4, 8, 8, 8), 8).eval()
    >>> part_gcn(torch.rand(3, 21, 2), *network.folded(), HAND21).shape
    torch.Size([3, 8])
    """
    op = "part_gcn"
    checks.shapes(op, x=(x, "R V C"))
    channels, nodes = x.shape[2], x.shape[1]
    checks.floating(op, x=x)
    _skeleton.check(op, graph, nodes)
    pooled = graph.pooled
    checks.require(pooled is not None, op, "graph", "have parts and a pooled graph", pooled)
    assert pooled is not None
    rule = f"have a pooled graph of its {graph.num_partitions} partitions"
    checks.require(pooled.num_partitions == graph.num_partitions, op, "graph", rule, pooled.num_partitions)
    for name, given, skeleton in (("joint_blocks", joint_blocks, graph), ("part_blocks", part_blocks, pooled)):
        if not isinstance(given, Sequence):
            raise TypeError(checks.message(op, name, "be a sequence of slrfast.ops.FoldedBlock", type(given).__name__))
        checks.require(len(given) > 0, op, name, "have at least one block", len(given))
        for i, block in enumerate(given):
            channels = _check_block(f"{name}[{i}]", block, x, nodes, channels, skeleton)
        nodes = len(graph.parts)
    checks.no_gradient(op, x=x)
    x = x.to(_skeleton.autocast_dtype(x) or x.dtype)
    blocks = [*joint_blocks, *part_blocks]
    with torch.no_grad():
        return torch.ops.slrfast.part_gcn(
            x.detach(), [tensor for block in blocks for tensor in block[: reference.FIELDS]],
            [block.identity for block in blocks], *_skeleton.edges(graph, x.device),
            *_skeleton.members(graph, x.device), *_skeleton.edges(pooled, x.device), len(joint_blocks),
        )  # fmt: skip
