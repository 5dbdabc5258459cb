"""First-in-first-out writing into a memory bank in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from slrfast.reference.precision import widen


def enqueue_(bank: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    """Write key j to row (cursor + j) mod N, in order of j, and move the cursor behind the last one."""
    size, count = bank.shape[0], keys.shape[0]
    overwritten = max(count - size, 0)
    (rows,) = widen(keys[overwritten:])
    if normalize:
        rows = F.normalize(rows, dim=1)
    slots = (cursor + torch.arange(overwritten, count, device=cursor.device)) % size
    bank.index_copy_(0, slots, rows.to(bank.dtype))
    cursor.add_(count).remainder_(size)
