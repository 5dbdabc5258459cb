"""First-in-first-out writing into a memory bank: one program for each key, then the cursor in a launch of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._rounding import rounded

BLOCK = 1024


@triton.jit
def write(
    bank,  # [N, D], rows are overwritten
    cursor,  # []
    keys,  # [B, D]
    N,
    skipped,  # leading keys that later ones overwrite
    bank_row,
    bank_column,
    keys_row,
    keys_column,
    D: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """bank[(cursor + j) mod N] = keys[j] / max(|keys[j]|, 1e-12), for one j."""
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    j = tl.program_id(0).to(tl.int64) + skipped
    keys += j * keys_row
    bank += ((tl.load(cursor) % N + N + j) % N) * bank_row  # N more: the remainder of a negative number is negative
    lane = tl.arange(0, BLOCK)
    if NORMALIZE:
        squares = tl.zeros([BLOCK], compute)
        for start in range(0, D, BLOCK):
            d = start + lane
            x = tl.load(keys + d.to(tl.int64) * keys_column, mask=d < D, other=0.0).to(compute)
            squares += x * x
        length = tl.sum(squares)
        length = tl.sqrt(length) if DOUBLE else tl.sqrt_rn(length)
        length = tl.where(length < 1e-12, 1e-12, length)  # keeps a NaN
    for start in range(0, D, BLOCK):
        d = start + lane
        x = tl.load(keys + d.to(tl.int64) * keys_column, mask=d < D, other=0.0).to(compute)
        if NORMALIZE:
            x = x / length if DOUBLE else tl.div_rn(x, length)
        tl.store(bank + d.to(tl.int64) * bank_column, rounded(x, bank.dtype.element_ty), mask=d < D)


@triton.jit
def advance(
    cursor,  # []
    N,
    count,
):
    """cursor = (cursor + count) mod N."""
    tl.store(cursor, (tl.load(cursor) % N + N + count) % N)


def enqueue_(bank: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    """Run the kernels for ``slrfast::enqueue_``; every key reads the cursor, so it moves in a second launch."""
    size, (count, dim) = bank.shape[0], keys.shape
    skipped = max(count - size, 0)
    with torch.cuda.device(bank.device if bank.is_cuda else -1):
        write[(count - skipped,)](
            bank, cursor, keys, size, skipped, *bank.stride(), *keys.stride(), dim, normalize,
            keys.dtype == torch.float64, min(BLOCK, triton.next_power_of_2(max(dim, 1))),
        )  # fmt: skip
        advance[(1,)](cursor, size, count)
