"""What the kernels that choose the k largest scores of a row share: score tiles, and the border of the choice.

The border is found by bisection of the scores' bits, read as integers in the order of the scores: no sort, no index
list, at most 32 counts of a row (64 for float64), and no more once a count equals k.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

# How a tile of inner products is formed ("DOT"): its columns and depth, warps, stages and registers of a thread (the
# most; without a number the assembler spills a word or two here and there to reach a rounder one).
TILES = {
    "half": (64, 64, 4, 3, 255),  # bfloat16 x bfloat16 or float16 x float16: tensor cores, sums in float32
    "split": (64, 32, 4, 3, 255),  # float32 x bfloat16: three times that, for three parts that hold a float32 exactly
    "ieee": (64, 16, 4, 3, 128),  # every other mix, in float32
    "double": (32, 16, 4, 2, 255),  # as soon as a tensor is float64
}
PROGRAMS = 256  # about two for each multiprocessor of a large GPU
SCRATCH = 256 << 20  # bytes of scores held at a time
WHOLE_ROW = 64 << 10  # bytes of scores that the registers of one program hold
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def compute_type(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 as soon as one tensor is float64."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def dot_mode(left: torch.dtype, right: torch.dtype, compute: torch.dtype) -> str:
    """The entry of TILES for two element types."""
    if compute == torch.float64:
        return "double"
    if left == right and left != torch.float32:
        return "half"
    return "split" if (left, right) == (torch.float32, torch.bfloat16) else "ieee"


def row_tile(rows: int, most: int = 64) -> int:
    """Rows of a tile: a power of two that the tensor cores can use."""
    return min(most, max(16, triton.next_power_of_2(rows)))


def groups(rows: int, row_bytes: int) -> Iterator[slice]:
    """Ranges of rows whose scores fit the scratch, a multiple of the row tile where that is possible."""
    size = max(1, SCRATCH // row_bytes)
    size -= size % 64 if size > 64 else 0
    for first in range(0, rows, size):
        yield slice(first, min(rows, first + size))


def split(n: int, tile: int, most: int) -> tuple[int, int]:
    """(chunk, splits): at most ``most`` chunks, each a multiple of ``tile``, that cover n."""
    tiles = max(1, triton.cdiv(n, tile))
    tiles_per_chunk = triton.cdiv(tiles, max(1, most))
    return tiles_per_chunk * tile, triton.cdiv(tiles, tiles_per_chunk)


def row_reading(n: int, double: bool) -> tuple[tuple[bool, int, bool, int], dict[str, int]]:
    """How one program reads a row of n scores: the constants (DOUBLE, BLOCK, WHOLE, STEP) and the launch options.

    It looks for the border in blocks, or keeps the whole row in registers; after that it goes in steps.
    """
    most = WHOLE_ROW // (8 if double else 4)
    whole = n <= most
    block = min(most, max(1024, triton.next_power_of_2(n))) if whole else most // 2
    step = min(block, 512 if double else 4096)
    warps = min(16, block // 256)
    return (double, block, whole, step), {"num_warps": warps, "maxnreg": min(255, 65536 // (32 * warps))}


def tile(mode: str) -> tuple[tuple[int, int, str], dict[str, int]]:
    """The constants (COLUMNS, DEPTH, DOT) of a tile and the launch options."""
    columns, depth, warps, stages, registers = TILES[mode]
    return (columns, depth, mode), {"num_warps": warps, "num_stages": stages, "maxnreg": registers}


@triton.jit
def bound(number):
    """``number`` as the bound of a loop; the interpreter's is an array of one element, which numpy 2.4 refuses."""
    if INTERPRETED:
        return (tl.zeros((1,), tl.int32) + number).handle.data.item()
    else:
        return number


@triton.jit
def dot(a, b, total):
    """total + a b, with products and sums in the type of ``total``."""
    if INTERPRETED:  # its product of two bfloat16 tiles is wrong
        a, b = a.to(total.dtype), b.to(total.dtype)
    return tl.dot(a, b, total, input_precision="ieee", out_dtype=total.dtype)


