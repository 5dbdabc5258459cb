"""What the kernels of the graph network share: products of tiles, batch normalisation and dropout.

Rows are frames times nodes in equal groups, one after the other; no block of rows reaches over two groups. Every block
leaves its sums in a workspace and a second kernel adds them up in a fixed order: deterministic without atomics.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton import _bank
from slrfast.kernels.triton._rounding import INTERPRETED, rounded
from slrfast.kernels.triton._select import bound

PROGRAMS = 4 if os.environ.get("TRITON_INTERPRET") == "1" else 256  # two for each multiprocessor of a large GPU
BLOCKS, CHANNELS = 256, 8  # what one program of `merge` reads at a time
PIECE = tl.constexpr(32)  # columns of a tile that is read back
WORD, GOLDEN = tl.constexpr(1 << 32), tl.constexpr(0x9E3779B9)


class Tiles(NamedTuple):
    """Sizes of what one program holds: rows, depth of one step of the product, columns; and how it is launched."""

    rows: int
    inner: int
    columns: int
    options: dict[str, int]


def tiles(x: Tensor, rows: int, inner: int, columns: int, broad: bool = False) -> Tiles:
    """The table of tile sizes; none of them spills registers. ``broad`` where every element read is worked on a lot."""
    half = (64, 64, 256, 8, 3, 255) if broad else (128, 32, 128, 8, 3, 128 if _bank.is_hopper(x.device) else 255)
    other = {torch.float32: (64, 32, 128, 8, 2, 255), torch.float64: (16, 16, 16, 4, 1, 255)}
    *most, warps, stages, registers = other.get(x.dtype, half)
    rows, inner, columns = (
        min(size, max(16, triton.next_power_of_2(n))) for size, n in zip(most, (rows, inner, columns), strict=True)
    )
    # without a most of registers the assembler spills a word or two here and there to reach a rounder number
    return Tiles(rows, inner, columns, dict(num_warps=warps, num_stages=stages, maxnreg=registers))


def wide(x: Tensor) -> torch.dtype:
    """The type that sums are formed in."""
    return torch.promote_types(x.dtype, torch.float32)


def precision() -> str:
    """How float32 is multiplied: three TensorFloat-32 products, or one where torch's own products may use one."""
    if INTERPRETED.value:
        return "ieee"
    try:
        setting = torch.backends.cuda.matmul.fp32_precision  # as of torch 2.9, where the other may raise an error
    except AttributeError:
        setting = torch.get_float32_matmul_precision()
    return "tf32" if setting in ("tf32", "high", "medium") else "tf32x3"


def on(x: Tensor) -> AbstractContextManager:
    """Launches go to the device of ``x``."""
    return torch.cuda.device(x.device if x.is_cuda else -1)


