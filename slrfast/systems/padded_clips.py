"""Whole clips of different lengths, as MASA masks them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from slrfast import ops
from slrfast.data import PoseBatch
from slrfast.nn import Packing
from slrfast.nn.packed import packing_of


class PaddedClips(NamedTuple):
    """A batch in both forms: packed, and with zeros behind every clip.

    ``xy`` is [B, T, 49, 2], ``confidence`` [B, T, 49], T the frames of the longest clip; ``lengths`` int64 [B].
    """

    packing: Packing
    lengths: Tensor
    xy: Tensor
    confidence: Tensor

    @classmethod
    def of(cls, batch: PoseBatch) -> PaddedClips:
        packing = packing_of("MASA", batch.xy, batch.offsets)
        return cls(packing, batch.lengths, packing.pad(batch.xy), packing.pad(batch.confidence))

    def visible(self, hidden: Tensor) -> tuple[Tensor, Tensor, Packing]:
        """The frames that are not ``hidden`` [B, T]: [S, 49, 2], their numbers in their clips [S], their packing."""
        exact = torch.promote_types(self.xy.dtype, torch.float32)  # a half type has not every number
        numbers = torch.arange(hidden.shape[1], device=hidden.device, dtype=exact).expand(len(hidden), -1)
        rows = torch.cat((self.xy.flatten(2).to(exact), numbers.unsqueeze(-1)), -1)
        packed, offsets = ops.gather_visible(rows, hidden, self.lengths)
        x = packed[:, :-1].to(self.xy.dtype).unflatten(-1, self.xy.shape[2:])
        return x, packed[:, -1].long(), Packing.of(offsets)

    def hide(self, share: float, keys: Tensor) -> Tensor:
        """floor(share T) frames of every clip, those with the smallest ``keys`` [..., B, T] in [0, 1); bool."""
        return smallest(keys, self.packing.present.expand_as(keys), share)


def smallest(keys: Tensor, candidates: Tensor, share: float) -> Tensor:
    """Of every row's candidates the floor(share * count) with the smallest keys; all [..., T]."""
    count = (candidates.sum(-1, keepdim=True).double() * share).long()
    rank = keys.masked_fill(~candidates, math.inf).argsort(dim=-1, stable=True).argsort(-1)
    return candidates & (rank < count)
