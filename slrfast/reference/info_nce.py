"""InfoNCE against a memory bank in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen


def info_nce(query: Tensor, positive: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Loss [B]: log(exp(s0) + sum_i exp(s_i)) - s0, where s are the inner products over the temperature."""
    query, positive, bank = widen(query, positive, bank)
    scaled = query / temperature
    own, others = (scaled * positive).sum(1), scaled @ bank.T
    return torch.logaddexp(own, others.logsumexp(1)) - own


def info_nce_grad(
    query: Tensor, positive: Tensor, bank: Tensor, temperature: float, want_grad: bool, want_rank: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B], rank of the positive [B], d loss[b] / d query[b] [B, D]; an unwanted one is empty."""
    query, positive, bank = widen(query, positive, bank)
    scaled = query / temperature
    own, others = (scaled * positive).sum(1), scaled @ bank.T
    normalizer = torch.logaddexp(own, others.logsumexp(1))
    loss = normalizer - own
    rank = (others > own[:, None]).sum(1) if want_rank else loss.new_empty(0, dtype=torch.int64)
    if not want_grad:
        return loss, rank, loss.new_empty(0)
    probability = others.sub_(normalizer[:, None]).exp_()
    return loss, rank, (probability @ bank + torch.expm1(-loss)[:, None] * positive) / temperature
