"""Clips labelled and divided by a split file: the poses that there are, with what the data set's authors say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from slrfast import checks
from slrfast.data.dataset import ClipDataset
from slrfast.data.isolated_lists import SPLITS, Listed, Listing
from slrfast.data.wrapped import WrappedDataset, match, some
from slrfast.errors import DatasetError

_NO_POSE = "the split file lists it, but no pose has this name"


class ListedDataset(WrappedDataset):
    """Clips with the label, split and signer of a split file; made by :func:`split_dataset`.

    Args:
        dataset: any ClipDataset or packed store.
        listed: what is known of each of its clips.
        class_names: one per label.
    Attributes:
        listed: the same.
    """

    def __init__(self, dataset: ClipDataset, listed: Sequence[Listed], class_names: Sequence[str]) -> None:
        super().__init__(dataset)
        checks.require(
            len(listed) == len(dataset), "ListedDataset", "listed", f"have {len(dataset)} entries", len(listed)
        )
        self.listed, self.class_names = list(listed), list(class_names)

    @property
    def labels(self) -> list[int]:
        """One label per clip."""
        return [clip.label for clip in self.listed]

    @property
    def groups(self) -> list[str]:
        """One signer per clip, the other data set's group where the split file knows none."""
        return [clip.signer or group for clip, group in zip(self.listed, self.dataset.groups, strict=True)]

    @property
    def splits(self) -> list[str]:
        """One split per clip."""
        return [clip.split for clip in self.listed]

    def added(self, index: int) -> dict[str, Any]:
        """``label``, ``split`` and, if known, ``group``."""
        clip = self.listed[index]
        known = {"label": clip.label, "split": clip.split}
        return known | ({"group": clip.signer} if clip.signer else {})

    def added_to_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """``label``."""
        return {"label": torch.tensor([self.listed[i].label for i in indices], dtype=torch.int64)}

    def _select(self, indices: Sequence[int]) -> None:
        self.listed = [self.listed[i] for i in indices]


class Split(NamedTuple):
    """The parts of a data set; ``val`` may be empty."""

    train: ListedDataset
    val: ListedDataset
    test: ListedDataset


def split_dataset(
    dataset: ClipDataset,
    listing: Listing,
    *,
    subset: int | None = None,
    train: str | Sequence[str] = ("train",),
    val: str | Sequence[str] = ("val",),
    test: str | Sequence[str] = ("test",),
) -> Split:
    """Divide clips by a split file.

    A listed clip and a pose belong together by name: as it is, without extension, and where that is unambiguous without
    folders. A listed name also counts without all that follows the first dot of its last part, as MASA's authors cut
    ``012/P03_01_12_0._color.mp4``.

    Args:
        dataset: the poses, in any order; those that are not listed are left out and counted.
        listing: what a split file says.
        subset: the first so many classes; None takes all.
        train, val, test: the splits that make up each part. Papers train on ``("train", "val")``, with ``val=()``.
    Returns:
        The three parts; in each, ``skipped`` names the clips without a pose, and ``notes`` counts them.
    Raises:
        DatasetError: no listed clip has a pose, two poses are the same clip, or train or test are empty.
        ValueError: a split that does not exist or belongs to two parts, a subset larger than the list.

    >>> from slrfast.data import SyntheticSigns
    >>> clips = Listed("sign00/000", 0, "go", "train"), Listed("sign01/001.mp4", 1, "stay", "test")
    >>> split = split_dataset(SyntheticSigns(num_classes=2, clips_per_class=2), Listing("list", clips, ("go", "stay")))
    >>> split.test.names, split.test.labels, len(split.val), split.train.notes
    (['sign01/001'], [1], 0, ['2 of 4 poses are not in list'])
    """
    asked = {"train": train, "val": val, "test": test}
    parts = {name: (splits,) if isinstance(splits, str) else tuple(splits) for name, splits in asked.items()}
    for name, splits in parts.items():
        for split in splits:
            checks.choice("split_dataset", SPLITS, **{name: split})
            twice = sum(others.count(split) for others in parts.values()) > 1
            checks.require(not twice, "split_dataset", name, "share no split with another part", repr(split))
    listing = listing if subset is None else listing.first(subset)
    names = dataset.names
    belongs = _belongs(names, listing)
    notes = [*listing.notes]
    unlisted = sum(clip is None for clip in belongs)
    if unlisted:
        notes.append(f"{unlisted} of {len(names)} poses are not in {listing.name}")
    made = {name: _part(dataset, listing, belongs, name, splits, notes) for name, splits in parts.items()}
    return Split(**made)


def _belongs(names: Sequence[str], listing: Listing) -> list[Listed | None]:
    found = {clip.name: clip for clip in listing.clips}
    cut = [_cut(clip.name) for clip in listing.clips]
    times = Counter(cut)
    found |= {
        short: clip for short, clip in zip(cut, listing.clips, strict=True) if times[short] == 1 and short not in found
    }
    belongs = match(names, found)
    first: dict[Listed, str] = {}
    for name, clip in zip(names, belongs, strict=True):
        if clip is not None and first.setdefault(clip, name) != name:
            raise DatasetError(f"{first[clip]!r} and {name!r} both are the clip {clip.name!r} of {listing.name}")
    if not first:
        theirs, ours = some([clip.name for clip in listing.clips], 2), some(names, 2) or "none"
        raise DatasetError(f"{listing.name}: none of its clips has a pose; it lists {theirs}, poses are {ours}")
    return belongs


def _part(
    dataset: ClipDataset,
    listing: Listing,
    belongs: Sequence[Listed | None],
    part: str,
    splits: Sequence[str],
    notes: Sequence[str],
) -> ListedDataset:
    mine = [(i, clip) for i, clip in enumerate(belongs) if clip is not None and clip.split in splits]
    listed = [clip for clip in listing.clips if clip.split in splits]
    if part != "val" and not mine:
        of = " or ".join(map(repr, splits)) or "none"
        there = ", ".join(map(repr, sorted({clip.split for clip in listing.clips})))
        why = f"none of its {len(listed)} clips has a pose" if listed else f"{listing.name} has only {there}"
        raise DatasetError(f"{listing.name}: the {part} part (split {of}) is empty, {why}")
    made = ListedDataset(dataset.subset([i for i, _ in mine]), [clip for _, clip in mine], listing.class_names)
    posed = {clip for _, clip in mine}
    lost = [clip.name for clip in listed if clip not in posed]
    made.skipped = [*dataset.skipped, *((name, _NO_POSE) for name in lost)]
    made.notes = [*dataset.notes, *notes]
    if lost:
        made.notes.append(f"{len(lost)} of {len(listed)} {part} clips have no pose")
    return made


def _cut(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.split(".")[0] or last)
