"""Sinusoidal positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slrfast import checks


def sinusoidal_positions(
    length: int, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A vector for each of ``length`` positions, [length, dim], to be added to a sequence.

    p[t, 2i] = sin(t / 10000^(2i / dim)), p[t, 2i + 1] = cos(t / 10000^(2i / dim)); Vaswani et al., "Attention is all
    you need", section 3.5.

    Args:
        length: T, >= 0.
        dim: an even number of channels.
        device, dtype: of the result; the angles are formed in float32.
    Raises:
        TypeError, ValueError: a negative length, or a dim that is odd or below 2.

    >>> sinusoidal_positions(2, 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    op = "sinusoidal_positions"
    checks.integer_between(op, 0, 1 << 31, length=length)
    checks.integer_between(op, 2, 1 << 31, dim=dim)
    checks.require(dim % 2 == 0, op, "dim", "be even", dim)
    frequency = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10_000) / dim))
    angle = torch.arange(length, device=device)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1).to(dtype)


def with_positions(tokens: Tensor, number: Tensor) -> Tensor:
    """Tokens [S, D] plus the sinusoidal position of their frame numbers [S]."""
    if len(number) == 0:
        return tokens
    table = sinusoidal_positions(int(number.max()) + 1, tokens.shape[1], device=tokens.device, dtype=tokens.dtype)
    return tokens + table.index_select(0, number)
