"""Sets of rows of different lengths, windows of clips or words of texts, compared all with all in tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from slrfast import checks, ops

TILE_ROWS = 4096
_MOST = (1 << 32) - 1


@dataclass(frozen=True, eq=False)
class RowSets:
    """N sets of rows behind each other, without padding: the windows of N clips, or the words of N texts.

    Attributes:
        rows: [S, D] float; in bfloat16 on both sides CPUs with AVX512-BF16 compare about twice as fast.
        offsets: int64 [N + 1] on the CPU; set n is rows offsets[n] to offsets[n + 1].
    Raises:
        TypeError, ValueError: another dtype or shape, offsets that do not rise from 0 to S, or are not on the CPU.

    >>> sets = RowSets.of_padded(torch.eye(3)[None].repeat(2, 1, 1), torch.tensor([[True, True, False], [True] * 3]))
    >>> sets.lengths.tolist(), sets.rows.shape
    ([2, 3], torch.Size([5, 3]))
    """

    rows: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        checks.shapes("RowSets", rows=(self.rows, "S D"), offsets=(self.offsets, "N+1"))
        checks.floating("RowSets", rows=self.rows)
        checks.dtype("RowSets", torch.int64, offsets=self.offsets)
        device = self.offsets.device.type
        checks.require(device == "cpu", "RowSets", "offsets", "be on the CPU", device)
        checks.rising("RowSets", len(self.rows), offsets=self.offsets.tolist())

    @classmethod
    def of_padded(cls, rows: Tensor, present: Tensor) -> Self:
        """The rows [N, L, D] that are there: present is bool [N, L]."""
        sizes = checks.shapes("RowSets", rows=(rows, "N L D"), present=(present, "N L"))
        checks.dtype("RowSets", torch.bool, present=present)
        offsets = torch.zeros(sizes["N"] + 1, dtype=torch.int64)
        torch.cumsum(present.sum(1).cpu(), 0, out=offsets[1:])
        return cls(rows[present], offsets)

    @classmethod
    def cat(cls, parts: Sequence[RowSets]) -> Self:
        """All sets of all parts, in order; at least one part."""
        lengths = torch.cat([part.lengths for part in parts])
        return cls(torch.cat([part.rows for part in parts]), _offsets(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Rows of every set, int64 [N] on the CPU."""
        return self.offsets.diff()

    def select(self, indices: Tensor) -> RowSets:
        """The sets at these positions, int64 [n] on the CPU, copied."""
        rows, present = self.pad(indices)
        return RowSets.of_padded(rows, present)

    def pad(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The sets at these positions as [n, longest, D], with anything behind a set, and which rows are real."""
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        number = torch.arange(int(lengths.max()) if len(indices) else 0)
        present = number < lengths[:, None]
        places = torch.where(present, starts[:, None] + number, 0).flatten()
        rows = self.rows.index_select(0, places.to(self.rows.device))
        return rows.unflatten(0, present.shape), present.to(self.rows.device)

    def means(self) -> Tensor:
        """The average row of every set, float32 [N, D]; 0 for an empty one."""
        counts = self.lengths.to(self.rows.device)
        owner = torch.arange(len(self), device=self.rows.device).repeat_interleave(counts)
        total = torch.zeros(len(self), self.rows.shape[1], device=self.rows.device)
        for start in range(0, len(owner), 1 << 18):  # the rows may be of another dtype, and of a mapped file
            part = slice(start, start + (1 << 18))
            total.index_add_(0, owner[part], self.rows[part].float())
        return total / counts.clamp(min=1)[:, None]

    def tiles(self, tile_rows: int) -> list[Tensor]:
        """Positions of sets of about one length, shortest first, as many as pad to at most ``tile_rows`` rows."""
        lengths, order = self.lengths.sort(stable=True)
        longest, found, start = lengths.tolist(), [], 0
        for end in range(1, len(longest) + 1):
            if end == len(longest) or (end + 1 - start) * longest[end] > tile_rows:
                found.append(order[start:end].sort().values)
                start = end
        return found


class Nearest(NamedTuple):
    """Of every query the best of a gallery: scores float32 [Q, k], falling, and positions int64 [Q, k]."""

    scores: Tensor
    positions: Tensor


def similarity_matrix(
    signs: RowSets, texts: RowSets, *, row_temperature: float = 1.0, tile_rows: int = TILE_ROWS
) -> Tensor:
    """The fine-grained similarity (``ops.sign_text_similarity``) of every set of signs to every text, in tiles.

    Sets of about one length are compared together, so little is padded, and no score of a padded row is made.

    Args:
        signs: B sets of rows of length one. No gradient flows.
        texts: M sets, on the same device.
        row_temperature: of the softmax over words.
        tile_rows: rows of either side that are padded and compared at a time.
    Returns:
        [B, M] float32 on their device; 0 where a set is empty.
    Raises:
        TypeError, ValueError: as for ``ops.sign_text_similarity``.
    Numerics:
        Deterministic. Memory beyond the result: 2 x tile_rows rows in the rows' dtype and what
        ``ops.sign_text_similarity`` takes for one tile: a few MiB on a CPU, tile_rows^2 scores in the reference.

    >>> words = RowSets(torch.eye(2), torch.tensor([0, 1, 2]))
    >>> similarity_matrix(words, words)
    tensor([[1., 0.],
            [0., 1.]])
    """
    _check("similarity_matrix", signs, texts, tile_rows)
    result = torch.zeros(len(signs), len(texts), device=signs.rows.device)
    columns = texts.tiles(tile_rows)
    for some in signs.tiles(tile_rows):
        for those, tile in _tiles(signs, some, texts, columns, row_temperature):
            result[some.to(result.device)[:, None], those.to(result.device)] = tile
    return result


def nearest(
    queries: RowSets,
    gallery: RowSets,
    k: int,
    *,
    gallery_of: str,
    row_temperature: float = 1.0,
    tile_rows: int = TILE_ROWS,
) -> Nearest:
    """The k sets of the gallery that are most similar to every query; [Q, N] scores are never there.

    Args:
        queries: Q texts for a gallery of signs, Q sets of signs for one of texts; rows of length one.
        gallery: N sets.
        k: in [1, N]. Of equal scores the lowest position comes first, and is kept.
        gallery_of: "signs" or "texts".
        row_temperature, tile_rows: as for :func:`similarity_matrix`, and so is the memory: beyond the result and some
            tile_rows-long tiles there is 8 bytes for every pair of sets of a tile.
    Raises:
        TypeError, ValueError: as for :func:`similarity_matrix`; k outside [1, N]; a NaN among the scores.

    >>> words = RowSets(torch.eye(2), torch.tensor([0, 1, 2]))
    >>> nearest(words, words, 1, gallery_of="texts").positions.tolist()
    [[0], [1]]
    """
    op = "nearest"
    checks.choice(op, ("signs", "texts"), gallery_of=gallery_of)
    signs, texts = (gallery, queries) if gallery_of == "signs" else (queries, gallery)
    _check(op, signs, texts, tile_rows)
    checks.integer_between(op, 1, min(len(gallery), _MOST), k=k)
    device = queries.rows.device
    found = torch.empty(len(queries), k, dtype=torch.int64, device=device)
    columns = gallery.tiles(tile_rows)
    for some in queries.tiles(tile_rows):
        best = torch.empty(len(some), 0, dtype=torch.int64, device=device)
        for those, tile in _tiles(queries, some, gallery, columns, row_temperature, swap=gallery_of == "signs"):
            spoilt = tile.isnan()
            if bool(spoilt.any()):
                query, item = spoilt.nonzero()[0].tolist()
                got = f"NaN between query {int(some[query])} and item {int(those[item])}"
                raise ValueError(checks.message(op, "scores", "hold no NaN", got))
            best = torch.cat((best, _keys(tile, those.to(device))), 1)
            best = best.topk(min(k, best.shape[1]), sorted=True).values
        found[some.to(device)] = best
    return Nearest(_scores(found >> 32), _MOST - (found & _MOST))


def _check(op: str, signs: RowSets, texts: RowSets, tile_rows: int) -> None:
    checks.shapes(op, signs=(signs.rows, "rows D"), texts=(texts.rows, "words D"))
    checks.same_device(op, signs=signs.rows, texts=texts.rows)
    checks.integer_between(op, 1, 1 << 24, tile_rows=tile_rows)


@torch.no_grad()
def _tiles(
    a: RowSets, some: Tensor, b: RowSets, tiles: Sequence[Tensor], row_temperature: float, swap: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """The similarity of some sets of ``a`` to all of ``b``, a tile of them at a time; ``swap``: a holds the texts."""
    rows, present = a.pad(some)
    for those in tiles:
        others, there = b.pad(those)
        pair = (others, rows, there, present) if swap else (rows, others, present, there)
        tile = ops.sign_text_similarity(*pair, row_temperature=row_temperature).float()
        yield those, tile.mT if swap else tile


def _keys(scores: Tensor, positions: Tensor) -> Tensor:
    """Integers that are ordered as the scores [Q, n] are, those of equal scores against their positions [n]."""
    bits = (scores + 0.0).contiguous().view(torch.int32)  # -0.0 + 0.0 is 0.0
    rising = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).long()
    return (rising << 32) | (_MOST - positions)


def _scores(rising: Tensor) -> Tensor:
    bits = rising.int()
    return torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).view(torch.float32)


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
