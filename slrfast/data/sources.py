"""Where clips come from: a folder, an index file, the authors' cache of a split or PYSKL's; read one by one."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from slrfast import checks
from slrfast.data.formats import FORMATS, load_pose, pyskl, suffixes
from slrfast.data.formats.base import Asked, printable, reading
from slrfast.data.formats.mmpose_pickle import from_video, read_cache
from slrfast.data.pose import Pose, image_size
from slrfast.data.preprocess import PreprocessOptions, Selected, normalise, person_rule, select
from slrfast.errors import DatasetError, PoseFileError, one_line

_LISTED, _CHUNK = 10, 16
MAX_CLASSES = 1_000_000
_UNANNOTATED = "a split names it, but it has no annotation"

Read = tuple[np.ndarray | None, np.ndarray | None, str]
"""What reading a clip gives: positions, confidences and, if several people are there, which one was taken; or None,
None and why not."""


@dataclass(frozen=True)
class Entry:
    """One clip that is still to be read: a file, a video's dict out of a cache, or why there is nothing to read."""

    name: str
    label: int = -1
    group: str = ""
    path: Path | None = None
    video: Any = None
    size: Any = None
    split: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Source:
    """Clips that are still to be read.

    Attributes:
        name: for messages.
        entries: in the order of the data set.
        class_names: one name per label.
        reader: map-style, position -> Read.
        content: what else the clips depend on: changes when a file that holds all of them does.
        notes: what is known about the reading already.
    """

    name: str
    entries: Sequence[Entry]
    class_names: Sequence[str]
    reader: Dataset
    content: str = ""
    notes: Sequence[str] = ()

    def stream(self, first: int = 0, workers: int = 0, progress: bool = False) -> Iterator[tuple[Entry, Read]]:
        """Read and pre-process the entries from ``first`` on, in order; none is kept."""
        places = range(first, len(self.entries))
        together = _CHUNK if hasattr(self.reader, "__getitems__") else 1
        loader = DataLoader(
            self.reader,
            batch_sampler=[list(places[i : i + together]) for i in range(0, len(places), together)],
            num_workers=workers,
            collate_fn=_as_is,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # else the loader draws from torch's global one
        )
        entries = iter(self.entries[first:])
        bar = tqdm(None, "reading poses", len(self.entries), initial=first, unit=" clips", disable=not progress)
        try:
            with bar:
                for reads in loader:
                    for read in reads:
                        yield next(entries), read
                        bar.update()
        except RuntimeError as error:  # the loader's word for a worker that was killed
            if not workers:
                raise
            raise DatasetError(f"{self.name}: a reading process ended ({str(error).splitlines()[0]})") from error


def open_source(
    source: str | os.PathLike,
    format: str = "auto",
    split: str | None = None,
    columns: Sequence[str] = ("path", "label", "split", "group"),
    options: PreprocessOptions | None = None,
) -> Source:
    """List the clips of a folder, a CSV index with these columns (path, label, split, group) or a cache of videos.

    Raises:
        DatasetError: there is no such source, it holds no pose files, or it has no rows of the split.
    """
    path, content = Path(source), ""
    if path.is_dir():
        entries, class_names = _from_folder(path, format)
    elif not path.is_file():
        raise DatasetError(f"{path}: there is no such file or folder")
    elif path.suffix.lower() in (".pkl", ".pickle"):
        entries, class_names = _from_cache(path, split)
        content, split = stamp(path), None
    else:
        entries, class_names = _from_index(path, columns, split)
        split = None
    if split is not None:
        raise DatasetError(f"{path}: split={split!r} needs an index file with a column {columns[2]!r}")
    return files(str(path), entries, class_names, format, options or PreprocessOptions(), content)


def files(
    name: str,
    entries: Sequence[Entry],
    class_names: Sequence[str],
    format: str,
    options: PreprocessOptions,
    content: str = "",
) -> Source:
    """The source of listed entries; DatasetError if there are none."""
    if not entries:
        raise DatasetError(f"{name}: there are no pose files")
    return Source(name, entries, class_names, _Reader(entries, format, options), content)


