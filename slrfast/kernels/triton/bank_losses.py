"""InfoNCE and mined binary cross-entropy from one pass over a memory bank (:mod:`._bank`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from slrfast.kernels.triton import _bank, info_nce, mined_bce


def bank_losses(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    positives: Tensor | None,
    temperature: float,
    mined_temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the kernels for ``slrfast::bank_losses``."""
    mined = positives is not None
    with torch.cuda.device(query.device if query.is_cuda else -1):
        sums = _bank.launch(
            query, positive, bank, temperature, mined_temperature, info=True, mined=mined, rank=False, grad=want_grad
        )
        loss, _, grad = info_nce.add_splits(query, positive, sums, temperature, want_grad, False)
        if positives is None:
            return loss, torch.zeros_like(loss), grad, grad.new_empty(0)
        rows = len(positives)
        positives = F.pad(positives, (0, 0, 0, len(query) - rows), value=-1)
        mined_loss, mined_grad = mined_bce.add_splits(query, bank, positives, sums, mined_temperature, want_grad)
        return loss, mined_loss[:rows].clone(), grad, mined_grad[:rows].clone()
