"""The packed store: one folder of memory-mapped arrays with the pre-processed clips of a data set, read without copies.

    slrfast-store.json   format, versions, provenance, class names, and a digest of all files but the first two arrays
    xy.npy               [F, V, 2] float32 or float16, all clips one after another
    confidence.npy       [F, V]
    offsets.npy          [N + 1] int64: clip n is rows offsets[n] to offsets[n + 1]
    label.npy            [N] int64, -1 unknown
    crc32.npy            [N, 2] uint32: checksums of a clip's bytes in xy.npy and in confidence.npy
    clips.json           names, groups and splits of the clips, and the files that were skipped

``data.pack`` writes it. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy

from slrfast import checks, graphs
from slrfast.data.batch import Clip, PoseBatch
from slrfast.data.dataset import PoseDataset
from slrfast.data.preprocess import PreprocessOptions
from slrfast.errors import DatasetError

METADATA, JOURNAL, CLIPS = "slrfast-store.json", "slrfast-journal.jsonl", "clips.json"
INDEX: dict[str, np.dtype] = {
    "offsets.npy": np.dtype("<i8"),
    "label.npy": np.dtype("<i8"),
    "crc32.npy": np.dtype("<u4"),
}
FRAMES = ("xy.npy", "confidence.npy")
FORMAT, VERSION = "slrfast packed poses", 1
DTYPES = ("float32", "float16")
_MAX_JSON, _MAX_HEADER = 1 << 31, 1 << 14
_KINDS = {
    "clips": int, "frames": int, "keypoints": int, "dtype": str, "class_names": list, "digest": str,
}  # fmt: skip


def looks_packed(source: str | os.PathLike) -> bool:
    """Whether a folder is a store, whole or not, rather than a folder of pose files."""
    folder = Path(source)
    return any((folder / name).is_file() for name in (METADATA, JOURNAL, "crc32.npy"))


def plain(options: PreprocessOptions | None) -> dict[str, Any] | None:
    """Options as JSON gives them back."""
    return None if options is None else json.loads(json.dumps(asdict(options)))


def digest(folder: Path, metadata: Mapping[str, Any]) -> str:
    """SHA-256 of the metadata and of every file but the frames, whose clips have their own checksums."""
    told = {key: value for key, value in metadata.items() if key != "digest"}
    total = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in (*INDEX, CLIPS):
        part = hashlib.sha256()
        with _reading(folder / name) as file:
            while data := file.read(1 << 20):
                part.update(data)
        total.update(part.digest())
    return total.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """A file of the store, open; DatasetError if there is none, or it is a pipe or a device, which may have no end."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DatasetError(f"{path}: cannot be read (it is a pipe or a device)")
            if path.suffix == ".json" and status.st_size > _MAX_JSON:
                raise DatasetError(f"{path}: is damaged (it has {status.st_size} bytes)")
            yield file
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error


@dataclass(frozen=True, eq=False)
class _Contents:
    """An open store; ``verified`` says which clips' checksums this process has compared."""

    path: Path
    metadata: dict[str, Any]
    xy: np.ndarray
    confidence: np.ndarray
    offsets: np.ndarray
    label: np.ndarray
    crc32: np.ndarray
    names: list[str]
    groups: list[str]
    splits: list[str]
    skipped: list[tuple[str, str]]
    notes: list[str]
    options: PreprocessOptions | None
    verified: np.ndarray

    def verify(self, rows: np.ndarray) -> None:
        """Compare the checksums of clips that have not been read before; DatasetError for the first that is wrong."""
        for row in rows[~self.verified[rows]].tolist():
            start, stop = self.offsets[row : row + 2].tolist()
            for name, array, wanted in zip(FRAMES, (self.xy, self.confidence), self.crc32[row].tolist(), strict=True):
                if zlib.crc32(array[start:stop].data) != wanted:
                    where = f"{self.path / name}: clip {self.names[row]!r} (frames {start} to {stop - 1})"
                    raise DatasetError(f"{where} is damaged, its checksum is wrong; pack the source again")
            self.verified[row] = True


