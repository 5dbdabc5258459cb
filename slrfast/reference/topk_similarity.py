"""The nearest rows of a memory bank in plain torch, without a [B, N] buffer when the bank is long."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import accumulation_dtype, widen

CHUNK = 65536
GATHER = 256


def top_mask(scores: Tensor, k: int) -> Tensor:
    """Mask [B, N] of exactly ``k`` largest scores per row; of equal ones the first count, and NaN counts as inf."""
    scores, border = _border(scores, k)
    above, tied = scores > border, scores == border
    return above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))


def top_positions(scores: Tensor, k: int) -> Tensor:
    """The same choice as positions [B, k]: first the scores above the k-th, then those equal to it, each in order."""
    width = scores.shape[1]
    scores, border = _border(scores, k)
    tier = (scores <= border).to(torch.int32).add_(scores < border)
    order = tier.mul_(width).add_(torch.arange(width, dtype=torch.int32, device=scores.device))
    return order.topk(k, dim=1, largest=False).values.long() % width


def _border(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return scores, scores.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)


def topk_similarity(query: Tensor, bank: Tensor, k: int, sorted: bool) -> tuple[Tensor, Tensor]:
    """Inner products [B, k] and bank indices [B, k] of the k nearest rows, by value and then by index."""
    values = query.new_empty(query.shape[0], 0, dtype=accumulation_dtype(query, bank))
    indices = torch.empty(query.shape[0], 0, dtype=torch.int64, device=query.device)
    rows = max(CHUNK, k)
    for start in range(0, bank.shape[0], rows):
        left, right = widen(query, bank[start : start + rows])
        scores = left @ right.T
        width = scores.shape[1]
        if k < width:
            found = top_positions(scores, k)
            scores = scores.gather(1, found)
        else:
            found = torch.arange(width, device=query.device).expand(scores.shape)
        values = torch.cat((values, scores), 1)
        indices = torch.cat((indices, found + start), 1)
        if sorted or values.shape[1] > k:
            order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
            values, indices = values.gather(1, order), indices.gather(1, order)
    return values, indices


def topk_similarity_grad(grad: Tensor, indices: Tensor, bank: Tensor) -> Tensor:
    """The adjoint of the values [B, k] for the query [B, D]: sum_j grad[b, j] bank[indices[b, j]]."""
    total = grad.new_zeros(grad.shape[0], bank.shape[1], dtype=accumulation_dtype(grad, bank))
    for start in range(0, grad.shape[1], GATHER):
        some = slice(start, start + GATHER)
        weight, rows = widen(grad[:, some], bank[indices[:, some]])
        total += torch.bmm(weight[:, None], rows)[:, 0]
    return total