@triton.jit
def inner_products(
    left,  # [rows, depth]
    right,  # [columns, depth]
    rows,
    columns,
    first_row,
    first_column,
    begin,
    end,
    left_row,
    left_depth,
    right_row,
    right_depth,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """The tile [ROWS, COLUMNS] at (first_row, first_column) of sum over begin <= d < end of left[r, d] right[c, d]."""
    row = tl.cast(first_row, tl.int64) + tl.arange(0, ROWS)[:, None]
    column = tl.cast(first_column, tl.int64) + tl.arange(0, COLUMNS)[None, :]
    step = tl.arange(0, DEPTH)
    depth = tl.cast(begin, tl.int64) + step
    left += row * left_row + depth[None, :] * left_depth
    right += column * right_row + depth[:, None] * right_depth
    left_step, right_step = tl.cast(left_depth, tl.int64) * DEPTH, tl.cast(right_depth, tl.int64) * DEPTH
    total = tl.zeros((ROWS, COLUMNS), tl.float64 if DOT == "double" else tl.float32)
    for start in range(bound(begin), bound(end), DEPTH):
        inside = step < end - start
        a = tl.load(left, mask=(row < rows) & inside[None, :], other=0.0)
        b = tl.load(right, mask=(column < columns) & inside[:, None], other=0.0)
        if DOT == "half":
            total = dot(a, b, total)
        elif DOT == "split":
            high = a.to(tl.bfloat16)
            rest = a - high.to(tl.float32)
            middle = rest.to(tl.bfloat16)
            small = dot((rest - middle.to(tl.float32)).to(tl.bfloat16), b, tl.zeros((ROWS, COLUMNS), tl.float32))
            small = dot(middle, b, small)
            small = tl.where(tl.abs(small) < float("inf"), small, 0.0)  # an inf or NaN is the high part's alone
            total = dot(high, b, total + small)
        else:
            total = dot(a.to(total.dtype), b.to(total.dtype), total)
        left += left_step
        right += right_step
    return total


@triton.jit
def store_scores(
    query,  # [rows, dim]
    bank,  # [n, dim]
    scores,  # [rows, n], contiguous
    rows,
    n,
    dim,
    query_row,
    query_dim,
    bank_row,
    bank_dim,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """One tile of scores[b, i] = <query[b], bank[i]>; neighbouring programs share their bank rows."""
    row_tiles = tl.cdiv(rows, ROWS)
    first_row = tl.program_id(0) % row_tiles * ROWS
    first_column = tl.program_id(0) // row_tiles * COLUMNS
    tile = inner_products(
        query, bank, rows, n, first_row, first_column, 0, dim,
        query_row, query_dim, bank_row, bank_dim, ROWS, COLUMNS, DEPTH, DOT,
    )  # fmt: skip
    row = tl.cast(first_row, tl.int64) + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    tl.store(scores + row * n + column, tile, mask=(row < rows) & (column < n))


@triton.jit
def ordered(score):
    """Integers in the order of the scores; -0 equals 0, and a NaN counts as +inf."""
    score = tl.where(score == score, score, float("inf"))
    score = tl.where(score == 0, 0.0, score)
    if score.dtype == tl.float64:
        bits = score.to(tl.int64, bitcast=True)
        return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    else:
        bits = score.to(tl.int32, bitcast=True)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def least(DOUBLE: tl.constexpr):
    """An integer below the order of every score."""
    if DOUBLE:
        return tl.full((), -(2**63), tl.int64)
    else:
        return tl.full((), -(2**31), tl.int32)


@triton.jit
def load_order(
    scores,  # [n]
    i,
    n,
    DOUBLE: tl.constexpr,
):
    """The order of the scores at indices i, below every score outside of the row."""
    return tl.where(i < n, ordered(tl.load(scores + i, mask=i < n, other=0.0)), least(DOUBLE))


@triton.jit
def chosen(order, i, key, end):
    """The choice that a border (key, end) stands for."""
    return (order > key) | ((order == key) & (i < end))


@triton.jit
def count(
    scores,  # [n]
    row,
    n,
    key,
    end,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """How many scores the border (key, end) chooses; WHOLE: ``row`` holds the order of all of them."""
    lane = tl.arange(0, BLOCK)
    if WHOLE:
        found = chosen(row, lane, key, end).to(tl.int32)
    else:
        found = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, bound(n), BLOCK):
            found += chosen(load_order(scores, start + lane, n, DOUBLE), start + lane, key, end).to(tl.int32)
    return tl.sum(found)


@triton.jit
def border(
    scores,  # [n]
    n,
    k,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """(key, end) such that exactly k scores lie above ``key`` or equal it at an index below ``end``."""
    row = load_order(scores, tl.arange(0, BLOCK), n, DOUBLE)
    infinity = tl.full((), float("inf"), tl.float64 if DOUBLE else tl.float32)
    key, above = ordered(-infinity), ordered(infinity) + 1
    found = n  # scores >= key: at least k; fewer than k are >= above
    while (found != k) & (key + 1 < above):
        middle = (key & above) + ((key ^ above) >> 1)  # the mean, without overflow
        at_least = count(scores, row, n, middle - 1, 0, DOUBLE, BLOCK, WHOLE)
        found = tl.where(at_least >= k, at_least, found)
        key = tl.where(at_least >= k, middle, key)
        above = tl.where(at_least >= k, above, middle)
    begin, end, last = 0, n, n
    while found != k:  # too many equal the k-th: only those at the lowest indices are chosen
        end = (begin + last) // 2
        found = count(scores, row, n, key, end, DOUBLE, BLOCK, WHOLE)
        begin = tl.where(found < k, end + 1, begin)
        last = tl.where(found > k, end, last)
    return key, end
