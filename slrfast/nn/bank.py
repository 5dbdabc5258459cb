"""First-in-first-out memory banks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

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

    >>> bank = MemoryBank(3, 2)
    >>> bank.enqueue(torch.tensor([[3.0, 4.0]]))
    >>> bank.features[0], bank.cursor
    (tensor([0.6000, 0.8000]), tensor(1))
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

    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest rows with ``keys`` [B, D]; legal before the backward pass of a loss over the bank."""
        self._write(keys)

    @torch.no_grad()
    def _write(self, keys: Tensor) -> int:
        """Enqueue, and return how many rows before the cursor are new."""
        if self.gather and torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [torch.empty_like(keys) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, keys.contiguous())
            keys = torch.cat(parts)
        ops.enqueue_(self.features, self.cursor, keys, normalize=self.normalize)
        return min(keys.shape[0], self.features.shape[0])


def write_in_step(op: str, pairs: Mapping[str, tuple[MemoryBank, Tensor]]) -> int:
    """Enqueue one batch in several banks, or in none if one of them would refuse its keys; return how many rows."""
    checks.shapes(op, **{name: (keys, f"B {bank.features.shape[1]}") for name, (bank, keys) in pairs.items()})
    for name, (bank, keys) in pairs.items():
        checks.floating(op, **{name: keys})
        checks.same_device(op, **{"the bank": bank.features, name: keys})
    return [bank._write(keys) for bank, keys in pairs.values()][-1]


class FactoredBank(nn.ModuleDict):
    """Memory banks of the parts of one instance, kept in step, and their row-wise sum: STC's anchors (Eq. 4).

    ``sum[i] = bank["hand"].features[i] + bank["trunk"].features[i]``, where the rows i of all parts are one instance.
    The sum is formed in float32 (float64 for float64) and rounded once to the banks' dtype. Enqueueing adds the written
    rows only; loading a state dict, moving and casting form all of it again, so it is not in the state dict.

    Args:
        size: N rows.
        dim: D features.
        parts: two or more names; ``bank[name]`` is that part's :class:`MemoryBank`.
        dtype, normalize, gather, generator: of every part, as for :class:`MemoryBank`.

    >>> bank = FactoredBank(4, 2, ("hand", "trunk"))
    >>> bank.enqueue(hand=torch.tensor([[1.0, 0.0]]), trunk=torch.tensor([[0.0, 1.0]]))
    >>> bank.sum[0], bank["trunk"].features[0]
    (tensor([1., 1.]), tensor([0., 1.]))
    """

    sum: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        parts: Sequence[str] = ("hand", "trunk"),
        *,
        dtype: torch.dtype = torch.float32,
        normalize: bool = True,
        gather: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        free = all(part.isidentifier() and part != "sum" and not hasattr(FactoredBank, part) for part in parts)
        distinct = len(parts) > 1 and len(set(parts)) == len(parts)
        rule = "be two or more different names that are no attribute of the bank"
        checks.require(free and distinct, "FactoredBank", "parts", rule, tuple(parts))
        options = {"dtype": dtype, "normalize": normalize, "gather": gather, "generator": generator}
        super().__init__({part: MemoryBank(size, dim, **options) for part in parts})  # type: ignore[arg-type]
        self.register_buffer("sum", self._add(self._features()), persistent=False)
        self.register_load_state_dict_post_hook(_refresh_after_loading)

    @property
    def features(self) -> Tensor:
        """The sum, so that a loss takes either kind of bank."""
        return self.sum

    @torch.no_grad()
    def enqueue(self, *keys: Tensor, **named: Tensor) -> None:
        """Overwrite the oldest rows of every part with its keys [B, D], and those rows of the sum.

        Args:
            keys: one tensor for each part, in the order of the parts or by name.
        Raises:
            TypeError, ValueError: keys that are missing, unknown, or of other shapes, dtypes or devices; nothing is
                written then.
        """
        by_name = dict(zip(self, keys, strict=False)) | named
        complete = len(keys) + len(named) == len(self) and set(by_name) == set(self)
        got = f"{len(keys)} in order and {sorted(named)} by name"
        checks.require(complete, "FactoredBank", "keys", f"be one tensor for each of {list(self)}", got)
        banks = self._banks()
        written = write_in_step("FactoredBank", {part: (bank, by_name[part]) for part, bank in banks.items()})
        cursor = banks[next(iter(self))].cursor
        slots = (cursor - 1 - torch.arange(written, device=self.sum.device)) % self.sum.shape[0]
        self.sum.index_copy_(0, slots, self._add([rows.index_select(0, slots) for rows in self._features()]))

    @torch.no_grad()
    def refresh(self) -> None:
        """Form the whole sum again: for code that wrote to a part's ``features`` itself."""
        total = self._add(self._features())
        if (total.device, total.dtype) == (self.sum.device, self.sum.dtype):
            self.sum.copy_(total)  # in place, because a CUDA graph or another process may hold its address
        else:
            self.sum = total

    def _banks(self) -> Mapping[str, MemoryBank]:
        return self  # type: ignore[return-value]

    def _features(self) -> list[Tensor]:
        return [bank.features for bank in self._banks().values()]

    @staticmethod
    def _add(parts: list[Tensor]) -> Tensor:
        total, *rest = parts
        total = total.to(torch.promote_types(total.dtype, torch.float32))
        for part in rest:
            total = total + part
        return total.to(parts[0].dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.refresh()
        return self


def _refresh_after_loading(bank: FactoredBank, _: object) -> None:
    bank.refresh()
