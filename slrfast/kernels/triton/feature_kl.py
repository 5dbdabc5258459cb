"""KL divergence between feature distributions: one program for each row."""

from __future__ import annotations

from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def log_sum(row, column_stride, D: tl.constexpr, BLOCK: tl.constexpr, scale, compute: tl.constexpr):
    """The largest element of ``row`` [D], and log sum_d exp((row_d - largest) / temperature)."""
    lane = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), compute)
    for start in range(0, D, BLOCK):
        d = start + lane
        x = tl.load(row + d.to(tl.int64) * column_stride, mask=d < D, other=float("-inf")).to(compute)
        largest = tl.maximum(largest, x)
    top = tl.max(largest)
    total = tl.zeros([BLOCK], compute)
    for start in range(0, D, BLOCK):
        d = start + lane
        x = tl.load(row + d.to(tl.int64) * column_stride, mask=d < D, other=float("-inf")).to(compute)
        total += tl.where(d < D, tl.exp((x - top) * scale), 0.0)
    return top, tl.log(tl.sum(total))


@triton.jit
def kl(
    teacher,  # [B, D]
    student,  # [B, D]
    loss,  # [B] out
    grad,  # [B, D] out, with GRAD
    teacher_row,
    teacher_column,
    student_row,
    student_column,
    temperature: tl.float64,
    D: tl.constexpr,
    GRAD: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """loss = sum_d P_d (log P_d - log Q_d) and grad = (Q - P) / t, with P, Q = softmax(teacher / t), (student / t)."""
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    b = tl.program_id(0).to(tl.int64)
    teacher += b * teacher_row
    student += b * student_row
    scale = tl.full([], 1.0, compute) / tl.full([], temperature, compute)
    teacher_top, teacher_log = log_sum(teacher, teacher_column, D, BLOCK, scale, compute)
    student_top, student_log = log_sum(student, student_column, D, BLOCK, scale, compute)
    total = tl.zeros([BLOCK], compute)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        inside = d < D
        t = tl.load(teacher + d.to(tl.int64) * teacher_column, mask=inside, other=0.0).to(compute)
        s = tl.load(student + d.to(tl.int64) * student_column, mask=inside, other=0.0).to(compute)
        log_p = (t - teacher_top) * scale - teacher_log
        log_q = (s - student_top) * scale - student_log
        p = tl.exp(log_p)
        total += tl.where(inside, p * (log_p - log_q), 0.0)
        if GRAD:
            tl.store(grad + b * D + d, (tl.exp(log_q) - p) * scale, mask=inside)
    tl.store(loss + b, tl.sum(total))


def feature_kl(teacher: Tensor, student: Tensor, temperature: float, want_grad: bool) -> tuple[Tensor, Tensor]:
    """Run the kernel for ``slrfast::feature_kl``."""
    rows, dim = student.shape
    compute = reduce(torch.promote_types, (teacher.dtype, student.dtype), torch.float32)
    loss = torch.empty(rows, dtype=compute, device=student.device)
    grad = loss.new_empty((rows, dim) if want_grad else 0)
    with torch.cuda.device(student.device if student.is_cuda else -1):
        kl[(rows,)](
            teacher, student, loss, grad, *teacher.stride(), *student.stride(), temperature, dim, want_grad,
            compute == torch.float64, min(BLOCK, triton.next_power_of_2(max(dim, 1))),
        )  # fmt: skip
    return loss, grad
