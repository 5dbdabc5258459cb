"""Graph networks over a skeleton, channels last: a frame is a row, [R, V, C]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slrfast import checks, ops
from slrfast.graphs import SkeletonGraph
from slrfast.nn.norm import (
    ChannelNorm,
    MapNorm,
    check_groups,
    grouped,
    has_hooks,
    scale_and_shift,
    update_statistics,
    uses_batch,
)
from slrfast.ops import _skeleton


class GraphConv(nn.Module):
    """Graph convolution with one weight per partition of the skeleton: :func:`slrfast.ops.graph_conv` with parameters.

    Equals a 1x1 convolution to ``P * out_channels`` channels followed by a sum over partitions and source nodes
    (ST-GCN), and is initialised like one: Xavier-uniform with the fans of that convolution.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        graph: the skeleton.
        bias: one bias per partition and output channel.
    """

    def __init__(self, in_channels: int, out_channels: int, graph: SkeletonGraph, *, bias: bool = True) -> None:
        super().__init__()
        self.graph = graph
        self.weight = nn.Parameter(torch.empty(graph.num_partitions, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(graph.num_partitions, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, and biases as torch's convolutions have them."""
        partitions, in_channels, out_channels = self.weight.shape
        bound = math.sqrt(6 / (in_channels + partitions * out_channels))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(in_channels), 1 / math.sqrt(in_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[R, V, Cin] -> [R, V, Cout]."""
        return ops.graph_conv(x, self.weight, self.bias, self.graph)


class GCNBlock(nn.Module):
    """ST-GCN block: graph convolution, BN, ReLU, dropout, pointwise linear, BN, dropout, residual, ReLU.

    In training mode :func:`slrfast.ops.gcn_block`, which does it in few passes and stores no dropout mask. What that op
    does not do runs layer by layer: normalisations that are frozen (in evaluation mode), are SyncBatchNorm, or differ
    in epsilon or momentum; layers that were put in place of those here; and layers with hooks.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        graph: the skeleton.
        dropout: probability of both dropouts.
        residual: add the input, through a linear map and BN where the channels differ.
    """

    # MapNorm(GraphConv, ChannelNorm), MapNorm(Linear, ChannelNorm), and the same, Identity or None
    spatial: Any
    pointwise: Any
    residual: Any

    def __init__(
        self, in_channels: int, out_channels: int, graph: SkeletonGraph, *, dropout: float = 0.05, residual: bool = True
    ) -> None:
        super().__init__()
        self.spatial = MapNorm(GraphConv(in_channels, out_channels, graph), ChannelNorm(out_channels))
        self.pointwise = MapNorm(nn.Linear(out_channels, out_channels), ChannelNorm(out_channels))
        self.dropout = nn.Dropout(dropout)
        self.residual = None
        if residual and in_channels != out_channels:
            self.residual = MapNorm(nn.Linear(in_channels, out_channels), ChannelNorm(out_channels))
        elif residual:
            self.residual = nn.Identity()

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        """[R, V, Cin] -> [R, V, Cout].

        Args:
            x: one row per frame.
            groups: the rows are this many equal consecutive parts, each normalised with its own statistics in training
                mode, as if the block were called once for each.
        """
        groups = check_groups("GCNBlock", groups, len(x), "rows")
        if self.fuses(training=True):
            conv, norm = self.spatial
            out, stats = ops.gcn_block(
                x, self.parameters_of_op(), conv.graph, dropout=self.dropout.p, eps=norm.eps, groups=groups,
                identity=isinstance(self.residual, nn.Identity),
            )  # fmt: skip
            update_statistics([norm for _, norm in self._pairs()], stats, x.shape[0] * x.shape[1] // groups)
            return out
        if groups > 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) and uses_batch(m) for m in self.modules()):
            return torch.cat([self._layers(part) for part in x.chunk(groups)])
        return self._layers(x)

    def _layers(self, x: Tensor) -> Tensor:
        y = self.dropout(self.pointwise(self.dropout(torch.relu(self.spatial(x)))))
        return torch.relu(y if self.residual is None else y + self.residual(x))

    def fuses(self, training: bool) -> bool:
        """Whether an op for this mode does what the layers do: all are in it, as they were made, and have no hooks."""
        parts = [part for part in self._modules.values() if part is not None]  # attributes of a module cost more
        parts += [layer for part in parts for layer in part._modules.values() if layer is not None]
        kinds = [type(part) for part in parts]
        norms: list[Any] = [part for part, kind in zip(parts, kinds, strict=True) if kind in _NORMS]
        if not training:
            kinds = [ChannelNorm if kind in _NORMS else kind for kind in kinds]
        if tuple(kinds) not in _KINDS or any(map(has_hooks, parts)):
            return False
        first, dropout = norms[0], self.dropout
        for norm in norms:
            if norm.training != training or norm.running_mean is None:
                return False
            alike = norm.eps == first.eps and norm.momentum == first.momentum and norm.track_running_stats
            if training and not alike:
                return False
        return dropout.training == training or dropout.p == 0

    def parameters_of_op(self) -> ops.GCNParameters:
        """The parameters as :func:`slrfast.ops.gcn_block` takes them."""
        pairs = self._pairs()
        return ops.GCNParameters(*(p for map_, norm in pairs for p in (map_.weight, map_.bias, norm.weight, norm.bias)))

    def _pairs(self) -> list[Any]:
        """Every linear map with the normalisation behind it."""
        return [self.spatial, self.pointwise, *([self.residual] if isinstance(self.residual, MapNorm) else [])]

    def folded(self) -> ops.FoldedBlock:
        """The block in evaluation mode, normalisations folded into weights, for :func:`slrfast.ops.part_gcn`."""
        conv, (linear, norm) = self.spatial[0], self.pointwise
        scale, shift = scale_and_shift(self.spatial[1])
        (reach,) = _skeleton.reach(conv.graph, scale.device, scale.dtype)  # [V, P]
        node_bias = (reach.unsqueeze(-1) * (conv.bias * scale)).sum(1) + shift  # no product that autocast would round
        map_scale, bias = scale_and_shift(norm)
        bias = bias + linear.bias * map_scale
        residual = None
        for linear_residual, residual_norm in self._pairs()[2:]:
            residual_scale, residual_shift = scale_and_shift(residual_norm)
            residual = linear_residual.weight * residual_scale[:, None]
            bias = bias + residual_shift + linear_residual.bias * residual_scale
        return ops.FoldedBlock(
            conv.weight * scale, node_bias, linear.weight * map_scale[:, None], bias, residual,
            isinstance(self.residual, nn.Identity),
        )  # fmt: skip


_NORMS = (ChannelNorm, nn.BatchNorm1d, nn.SyncBatchNorm)
_PARTS, _LAYERS = (MapNorm, MapNorm, nn.Dropout), (GraphConv, ChannelNorm, nn.Linear, ChannelNorm)
# the parts of a block and their layers, without a residual, with the identity and with a linear map
_KINDS = (
    (*_PARTS, *_LAYERS),
    (*_PARTS, nn.Identity, *_LAYERS),
    (*_PARTS, MapNorm, *_LAYERS, nn.Linear, ChannelNorm),
)


class PartGCN(nn.Module):
    """The per-frame graph network of STC and MASA: joints, then parts, then one vector per frame.

    Input normalisation per joint and coordinate; three blocks on the joints; max over the joints of each part; two
    blocks on the pooled graph; max over the parts; linear, BN, ReLU, dropout (STC specification, rows 0-8). In
    evaluation mode and without a gradient (``torch.no_grad()``) the blocks run as one op,
    :func:`slrfast.ops.part_gcn`, unless one of them has a layer in training mode, of another kind, or with a hook.

    Args:
        graph: a skeleton with ``parts`` and ``pooled``.
        channels: output channels of the five blocks.
        out_channels: size of a frame's vector.
        in_channels: coordinates per joint.
        dropout: inside the blocks.
        frame_dropout: on the frame's vector.
        input_eps: epsilon of the input normalisation (the authors' code has 0.1 there).
    """

    blocks: Any  # ModuleList of GCNBlock
    output: Any

    def __init__(
        self,
        graph: SkeletonGraph,
        channels: Sequence[int] = (128, 128, 256, 512, 512),
        out_channels: int = 512,
        *,
        in_channels: int = 2,
        dropout: float = 0.05,
        frame_dropout: float = 0.25,
        input_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        checks.require(graph.pooled is not None, "PartGCN", "graph", "have parts and a pooled graph", graph.names)
        checks.require(len(channels) == 5, "PartGCN", "channels", "name five blocks", tuple(channels))
        assert graph.pooled is not None
        self.graph = graph
        self.whole = replace(graph.pooled, parts=(tuple(range(graph.pooled.num_nodes)),), pooled=None)
        self.input_norm = ChannelNorm(graph.num_nodes * in_channels, eps=input_eps)
        sizes = (in_channels, *channels)
        graphs = [graph] * 3 + [graph.pooled] * 2
        self.blocks = nn.ModuleList(
            GCNBlock(sizes[i], sizes[i + 1], graphs[i], dropout=dropout, residual=i > 0) for i in range(5)
        )
        self.output = nn.Sequential(
            nn.Linear(channels[-1], out_channels), ChannelNorm(out_channels), nn.ReLU(), nn.Dropout(frame_dropout)
        )

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        """Coordinates [..., V, C] -> [..., out_channels], for example [B, T, V, C] or the packed frames [S, V, C].

        Args:
            x: one skeleton per frame.
            groups: the frames are this many equal consecutive parts, each normalised with its own statistics in
                training mode, as if the network were called once for each (both hands in one call).
        """
        op, nodes, channels = "PartGCN", self.graph.num_nodes, self.input_norm.num_features // self.graph.num_nodes
        checks.shapes(op, x=(x, f"... {nodes} {channels}"))
        frames = x.reshape(-1, nodes, channels)
        groups = check_groups(op, groups, len(frames), "frames")
        linear, norm, *rest = self.output
        if self.input_norm.training or norm.training:
            each = len(frames) // groups
            checks.require(each > 1, op, "x", "have at least two frames per group in training mode", each)
        frames = grouped(self.input_norm, frames.flatten(1), groups).view(frames.shape)
        if torch.is_grad_enabled() or any(has_hooks(b) or not b.fuses(training=False) for b in self.blocks):
            for block in self.blocks[:3]:
                frames = block(frames, groups)
            frames = ops.part_max(frames, self.graph)
            for block in self.blocks[3:]:
                frames = block(frames, groups)
            frames = ops.part_max(frames, self.whole).squeeze(1)
        else:
            frames = ops.part_gcn(frames, *self.folded(), self.graph)
        frames = grouped(norm, linear(frames), groups)
        for module in rest:
            frames = module(frames)
        return frames.view(*x.shape[:-2], frames.shape[-1])

    def folded(self) -> tuple[list[ops.FoldedBlock], list[ops.FoldedBlock]]:
        """The blocks on the joints and those on the parts, as :func:`slrfast.ops.part_gcn` takes them."""
        folded = [block.folded() for block in self.blocks]
        return folded[:3], folded[3:]
