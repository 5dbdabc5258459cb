"""Data sets of pre-processed clips in memory: from a folder, an index file, or the authors' cache of a split."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from slrfast import checks
from slrfast.data.batch import Clip
from slrfast.data.formats import FORMATS, load_pose, suffixes
from slrfast.data.formats.base import reading
from slrfast.data.formats.mmpose_pickle import from_video, read_cache
from slrfast.data.pose import image_size
from slrfast.data.preprocess import PreprocessOptions, arrays
from slrfast.errors import DatasetError, PoseFileError

_LISTED = 10
_MAX_CLASSES = 1_000_000
_Self = TypeVar("_Self", bound="ClipDataset")


class ClipDataset(Dataset):
    """A torch map-style data set of clips; use it with ``DataLoader(dataset, collate_fn=PoseBatch.collate)``.

    Attributes:
        clips: list of Clip.
        class_names: one name per label.
        skipped: (name, reason) of every file that could not be used.
    """

    def __init__(
        self, clips: Sequence[Clip], class_names: Sequence[str] = (), skipped: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.clips = [clip if clip.index == i else replace(clip, index=i) for i, clip in enumerate(clips)]
        self.class_names = list(class_names)
        self.skipped = list(skipped)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]

    @property
    def labels(self) -> list[int]:
        """One label per clip, -1 unknown."""
        return [clip.label for clip in self.clips]

    @property
    def groups(self) -> list[str]:
        """One signer or language per clip, "" unknown."""
        return [clip.group for clip in self.clips]

    def subset(self, indices: Iterable[int]) -> ClipDataset:
        """The clips at these positions, with the same class names; clips are shared, their ``index`` is new."""
        return ClipDataset([self.clips[i] for i in indices], self.class_names)

    def summary(self) -> str:
        """Counts in words, and the first files that were skipped with the reason."""
        frames = [clip.num_frames for clip in self.clips]
        labelled = sum(label >= 0 for label in self.labels)
        groups = {group for group in self.groups if group}
        text = f"{len(self)} clips, {sum(frames)} frames (median {int(np.median(frames)) if frames else 0})"
        text += f", {labelled} labelled with {len({label for label in self.labels if label >= 0})} classes"
        text += f", {len(groups)} groups" if groups else ""
        text += "".join(f"\n{line}" for line in _skipped_lines(self.skipped))
        return text


def _skipped_lines(skipped: Sequence[tuple[str, str]]) -> list[str]:
    if not skipped:
        return []
    lines = [f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} skipped:"]
    lines += [f"  {name}: {reason}" for name, reason in skipped[:_LISTED]]
    return lines + ([f"  and {len(skipped) - _LISTED} more"] if len(skipped) > _LISTED else [])


class PoseDataset(ClipDataset):
    """Real clips from files, read and pre-processed once.

    Args:
        source: a folder (its sub-folders are the classes; files directly inside have label -1), a CSV index with the
            columns path and, all optional, label, split and group (paths relative to the index), or an author-style
            pickle of a whole split.
        format: as for ``load_pose``.
        split: keep only these rows of an index.
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
        checks.choice("PoseDataset", ("auto", *FORMATS), format=format)
        source, options = Path(source), options or PreprocessOptions()
        if source.is_dir():
            entries, class_names = _from_folder(source, format)
        elif not source.is_file():
            raise DatasetError(f"{source}: there is no such file or folder")
        elif source.suffix.lower() in (".pkl", ".pickle"):
            entries, class_names = _from_cache(source)
        else:
            columns = (path_column, label_column, split_column, group_column)
            entries, class_names = _from_index(source, columns, split)
            split = None
        if split is not None:
            raise DatasetError(f"{source}: split={split!r} needs an index file with a column {split_column!r}")
        super().__init__(*read(str(source), entries, format, options, workers, progress, class_names))


@dataclass(frozen=True)
class Entry:
    """One clip that is still to be read: a file, or a video's dict out of a cache."""

    name: str
    label: int = -1
    group: str = ""
    path: Path | None = None
    video: Any = None
    size: Any = None


