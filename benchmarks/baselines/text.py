"""SLP's similarity and reconstruction loss as the field writes them: all scores at once, masked sums."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity(sign: Tensor, text: Tensor, sign_mask: Tensor | None = None, text_mask: Tensor | None = None) -> Tensor:
    """SLP Eq. 4: the scores of every row and word, weighted by their softmax over the words."""
    z = torch.einsum("bsd,mtd->bmst", sign, text)
    logits = z if text_mask is None else z.masked_fill(~text_mask[None, :, None], float("-inf"))
    rows = (torch.softmax(logits, dim=-1) * z).sum(-1)
    if sign_mask is None:
        return rows.mean(-1)
    return (rows * sign_mask[:, None]).sum(-1) / sign_mask.sum(1)[:, None]


def masked_pose_loss(prediction: Tensor, target: Tensor, mask: Tensor, confidence: Tensor) -> Tensor:
    """SLP Eq. 3 over all masked keypoints."""
    error = ((prediction - target) ** 2).sum(-1) * confidence * mask
    return error.sum() / mask.sum().clamp(min=1)
