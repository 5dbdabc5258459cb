"""KL divergence over the teacher's nearest bank rows in three kernels: scores, choice with softmax, gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton import _select
from slrfast.kernels.triton._select import border, bound, chosen, inner_products, ordered, store_scores


@triton.jit
def neighbor_scores(
    teacher,  # [rows, D]
    teacher_bank,  # [n, D]
    student,  # [rows, D']
    student_bank,  # [n, D']
    teacher_scores,  # [rows, n], contiguous
    student_scores,  # [rows, n], contiguous
    rows,
    n,
    teacher_dim,
    student_dim,
    teacher_row,
    teacher_step,
    teacher_bank_row,
    teacher_bank_step,
    student_row,
    student_step,
    student_bank_row,
    student_bank_step,
    ROWS: tl.constexpr,
    TEACHER_COLUMNS: tl.constexpr,
    TEACHER_DEPTH: tl.constexpr,
    TEACHER_DOT: tl.constexpr,
    STUDENT_COLUMNS: tl.constexpr,
    STUDENT_DEPTH: tl.constexpr,
    STUDENT_DOT: tl.constexpr,
):
    """Both score matrices, <teacher[b], teacher_bank[i]> and <student[b], student_bank[i]>, in one launch."""
    if tl.program_id(1) == 0:
        store_scores(
            teacher, teacher_bank, teacher_scores, rows, n, teacher_dim, teacher_row, teacher_step,
            teacher_bank_row, teacher_bank_step, ROWS, TEACHER_COLUMNS, TEACHER_DEPTH, TEACHER_DOT,
        )  # fmt: skip
    else:
        store_scores(
            student, student_bank, student_scores, rows, n, student_dim, student_row, student_step,
            student_bank_row, student_bank_step, ROWS, STUDENT_COLUMNS, STUDENT_DEPTH, STUDENT_DOT,
        )  # fmt: skip


@triton.jit
def neighbor_weights(
    teacher_scores,  # [rows, n], contiguous
    student_scores,  # [rows, n], contiguous; becomes (Q - P) / student_temperature with GRAD
    loss,  # [rows]
    n,
    k,
    teacher_scale: tl.float64,
    student_scale: tl.float64,
    GRAD: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    STEP: tl.constexpr,
):
    """loss = sum_i P_i (log P_i - log Q_i) over the k largest teacher scores of one row.

    With t, u the scores times 1 / temperature, less their maxima over the chosen: P_i = e^t_i / T, Q_i = e^u_i / U,
    so loss = sum_i e^t_i (t_i - u_i) / T - log T + log U.
    """
    if not DOUBLE:
        teacher_scale = tl.cast(teacher_scale, tl.float32)
        student_scale = tl.cast(student_scale, tl.float32)
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    teacher_scores += row * n
    student_scores += row * n
    key, end = border(teacher_scores, n, k, DOUBLE, BLOCK, WHOLE)

    lane = tl.arange(0, STEP)
    top_t = tl.full((STEP,), float("-inf"), dtype)
    top_u = tl.full((STEP,), float("-inf"), dtype)
    for start in range(0, bound(n), STEP):
        t, u, inside = load_pair(teacher_scores, student_scores, start + lane, n, key, end)
        top_t = tl.maximum(top_t, tl.where(inside, t, float("-inf")))
        top_u = tl.maximum(top_u, tl.where(inside, u, float("-inf")))
    max_t, max_u = tl.max(top_t), tl.max(top_u)

    sum_t = tl.zeros((STEP,), dtype)
    sum_u = tl.zeros((STEP,), dtype)
    product = tl.zeros((STEP,), dtype)
    for start in range(0, bound(n), STEP):
        t, u, inside = load_pair(teacher_scores, student_scores, start + lane, n, key, end)
        t, u = (t - max_t) * teacher_scale, (u - max_u) * student_scale
        weight = tl.exp(t)
        sum_t += tl.where(inside, weight, 0.0)
        sum_u += tl.where(inside, tl.exp(u), 0.0)
        product += tl.where(inside, weight * (t - u), 0.0)
    total_t, total_u = tl.sum(sum_t), tl.sum(sum_u)
    tl.store(loss + row, tl.sum(product) / total_t - tl.log(total_t) + tl.log(total_u))

    if GRAD:
        for start in range(0, bound(n), STEP):
            t, u, inside = load_pair(teacher_scores, student_scores, start + lane, n, key, end)
            p = tl.exp((t - max_t) * teacher_scale) / total_t
            q = tl.exp((u - max_u) * student_scale) / total_u
            weight = tl.where(inside, (q - p) * student_scale, 0.0)
            tl.store(student_scores + start + lane, weight, mask=start + lane < n)


@triton.jit
def load_pair(
    teacher_scores,  # [n]
    student_scores,  # [n]
    i,
    n,
    key,
    end,
):
    """Both scores at indices i, and whether they are among the neighbours."""
    t = tl.load(teacher_scores + i, mask=i < n, other=float("-inf"))
    u = tl.load(student_scores + i, mask=i < n, other=float("-inf"))
    return t, u, (i < n) & chosen(ordered(t), i, key, end)


@triton.jit
def neighbor_grad(
    weights,  # [rows, n], contiguous
    bank,  # [n, dim]
    parts,  # [splits, rows, dim], contiguous
    rows,
    n,
    dim,
    bank_row,
    bank_dim,
    chunk,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """parts[s, b] = sum of weights[b, i] bank[i] over the ``chunk`` bank rows of split s; the parts add up to the
    gradient sum_i (Q_i - P_i) / student_temperature bank[i]."""
    row_tiles = tl.cdiv(rows, ROWS)
    first_row = tl.program_id(0) % row_tiles * ROWS
    first_column = tl.program_id(0) // row_tiles * COLUMNS
    begin = tl.program_id(1) * chunk
    tile = inner_products(
        weights, bank, rows, dim, first_row, first_column, begin, tl.minimum(begin + chunk, n),
        n, 1, bank_dim, bank_row, ROWS, COLUMNS, DEPTH, DOT,
    )  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * rows + first_row + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    inside = (first_row + tl.arange(0, ROWS)[:, None] < rows) & (column < dim)
    tl.store(parts + row * dim + column, tile, mask=inside)


def neighbor_kl(
    teacher: Tensor,
    teacher_bank: Tensor,
    student: Tensor,
    student_bank: Tensor,
    k: int,
    teacher_temperature: float,
    student_temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Run the kernels for ``slrfast::neighbor_kl``, for as many rows at a time as the scratch holds scores of."""
    compute = _select.compute_type(teacher, teacher_bank, student, student_bank)
    rows, n = student.shape[0], student_bank.shape[0]
    loss = torch.empty(rows, dtype=compute, device=student.device)
    grad = torch.empty(student.shape if want_grad else 0, dtype=compute, device=student.device)
    scales = 1.0 / teacher_temperature, 1.0 / student_temperature
    reading, options = _select.row_reading(n, compute == torch.float64)
    with torch.cuda.device(student.device if student.is_cuda else -1):
        for some in _select.groups(rows, 2 * n * loss.itemsize):
            scores = _scores(teacher[some], teacher_bank, student[some], student_bank, compute)
            neighbor_weights[(scores[0].shape[0],)](*scores, loss[some], n, k, *scales, want_grad, *reading, **options)
            if want_grad:
                grad[some] = _grad(scores[1], student_bank)
            del scores  # before the next ones are allocated
    return loss, grad


