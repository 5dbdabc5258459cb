"""InfoNCE and mined binary cross-entropy from one product with the memory bank in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.mined_bce import distinct, mined_loss, residual_
from slrfast.reference.precision import widen


def bank_losses(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    positives: Tensor | None,
    temperature: float,
    mined_temperature: float,
) -> tuple[Tensor, Tensor]:
    """InfoNCE [R] of the queries with their positives, and the first P rows' mined cross-entropy at ``positives``."""
    query, positive, bank = widen(query, positive, bank)
    own, others = (query * positive).sum(1) / temperature, query @ bank.T
    contrastive = torch.logaddexp(own, (others / temperature).logsumexp(1)) - own
    if positives is None:
        return contrastive, torch.zeros_like(contrastive)
    return contrastive, mined_loss(others[: len(positives)] / mined_temperature, *distinct(positives, bank.shape[0]))


def bank_losses_grad(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    positives: Tensor | None,
    temperature: float,
    mined_temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both losses [R], [P] and derivatives for the query [R, D], [P, D]; an unwanted or zero one is empty."""
    query, positive, bank = widen(query, positive, bank)
    own, others = (query * positive).sum(1) / temperature, query @ bank.T
    logits = others / temperature
    normalizer = torch.logaddexp(own, logits.logsumexp(1))
    contrastive = normalizer - own
    grad, mined_grad = contrastive.new_empty(0), contrastive.new_empty(0)
    if want_grad:
        probability = logits.sub_(normalizer[:, None]).exp_()
        grad = (probability @ bank + torch.expm1(-contrastive)[:, None] * positive) / temperature
    if positives is None:
        return contrastive, torch.zeros_like(contrastive), grad, mined_grad
    index, counts = distinct(positives, bank.shape[0])
    logits = others[: len(positives)].div_(mined_temperature)
    mined = mined_loss(logits, index, counts)
    if want_grad:
        mined_grad = residual_(logits, index, counts) @ bank / (bank.shape[0] * mined_temperature)
    return contrastive, mined, grad, mined_grad
