"""One pass over a memory bank, shared by the losses: scores of all rows, their sums, and gradients in the same pass.

The bank is cut into splits, so that few queries fill a GPU. Every split leaves its partial sums in a workspace, and the
second kernel of an op adds them up in a fixed order: deterministic without atomics. No buffer has size [B, N].

Matrix units multiply bfloat16. A float32 number is the sum of three of those (8 bits each), so a product of two
float32 matrices is the sum of the six products whose terms are not below float32's rounding (Henry, Tang and Heinecke,
"Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations", 2019).
"""

from __future__ import annotations

import os
from functools import reduce
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # no matrix unit: its bfloat16 products would be wrong
PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3, torch.float64: 1}
PROGRAMS = 4 if INTERPRETED else 256  # two for each multiprocessor of a large GPU, and a power of two


class Tiles(NamedTuple):
    """Sizes of what one program holds: query rows, bank rows, columns of a score and of a gradient step; warps."""

    rows: int
    bank: int
    inner: int
    columns: int
    warps: int


class Call(NamedTuple):
    """What the choice of tiles depends on."""

    dim: int
    unit: str  # what multiplies: bfloat16 (the matrix unit), float32 or float64
    info: bool
    mined: bool
    rank: bool
    bank_parts: int
    rows_first: bool  # every row is contiguous and starts at a multiple of 16 bytes
    compact: bool  # offsets inside a tile fit 32 bits
    hopper: bool  # compute capability 9.0 or newer


def choose_tiles(call: Call) -> Tiles:
    """The table of tile sizes; none of them spills registers on the architectures that it is used on."""
    width = max(16, triton.next_power_of_2(call.dim))
    both = call.info and call.mined
    if call.unit == "float64":
        return Tiles(8, 16, 16, 16, 4)
    if not call.compact:
        return Tiles(64, 16, 16, 16, 4)
    if call.dim > 128:  # the gradient's sums are in the workspace, not in registers
        return Tiles(64, 32, 32 if call.hopper else 16, 32 if both else 64, 4)
    if call.hopper and not both and not call.rank and (call.rows_first or call.info):  # bank tiles are loaded once
        return Tiles(64, 64 if call.bank_parts == 1 else 32, width, width, 4)
    if call.rows_first:
        return Tiles(64, 32, min(width, 32), width, 8 if both and not call.hopper else 4)
    return Tiles(64, 16, 16, width, 8 if both else 4)


# ---- matrix products ------------------------------------------------------------------------------------------------


@triton.jit
def split(x, UNIT: tl.constexpr):
    """``x`` as a sum of three bfloat16 numbers, largest first; as itself where they are not multiplied."""
    if UNIT == "bfloat16":
        first = x.to(tl.bfloat16)
        rest = x.to(tl.float32) - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        parts = (first, second, (rest - second.to(tl.float32)).to(tl.bfloat16))
    elif UNIT == "float64":
        parts = (x.to(tl.float64), 0.0, 0.0)
    else:
        parts = (x.to(tl.float32), 0.0, 0.0)
    return parts


@triton.jit
def multiply(a, b, total, A_PARTS: tl.constexpr, B_PARTS: tl.constexpr, UNIT: tl.constexpr):
    """total [M, N] + a [M, K] b [K, N] of split numbers, small terms first."""
    if UNIT == "float64":
        total += tl.sum(a[0][:, :, None] * b[0][None, :, :], 1)
    elif UNIT == "float32":
        total = tl.dot(a[0], b[0], total, input_precision="ieee")
    else:
        if A_PARTS > 2:
            total = tl.dot(a[2], b[0], total)
        if A_PARTS > 1 and B_PARTS > 1:
            total = tl.dot(a[1], b[1], total)
        if B_PARTS > 2:
            total = tl.dot(a[0], b[2], total)
        if A_PARTS > 1:
            total = tl.dot(a[1], b[0], total)
        if B_PARTS > 1:
            total = tl.dot(a[0], b[1], total)
        total = tl.dot(a[0], b[0], total)
    return total


