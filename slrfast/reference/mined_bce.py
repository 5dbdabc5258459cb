"""Binary cross-entropy against mined positives of a memory bank in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from slrfast.reference.precision import widen


def mined_bce(query: Tensor, bank: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Loss [B]: the mean over the bank of softplus(z) - y z, with z the inner products over the temperature.

    y is 1 at the positives [B, M] and 0 elsewhere; it is never formed.
    """
    query, bank = widen(query, bank)
    return mined_loss(query @ bank.T / temperature, *distinct(positives, bank.shape[0]))


def mined_bce_grad(
    query: Tensor, bank: Tensor, positives: Tensor, temperature: float, want_grad: bool
) -> tuple[Tensor, Tensor]:
    """Loss [B] and d loss[b] / d query[b] = mean_i (sigmoid(z_i) - y_i) bank[i] / temperature [B, D]."""
    query, bank = widen(query, bank)
    scores = query @ bank.T / temperature
    index, counts = distinct(positives, bank.shape[0])
    loss = mined_loss(scores, index, counts)
    if not want_grad:
        return loss, loss.new_empty(0)
    return loss, residual_(scores, index, counts) @ bank / (bank.shape[0] * temperature)


def distinct(positives: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Every row of positives [B, M] in rising order, and which count [B, M]: inside the bank and no repeat.

    An index that does not count is 0, so that all of them can be read from.
    """
    index = positives.sort(1).values
    counts = (index >= 0) & (index < size)
    counts[:, 1:] &= index[:, 1:] != index[:, :-1]
    return index.masked_fill(~counts, 0), counts


def mined_loss(scores: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Loss [B] from the scores z [B, N]; softplus(z) as -log sigmoid(-z), exact also where F.softplus is linear."""
    own = scores.gather(1, index).masked_fill(~counts, 0.0).sum(1)
    return (-F.logsigmoid(-scores).sum(1) - own) / scores.shape[1]


def residual_(scores: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Overwrite the scores z [B, N] by sigmoid(z) - y, where y is 1 at the positives."""
    return scores.sigmoid_().scatter_add_(1, index, -counts.to(scores.dtype))
