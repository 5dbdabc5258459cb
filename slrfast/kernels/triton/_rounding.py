"""Conversion of results to the type that they are stored in."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """``x`` in ``dtype``, to nearest even; to a half type through float32, as PyTorch does."""
    if dtype == tl.bfloat16 and INTERPRETED:  # its conversion truncates float32, and takes float64 for an integer
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result = tl.where(x == x, bits, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif dtype == tl.float64:
        result = x.to(tl.float64)
    else:
        result = x.to(tl.float32).to(dtype)
    return result
