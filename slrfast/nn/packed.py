"""Clips of different lengths behind each other, without padding."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from slrfast import checks


@dataclass(frozen=True, eq=False)
class Packing:
    """Which of S packed rows belong to which of B clips; read from the device once and shared by every layer.

    A module that takes ``offsets`` takes the tensor or, without waiting for the device in each call, one of these.
    Under ``torch.compile`` the lengths are part of the code, which is compiled again for other lengths until torch's
    ``recompile_limit``: compile what sees single frames, such as PartGCN, and leave what takes offsets outside.

    Attributes:
        offsets: int64 [B + 1]; clip b is rows offsets[b] to offsets[b + 1].
        lengths: rows of every clip, on the host.
        num_rows: S.
        longest: rows of the longest clip; 0 without clips.
        clip: the clip that every row belongs to, int64 [S].
        place: where every row is in the padded form seen as [B * longest], int64 [S].

    >>> packing = Packing.of(torch.tensor([0, 2, 5]))
    >>> packing.lengths, packing.longest
    ((2, 3), 3)
    >>> packing.pad(torch.arange(1, 6))
    tensor([[1, 2, 0],
            [3, 4, 5]])
    """

    offsets: Tensor
    lengths: tuple[int, ...]
    num_rows: int = field(init=False, repr=False)
    longest: int = field(init=False, repr=False)
    clip: Tensor = field(init=False, repr=False)
    place: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keep = object.__setattr__  # how a frozen dataclass sets what follows from its fields
        keep(self, "num_rows", sum(self.lengths))
        keep(self, "longest", max((0, *self.lengths)))
        clips = torch.arange(self.num_clips, device=self.offsets.device)
        clip = clips.repeat_interleave(self.offsets.diff(), output_size=self.num_rows)
        shift = clips * self.longest - self.offsets[:-1]
        keep(self, "clip", clip)
        keep(self, "place", torch.arange(self.num_rows, device=clip.device) + shift[clip])

    @classmethod
    def of(cls, offsets: Tensor, device: torch.device | str | None = None) -> Packing:
        """Read offsets [B + 1], which waits for the device where they are on one; better from the CPU.

        Args:
            offsets: int64, 0 first, never falling.
            device: where the rows are; None is where the offsets are.
        Raises:
            TypeError: offsets of another dtype. ValueError: offsets that do not start at 0, or fall.
        """
        packing = _read("Packing", offsets, None)
        return packing if device is None else packing.to(device)

    def to(self, device: torch.device | str) -> Packing:
        """The same packing for rows on another device."""
        return Packing(self.offsets.to(device, non_blocking=True), self.lengths)

    def times(self, rows: int) -> Packing:
        """The packing after every row became so many, still behind each other: [S, rows * D] -> [S * rows, D]."""
        return Packing(self.offsets * rows, tuple(rows * length for length in self.lengths))

    @property
    def num_clips(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def present(self) -> Tensor:
        """Which rows of the padded form are real, bool [B, longest]."""
        return torch.arange(self.longest, device=self.offsets.device) < self.offsets.diff()[:, None]

    @property
    def number(self) -> Tensor:
        """The number that every row has in its clip, from 0 on, int64 [S]."""
        return self.place - self.longest * self.clip

    def pad(self, x: Tensor) -> Tensor:
        """[S, ...] -> [B, longest, ...] with zeros behind every clip."""
        padded = x.new_zeros(self.num_clips * self.longest, *x.shape[1:]).index_copy(0, self.place, x)
        return padded.unflatten(0, (self.num_clips, self.longest))

    def unpad(self, x: Tensor) -> Tensor:
        """[B, longest, ...] -> [S, ...], the inverse of :meth:`pad`."""
        return x.flatten(0, 1).index_select(0, self.place)

    def mean(self, x: Tensor) -> Tensor:
        """[S, D] -> [B, D], the average over every clip; 0 for an empty one."""
        return self.pad(x).sum(1) / self.offsets.diff().clamp(min=1)[:, None]

    def apart(self, gap: int) -> Tensor:
        """Where every row is once there are ``gap`` others between one clip and the next, int64 [S]."""
        return torch.arange(self.num_rows, device=self.offsets.device) + gap * self.clip


def packing_of(op: str, x: Tensor, offsets: Tensor | Packing) -> Packing:
    """The packing of the rows of ``x``, after checks that name ``op``."""
    if isinstance(offsets, Packing):
        checks.require(offsets.num_rows == len(x), op, "offsets", f"pack the {len(x)} rows of x", offsets.num_rows)
        checks.same_device(op, x=x, offsets=offsets.offsets)
        return offsets
    packing = _read(op, offsets, len(x))
    checks.same_device(op, x=x, offsets=offsets)
    return packing


def _read(op: str, offsets: Tensor, rows: int | None) -> Packing:
    checks.shapes(op, offsets=(offsets, "B+1"))
    checks.dtype(op, torch.int64, offsets=offsets)
    values = offsets.tolist()
    checks.rising(op, rows, offsets=values)
    return Packing(offsets, tuple(end - start for start, end in zip(values, values[1:], strict=False)))
