"""The nearest rows of a memory bank.

Few neighbours: every program keeps the k best of its chunk of the bank, and one program per query merges them. Many:
scores of a group of queries, the border of the choice, and the chosen rows written in the order of their indices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton import _select
from slrfast.kernels.triton._select import (
    border,
    bound,
    chosen,
    inner_products,
    least,
    load_order,
    ordered,
    store_scores,
)

FEW = 128  # neighbours that a program keeps in registers
CANDIDATES = 8192  # that one program merges, at most
KEPT = 2048  # that one program keeps for all its queries, at most
CHUNKS = 128  # of the bank, at most


# ---- few neighbours -------------------------------------------------------------------------------------------------


@triton.jit
def best_of_chunk(
    query,  # [rows, dim]
    bank,  # [n, dim]
    best_orders,  # [rows, chunks, k], contiguous: the scores as integers
    best_tags,  # [rows, chunks, k], contiguous: twice the bank index, plus one where the score is NaN
    rows,
    n,
    dim,
    k,
    query_row,
    query_dim,
    bank_row,
    bank_dim,
    chunk,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """The k largest <query[b], bank[i]> over one chunk of the bank, unordered.

    The best scores so far are kept per row. Of every tile of scores the largest moves in and the smallest kept one
    out, until no row has a larger one; after the first tiles that takes few moves or none.
    """
    DOUBLE: tl.constexpr = DOT == "double"
    LAST: tl.constexpr = 0x7FFFFFFF
    first_row = tl.program_id(0) * ROWS
    row = first_row + tl.arange(0, ROWS)[:, None]
    slot = tl.arange(0, SLOTS)[None, :]
    highest = ~least(DOUBLE)
    kept = tl.where(slot < k, least(DOUBLE), highest) + tl.zeros((ROWS, SLOTS), highest.dtype)
    tags = -1 - slot + tl.zeros((ROWS, SLOTS), tl.int32)  # an empty slot is below every score and unlike the others
    begin = tl.program_id(1) * chunk
    for first_column in range(bound(begin), bound(tl.minimum(begin + chunk, n)), COLUMNS):
        score = inner_products(
            query, bank, rows, n, first_row, first_column, 0, dim,
            query_row, query_dim, bank_row, bank_dim, ROWS, COLUMNS, DEPTH, DOT,
        )  # fmt: skip
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        order = tl.where((row < rows) & (column < n), ordered(score), least(DOUBLE))
        tag = 2 * column + (score != score).to(tl.int32)
        largest, smallest = tl.max(order, 1)[:, None], tl.min(kept, 1)[:, None]
        while tl.max((largest > smallest).to(tl.int32)) > 0:
            # equal scores: the lowest index moves in first, the highest moves out first
            incoming = tl.min(tl.where(order == largest, tag, LAST), 1)[:, None]
            outgoing = tl.max(tl.where(kept == smallest, tags, -LAST), 1)[:, None]
            moves = (largest > smallest) & (kept == smallest) & (tags == outgoing)
            kept = tl.where(moves, largest, kept)
            tags = tl.where(moves, incoming, tags)
            order = tl.where(tag == incoming, least(DOUBLE), order)
            largest, smallest = tl.max(order, 1)[:, None], tl.min(kept, 1)[:, None]
    at = (row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * k + slot
    tl.store(best_orders + at, kept, mask=(row < rows) & (slot < k))
    tl.store(best_tags + at, tags, mask=(row < rows) & (slot < k))


@triton.jit
def merge_chunks(
    best_orders,  # [rows, candidates], contiguous
    best_tags,  # [rows, candidates], contiguous
    values,  # [rows, k], contiguous
    indices,  # [rows, k], contiguous
    candidates,
    k,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The k best candidates of one row, by falling score and then by index."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    order = tl.load(best_orders + row * candidates + i, mask=i < candidates, other=least(DOUBLE))
    tag = tl.load(best_tags + row * candidates + i, mask=i < candidates, other=0)
    for j in range(bound(k)):
        largest = tl.max(order)
        first = tl.min(tl.where(order == largest, tag, 0x7FFFFFFF))
        if DOUBLE:
            value = (largest ^ ((largest >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)
        else:
            value = (largest ^ ((largest >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        tl.store(values + row * k + j, tl.where(first & 1 == 1, float("nan"), value))
        tl.store(indices + row * k + j, (first >> 1).to(tl.int64))
        order = tl.where((order == largest) & (tag == first), least(DOUBLE), order)


# ---- many neighbours ------------------------------------------------------------------------------------------------


@triton.jit
def write_chosen(
    scores,  # [rows, n], contiguous
    values,  # [rows, k], contiguous
    indices,  # [rows, k], contiguous
    n,
    k,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    STEP: tl.constexpr,
):
    """The k largest scores of one row and their indices, in the order of the indices."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * n
    values += row * k
    indices += row * k
    key, end = border(scores, n, k, DOUBLE, BLOCK, WHOLE)
    written = 0
    for start in range(0, bound(n), STEP):
        i = start + tl.arange(0, STEP)
        hit = chosen(load_order(scores, i, n, DOUBLE), i, key, end)
        at = written + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(values + at, tl.load(scores + i, mask=hit), mask=hit)
        tl.store(indices + at, i.to(tl.int64), mask=hit)
        written += tl.sum(hit.to(tl.int32))


# ---- gradient -------------------------------------------------------------------------------------------------------