@triton.jit
def product(a, b, total, dtype: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """total [M, N] + a [M, K] b [K, N], both rounded to ``dtype`` first; EXACT multiplies what that takes off a too."""
    if dtype == tl.float64:
        total += tl.sum(a.to(dtype)[:, :, None] * b[None, :, :], 1)
    elif dtype == tl.float32:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    else:
        first = rounded(a, dtype)
        if INTERPRETED:
            b = b.to(tl.float32)
        if EXACT:
            rest = rounded(a - first.to(tl.float32), dtype)
            total = tl.dot(rest.to(tl.float32) if INTERPRETED else rest, b, total)
        total = tl.dot(first.to(tl.float32) if INTERPRETED else first, b, total)
    return total


@triton.jit
def place(ROWS, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Of a program over [groups, blocks of a group's ROWS rows, blocks of COLUMNS]: its group and what it holds.

    Returns group, block (counted over all groups), its first row (int64), which of its rows there are, and its first
    column.
    """
    program = tl.program_id(0).to(tl.int64)
    parts: tl.constexpr = (COLUMNS + WIDTH - 1) // WIDTH
    block = program // parts
    blocks = tl.cdiv(ROWS, BLOCK)
    group = block // blocks
    own = (block % blocks) * BLOCK
    return group, block, group * ROWS + own, tl.arange(0, BLOCK) < ROWS - own, (program % parts).to(tl.int32) * WIDTH


@triton.jit
def tile(rows, column, COLUMNS: tl.constexpr):
    """Offsets of a block of rows, from its first, and of columns: 32 bits are enough."""
    return tl.arange(0, rows.shape[0])[:, None] * COLUMNS + column[None, :], rows[:, None] & (column < COLUMNS)[None, :]


# ---- dropout --------------------------------------------------------------------------------------------------------


@triton.jit
def mix(x):
    """Scramble 32-bit words."""
    x = (x ^ (x >> 16)) * tl.full([], 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full([], 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def dropout_factor(seed, site: tl.constexpr, first, rows, channel, threshold, scale, compute: tl.constexpr):
    """What dropout multiplies the rows from ``first`` on by: slrfast/reference/dropout.py has the equation."""
    row = first + tl.arange(0, rows.shape[0])
    word = tl.load(seed + tl.zeros([1], tl.int32))  # a block of one: NumPy warns when a number of its own overflows
    base = mix(word.to(tl.uint32) + tl.full([], (site + 1) * GOLDEN % WORD, tl.uint32)) ^ (word >> 32).to(tl.uint32)
    key = mix(mix(base + row.to(tl.uint32)) + (row >> 32).to(tl.uint32))
    bits = mix(key[:, None] ^ (channel.to(tl.uint32) * tl.full([], GOLDEN, tl.uint32))[None, :])
    return tl.where(bits >= tl.full([], threshold, tl.uint32), tl.full([], scale, compute), 0.0)


# ---- batch normalisation --------------------------------------------------------------------------------------------


@triton.jit
def norm_of(stats, weight, bias, group, groups, channel, C: tl.constexpr, eps, compute: tl.constexpr):
    """Mean, 1 / deviation, gamma and beta of the channels; all 0 (deviation finite) beyond the C there are."""
    inside = channel < C
    mean = tl.load(stats + group * C + channel, mask=inside, other=0.0)
    variance = tl.load(stats + (groups + group) * C + channel, mask=inside, other=1.0) + tl.full([], eps, compute)
    gamma = tl.load(weight + channel, mask=inside, other=0.0).to(compute)
    beta = tl.load(bias + channel, mask=inside, other=0.0).to(compute)
    return mean, 1.0 / (tl.sqrt(variance) if compute == tl.float64 else tl.sqrt_rn(variance)), gamma, beta


@triton.jit
def store_moments(
    y, count, stride, partial, block, blocks, first_column, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Mean and sum of squared deviations of ``count`` of ROWS rows that were just stored, to partial [2, blocks, C].

    It is read back from the cache in narrow pieces, which need fewer registers than the product's own layout.
    """
    compute: tl.constexpr = partial.dtype.element_ty
    WIDTH: tl.constexpr = COLUMNS if COLUMNS < PIECE else PIECE
    row = tl.arange(0, ROWS)
    tl.debug_barrier()
    for start in range(0, COLUMNS, WIDTH):
        column = first_column + start + tl.arange(0, WIDTH)
        inside = (row < count)[:, None] & (column < C)[None, :]
        value = tl.load(y + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(compute)
        mean = tl.sum(value, 0) / count.to(compute)
        deviation = tl.where(inside, value - mean[None, :], 0.0)
        rest = tl.sum(deviation, 0) / count.to(compute)  # what the first sum rounded off
        to = block * C + column
        tl.store(partial + to, mean + rest, mask=column < C)
        squares = tl.sum(deviation * deviation, 0) - rest * rest * count.to(compute)
        tl.store(partial + tl.cast(blocks, tl.int64) * C + to, squares, mask=column < C)


@triton.jit
def merge(
    partial,  # [2, groups blocks, C]: mean and sum of squared deviations of every block
    stats,  # [2, groups, C] out: mean and biased variance of every group
    rows,  # of a strand
    STRANDS,  # block i of a group has the rows from i // STRANDS * BLOCK of strand i % STRANDS
    blocks,  # of a group
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Moments of groups of rows from those of their blocks (Chan, Golub and LeVeque)."""
    compute: tl.constexpr = partial.dtype.element_ty
    group, groups = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], compute)
    count = tl.full([], rows, compute) * STRANDS
    for start in range(0, bound(blocks), BLOCKS):
        i = start + tl.arange(0, BLOCKS)
        size = tl.minimum(BLOCK, rows - i // STRANDS * BLOCK).to(compute)
        at = (group * blocks + i)[:, None] * C + channel[None, :]
        mean = tl.load(partial + at, mask=(i < blocks)[:, None] & (channel < C)[None, :], other=0.0)
        total += tl.sum(mean * size[:, None], 0)
    center = total / count
    squares, rest = tl.zeros([CHANNELS], compute), tl.zeros([CHANNELS], compute)
    for start in range(0, bound(blocks), BLOCKS):
        i = start + tl.arange(0, BLOCKS)
        size = tl.minimum(BLOCK, rows - i // STRANDS * BLOCK).to(compute)
        at = (group * blocks + i)[:, None] * C + channel[None, :]
        inside = (i < blocks)[:, None] & (channel < C)[None, :]
        away = tl.load(partial + at, mask=inside, other=0.0) - center[None, :]
        own = tl.load(partial + tl.cast(groups, tl.int64) * blocks * C + at, mask=inside, other=0.0)
        squares += tl.sum(tl.where(inside, own + size[:, None] * away * away, 0.0), 0)
        rest += tl.sum(tl.where(inside, size[:, None] * away, 0.0), 0)
    tl.store(stats + group * C + channel, center + rest / count, mask=channel < C)
    tl.store(stats + (groups + group) * C + channel, squares / count, mask=channel < C)


def merge_moments(partial: Tensor, stats: Tensor, rows: int, strands: int, block: int) -> None:
    """Launch :func:`merge`; ``rows`` are those of a strand in a group."""
    _, groups, channels = stats.shape
    blocks = partial.shape[1] // groups
    grid = groups, triton.cdiv(channels, CHANNELS)
    merge[grid](partial, stats, rows, strands, blocks, channels, block, BLOCKS, CHANNELS)
