"""Temporal difference and its adjoint: memory-bound, one tile of [rows, elements] per program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._rounding import rounded

TILE = 1024


@triton.jit
def difference(
    source,  # [rows, length]
    result,  # [rows, length]
    rows,
    length,
    plus_begin,
    plus_end,
    plus_offset,
    minus_begin,
    minus_end,
    minus_offset,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """result[j] = (plus_begin <= j < plus_end ? source[j + plus_offset] : 0) - (the same for minus), for every row."""
    blocks = tl.cdiv(length, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    row = (program // blocks) * ROWS + tl.arange(0, ROWS)[:, None]
    j = (program % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (j < length)
    at = row * length + j
    plus = tl.load(source + at + plus_offset, mask=inside & (j >= plus_begin) & (j < plus_end), other=0.0)
    minus = tl.load(source + at + minus_offset, mask=inside & (j >= minus_begin) & (j < minus_end), other=0.0)
    compute = tl.float64 if DOUBLE else tl.float32
    value = plus.to(compute) - minus.to(compute)
    tl.store(result + at, rounded(value, result.dtype.element_ty), mask=inside)


def motion(x: Tensor, interval: int, backward: bool) -> Tensor:
    """Run the kernel for ``slrfast::motion``."""
    rest, shift = _sizes(x, interval)
    begin = shift if backward else 0
    return _launch(x, (begin, begin + rest, shift - begin), (begin, begin + rest, -begin))


def motion_grad(grad: Tensor, interval: int, backward: bool) -> Tensor:
    """Run the kernel for ``slrfast::motion_grad``."""
    rest, shift = _sizes(grad, interval)
    return _launch(grad, (shift, shift + rest, 0 if backward else -shift), (0, rest, shift if backward else 0))


def _sizes(x: Tensor, interval: int) -> tuple[int, int]:
    """The elements of a row that have a partner, and how far away it is; (0, 0) when there is none."""
    frames, row = x.shape[-3], x.shape[-2] * x.shape[-1]
    return ((frames - interval) * row, interval * row) if interval < frames else (0, 0)


def _launch(x: Tensor, plus: tuple[int, int, int], minus: tuple[int, int, int]) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    length = x.shape[-3:].numel()
    rows = x.numel() // length
    block = min(TILE, triton.next_power_of_2(length))
    tile_rows = TILE // block
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(length, block),)
    with torch.cuda.device(x.device if x.is_cuda else -1):
        difference[grid](x, y, rows, length, *plus, *minus, tile_rows, block, x.dtype == torch.float64)
    return y