class PoseStore(PoseDataset):
    """The clips of a packed store; ``PoseDataset(folder)`` makes one.

    Clips and batches are slices of memory-mapped files, so a data set may be larger than memory, opens at once and is
    shared by all loader workers, forked or spawned. Each clip's checksum is compared when a process first reads it. A
    clip has the store's dtype; writing to its tensors does not change the files. A batch is float32.

    Args:
        source: the folder that ``pack`` wrote.
        split: keep only these clips.
        options: None, or the options that the store must have been packed with.
    Raises:
        DatasetError: when opened: a file is missing, cut short, altered or of another version, the store is unfinished,
            or was packed with other options; when read: a clip is damaged. It names the file, and the clip.

    >>> from slrfast.data import SyntheticSigns, pack
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = pack(SyntheticSigns(num_classes=2, clips_per_class=2), folder + "/signs")
    ...     len(store), store.batch([3, 1]).label.tolist()
    (4, [1, 0])
    """

    def __init__(
        self,
        source: str | os.PathLike,
        *,
        split: str | None = None,
        options: PreprocessOptions | None = None,
        **_: Any,
    ) -> None:
        contents = _open(Path(source))
        rows = np.arange(len(contents.names))
        if split is not None:
            rows = np.array([row for row, name in enumerate(contents.splits) if name == split], np.int64)
            if not len(rows):
                known = ", ".join(map(repr, sorted(set(contents.splits))))
                raise DatasetError(f"{source}: no clip has the split {split!r}; there are {known}")
        _check_options(contents, options)
        self._show(contents, rows)
        self.skipped, self.notes = list(contents.skipped), list(contents.notes)

    def _show(self, contents: _Contents, rows: np.ndarray) -> None:
        self._contents, self._rows = contents, rows
        self._xy, self._confidence = map(torch.from_numpy, (contents.xy, contents.confidence))
        self.class_names = list(contents.metadata["class_names"])
        self.skipped, self.notes = [], []
        self.options = contents.options

    def __reduce__(self) -> tuple:
        # a spawned worker opens the files again instead of receiving what they hold
        contents = self._contents
        rows = None if np.array_equal(self._rows, np.arange(len(contents.names))) else self._rows
        return _reopen, (os.fspath(contents.path.absolute()), contents.metadata["digest"], rows, self.skipped)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._contents.path

    @property
    def metadata(self) -> dict[str, Any]:
        """What slrfast-store.json says: format, source, counts, dtype, pre-processing options."""
        return self._contents.metadata

    @property
    def clips(self) -> Sequence[Clip]:  # type: ignore[override]
        """The data set itself, which reads a clip when it is asked for."""
        return self  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Clip:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Clip]:
        """Several clips at once, which is how a DataLoader asks for a batch."""
        contents, rows = self._contents, self._verified(indices)
        return [
            Clip(
                self._xy[start:stop],
                self._confidence[start:stop],
                label,
                contents.names[row],
                contents.groups[row],
                int(index) % len(self),
                contents.splits[row],
            )
            for index, row, start, stop, label in zip(
                indices,
                rows.tolist(),
                contents.offsets[rows].tolist(),
                contents.offsets[rows + 1].tolist(),
                contents.label[rows].tolist(),
                strict=True,
            )
        ]

    def batch(self, indices: Sequence[int]) -> PoseBatch:
        """The clips at these positions, packed straight from the files into one float32 batch."""
        checks.require(len(indices) > 0, "PoseStore.batch", "indices", "name at least one clip", len(indices))
        rows = self._verified(indices)
        first, last = self._contents.offsets[rows], self._contents.offsets[rows + 1]
        places = list(zip(first.tolist(), last.tolist(), strict=True))
        offsets = np.concatenate(([0], np.cumsum(last - first)))
        return PoseBatch(
            torch.cat([self._xy[start:stop] for start, stop in places]).float(),
            torch.cat([self._confidence[start:stop] for start, stop in places]).float(),
            torch.from_numpy(offsets),
            torch.from_numpy(self._contents.label[rows]),
            torch.from_numpy(np.asarray(indices, np.int64) % len(self)),
        )

    def _verified(self, indices: Sequence[int]) -> np.ndarray:
        rows = self._rows[np.asarray(indices, np.int64)]
        self._contents.verify(rows)
        return rows

    @property
    def names(self) -> list[str]:
        """One name per clip."""
        return [self._contents.names[row] for row in self._rows.tolist()]

    @property
    def labels(self) -> list[int]:
        """One label per clip, -1 unknown."""
        return self._contents.label[self._rows].tolist()

    @property
    def groups(self) -> list[str]:
        """One signer or language per clip, "" unknown."""
        return [self._contents.groups[row] for row in self._rows.tolist()]

    @property
    def splits(self) -> list[str]:
        """One split per clip, "" unknown."""
        return [self._contents.splits[row] for row in self._rows.tolist()]

    @property
    def lengths(self) -> list[int]:
        """Frames of every clip."""
        return np.diff(self._contents.offsets)[self._rows].tolist()

    def checksums(self) -> list[tuple[int, int]]:
        """What the frames of every clip must sum up to; equal for equal clips, without reading them."""
        return [(xy, confidence) for xy, confidence in self._contents.crc32[self._rows].tolist()]

    def subset(self, indices: Iterable[int]) -> PoseStore:
        """The clips at these positions, with the same class names; the files are shared, ``index`` is new."""
        subset = object.__new__(PoseStore)
        subset._show(self._contents, self._rows[np.asarray(list(indices), np.int64)])
        return subset


