"""KL divergence between the feature distributions of two embeddings in plain torch."""

from __future__ import annotations

from torch import Tensor

from slrfast.reference.precision import widen


def feature_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Loss [B]: sum_d P_d (log P_d - log Q_d), with P and Q the softmax over D of teacher and student."""
    log_p, log_q = _log_distributions(teacher, student, temperature)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def feature_kl_grad(teacher: Tensor, student: Tensor, temperature: float, want_grad: bool) -> tuple[Tensor, Tensor]:
    """Loss [B] and d loss[b] / d student[b] = (Q - P) / temperature [B, D], empty when unwanted."""
    log_p, log_q = _log_distributions(teacher, student, temperature)
    p = log_p.exp()
    loss = (p * (log_p - log_q)).sum(1)
    return loss, (log_q.exp() - p) / temperature if want_grad else loss.new_empty(0)


def _log_distributions(teacher: Tensor, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    teacher, student = widen(teacher, student)
    return (teacher / temperature).log_softmax(1), (student / temperature).log_softmax(1)