@triton.jit
def transpose(parts, UNIT: tl.constexpr):
    """The split numbers of the transposed matrix."""
    if UNIT == "bfloat16":
        result = (tl.trans(parts[0]), tl.trans(parts[1]), tl.trans(parts[2]))
    else:
        result = (tl.trans(parts[0]), 0.0, 0.0)
    return result


@triton.jit
def block(
    matrix,  # [ROWS, COLUMNS]
    first,  # int64
    begin,
    row_stride,
    column_stride,
    ROWS,
    COLUMNS,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """matrix[first : first + HEIGHT, begin : begin + WIDTH], zero outside; OFFSET is the integer that its span fits."""
    row, column = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)
    corner = matrix + first * row_stride + tl.full([], begin, tl.int64) * column_stride
    at = row.to(OFFSET)[:, None] * row_stride + column.to(OFFSET)[None, :] * column_stride
    inside = (row < ROWS - first)[:, None] & (column < COLUMNS - begin)[None, :]
    return tl.load(corner + at, mask=inside, other=0.0)


@triton.jit
def inner_products(
    left,  # [left_rows, D]
    right,  # [right_rows, D]
    first_left,  # int64
    first_right,  # int64
    left_rows,
    right_rows,
    left_row,
    left_column,
    right_row,
    right_column,
    D: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    LEFT_PARTS: tl.constexpr,
    RIGHT_PARTS: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """HEIGHT rows of left times WIDTH rows of right, transposed: [HEIGHT, WIDTH], INNER columns at a time."""
    total = tl.zeros([HEIGHT, WIDTH], tl.float64 if UNIT == "float64" else tl.float32)
    for begin in range(0, D, INNER):
        a = block(left, first_left, begin, left_row, left_column, left_rows, D, HEIGHT, INNER, OFFSET)
        b = block(right, first_right, begin, right_row, right_column, right_rows, D, WIDTH, INNER, OFFSET)
        a, b = split(a, UNIT), transpose(split(b, UNIT), UNIT)
        total = multiply(a, b, total, LEFT_PARTS, RIGHT_PARTS, UNIT)
    return total


@triton.jit
def softplus_and_sigmoid(z):
    """log(1 + exp(z)) and 1 / (1 + exp(-z)) without overflow; the logarithm keeps its digits where exp(z) is tiny."""
    e = tl.exp(-tl.abs(z))
    u = 1.0 + e
    return tl.maximum(z, 0.0) + (tl.log(u) + (e - (u - 1.0)) / u), tl.where(z >= 0.0, 1.0, e) / u


# ---- one pass over the bank -----------------------------------------------------------------------------------------


@triton.jit
def scan(
    query,  # [B, D]
    positive,  # [B, D], read with RANK
    bank,  # [N, D]
    sums,  # [3, B, splits] out: the largest score, sum exp((score - largest) / temperature), sum softplus
    better,  # [B, splits] out, with RANK: the number of bank rows above the positive
    own,  # [B] out, with RANK: the positive's score
    info_part,  # [splits, B, D] out, with GRAD and INFO: sum exp((score - largest) / temperature) bank
    mined_part,  # [splits, B, D] out, with GRAD and MINED: sum sigmoid(score / mined_temperature) bank
    B,
    N,
    query_row,
    query_column,
    positive_row,
    positive_column,
    bank_row,
    bank_column,
    temperature: tl.float64,
    mined_temperature: tl.float64,
    D: tl.constexpr,
    STEPS: tl.constexpr,  # bank tiles of a split
    INFO: tl.constexpr,
    MINED: tl.constexpr,
    RANK: tl.constexpr,
    GRAD: tl.constexpr,
    QUERY_PARTS: tl.constexpr,
    POSITIVE_PARTS: tl.constexpr,
    BANK_PARTS: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    BANK: tl.constexpr,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Partial sums of ROWS queries over the bank rows of one split.

    score[b, i] = <query[b], bank[i]>. Gradient parts are kept in registers when one block of COLUMNS holds a whole
    row, in the workspace otherwise; then a bank tile is read a second time, from the cache.
    """
    compute: tl.constexpr = tl.float64 if UNIT == "float64" else tl.float32
    REGISTERS: tl.constexpr = COLUMNS >= D
    ONCE: tl.constexpr = REGISTERS and INNER >= D
    part = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64) * ROWS
    b = row + tl.arange(0, ROWS)
    d = tl.arange(0, COLUMNS)

    if RANK:  # the positives take the place of bank rows, so that equal rows have equal scores
        reference = tl.zeros([ROWS], compute)
        for start in range(0, ROWS, BANK):
            score = inner_products(
                query, positive, row, row + start, B, B, query_row, query_column, positive_row, positive_column,
                D, ROWS, BANK, INNER, QUERY_PARTS, POSITIVE_PARTS, UNIT, OFFSET,
            )  # fmt: skip
            own_column = tl.arange(0, ROWS)[:, None] == start + tl.arange(0, BANK)[None, :]
            reference += tl.sum(tl.where(own_column, score, 0.0), 1)
        tl.store(own + b, reference, mask=(b < B) & (part == 0))
        count = tl.zeros([ROWS], tl.int32)

    if ONCE:
        left = split(block(query, row, 0, query_row, query_column, B, D, ROWS, INNER, OFFSET), UNIT)
    if INFO:
        largest = tl.full([ROWS], float("-inf"), compute)
        total = tl.zeros([ROWS], compute)
        scale = tl.full([], 1.4426950408889634, compute) / tl.full([], temperature, compute)
    if MINED:
        softplus_total = tl.zeros([ROWS], compute)
        mined_scale = tl.full([], 1.0, compute) / tl.full([], mined_temperature, compute)
    here = tl.arange(0, ROWS)[:, None] * D + d[None, :]
    info_part += (part * B + row) * D
    mined_part += (part * B + row) * D
    if GRAD and REGISTERS:
        if INFO:
            info_sum = tl.zeros([ROWS, COLUMNS], compute)
        if MINED:
            mined_sum = tl.zeros([ROWS, COLUMNS], compute)

    for step in range(STEPS):
        first = (part * STEPS + step) * BANK
        if ONCE:
            right = split(block(bank, first, 0, bank_row, bank_column, N, D, BANK, INNER, OFFSET), UNIT)
            score = tl.zeros([ROWS, BANK], compute)
            score = multiply(left, transpose(right, UNIT), score, QUERY_PARTS, BANK_PARTS, UNIT)
        else:
            score = inner_products(
                query, bank, row, first, B, N, query_row, query_column, bank_row, bank_column,
                D, ROWS, BANK, INNER, QUERY_PARTS, BANK_PARTS, UNIT, OFFSET,
            )  # fmt: skip
        score = tl.where((tl.arange(0, BANK) < N - first)[None, :], score, float("-inf"))
        if RANK:
            count += tl.sum((score > reference[:, None]).to(tl.int32), 1)
        if INFO:
            before, largest = largest, tl.maximum(largest, tl.max(score, 1))
            fade = tl.exp2((before - largest) * scale)
            weight = tl.exp2((score - largest[:, None]) * scale)
            total = total * fade + tl.sum(weight, 1)
        if MINED:
            softplus, sigmoid = softplus_and_sigmoid(score * mined_scale)
            softplus_total += tl.sum(softplus, 1)
        if GRAD and REGISTERS:
            if not ONCE:
                right = split(block(bank, first, 0, bank_row, bank_column, N, D, BANK, COLUMNS, OFFSET), UNIT)
            if INFO:
                info_sum = multiply(split(weight, UNIT), right, info_sum * fade[:, None], 3, BANK_PARTS, UNIT)
            if MINED:
                mined_sum = multiply(split(sigmoid, UNIT), right, mined_sum, 3, BANK_PARTS, UNIT)
        elif GRAD:
            for begin in range(0, D, COLUMNS):
                right = split(block(bank, first, begin, bank_row, bank_column, N, D, BANK, COLUMNS, OFFSET), UNIT)
                inside = (b < B)[:, None] & (d < D - begin)[None, :]
                if INFO:
                    old = tl.load(info_part + begin + here, mask=inside & (step > 0), other=0.0) * fade[:, None]
                    new = multiply(split(weight, UNIT), right, old, 3, BANK_PARTS, UNIT)
                    tl.store(info_part + begin + here, new, mask=inside)
                if MINED:
                    old = tl.load(mined_part + begin + here, mask=inside & (step > 0), other=0.0)
                    new = multiply(split(sigmoid, UNIT), right, old, 3, BANK_PARTS, UNIT)
                    tl.store(mined_part + begin + here, new, mask=inside)
            tl.debug_barrier()  # another thread may read these elements back

    splits = tl.num_programs(0)
    to = b * splits + part
    plane = splits.to(tl.int64) * B
    if INFO:
        tl.store(sums + to, largest, mask=b < B)
        tl.store(sums + plane + to, total, mask=b < B)
    if MINED:
        tl.store(sums + 2 * plane + to, softplus_total, mask=b < B)
    if RANK:
        tl.store(better + to, count, mask=b < B)
    if GRAD and REGISTERS:
        inside = (b < B)[:, None] & (d < D)[None, :]
        if INFO:
            tl.store(info_part + here, info_sum, mask=inside)
        if MINED:
            tl.store(mined_part + here, mined_sum, mask=inside)


class Sums(NamedTuple):
    """The workspace that :func:`scan` filled; what was not wanted is empty."""

    sums: Tensor  # [3, B, splits]
    better: Tensor  # [B, splits] int32
    own: Tensor  # [B]
    info_part: Tensor  # [splits, B, D]
    mined_part: Tensor  # [splits, B, D]
    splits: int


def span(matrix: Tensor) -> int:
    """The distance in elements that a tile, of at most 64 rows, can reach over."""
    return 64 * abs(matrix.stride(0)) + matrix.shape[1] * abs(matrix.stride(1))


def is_hopper(device: torch.device) -> bool:
    """Whether the matrix unit reads operands from shared memory: compute capability 9.0 or newer."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def rows_first(matrix: Tensor) -> bool:
    """Whether its rows can be read 16 bytes at a time."""
    starts = matrix.stride(0) | int(matrix.storage_offset())
    return matrix.stride(1) == 1 and starts * matrix.element_size() % 16 == 0


def launch(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    temperature: float,
    mined_temperature: float,
    *,
    info: bool,
    mined: bool,
    rank: bool,
    grad: bool,
) -> Sums:
    """Run :func:`scan` over all splits of the bank."""
    (rows, dim), size = query.shape, bank.shape[0]
    compute = reduce(torch.promote_types, (query.dtype, positive.dtype, bank.dtype), torch.float32)
    unit = "float64" if compute == torch.float64 else "float32" if INTERPRETED else "bfloat16"
    tensors = query, positive, bank
    tiles = choose_tiles(
        Call(
            dim,
            unit,
            info,
            mined,
            rank,
            PARTS[bank.dtype],
            rows_first=all(map(rows_first, tensors)),
            compact=(compact := max(map(span, tensors)) < 2**31),
            hopper=is_hopper(query.device),
        )  # fmt: skip
    )
    blocks = triton.cdiv(rows, tiles.rows)
    programs = PROGRAMS if dim <= 128 else PROGRAMS // 2  # a wide bank's workspace stays below the bank's own size
    bank_tiles = triton.cdiv(size, tiles.bank)
    steps = triton.cdiv(bank_tiles, max(1, programs // max(1, blocks)))
    splits = triton.cdiv(bank_tiles, steps) if steps else 1

    def empty(wanted: bool, *shape: int, dtype: torch.dtype = compute) -> Tensor:
        return torch.empty(shape if wanted else 0, dtype=dtype, device=query.device)

    result = Sums(
        empty(True, 3, rows, splits),
        empty(rank, rows, splits, dtype=torch.int32),
        empty(rank, rows),
        empty(grad and info, splits, rows, dim),
        empty(grad and mined, splits, rows, dim),
        splits,
    )
    scan[splits, blocks](
        query, positive, bank, *result[:-1], rows, size, *query.stride(), *positive.stride(), *bank.stride(),
        temperature, mined_temperature, dim, steps, info, mined, rank, grad,
        *(PARTS[tensor.dtype] for tensor in tensors), unit, tl.int32 if compact else tl.int64,
        *tiles[:-1], num_warps=tiles.warps, num_stages=1,
    )  # fmt: skip
    return result
