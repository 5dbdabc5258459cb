"""Binary cross-entropy against mined positives: one pass over the bank (:mod:`._bank`), then one small kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton import _bank

COLUMNS = 32
LISTED = 32  # positives at a time


@triton.jit
def positive_rows(bank, listed, d, N, M, bank_row, bank_column, listed_column, D, LISTED, compute):
    """The sum over the distinct valid indices of ``listed`` [M] of bank[index, d]."""
    total = tl.zeros([d.shape[0]], compute)
    for start in range(0, M, LISTED):
        m = start + tl.arange(0, LISTED)
        index = tl.load(listed + m.to(tl.int64) * listed_column, mask=m < M, other=-1)
        seen = tl.zeros([LISTED], tl.int32)
        for earlier in range(0, start + LISTED, LISTED):
            before = earlier + tl.arange(0, LISTED)
            other = tl.load(listed + before.to(tl.int64) * listed_column, mask=before < M, other=-1)
            seen += tl.sum(((other[None, :] == index[:, None]) & (before[None, :] < m[:, None])).to(tl.int32), 1)
        counts = (index >= 0) & (index < N) & (seen == 0)
        at = index[:, None] * bank_row + d.to(tl.int64)[None, :] * bank_column
        total += tl.sum(tl.load(bank + at, mask=counts[:, None] & (d < D)[None, :], other=0.0).to(compute), 0)
    return total


@triton.jit
def combine(
    query,  # [B, D]
    bank,  # [N, D]
    positives,  # [B, M] int64
    sums,  # [3, B, splits]
    part,  # [splits, B, D], read with GRAD
    loss,  # [B] out
    grad,  # [B, D] out, with GRAD
    B,
    N,
    splits,
    query_row,
    query_column,
    bank_row,
    bank_column,
    positives_row,
    positives_column,
    temperature: tl.float64,
    D: tl.constexpr,
    M: tl.constexpr,
    GRAD: tl.constexpr,
    DOUBLE: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LISTED: tl.constexpr,
):
    """loss = (sum_i softplus(z_i) - sum_P z_i) / N and its gradient (sum_i sigmoid(z_i) bank_i - sum_P bank_i) / (N t).

    z = <query, bank> / t and P the distinct valid positives, for one row and COLUMNS of its gradient.
    """
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    b = tl.program_id(0).to(tl.int64)
    listed = positives + b * positives_row
    split = tl.arange(0, SPLITS)
    valid = split < splits
    scale = tl.full([], 1.0, compute) / tl.full([], temperature, compute)
    if tl.program_id(1) == 0:
        total = tl.sum(tl.load(sums + (2 * B + b) * splits + split, mask=valid, other=0.0))
        products = tl.zeros([128], compute)
        for start in range(0, D, 128):
            d = start + tl.arange(0, 128)
            q = tl.load(query + b * query_row + d.to(tl.int64) * query_column, mask=d < D, other=0.0).to(compute)
            products += q * positive_rows(
                bank, listed, d, N, M, bank_row, bank_column, positives_column, D, LISTED, compute
            )
        tl.store(loss + b, (total - tl.sum(products) * scale) / N)
    if GRAD:
        d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        at = (split.to(tl.int64) * B + b)[:, None] * D + d[None, :]
        rows = tl.load(part + at, mask=valid[:, None] & (d < D)[None, :], other=0.0)
        own = positive_rows(bank, listed, d, N, M, bank_row, bank_column, positives_column, D, LISTED, compute)
        tl.store(grad + b * D + d, (tl.sum(rows, 0) - own) * scale / N, mask=d < D)


def add_splits(
    query: Tensor, bank: Tensor, positives: Tensor, sums: _bank.Sums, temperature: float, want_grad: bool
) -> tuple[Tensor, Tensor]:
    """Loss [B] and gradient [B, D], empty when unwanted, from what the splits left."""
    rows, dim = query.shape
    loss = sums.sums.new_empty(rows)
    grad = loss.new_empty((rows, dim) if want_grad else 0)
    combine[rows, max(1, triton.cdiv(dim, COLUMNS)) if want_grad else 1](
        query, bank, positives, sums.sums, sums.mined_part, loss, grad, rows, bank.shape[0], sums.splits,
        *query.stride(), *bank.stride(), *positives.stride(), temperature, dim, positives.shape[1], want_grad,
        loss.dtype == torch.float64, triton.next_power_of_2(sums.splits), COLUMNS, LISTED,
    )  # fmt: skip
    return loss, grad


def mined_bce(
    query: Tensor, bank: Tensor, positives: Tensor, temperature: float, want_grad: bool
) -> tuple[Tensor, Tensor]:
    """Run the kernels for ``slrfast::mined_bce``."""
    with torch.cuda.device(query.device if query.is_cuda else -1):
        sums = _bank.launch(query, query, bank, 1.0, temperature, info=False, mined=True, rank=False, grad=want_grad)
        return add_splits(query, bank, positives, sums, temperature, want_grad)