def stamp(path: Path) -> str:
    """Size and time of a file's last change, "" if there is none: equal as long as nobody wrote to it."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def nothing_usable(source: Source, skipped: Sequence[tuple[str, str]]) -> DatasetError:
    """The error for a source of which every clip was skipped."""
    name, reason = skipped[0]
    count = len(source.entries)
    return DatasetError(f"{source.name}: none of the {count} pose files can be used; the first, {name}: {reason}")


def skipped_lines(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """The first files that were skipped, with the reason, one a line."""
    if not skipped:
        return []
    lines = [f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} skipped:"]
    lines += [f"  {one_line(name)}: {one_line(reason)}" for name, reason in skipped[:_LISTED]]
    return lines + ([f"  and {len(skipped) - _LISTED} more"] if len(skipped) > _LISTED else [])


def several_people(chosen: Sequence[str]) -> list[str]:
    """A line on the clips that show several people, from the rule by which one of each was taken."""
    if not chosen:
        return []
    files = "1 file shows" if len(chosen) == 1 else f"{len(chosen)} files show"
    return [f"{files} several people, of whom {chosen[0]} was taken; PreprocessOptions(person=...) chooses another"]


def _as_is(item: Any) -> Any:
    return item


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; only the parent answers, and its workers end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Reader(Dataset):
    """Position -> Read of an entry; NumPy, so that workers send bytes, not file handles."""

    def __init__(self, entries: Sequence[Entry], format: str, options: PreprocessOptions) -> None:
        self.entries, self.format, self.options = entries, format, options

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> Read:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Read]:
        """Several clips at once: the boxes of all hands are found in one go."""
        found: dict[int, Read] = {}
        selected: dict[int, Selected] = {}
        note: dict[int, str] = {}
        for i in indices:
            try:
                pose = self.pose(self.entries[i])
                selected[i] = select(pose, self.options)
                note[i] = person_rule(self.options.person) if pose.num_people > 1 else ""
            except PoseFileError as error:
                found[i] = None, None, error.reason
        clips = normalise(list(selected.values()), self.options) if selected else []
        for i, clip in zip(selected, clips, strict=True):
            found[i] = (None, None, clip.reason) if isinstance(clip, PoseFileError) else (*clip, note[i])
        return [found[i] for i in indices]

    def pose(self, entry: Entry) -> Pose:
        """What an entry's file holds, before pre-processing; PoseFileError if it cannot be used."""
        asked = self.options
        if entry.refused:
            raise PoseFileError(entry.name, entry.refused)
        if entry.path is not None:
            return load_pose(entry.path, self.format, size=asked.size, drop_last=asked.drop_last, units=asked.units)
        with reading(entry.name):
            size = image_size(entry.name, entry.size) or asked.size
            return from_video(entry.name, entry.video, Asked(size, asked.drop_last, asked.units))


def _from_folder(folder: Path, format: str) -> tuple[list[Entry], list[str]]:
    """Every pose file below a folder; what a symbolic link leads out to is refused, and no linked folder is entered."""
    wanted, root = suffixes(format), folder.resolve()
    found: dict[Path, str] = {}
    for file in folder.rglob("*"):
        linked = file.is_symlink()
        if linked and file.is_dir():
            found[file.relative_to(folder)] = "is a symbolic link to a folder, and such are not followed"
        elif file.suffix.lower() in wanted and (linked or file.is_file()):
            inside = not linked or _real(file).is_relative_to(root)
            found[file.relative_to(folder)] = "" if inside else "is a symbolic link that leads out of the folder"
    listed = sorted(
        (file for file in found if not any(part.startswith(".") for part in file.parts)), key=lambda file: file.parts
    )
    class_names = sorted({file.parts[0] for file in listed if len(file.parts) > 1})
    label = {name: i for i, name in enumerate(class_names)}
    entries = [
        Entry(
            file.as_posix(),
            label[file.parts[0]] if len(file.parts) > 1 else -1,
            path=folder / file,
            refused=found[file],
        )
        for file in listed
    ]
    return entries, class_names


def _real(path: Path) -> Path:
    """Where a link leads in the end; itself when it leads in circles."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _from_cache(path: Path, split: str | None) -> tuple[list[Entry], list[str]]:
    try:
        with reading(path):
            cache = read_cache(path)
            listed = pyskl.videos(str(path), cache, split) if pyskl.is_data_set(cache) else None
    except PoseFileError as error:
        raise DatasetError(str(error)) from error
    if listed is not None:
        entries = [
            Entry(
                printable(v.name), _label(v.label), video=v.annotation, split=v.split, refused=v.missing * _UNANNOTATED
            )
            for v in listed
        ]
    elif split is not None:
        raise DatasetError(f"{path}: split={split!r} needs a PYSKL data set or an index file with such a column")
    else:
        videos = {printable(str(name)): video if isinstance(video, dict) else {} for name, video in cache.items()}
        entries = [
            Entry(name, _label(video.get("label")), video=video.get("video_data"), size=_array(video.get("img_size")))
            for name, video in videos.items()
        ]
    return entries, [str(i) for i in range(max((entry.label for entry in entries), default=-1) + 1)]


def _label(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < MAX_CLASSES else -1


def _array(value: object) -> np.ndarray | None:
    return value if isinstance(value, np.ndarray) else None


def _from_index(path: Path, columns: Sequence[str], split: str | None) -> tuple[list[Entry], list[str]]:
    path_column, label_column, split_column, group_column = columns
    rows = read_csv(path, [path_column] + ([split_column] if split is not None else []))
    labels = [(row.get(label_column) or "").strip() for row in rows]
    label_of, class_names = number_labels(labels)
    splits = sorted({row.get(split_column) or "" for row in rows})
    entries = [
        Entry(
            row[path_column],
            label_of[label],
            row.get(group_column) or "",
            path.parent / row[path_column],
            split=row.get(split_column) or "",
        )
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


def check_format(op: str, format: str) -> None:
    """ValueError unless it is "auto" or a known format."""
    checks.choice(op, ("auto", *FORMATS), format=format)
