"""The frame-wise embedding of hands, body, face and mouth that CCL-SLR and SLP share: one graph network per group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slrfast import checks, graphs
from slrfast.nn.gcn import PartGCN

_BODIES = {75: ("trunk", graphs.TRUNK7), 79: ("body", graphs.BODY11)}


class HolisticEmbedding(nn.Module):
    """Vectors per frame for the manual parts (hands and body) and the non-manual ones (face and mouth).

    Both hands go through one network. CCL-SLR A.2: v_man = [left hand, right hand, body], v_non = [face, mouth]; SLP
    describes the same networks, without edges between frames.

    Args:
        keypoints: 75 (CCL-SLR, whose body is STC's trunk) or 79 (SLP).
        dim: size of each of the five vectors.
        gcn_channels: of the five blocks of each graph network.
        in_channels: per joint, 2 (x, y) or 3 (x, y, confidence).
        dropout: inside the graph networks' blocks.
        frame_dropout: on the vectors they give.
        input_eps: epsilon of the input normalisation.
        hand_statistics: as for :class:`slrfast.nn.PoseEmbedding`.

    >>> embed = HolisticEmbedding(79, dim=8, gcn_channels=(4, 4, 8, 8, 8)).eval()
    >>> manual, non_manual = embed(torch.rand(5, 79, 2))
    >>> manual.shape, non_manual.shape
    (torch.Size([5, 24]), torch.Size([5, 16]))
    """

    def __init__(
        self,
        keypoints: int = 79,
        dim: int = 512,
        gcn_channels: Sequence[int] = (128, 128, 256, 512, 512),
        *,
        in_channels: int = 2,
        dropout: float = 0.05,
        frame_dropout: float = 0.25,
        input_eps: float = 1e-5,
        hand_statistics: str = "each",
    ) -> None:
        super().__init__()
        checks.choice("HolisticEmbedding", ("each", "both"), hand_statistics=hand_statistics)
        self.groups = 2 if hand_statistics == "each" else 1
        checks.require(keypoints in _BODIES, "HolisticEmbedding", "keypoints", "be 75 or 79", keypoints)
        self.parts = graphs.layout(keypoints).parts
        self.body, body_graph = _BODIES[keypoints]
        self.hand_gcn, self.body_gcn, self.face_gcn, self.mouth_gcn = (
            PartGCN(
                graph, gcn_channels, dim, in_channels=in_channels, dropout=dropout, frame_dropout=frame_dropout,
                input_eps=input_eps,
            )
            for graph in (graphs.HAND21, body_graph, graphs.FACE18, graphs.MOUTH8)
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Joints [..., V, C] (packed frames too) -> manual [..., 3 dim] and non-manual [..., 2 dim]."""
        return self.manual(x), self.non_manual(x)

    def manual(self, x: Tensor) -> Tensor:
        """Left hand, right hand and body of joints [..., V, C] alone: [..., 3 dim]."""
        hands = torch.stack((self._part(x, "left_hand"), self._part(x, "right_hand")))
        return torch.cat((*self.hand_gcn(hands, groups=self.groups), self.body_gcn(self._part(x, self.body))), -1)

    def non_manual(self, x: Tensor) -> Tensor:
        """Face and mouth of joints [..., V, C] alone: [..., 2 dim]."""
        return torch.cat((self.face_gcn(self._part(x, "face")), self.mouth_gcn(self._part(x, "mouth"))), -1)

    def _part(self, x: Tensor, name: str) -> Tensor:
        return x[..., self.parts[name], :]
