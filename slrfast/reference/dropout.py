"""Which elements a dropout keeps: a hash of seed, site, row and channel, so that no mask is stored."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD, _GOLDEN = 0xFFFFFFFF, 0x9E3779B9


def _mix(x: Tensor) -> Tensor:
    """Scramble 32-bit words that lie in int64."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _WORD
    x = (x ^ (x >> 15)) * 0x846CA68B & _WORD
    return x ^ (x >> 16)


def keep_mask(seed: Tensor, site: int, rows: int, channels: int, dropout: float) -> Tensor:
    """Bool [rows, channels], False with probability ``dropout``.

    keep(r, c) = mix(mix(mix(base + lo(r)) + hi(r)) ^ c G) >= dropout 2^32 with base = mix(lo(seed) + (site + 1) G) ^
    hi(seed), in 32-bit arithmetic, G = 2^32 / golden ratio; int64 ``seed`` [] lies on the device of the result.
    """
    base = _mix(((seed & _WORD) + (site + 1) * _GOLDEN) & _WORD) ^ (seed >> 32 & _WORD)
    row = torch.arange(rows, device=seed.device)
    key = _mix((_mix((base + (row & _WORD)) & _WORD) + (row >> 32)) & _WORD)
    channel = torch.arange(channels, device=seed.device) * _GOLDEN & _WORD
    return _mix(key[:, None] ^ channel) >= threshold(dropout)


def threshold(dropout: float) -> int:
    """The first 32-bit word that is kept."""
    return min(_WORD, int(dropout * 2**32))
