"""Graph networks over a skeleton, channels last: a frame is a row, [R, V, C]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slrfast import checks, ops
from slrfast.graphs import SkeletonGraph


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


class ChannelNorm(nn.BatchNorm1d):
    """Batch normalisation over the last dimension of [..., C], with statistics over all others."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, input.shape[-1])).view(input.shape)


class GCNBlock(nn.Module):
    """ST-GCN block: graph convolution, BN, ReLU, dropout, pointwise linear, BN, dropout, residual, ReLU.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        graph: the skeleton.
        dropout: probability of both dropouts.
        residual: add the input, through a linear map and BN where the channels differ.
    """

    def __init__(
        self, in_channels: int, out_channels: int, graph: SkeletonGraph, *, dropout: float = 0.05, residual: bool = True
    ) -> None:
        super().__init__()
        self.spatial = nn.Sequential(GraphConv(in_channels, out_channels, graph), ChannelNorm(out_channels))
        self.pointwise = nn.Sequential(nn.Linear(out_channels, out_channels), ChannelNorm(out_channels))
        self.dropout = nn.Dropout(dropout)
        self.residual: nn.Module | None = None
        if residual and in_channels != out_channels:
            self.residual = nn.Sequential(nn.Linear(in_channels, out_channels), ChannelNorm(out_channels))
        elif residual:
            self.residual = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[R, V, Cin] -> [R, V, Cout]."""
        y = self.dropout(torch.relu(self.spatial(x)))
        y = self.dropout(self.pointwise(y))
        return torch.relu(y if self.residual is None else y + self.residual(x))


class PartGCN(nn.Module):
    """The per-frame graph network of STC and MASA: joints, then parts, then one vector per frame.

    Input normalisation per joint and coordinate; three blocks on the joints; max over the joints of each part; two
    blocks on the pooled graph; max over the parts; linear, BN, ReLU, dropout (STC specification, rows 0-8).

    Args:
        graph: a skeleton with ``parts`` and ``pooled``.
        channels: output channels of the five blocks.
        out_channels: size of a frame's vector.
        in_channels: coordinates per joint.
        dropout: inside the blocks.
        frame_dropout: on the frame's vector.
        input_eps: epsilon of the input normalisation (the authors' code has 0.1 there).
    """

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
        self.input_norm = nn.BatchNorm1d(graph.num_nodes * in_channels, eps=input_eps)
        sizes = (in_channels, *channels)
        graphs = [graph] * 3 + [graph.pooled] * 2
        self.blocks = nn.ModuleList(
            GCNBlock(sizes[i], sizes[i + 1], graphs[i], dropout=dropout, residual=i > 0) for i in range(5)
        )
        self.output = nn.Sequential(
            nn.Linear(channels[-1], out_channels), nn.BatchNorm1d(out_channels), nn.ReLU(), nn.Dropout(frame_dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, V, C] coordinates -> [B, T, out_channels]."""
        frames = x.flatten(0, 1)
        frames = self.input_norm(frames.flatten(1)).view(frames.shape)
        for block in self.blocks[:3]:
            frames = block(frames)
        frames = torch.stack([frames[:, list(part)].amax(1) for part in self.graph.parts], 1)
        for block in self.blocks[3:]:
            frames = block(frames)
        return self.output(frames.amax(1)).unflatten(0, x.shape[:2])