def _reopen(path: str, wanted: str, rows: np.ndarray | None, skipped: list[tuple[str, str]]) -> PoseStore:
    store = PoseStore(path)
    if store.metadata["digest"] != wanted:
        raise DatasetError(f"{path}: was packed again while it was in use")
    if rows is not None:
        store = store.subset(rows)
    store.skipped = skipped
    return store


def _open(folder: Path) -> _Contents:
    metadata = _metadata(folder)
    clips, frames, keypoints = metadata["clips"], metadata["frames"], metadata["keypoints"]
    shapes = {"offsets.npy": (clips + 1,), "label.npy": (clips,), "crc32.npy": (clips, 2)}
    index = [_map(folder / name, shapes[name], dtype) for name, dtype in INDEX.items()]  # of this size, so not endless
    if digest(folder, metadata) != metadata["digest"]:
        raise DatasetError(f"{folder}: {METADATA}, {CLIPS} or an index array was altered; pack the source again")
    offsets, label, crc32 = map(np.array, index)
    if offsets[0] != 0 or offsets[-1] != frames or (np.diff(offsets) < 1).any():
        raise DatasetError(f"{folder / 'offsets.npy'}: must rise from 0 to the {frames} frames, one or more per clip")
    if label.min() < -1 or label.max() >= len(metadata["class_names"]):
        raise DatasetError(f"{folder / 'label.npy'}: labels must be in [-1, {len(metadata['class_names']) - 1}]")
    dtype = np.dtype(metadata["dtype"]).newbyteorder("<")
    shape = (frames, keypoints)
    xy, confidence = _map(folder / "xy.npy", (*shape, 2), dtype), _map(folder / "confidence.npy", shape, dtype)
    told = _json(folder / CLIPS)
    names, groups, splits = (_texts(folder / CLIPS, told, key, clips) for key in ("names", "groups", "splits"))
    skipped = list(zip(*(_texts(folder / CLIPS, told, key) for key in ("skipped", "reasons")), strict=False))
    notes = _texts(folder / CLIPS, told, "notes")
    options, verified = _options(folder, metadata.get("preprocess")), np.zeros(clips, bool)
    return _Contents(
        folder,
        metadata,
        xy,
        confidence,
        offsets,
        label,
        crc32,
        names,
        groups,
        splits,
        skipped,
        notes,
        options,
        verified,
    )