def _scores(
    teacher: Tensor, teacher_bank: Tensor, student: Tensor, student_bank: Tensor, compute: torch.dtype
) -> tuple[Tensor, Tensor]:
    """<teacher, teacher_bank> and <student, student_bank>, each [rows, n]."""
    rows, n = student.shape[0], student_bank.shape[0]
    shape, device = (rows, n), student.device
    scores = torch.empty(shape, dtype=compute, device=device), torch.empty(shape, dtype=compute, device=device)
    pairs = (teacher, teacher_bank), (student, student_bank)
    tiles = [_select.tile(_select.dot_mode(query.dtype, bank.dtype, compute)) for query, bank in pairs]
    (teacher_tile, teacher_options), (student_tile, student_options) = tiles
    options = {
        "num_warps": max(teacher_options["num_warps"], student_options["num_warps"]),
        "num_stages": min(teacher_options["num_stages"], student_options["num_stages"]),
        "maxnreg": max(teacher_options["maxnreg"], student_options["maxnreg"]),
    }
    strides = [stride for pair in pairs for tensor in pair for stride in tensor.stride()]
    row_tile = _select.row_tile(rows)
    grid = (triton.cdiv(rows, row_tile) * triton.cdiv(n, min(teacher_tile[0], student_tile[0])), 2)
    neighbor_scores[grid](
        teacher, teacher_bank, student, student_bank, *scores, rows, n, teacher.shape[1], student.shape[1], *strides,
        row_tile, *teacher_tile, *student_tile, **options,
    )  # fmt: skip
    return scores


def _grad(weights: Tensor, bank: Tensor) -> Tensor:
    """weights [rows, n] times bank [n, dim]: partial sums over splits of n, added up in a fixed order."""
    (rows, n), dim = weights.shape, bank.shape[1]
    (columns, depth, mode), options = _select.tile(_select.dot_mode(weights.dtype, bank.dtype, weights.dtype))
    options["maxnreg"] = max(168, options["maxnreg"])  # three programs of four warps a multiprocessor
    row_tile = _select.row_tile(rows)
    tiles = triton.cdiv(rows, row_tile) * triton.cdiv(dim, columns)
    chunk, splits = _select.split(n, depth, _select.PROGRAMS // max(tiles, 1))
    parts = weights.new_empty(splits, rows, dim)
    if parts.numel():
        neighbor_grad[tiles, splits](
            weights, bank, parts, rows, n, dim, *bank.stride(), chunk, row_tile, columns, depth, mode, **options
        )
    return parts.sum(0) if splits > 1 else parts[0]
