"""Temporal convolutions over a sequence of frame vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TemporalBlock(nn.Module):
    """Two convolutional branches over time (one of width 5, one of two times 3), joined by a linear map, BN and ReLU.

    The receptive field is two frames to either side; its output is >= 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv1d(channels, channels, 5, padding=2)
        self.narrow1 = nn.Conv1d(channels, channels, 3, padding=1)
        self.narrow2 = nn.Conv1d(channels, channels, 3, padding=1)
        self.join = nn.Sequential(nn.Conv1d(2 * channels, channels, 1), nn.BatchNorm1d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        wide = torch.relu(self.wide(x))
        narrow = torch.relu(self.narrow2(torch.relu(self.narrow1(x))))
        return torch.relu(self.join(torch.cat((wide, narrow), 1)))