def read(
    source: str,
    entries: Sequence[Entry],
    format: str,
    options: PreprocessOptions,
    workers: int,
    progress: bool,
    class_names: Sequence[str],
) -> tuple[list[Clip], list[str], list[tuple[str, str]]]:
    """Read and pre-process entries in order: clips, class names, skipped. DatasetError if not one can be used."""
    if not entries:
        raise DatasetError(f"{source}: there are no pose files")
    loader = DataLoader(
        _Reader(entries, format, options),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        generator=torch.Generator(),  # else the loader draws from torch's global one
    )
    loaded = tqdm(loader, "reading poses", total=len(entries), disable=not progress)
    clips: list[Clip] = []
    skipped: list[tuple[str, str]] = []
    for entry, (xy, confidence, reason) in zip(entries, loaded, strict=True):
        if reason:
            skipped.append((entry.name, reason))
        else:
            arrays = torch.from_numpy(xy), torch.from_numpy(confidence)
            clips.append(Clip(*arrays, entry.label, entry.name, entry.group))
    if not clips:
        name, reason = skipped[0]
        raise DatasetError(f"{source}: none of the {len(entries)} pose files can be used; the first, {name}: {reason}")
    if skipped:
        warnings.warn(f"{source}: " + "\n".join(_skipped_lines(skipped)), stacklevel=3)
    return clips, list(class_names), skipped


def _as_is(item: Any) -> Any:
    return item


class _Reader(Dataset):
    """Entry -> (xy, confidence, "") or (None, None, why not); NumPy, so that workers send bytes, not file handles."""

    def __init__(self, entries: Sequence[Entry], format: str, options: PreprocessOptions) -> None:
        self.entries, self.format, self.options = entries, format, options

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> tuple[np.ndarray | None, np.ndarray | None, str]:
        entry, options = self.entries[i], self.options
        try:
            if entry.path is not None:
                pose = load_pose(entry.path, self.format, size=options.size, drop_last=options.drop_last)
            else:
                with reading(entry.name):
                    size = image_size(entry.name, entry.size)
                    pose = from_video(entry.name, entry.video, size, options.drop_last)
            return *arrays(pose, options), ""
        except PoseFileError as error:
            return None, None, error.reason


def _from_folder(folder: Path, format: str) -> tuple[list[Entry], list[str]]:
    wanted = suffixes(format)
    files = sorted(
        (file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in wanted and file.is_file()),
        key=lambda file: file.parts,
    )
    files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    class_names = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    label = {name: i for i, name in enumerate(class_names)}
    entries = [
        Entry(file.as_posix(), label[file.parts[0]] if len(file.parts) > 1 else -1, path=folder / file)
        for file in files
    ]
    return entries, class_names


def _from_cache(path: Path) -> tuple[list[Entry], list[str]]:
    try:
        with reading(path):
            cache = read_cache(path)
    except PoseFileError as error:
        raise DatasetError(str(error)) from error
    entries = []
    for name, video in cache.items():
        video = video if isinstance(video, dict) else {}
        label = video.get("label", -1)
        label = label if isinstance(label, int) and 0 <= label < _MAX_CLASSES else -1
        size = video.get("img_size") if isinstance(video.get("img_size"), np.ndarray) else None
        entries.append(Entry(str(name), label, video=video.get("video_data"), size=size))
    return entries, [str(i) for i in range(max((entry.label for entry in entries), default=-1) + 1)]


def _from_index(path: Path, columns: tuple[str, str, str, str], split: str | None) -> tuple[list[Entry], list[str]]:
    path_column, label_column, split_column, group_column = columns
    rows = read_csv(path, [path_column] + ([split_column] if split is not None else []))
    labels = [(row.get(label_column) or "").strip() for row in rows]
    label_of, class_names = number_labels(labels)
    splits = sorted({row.get(split_column) or "" for row in rows})
    entries = [
        Entry(row[path_column], label_of[label], row.get(group_column) or "", path.parent / row[path_column])
        for row, label in zip(rows, labels, strict=True)
        if split is None or row[split_column] == split
    ]
    if rows and not entries:
        raise DatasetError(f"{path}: no row has the split {split!r}; there are {', '.join(map(repr, splits))}")
    return entries, class_names


def read_csv(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; DatasetError if it is none or a required column or cell is missing."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names, rows = reader.fieldnames or [], list(reader)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: is no index file of comma-separated values ({error})") from error
    for column in required:
        if column not in names:
            raise DatasetError(f"{path}: the column {column!r} is missing, found {', '.join(map(repr, names[:8]))}")
        for i, row in enumerate(rows):
            if not row[column]:
                raise DatasetError(f"{path}: row {i + 1} has nothing in column {column!r}")
    return rows


def number_labels(labels: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Label text -> class index, and the class names. Whole numbers stay what they are; "" and "-1" are unknown."""
    known = sorted(set(labels) - {"", "-1"})
    label_of = {"": -1, "-1": -1}
    if all(name.isascii() and name.isdigit() and len(name) < 7 for name in known):
        label_of.update((name, int(name)) for name in known)
        return label_of, [str(i) for i in range(max(label_of.values()) + 1)]
    label_of.update((name, i) for i, name in enumerate(known))
    return label_of, known