@triton.jit
def sum_rows(
    weight,  # [rows, k]
    indices,  # [rows, k]
    bank,  # [n, dim]
    parts,  # [splits, rows, dim], contiguous
    rows,
    k,
    dim,
    weight_row,
    weight_step,
    index_row,
    index_step,
    bank_row,
    bank_dim,
    chunk,
    NEIGHBOURS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """parts[s, b] = sum of weight[b, j] bank[indices[b, j]] over the ``chunk`` neighbours j of split s."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, k)
    total = tl.zeros((NEIGHBOURS, COLUMNS), dtype)
    for start in range(bound(begin), bound(end), NEIGHBOURS):
        j = start + tl.arange(0, NEIGHBOURS).to(tl.int64)
        factor = tl.load(weight + row * weight_row + j * weight_step, mask=j < end, other=0.0)
        index = tl.load(indices + row * index_row + j * index_step, mask=j < end, other=0)
        at = index[:, None] * bank_row + column.to(tl.int64)[None, :] * bank_dim
        vectors = tl.load(bank + at, mask=(j < end)[:, None] & (column < dim)[None, :], other=0.0)
        total += factor.to(dtype)[:, None] * vectors.to(dtype)
    at = (tl.program_id(1).to(tl.int64) * rows + row) * dim + column
    tl.store(parts + at, tl.sum(total, 0), mask=column < dim)


# ---- launchers ------------------------------------------------------------------------------------------------------


def topk_similarity(query: Tensor, bank: Tensor, k: int, sorted: bool) -> tuple[Tensor, Tensor]:
    """Run the kernels for the forward pass of ``topk_similarity``."""
    rows, n = query.shape[0], bank.shape[0]
    compute = _select.compute_type(query, bank)
    values = torch.empty(rows, k, dtype=compute, device=query.device)
    indices = torch.empty(rows, k, dtype=torch.int64, device=query.device)
    if rows == 0:
        return values, indices
    with torch.cuda.device(query.device if query.is_cuda else -1):
        if k <= FEW and n < 2**30:
            _few(query, bank, values, indices)
            return values, indices
        for some in _select.groups(rows, n * values.itemsize):
            _many(query[some], bank, values[some], indices[some])
    if sorted:
        values, places = values.sort(dim=1, descending=True, stable=True)
        indices = indices.gather(1, places)
    return values, indices


def _few(query: Tensor, bank: Tensor, values: Tensor, indices: Tensor) -> None:
    (rows, dim), n, k = query.shape, bank.shape[0], values.shape[1]
    tile, options = _select.tile(_select.dot_mode(query.dtype, bank.dtype, values.dtype))
    options |= {"num_warps": 8, "maxnreg": 255}
    double = values.dtype == torch.float64
    slots = max(16, triton.next_power_of_2(k))
    row_tile = _select.row_tile(rows, min(64, KEPT // slots))
    row_tiles = triton.cdiv(rows, row_tile)
    chunk, chunks = _select.split(n, tile[0], min(CHUNKS // row_tiles, CANDIDATES // k))
    orders = values.new_empty(rows, chunks, k, dtype=torch.int64 if double else torch.int32)
    tags = values.new_empty(rows, chunks, k, dtype=torch.int32)
    best_of_chunk[row_tiles, chunks](
        query, bank, orders, tags, rows, n, dim, k, *query.stride(), *bank.stride(), chunk,
        slots, row_tile, *tile, **options,
    )  # fmt: skip
    block = max(256, triton.next_power_of_2(chunks * k))
    warps = max(1, min(8, block // 512))
    merge_chunks[(rows,)](orders, tags, values, indices, chunks * k, k, double, block, num_warps=warps)


def _many(query: Tensor, bank: Tensor, values: Tensor, indices: Tensor) -> None:
    (rows, dim), n, k = query.shape, bank.shape[0], values.shape[1]
    tile, options = _select.tile(_select.dot_mode(query.dtype, bank.dtype, values.dtype))
    row_tile = _select.row_tile(rows)
    scores = values.new_empty(rows, n)
    store_scores[(triton.cdiv(rows, row_tile) * triton.cdiv(n, tile[0]),)](
        query, bank, scores, rows, n, dim, *query.stride(), *bank.stride(), row_tile, *tile, **options
    )
    reading, options = _select.row_reading(n, values.dtype == torch.float64)
    write_chosen[(rows,)](scores, values, indices, n, k, *reading, **options)


def topk_similarity_grad(grad: Tensor, indices: Tensor, bank: Tensor) -> Tensor:
    """Run the kernel for the gradient of the values for the query."""
    (rows, k), dim = grad.shape, bank.shape[1]
    compute = _select.compute_type(grad, bank)
    neighbours, columns = 32, min(128, max(16, triton.next_power_of_2(dim)))
    tiles = triton.cdiv(dim, columns)
    chunk, splits = _select.split(k, neighbours, 4 * _select.PROGRAMS // max(1, rows * tiles))
    parts = torch.empty(splits, rows, dim, dtype=compute, device=grad.device)
    if parts.numel():
        with torch.cuda.device(grad.device if grad.is_cuda else -1):
            sum_rows[rows, splits, tiles](
                grad, indices, bank, parts, rows, k, dim, *grad.stride(), *indices.stride(), *bank.stride(), chunk,
                neighbours, columns, compute == torch.float64,
            )  # fmt: skip
    return parts.sum(0) if splits > 1 else parts[0]
