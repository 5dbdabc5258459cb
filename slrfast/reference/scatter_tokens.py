"""Putting packed frames back to their places in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import accumulation_dtype


def scatter_tokens(packed: Tensor, offsets: Tensor, token: Tensor, mask: Tensor) -> Tensor:
    """Out [B, T, D]: the rows of a clip on its first frames that are not masked, the token on masked ones, else 0."""
    return scatter_rows(packed, offsets, token, mask)[0]


def sources(rows: int, offsets: Tensor, mask: Tensor) -> Tensor:
    """[B, T]: the packed row that a frame holds; ``rows`` for the token, ``rows + 1`` for nothing."""
    visible = ~mask
    place = visible.cumsum(1) - 1
    held = visible & (place < offsets.diff()[:, None])
    return torch.where(held, offsets[:-1, None] + place, rows + visible.long()).contiguous()


def scatter_rows(packed: Tensor, offsets: Tensor, token: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Out [B, T, D], and the :func:`sources` that its gradient takes."""
    source = sources(len(packed), offsets, mask)
    table = torch.cat((packed, token.to(packed.dtype)[None], packed.new_zeros(1, packed.shape[1])))
    return table.index_select(0, source.flatten()).unflatten(0, source.shape), source


def scatter_rows_grad(grad: Tensor, source: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The gradients of packed [rows, D] and, in the type of sums, of the token [D]."""
    grad, source = grad.flatten(0, 1), source.flatten()
    place = source.new_full((rows + 2,), -1).scatter_(0, source, torch.arange(len(source), device=source.device))
    place = place[:rows]
    packed, token, nowhere = grad.index_select(0, place.clamp_min(0)), source == rows, place < 0
    if grad.is_cuda:  # lists of positions would wait for the device
        packed = packed.masked_fill_(nowhere[:, None], 0)
        chosen = torch.where(token[:, None], grad, 0)
    else:  # and are several times as fast
        packed = packed.index_fill_(0, nowhere.nonzero().flatten(), 0)
        chosen = grad.index_select(0, token.nonzero().flatten())
    return packed, chosen.sum(0, dtype=accumulation_dtype(grad))
