"""A data set that adds something to the clips of another, and how what is added is found by the clips' names."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from typing_extensions import Self

from slrfast.data.batch import Clip, PoseBatch
from slrfast.data.dataset import ClipDataset
from slrfast.data.formats import suffixes
from slrfast.errors import DatasetError

T = TypeVar("T")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
_EXTENSIONS = {*suffixes("auto"), *VIDEO_SUFFIXES}


class WrappedDataset(ClipDataset):
    """The clips of another data set, of a packed store too, with more on each; made to be derived from.

    Args:
        dataset: any ClipDataset.
    Attributes:
        dataset: the same.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset
        self.class_names, self.options = list(dataset.class_names), dataset.options
        self.skipped, self.notes = list(dataset.skipped), list(dataset.notes)

    def added(self, index: int) -> dict[str, Any]:
        """The fields of the Clip at this position that the other data set lacks."""
        raise NotImplementedError

    def added_to_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The same fields of a batch."""
        raise NotImplementedError

    @property
    def clips(self) -> Sequence[Clip]:  # type: ignore[override]
        """The data set itself, which makes a clip when it is asked for."""
        return self  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Clip:
        return replace(self.dataset[index], **self.added(range(len(self))[index]))

    def batch(self, indices: Sequence[int]) -> PoseBatch:
        """The clips at these positions, packed."""
        return replace(self.dataset.batch(indices), **self.added_to_batch([range(len(self))[i] for i in indices]))

    @property
    def names(self) -> list[str]:
        """One name per clip."""
        return self.dataset.names

    @property
    def labels(self) -> list[int]:
        """One label per clip, -1 unknown."""
        return self.dataset.labels

    @property
    def groups(self) -> list[str]:
        """One signer or language per clip, "" unknown."""
        return self.dataset.groups

    @property
    def splits(self) -> list[str]:
        """One split per clip, "" unknown."""
        return self.dataset.splits

    @property
    def lengths(self) -> list[int]:
        """Frames of every clip."""
        return self.dataset.lengths

    def subset(self, indices: Iterable[int]) -> Self:
        """The clips at these positions, with the same class names; ``index`` is new."""
        indices = [range(len(self))[i] for i in indices]
        subset = copy.copy(self)
        subset.dataset, subset.skipped, subset.notes = self.dataset.subset(indices), [], []
        subset._select(indices)
        return subset

    def _select(self, indices: Sequence[int]) -> None:
        """Keep what is known of these clips only."""
        raise NotImplementedError


def match(names: Sequence[str], found: Mapping[str, T]) -> list[T | None]:
    """What belongs to every clip: under its name, else under its name without extension, else with fewer folders.

    Extensions are those of pose files and videos. A name with fewer folders, where those of one side end those of the
    other, counts only if no other clip and nothing else that was found has the same without folders.

    Raises:
        DatasetError: a clip has two that are not the same, such as go/01.mp4 and go/01.avi.

    >>> match(["go/01.npz", "go/02.npz", "stay/03.npz", "stay/04.npz"], {"go/01.mp4": 1, "03": 3, "go/04": 4})
    [1, None, 3, None]
    """
    plain: dict[str, list[str]] = {}
    for other in found:
        plain.setdefault(_plain(other), []).append(other)
    bare = [_plain(name).rpartition("/")[2] for name in names]
    theirs: dict[str, list[str]] = {}
    for other in found:
        theirs.setdefault(_plain(other).rpartition("/")[2], []).append(other)
    counts = Counter(bare)
    matched: list[T | None] = []
    for name, stem in zip(names, bare, strict=True):
        same = [name] if name in found else plain.get(_plain(name), [])
        if any(found[other] != found[same[0]] for other in same[1:]):
            raise DatasetError(f"{same[0]!r} and {same[1]!r} both belong to the clip {name!r}; remove one")
        key: str | None = same[0] if same else None
        if key is None and counts[stem] == 1 and len(theirs.get(stem, [])) == 1 and _nested(name, theirs[stem][0]):
            key = theirs[stem][0]
        matched.append(None if key is None else found[key])
    return matched


def _nested(one: str, other: str) -> bool:
    """Whether the folders of one name end those of the other, or are not told."""
    folders = ["/" + _plain(name).rpartition("/")[0] for name in (one, other)]
    return "/" in folders or folders[0].endswith(folders[1]) or folders[1].endswith(folders[0])


def _plain(name: str) -> str:
    """Without the extension of a pose file or a video."""
    head, dot, tail = name.rpartition(".")
    return head if dot and f".{tail.lower()}" in _EXTENSIONS else name


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names, for a note.

    >>> some(["a", "b", "c", "d", "e"])
    "'a', 'b', 'c' and 2 more"
    """
    shown = ", ".join(repr(name[:60]) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
