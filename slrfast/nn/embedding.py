"""The frame-wise embedding of 49 joints that STC and MASA share: hands by one network, the trunk by another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slrfast import checks, graphs
from slrfast.nn.gcn import PartGCN
from slrfast.nn.temporal import TemporalBlock

_PARTS = graphs.layout(49).parts
RIGHT, LEFT, TRUNK = _PARTS["right_hand"], _PARTS["left_hand"], _PARTS["trunk"]


class PoseEmbedding(nn.Module):
    """A vector per frame for either hand and for the trunk; both hands go through one network.

    Args:
        dim: size of each vector.
        gcn_channels: of the five blocks of each graph network.
        trunk_graph: of the seven trunk joints.
        dropout: inside the graph networks' blocks.
        frame_dropout: on the vectors they give.
        input_eps: epsilon of the input normalisation.
        hand_statistics: what the hands' normalisations see in training: "each" hand's own batch statistics, as in the
            STC and MASA authors' code, or those of "both" together. Evaluation has one set of running statistics, so
            with "each" it differs from training the more the hands differ, as where one is mostly missing.
        temporal: two temporal blocks behind each graph network; every vector then sees four frames to either side.
    """

    def __init__(
        self,
        dim: int = 512,
        gcn_channels: Sequence[int] = (128, 128, 256, 512, 512),
        trunk_graph: graphs.SkeletonGraph = graphs.TRUNK7,
        *,
        dropout: float = 0.05,
        frame_dropout: float = 0.25,
        input_eps: float = 1e-5,
        hand_statistics: str = "each",
        temporal: bool = True,
    ) -> None:
        super().__init__()
        checks.choice("PoseEmbedding", ("each", "both"), hand_statistics=hand_statistics)
        self.groups = 2 if hand_statistics == "each" else 1
        self.hand_gcn, self.trunk_gcn = (
            PartGCN(graph, gcn_channels, dim, dropout=dropout, frame_dropout=frame_dropout, input_eps=input_eps)
            for graph in (graphs.HAND21, trunk_graph)
        )
        blocks = 2 if temporal else 0
        self.hand_temporal = nn.Sequential(*(TemporalBlock(dim) for _ in range(blocks)))
        self.trunk_temporal = nn.Sequential(*(TemporalBlock(dim) for _ in range(blocks)))

    def embed_parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Right hand, left hand and trunk, each [B, T, dim], of coordinates [B, T, 49, 2].

        Without temporal blocks also packed frames [S, 49, 2] -> [S, dim].
        """
        hands = self.hand_gcn(torch.stack((x[..., RIGHT, :], x[..., LEFT, :])), groups=self.groups)
        trunk = self.trunk_gcn(x[..., TRUNK, :])
        if self.hand_temporal:
            rows = hands.flatten(0, 1).mT
            for block in self.hand_temporal:
                rows = block(rows, groups=self.groups)
            hands = rows.mT.unflatten(0, (2, -1))
            trunk = self.trunk_temporal(trunk.mT).mT
        right, left = hands
        return right, left, trunk