def _metadata(folder: Path) -> dict[str, Any]:
    if not (folder / METADATA).is_file():
        if (folder / JOURNAL).is_file():
            raise DatasetError(f"{folder}: is an unfinished store; run the same slrfast pack again to finish it")
        raise DatasetError(f"{folder}: {METADATA} is missing, so this is no packed store")
    metadata = _json(folder / METADATA)
    if metadata.get("format") != FORMAT:
        raise DatasetError(f"{folder / METADATA}: was not written by slrfast pack")
    found = metadata.get("version")
    if type(found) is not int or found != VERSION:
        remedy = "update slrfast or pack again" if type(found) is int and found > VERSION else "pack again"
        raise DatasetError(
            f"{folder}: is a store of version {str(found)[:20]}, this slrfast reads version {VERSION}; {remedy}"
        )
    for key, kind in _KINDS.items():
        if type(metadata.get(key)) is not kind:
            raise DatasetError(f"{folder / METADATA}: {key!r} must be {kind.__name__}, got {metadata.get(key)!r:.40}")
    _texts(folder / METADATA, metadata, "class_names")
    if metadata["clips"] < 1 or metadata["frames"] < 1 or metadata["dtype"] not in DTYPES:
        raise DatasetError(f"{folder / METADATA}: says {metadata['clips']} clips of dtype {metadata['dtype']:.20}")
    if metadata["keypoints"] not in graphs.LAYOUTS:
        raise DatasetError(f"{folder / METADATA}: no layout has {metadata['keypoints']} keypoints")
    return metadata


def _json(path: Path) -> dict[str, Any]:
    with _reading(path) as file:
        content = file.read()
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is damaged ({' '.join(str(error).split())[:80]})") from error
    if not isinstance(values, dict):
        raise DatasetError(f"{path}: is damaged (no mapping)")
    return values


def _texts(path: Path, values: Mapping[str, Any], key: str, count: int | None = None) -> list[str]:
    texts = values.get(key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DatasetError(f"{path}: {key!r} must be a list of texts")
    if count not in (None, len(texts)):
        raise DatasetError(f"{path}: {key!r} must be one text for each of {count} clips, got {len(texts)}")
    return texts


def _options(folder: Path, told: Any) -> PreprocessOptions | None:
    if told is None:
        return None
    try:
        if not isinstance(told, dict):
            raise TypeError(f"a {type(told).__name__}")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in told.items()}
        return PreprocessOptions(**values)
    except (TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"{folder / METADATA}: has pre-processing options of another kind ({error})") from error


def _map(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An .npy file, mapped so that its pages are shared, and what is written to the array stays in this process."""
    try:
        with _reading(path) as file:
            head, size = io.BytesIO(file.read(_MAX_HEADER)), os.fstat(file.fileno()).st_size
        major, _ = npy.read_magic(head)
        read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
        found, fortran, kind = read(head)
        start = head.tell()
        if (found, fortran, kind) != (shape, False, dtype):
            raise DatasetError(f"{path}: must hold {dtype} {list(shape)}, got {kind} {list(found)}")
        needed = start + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size != needed:
            state = "cut short" if size < needed else "altered"
            raise DatasetError(f"{path}: is {state}, it has {size} bytes instead of {needed}; pack the source again")
        return np.asarray(np.memmap(path, dtype, "c", start, shape))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DatasetError:
        raise
    except Exception as error:  # a header is an expression, and parsing a hostile one raises nearly anything
        raise DatasetError(f"{path}: is no .npy file ({' '.join(str(error).split())[:80]})") from error


def _check_options(contents: _Contents, wanted: PreprocessOptions | None) -> None:
    if wanted is None or contents.options == wanted:
        return
    told, asked = contents.metadata["preprocess"], plain(wanted) or {}
    if told is None:
        raise DatasetError(f"{contents.path}: does not say how its clips were pre-processed; leave the options out")
    name = next(key for key in asked if asked[key] != told.get(key))
    difference = f"{name} {told.get(name)}, not {asked[name]}"
    raise DatasetError(f"{contents.path}: was packed with {difference}; leave the option out or pack again")
