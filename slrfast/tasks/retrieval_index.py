"""A gallery of clips or of texts in one file, which is mapped, not read, and searched by the fine-grained similarity.

The file is a safetensors file: ``rows`` [S, D] float16 or float32, ``offsets`` int64 [N + 1], ``means`` float32 [N, D]
and ``names``, a JSON list as UTF-8 in uint8; its metadata has "format", "version" and, as JSON, "header". Nothing in it
is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from slrfast import checks, ops
from slrfast.errors import DatasetError
from slrfast.files import replacing
from slrfast.tasks.row_sets import RowSets, nearest

FORMAT, VERSION = "slrfast sign-text index", 1
KINDS = ("signs", "texts")
_DTYPES = {"rows": (torch.float16, torch.float32), "offsets": (torch.int64,), "means": (torch.float32,)}


class IndexFileError(DatasetError):
    """An index file cannot be used: it is damaged, of another version, or something else."""


class Match(NamedTuple):
    """One result of a search."""

    name: str
    score: float


class SignTextIndex:
    """What texts find clips in, or clips texts: the gallery's rows, its items' names, and how it was made.

    Args:
        gallery: N >= 1 sets of rows of length one, as ``SLP.encode_signs`` and ``encode_text`` give them.
        names: of the N items.
        kind: what the items are: "signs", to be found by texts, or "texts", to be found by signs.
        dtype: rows are kept in it: float16 (2^-11 relative) or float32.
        row_temperature: of the fine-grained similarity.
        made_by: anything about the encoder that JSON has, such as a fingerprint of its weights.
    Attributes:
        means: float32 [N, D], the average row of every item, what the coarse stage compares.
    Raises:
        TypeError, ValueError: no items, another number of names, a NaN or infinity, another kind or dtype.

    >>> clips = RowSets(torch.eye(3), torch.tensor([0, 2, 3]))
    >>> index = SignTextIndex(clips, ["rain", "sun"], "signs")
    >>> index.search(RowSets(torch.eye(3)[2:], torch.tensor([0, 1])), 1)
    [[Match(name='sun', score=1.0)]]
    """

    def __init__(
        self,
        gallery: RowSets,
        names: Sequence[str],
        kind: str,
        *,
        dtype: torch.dtype = torch.float16,
        row_temperature: float = 1.0,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        op = "SignTextIndex"
        checks.choice(op, KINDS, kind=kind)
        checks.require(dtype in _DTYPES["rows"], op, "dtype", "be torch.float16 or torch.float32", dtype)
        checks.positive(op, row_temperature=row_temperature)
        checks.require(len(gallery) > 0, op, "gallery", "have at least one item", 0)
        checks.require(len(names) == len(gallery), op, "names", f"be {len(gallery)}, one per item", len(names))
        strange = [repr(name) for name in names if not isinstance(name, str)]
        checks.require(not strange, op, "names", "be texts", (strange or [""])[0])
        rows = gallery.rows.detach().to("cpu", dtype)
        checks.require(bool(rows.isfinite().all()), op, "gallery", "hold finite numbers", "NaN or infinity")
        self.gallery, self.names, self.kind = RowSets(rows, gallery.offsets), list(names), kind
        self.means = self.gallery.means()
        self.row_temperature, self.made_by = float(row_temperature), dict(made_by or {})
        self._faiss: Any = None
        self._source = "index"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dim(self) -> int:
        """D."""
        return self.gallery.rows.shape[1]

    # ---- file --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write the index into one file.

        Raises:
            CheckpointError: the file cannot be written; an earlier one is unchanged.
        """
        header = {"kind": self.kind, "row_temperature": self.row_temperature, "made_by": self.made_by}
        names = json.dumps(self.names, ensure_ascii=False).encode("utf-8", "replace")
        tensors = {
            "rows": self.gallery.rows.contiguous(),
            "offsets": self.gallery.offsets.contiguous(),
            "means": self.means,
            "names": torch.frombuffer(bytearray(names), dtype=torch.uint8),
        }
        with replacing(path) as temporary:
            told = {"format": FORMAT, "version": str(VERSION), "header": json.dumps(header)}
            try:
                save_file(tensors, temporary, told)
            except SafetensorError as error:
                raise OSError(None, str(error)) from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Open what :meth:`save` wrote; rows are read when a search needs them.

        Raises:
            IndexFileError: the file is missing, cut short, damaged, or of something else or another version. A NaN in
                its rows is found by the search that meets it.
        """
        path = Path(path)
        tensors, told = _read(path)
        if told.get("format") != FORMAT:
            raise IndexFileError(f"{path}: is no sign-text index")
        if told.get("version") != str(VERSION):
            raise IndexFileError(
                f"{path}: is of version {told.get('version')!s:.20} and this slrfast reads {VERSION}; build it again"
            )
        try:
            self = cls._of(tensors, json.loads(told["header"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
            raise IndexFileError(f"{path}: is damaged ({reason}); build it again") from error
        self._source = str(path)
        return self

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], header: Any) -> Self:
        op = "index"
        for name, dtypes in _DTYPES.items():
            dtype = tensors[name].dtype
            checks.require(dtype in dtypes, op, name, f"be {' or '.join(map(str, dtypes))}", dtype)
        checks.dtype(op, torch.uint8, names=tensors["names"])
        names = json.loads(tensors["names"].numpy().tobytes())
        right = isinstance(names, list) and all(isinstance(name, str) for name in names)
        checks.require(right, op, "names", "be a list of texts", type(names).__name__)
        checks.require(isinstance(header, dict), op, "header", "be a mapping", type(header).__name__)
        made_by = header["made_by"]
        checks.require(isinstance(made_by, dict), op, "made_by", "be a mapping", type(made_by).__name__)
        checks.choice(op, KINDS, kind=header["kind"])
        checks.positive(op, row_temperature=header["row_temperature"])
        gallery = RowSets(tensors["rows"], tensors["offsets"])
        checks.require(len(names) == len(gallery) > 0, op, "names", f"be {len(gallery)}", len(names))
        checks.shapes(op, means=(tensors["means"], f"{len(names)} {gallery.rows.shape[1]}"))
        finite = bool(tensors["means"].isfinite().all())
        checks.require(finite, op, "means", "hold finite numbers", "NaN or infinity")
        self = cls.__new__(cls)
        self.gallery, self.names, self.kind, self.means = gallery, names, header["kind"], tensors["means"]
        self.row_temperature, self.made_by, self._faiss = float(header["row_temperature"]), made_by, None
        return self

    # ---- search ------------------------------------------------------------------------------------------------------

    def search(
        self, queries: RowSets, k: int = 10, *, candidates: int | None = None, coarse: str = "auto"
    ) -> list[list[Match]]:
        """The k best items for every query, best first; of equal scores the earlier item comes first.

        Scores are the fine-grained similarity in float32, of the rows as they are kept.

        Args:
            queries: Q texts if the items are signs, else Q sets of signs; rows of length one, none of the sets empty.
            k: results for each, at most N are given.
            candidates: None compares with all items. Else a first stage proposes so many (at least k) for each query,
                and only these are compared: those with the largest product of average rows, which is the fine-grained
                similarity if all words had the same weight.
            coarse: what does the first stage: "faiss" (its ``IndexFlatIP``), "topk" (``ops.topk_similarity``), or
                "auto": faiss if it is installed.
        Raises:
            TypeError, ValueError: queries of another width, empty or not finite, k < 1, candidates < k.
            IndexFileError: the rows of an item hold a NaN, so the file was damaged.
        """
        op = "search"
        checks.shapes(op, queries=(queries.rows, f"S {self.dim}"))
        checks.integer_between(op, 1, 1 << 31, k=k)
        checks.choice(op, ("auto", "faiss", "topk"), coarse=coarse)
        queries = RowSets(queries.rows.detach().cpu().float(), queries.offsets)
        checks.require(bool(queries.rows.isfinite().all()), op, "queries", "hold finite numbers", "NaN or infinity")
        shortest = int(queries.lengths.min()) if len(queries) else 1
        checks.require(shortest > 0, op, "queries", "have at least one row each", shortest)
        k = min(k, len(self))
        if candidates is None:
            return self._rank(queries, self.gallery, torch.arange(len(self)), k)
        checks.integer_between(op, k, 1 << 31, candidates=candidates)
        proposed = self._propose(queries.means(), min(candidates, len(self)), coarse).sort(1).values
        found = []
        for number, positions in enumerate(proposed):
            one = queries.select(torch.tensor([number]))
            found += self._rank(one, self.gallery.select(positions), positions, k)
        return found

    def _rank(self, queries: RowSets, gallery: RowSets, positions: Tensor, k: int) -> list[list[Match]]:
        temperature = self.row_temperature
        try:
            best = nearest(queries, gallery, k, gallery_of=self.kind, row_temperature=temperature)
        except ValueError as error:
            raise IndexFileError(f"{self._source}: its rows are damaged ({error}); build it again") from error
        numbers = positions[best.positions].tolist()
        return [
            [Match(self.names[number], score) for number, score in zip(row, scores, strict=True)]
            for row, scores in zip(numbers, best.scores.tolist(), strict=True)
        ]

    def _propose(self, means: Tensor, count: int, coarse: str) -> Tensor:
        """Positions [Q, count] of the items whose average rows have the largest products with those of the queries."""
        if coarse != "topk":
            try:
                import faiss
            except ImportError:
                if coarse == "faiss":
                    raise ImportError("search: coarse='faiss' needs the package faiss: pip install faiss-cpu") from None
            else:
                if self._faiss is None:
                    self._faiss = faiss.IndexFlatIP(self.dim)
                    self._faiss.add(self.means.numpy())
                return torch.from_numpy(self._faiss.search(means.numpy(), count)[1])
        return ops.topk_similarity(means, self.means, count)[1]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The mapped tensors of a safetensors file and its metadata."""
    try:
        if not path.is_file():
            raise FileNotFoundError(2, os.strerror(2))
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise IndexFileError(f"{path}: is no sign-text index, or damaged ({error})") from error
    except OSError as error:
        raise IndexFileError(f"{path}: cannot be read ({error.strerror or error})") from error
