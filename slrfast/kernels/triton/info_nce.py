"""InfoNCE against a memory bank: one pass over the bank (:mod:`._bank`), then one small kernel that adds the splits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton import _bank

COLUMNS = 32


@triton.jit
def combine(
    query,  # [B, D]
    positive,  # [B, D]
    sums,  # [3, B, splits]
    better,  # [B, splits], read with RANK
    own,  # [B], read with RANK
    part,  # [splits, B, D], read with GRAD
    loss,  # [B] out
    rank,  # [B] out, with RANK
    grad,  # [B, D] out, with GRAD
    B,
    splits,
    query_row,
    query_column,
    positive_row,
    positive_column,
    temperature: tl.float64,
    D: tl.constexpr,
    RANK: tl.constexpr,
    GRAD: tl.constexpr,
    DOUBLE: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """loss = log(exp(s_0) + sum_i exp(s_i)) - s_0 and d loss / d query = (sum_i p_i bank_i - sum_i p_i positive) / t.

    s = <query, .> / t and p_i = exp(s_i) / (exp(s_0) + sum_j exp(s_j)), for one row and COLUMNS of its gradient.
    """
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    b = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    valid = split < splits
    largest = tl.load(sums + b * splits + split, mask=valid, other=float("-inf"))
    total = tl.load(sums + (B + b) * splits + split, mask=valid, other=0.0)
    if RANK:
        score = tl.load(own + b)
    else:
        products = tl.zeros([128], compute)
        for start in range(0, D, 128):
            d = start + tl.arange(0, 128)
            q = tl.load(query + b * query_row + d.to(tl.int64) * query_column, mask=d < D, other=0.0).to(compute)
            k = tl.load(positive + b * positive_row + d.to(tl.int64) * positive_column, mask=d < D, other=0.0)
            products += q * k.to(compute)
        score = tl.sum(products)
    top = tl.maximum(tl.max(largest), score)
    scale = tl.full([], 1.0, compute) / tl.full([], temperature, compute)
    weight = tl.where(valid, tl.exp((largest - top) * scale), 0.0)
    others = tl.sum(total * weight)
    normalizer = others + tl.exp((score - top) * scale)
    if tl.program_id(1) == 0:
        tl.store(loss + b, (top - score) * scale + tl.log(normalizer))
        if RANK:
            tl.store(rank + b, tl.sum(tl.load(better + b * splits + split, mask=valid, other=0).to(tl.int64)))
    if GRAD:
        d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        at = (split.to(tl.int64) * B + b)[:, None] * D + d[None, :]
        rows = tl.load(part + at, mask=valid[:, None] & (d < D)[None, :], other=0.0)
        k = tl.load(positive + b * positive_row + d.to(tl.int64) * positive_column, mask=d < D, other=0.0)
        total_row = tl.sum(rows * weight[:, None], 0) - others * k.to(compute)
        tl.store(grad + b * D + d, total_row / normalizer * scale, mask=d < D)


def add_splits(
    query: Tensor, positive: Tensor, sums: _bank.Sums, temperature: float, want_grad: bool, want_rank: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B], rank [B] and gradient [B, D] from what the splits left; an unwanted one is empty."""
    rows, dim = query.shape
    loss = sums.sums.new_empty(rows)
    rank = loss.new_empty(rows if want_rank else 0, dtype=torch.int64)
    grad = loss.new_empty((rows, dim) if want_grad else 0)
    combine[rows, max(1, triton.cdiv(dim, COLUMNS)) if want_grad else 1](
        query, positive, sums.sums, sums.better, sums.own, sums.info_part, loss, rank, grad, rows, sums.splits,
        *query.stride(), *positive.stride(), temperature, dim, want_rank, want_grad, loss.dtype == torch.float64,
        triton.next_power_of_2(sums.splits), COLUMNS,
    )  # fmt: skip
    return loss, rank, grad


def info_nce(
    query: Tensor, positive: Tensor, bank: Tensor, temperature: float, want_grad: bool, want_rank: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernels for ``slrfast::info_nce``."""
    with torch.cuda.device(query.device if query.is_cuda else -1):
        sums = _bank.launch(
            query, positive, bank, temperature, 1.0, info=True, mined=False, rank=want_rank, grad=want_grad
        )
        return add_splits(query, positive, sums, temperature, want_grad, want_rank)
