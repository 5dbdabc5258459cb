"""Temporal convolutions over a sequence of frame vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks
from slrfast.nn.norm import check_groups, grouped, has_hooks
from slrfast.nn.packed import Packing, packing_of

_REACH = 2  # frames that a block sees to either side


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

    def forward(self, x: Tensor, offsets: Tensor | Packing | None = None, groups: int = 1) -> Tensor:
        """[B, C, T] -> [B, C, T], or packed clips, a frame per row: [S, C] -> [S, C].

        Args:
            x: the sequences, zero beyond both ends of every clip.
            offsets: None for [B, C, T]; for [S, C] the int64 [B + 1] of ``data.PoseBatch``, or their Packing. No frame
                sees another clip, and batch statistics are those of the S frames.
            groups: of [B, C, T], B is this many equal consecutive parts, each normalised with its own statistics in
                training mode, as if the block were called once for each; 1 with ``offsets``.
        Raises:
            TypeError, ValueError: shapes that do not fit, no frame at all, offsets that do not rise from 0 to S; in
                training mode a group of one frame, which has no variance.
        """
        op, channels = "TemporalBlock", self.wide.in_channels
        checks.shapes(op, x=(x, f"B {channels} T" if offsets is None else f"S {channels}"))
        frames = x.numel() // channels
        groups = check_groups(op, groups, len(x), "sequences") if offsets is None else groups
        checks.require(offsets is None or groups == 1, op, "groups", "be 1 with offsets", groups)
        if self.join[1].training:
            each, rule = frames // groups, "have at least two frames" + (" per group" if groups > 1 else "")
            checks.require(each > 1, op, "x", f"{rule} in training mode", each)
        if offsets is None:
            checks.require(frames > 0, op, "x", "have at least one frame", list(x.shape))
            rows = torch.cat(self._branches(x), 1).mT
            return self._joined(rows.flatten(0, 1), groups).view(len(x), -1, channels).mT
        packing = packing_of(op, x, offsets)
        checks.require(frames > 0, op, "x", "have at least one frame", frames)
        # one sequence with a gap between clips that is as wide as the receptive field reaches
        place = packing.apart(_REACH)
        sequence = x.new_zeros(frames + _REACH * (packing.num_clips - 1), channels).index_copy(0, place, x)
        real = x.new_zeros(len(sequence), dtype=torch.bool).index_fill(0, place, True)
        both = torch.cat(self._branches(sequence.T.unsqueeze(0), real), 1)[0].T
        return self._joined(both, 1, place)

    def _joined(self, branches: Tensor, groups: int, place: Tensor | None = None) -> Tensor:
        """ReLU of both branches' rows [S, 2 C], map, normalisation and ReLU of the rows at ``place`` -> [S, C]."""
        linear: nn.Conv1d = self.join[0]  # type: ignore[assignment]
        rows = torch.relu(branches)
        if has_hooks(linear):  # such as torch's pruning
            joined = linear(rows.unsqueeze(2)).squeeze(2)
        else:
            joined = F.linear(rows, linear.weight.squeeze(2), linear.bias)
        joined = joined if place is None else joined.index_select(0, place)
        return torch.relu(grouped(self.join[1], joined, groups))

    def _branches(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both branches [B, C, T] before their last ReLU; a convolution sees zero where no frame is ``real`` [T]."""
        narrow = torch.relu(self.narrow1(x))
        return self.wide(x), self.narrow2(narrow if real is None else narrow * real)
