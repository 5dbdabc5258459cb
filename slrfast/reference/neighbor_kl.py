"""KL divergence over the nearest rows of a memory bank in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen
from slrfast.reference.topk_similarity import top_mask


def neighbor_kl(
    teacher: Tensor,
    teacher_bank: Tensor,
    student: Tensor,
    student_bank: Tensor,
    k: int,
    teacher_temperature: float,
    student_temperature: float,
) -> Tensor:
    """Loss [B]: sum_i P_i (log P_i - log Q_i) over the k bank rows that are nearest to the teacher."""
    teacher, teacher_bank, student, student_bank = widen(teacher, teacher_bank, student, student_bank)
    temperatures = teacher_temperature, student_temperature
    p, log_ratio, _ = _distributions(teacher, teacher_bank, student, student_bank, k, *temperatures)
    return (p * log_ratio).sum(1)


def neighbor_kl_grad(
    teacher: Tensor,
    teacher_bank: Tensor,
    student: Tensor,
    student_bank: Tensor,
    k: int,
    teacher_temperature: float,
    student_temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Loss [B] and d loss[b] / d student[b] = sum_i (Q_i - P_i) student_bank[i] / student_temperature [B, D']."""
    teacher, teacher_bank, student, student_bank = widen(teacher, teacher_bank, student, student_bank)
    temperatures = teacher_temperature, student_temperature
    p, log_ratio, q = _distributions(teacher, teacher_bank, student, student_bank, k, *temperatures)
    loss = (p * log_ratio).sum(1)
    return loss, (q - p) @ student_bank / student_temperature if want_grad else loss.new_empty(0)


def _distributions(
    teacher: Tensor,
    teacher_bank: Tensor,
    student: Tensor,
    student_bank: Tensor,
    k: int,
    teacher_temperature: float,
    student_temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """P, log(P / Q) and Q over the whole bank [B, N]; all zero for a row that is no neighbour."""
    scores = teacher @ teacher_bank.T
    outside = ~top_mask(scores, k)
    log_p = (scores / teacher_temperature).masked_fill(outside, -torch.inf).log_softmax(1)
    log_q = (student @ student_bank.T / student_temperature).masked_fill(outside, -torch.inf).log_softmax(1)
    return log_p.exp(), (log_p - log_q).masked_fill(outside, 0.0), log_q.exp()
