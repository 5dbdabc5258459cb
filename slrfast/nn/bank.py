"""First-in-first-out memory banks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks, ops


class MemoryBank(nn.Module):
    """The last N key embeddings, [N, D] row-major, with the write cursor on the device; both are in the state dict.

    It starts as N random unit vectors, as MoCo's queue does.

    Args:
        size: N rows.
        dim: D features.
        dtype: of the rows, float32 or bfloat16.
        normalize: scale keys to length one as they are written.
        gather: write the keys of every process of the default torch.distributed group, so that all hold one bank;
            every process must pass as many keys.
        generator: of the initial rows.
    """

    features: Tensor
    cursor: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        normalize: bool = True,
        gather: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        checks.require(size >= 1, "MemoryBank", "size", "be >= 1", size)
        checks.require(dim >= 1, "MemoryBank", "dim", "be >= 1", dim)
        self.normalize = normalize
        self.gather = gather
        rows = F.normalize(torch.randn(size, dim, generator=generator), dim=1)
        self.register_buffer("features", rows.to(dtype))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest rows with ``keys`` [B, D]; legal before the backward pass of a loss over the bank."""
        if self.gather and torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [torch.empty_like(keys) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, keys.contiguous())
            keys = torch.cat(parts)
        ops.enqueue_(self.features, self.cursor, keys, normalize=self.normalize)
