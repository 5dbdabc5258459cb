"""Projection into the embedding space of the memory banks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ProjectionHead(nn.Module):
    """MoCo v2's two-layer head, Linear-ReLU-Linear, with unit-length output, in float32 also under autocast.

    Args:
        in_features: width of the encoder's vector, and of the hidden layer.
        out_features: D, the embedding size.
        normalize: scale every embedding to length one.
    """

    def __init__(self, in_features: int, out_features: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, in_features)
        self.output = nn.Linear(in_features, out_features)
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_features] -> [B, out_features]."""
        embedding = self.output(self.hidden(x).relu())
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        return F.normalize(embedding, dim=-1) if self.normalize else embedding
