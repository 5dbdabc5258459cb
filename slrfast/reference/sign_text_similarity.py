"""The similarity of every sign sequence to every text, word by word, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import widen


def sign_text_similarity(
    sign: Tensor, text: Tensor, sign_mask: Tensor | None, text_mask: Tensor | None, row_temperature: float
) -> Tensor:
    """Similarity [B, M]: mean over the rows a of sum_b p_ab z_ab, p_a the softmax of z_a / row_temperature."""
    sign, text, rows, words = _seen(sign, text, sign_mask, text_mask)
    scores, p = _weights(sign, text, words, row_temperature)
    return ((p * scores).sum(3) * rows[:, None]).sum(2) / _counts(rows)[:, None]


def sign_text_similarity_grad(
    grad: Tensor,
    sign: Tensor,
    text: Tensor,
    sign_mask: Tensor | None,
    text_mask: Tensor | None,
    row_temperature: float,
    want_sign: bool,
    want_text: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of sign and text from that of the similarity, through every score
    d / d z_ab = p_ab (1 + (z_ab - sum_b p_ab z_ab) / row_temperature) / rows; empty when unwanted."""
    sign, text, rows, words = _seen(sign, text, sign_mask, text_mask)
    scores, p = _weights(sign, text, words, row_temperature)
    mean = (p * scores).sum(3, keepdim=True)
    each = (grad.to(sign.dtype) / _counts(rows)[:, None])[:, :, None, None] * rows[:, None, :, None]
    slope = each * p * (1 + (scores - mean) / row_temperature)
    grads = (
        torch.einsum("bmst,mtd->bsd", slope, text) if want_sign else sign.new_empty(0),
        torch.einsum("bmst,bsd->mtd", slope, sign) if want_text else text.new_empty(0),
    )
    return tuple(tensor.contiguous() for tensor in grads)  # type: ignore[return-value]


def _seen(
    sign: Tensor, text: Tensor, sign_mask: Tensor | None, text_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sequences with zeros where they are masked out, and both masks."""
    sign, text = widen(sign, text)
    rows = sign.new_ones(sign.shape[:2], dtype=torch.bool) if sign_mask is None else sign_mask
    words = text.new_ones(text.shape[:2], dtype=torch.bool) if text_mask is None else text_mask
    return torch.where(rows[..., None], sign, 0.0), torch.where(words[..., None], text, 0.0), rows, words


def _weights(sign: Tensor, text: Tensor, words: Tensor, row_temperature: float) -> tuple[Tensor, Tensor]:
    """Scores and their softmax over the words [B, M, Ls, Lt]; all zero for a text without any."""
    scores = torch.einsum("bsd,mtd->bmst", sign, text)
    outside = (~words & words.any(1, keepdim=True))[:, None, :]
    p = (scores / row_temperature).masked_fill(outside, -torch.inf).softmax(3)
    return scores, torch.where(words[:, None, :], p, 0.0)


def _counts(rows: Tensor) -> Tensor:
    """[B]: the rows of each sign sequence, at least 1."""
    return rows.sum(1).clamp_min(1)
