"""Data sets of pre-processed clips in memory: from a folder, an index file, or the authors' cache of a split."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from slrfast.data.batch import Clip, PoseBatch
from slrfast.data.preprocess import PreprocessOptions
from slrfast.data.sources import (
    Source,
    check_format,
    naming_dead_workers,
    nothing_usable,
    open_source,
    several_people,
    skipped_lines,
)


class ClipDataset(Dataset):
    """A torch map-style data set of clips; use it with ``DataLoader(dataset, collate_fn=PoseBatch.collate)``.

    Attributes:
        clips: sequence of Clip.
        class_names: one name per label.
        skipped: (name, reason) of every file that could not be used.
        notes: what else the reader of the files has to say, such as which of several people was taken.
        options: how the clips were pre-processed, None if unknown.
        made_of: what else decides what a clip holds, by name: a text encoder, texts, a flow; training goes on only with
            the same.
    """

    clips: Sequence[Clip]
    options: PreprocessOptions | None = None

    notes: Sequence[str] = ()
    made_of: Mapping[str, str] = {}

    def __init__(
        self,
        clips: Sequence[Clip],
        class_names: Sequence[str] = (),
        skipped: Sequence[tuple[str, str]] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.clips = [clip if clip.index == i else replace(clip, index=i) for i, clip in enumerate(clips)]
        self.class_names = list(class_names)
        self.skipped = list(skipped)
        self.notes = list(notes)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]

    @property
    def names(self) -> list[str]:
        """One name per clip."""
        return [clip.name for clip in self.clips]

    @property
    def labels(self) -> list[int]:
        """One label per clip, -1 unknown."""
        return [clip.label for clip in self.clips]

    @property
    def groups(self) -> list[str]:
        """One signer or language per clip, "" unknown."""
        return [clip.group for clip in self.clips]

    @property
    def splits(self) -> list[str]:
        """One split ("train", "test" ...) per clip, "" unknown."""
        return [clip.split for clip in self.clips]

    @property
    def lengths(self) -> list[int]:
        """Frames of every clip."""
        return [clip.num_frames for clip in self.clips]

    def batch(self, indices: Sequence[int]) -> PoseBatch:
        """The clips at these positions, packed."""
        return PoseBatch.collate([self[i] for i in indices])

    def subset(self, indices: Iterable[int]) -> ClipDataset:
        """The clips at these positions, with the same class names; clips are shared, their ``index`` is new."""
        subset = ClipDataset([self.clips[i] for i in indices], self.class_names)
        subset.options = self.options
        return subset

    def summary(self) -> str:
        """Counts in words, and the first files that were skipped with the reason."""
        frames, labels = self.lengths, self.labels
        groups = {group for group in self.groups if group}
        text = f"{len(self)} clips, {sum(frames)} frames (median {int(np.median(frames)) if frames else 0})"
        text += f", {sum(label >= 0 for label in labels)} labelled with {len(set(labels) - {-1})} classes"
        text += f", {len(groups)} groups" if groups else ""
        text += "".join(f"\n{line}" for line in (*self.notes, *skipped_lines(self.skipped)))
        return text


class PoseDataset(ClipDataset):
    """Real clips from files, read and pre-processed once; or, for the folder of a packed store, a :class:`PoseStore`.

    Args:
        source: a folder (its sub-folders are the classes; files directly inside have label -1; symbolic links that lead
            out of it are skipped), a CSV index with the columns path and, all optional, label, split and group (paths
            relative to the index), an author-style pickle of a whole split, a PYSKL data set, or what ``pack`` wrote.
        format: as for ``load_pose``.
        split: keep only these rows of an index, or these clips of a store.
        path_column, label_column, split_column, group_column: the index's column names.
        options: pre-processing.
        workers: processes that read; 0 reads here.
        progress: show a progress bar.
    Raises:
        DatasetError: the source does not exist, holds no pose files, or none of them can be used. Otherwise unusable
            files are left out, named in ``skipped`` and counted in one warning.

    >>> from slrfast.data import SyntheticSigns
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = SyntheticSigns(num_classes=2, clips_per_class=2).save(folder, "npz")
    ...     PoseDataset(folder).class_names
    ['sign00', 'sign01']
    """

    def __new__(cls, source: Any = None, *_: Any, **__: Any) -> PoseDataset:
        from slrfast.data.store import PoseStore, looks_packed

        packed = cls is PoseDataset and source is not None and looks_packed(source)
        return super().__new__(PoseStore if packed else cls)

    def __init__(
        self,
        source: str | os.PathLike,
        *,
        format: str = "auto",
        split: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        split_column: str = "split",
        group_column: str = "group",
        options: PreprocessOptions | None = None,
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        check_format("PoseDataset", format)
        columns = (path_column, label_column, split_column, group_column)
        options = options or PreprocessOptions()
        super().__init__(*read(open_source(source, format, split, columns, options), workers, progress))
        self.options = options


def read(
    source: Source, workers: int = 0, progress: bool = False
) -> tuple[list[Clip], Sequence[str], list[tuple[str, str]], list[str]]:
    """All clips of a source, its class names, what was skipped, and notes; DatasetError if not one clip can be used."""
    clips: list[Clip] = []
    chosen: list[str] = []
    skipped: list[tuple[str, str]] = []
    with naming_dead_workers(source.name, "reading"):
        for entry, (xy, confidence, reason) in source.stream(workers=workers, progress=progress):
            if xy is None or confidence is None:
                skipped.append((entry.name, reason))
            else:
                arrays = torch.from_numpy(xy), torch.from_numpy(confidence)
                clips.append(Clip(*arrays, entry.label, entry.name, entry.group, split=entry.split))
                chosen += [reason] if reason else []
    if not clips:
        raise nothing_usable(source, skipped)
    if skipped:
        warnings.warn(f"{source.name}: " + "\n".join(skipped_lines(skipped)), stacklevel=3)
    return clips, source.class_names, skipped, several_people(chosen)
