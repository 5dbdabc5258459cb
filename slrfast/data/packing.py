"""Writing a packed store: clip after clip, so that neither memory nor an interruption limits its size.

The store grows in the folder ``<out>.packing``: frames are appended to the arrays, then a line to a journal says so.
What a kill leaves behind the last whole line is cut off when packing goes on. The folder gets its name at the very end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

import slrfast
from slrfast import checks, graphs
from slrfast.data.dataset import ClipDataset
from slrfast.data.preprocess import PreprocessOptions
from slrfast.data.sources import (
    MAX_CLASSES,
    Entry,
    Read,
    Source,
    check_format,
    naming_dead_workers,
    nothing_usable,
    open_source,
    several_people,
    skipped_lines,
    stamp,
)
from slrfast.data.store import (
    CLIPS,
    DTYPES,
    FORMAT,
    FRAMES,
    INDEX,
    JOURNAL,
    METADATA,
    VERSION,
    PoseStore,
    digest,
    looks_packed,
    plain,
)
from slrfast.data.wrapped import WrappedDataset
from slrfast.errors import DatasetError, SlrfastError
from slrfast.files import locked

_HEADER = 128


def pack(
    source: str | os.PathLike | ClipDataset,
    out: str | os.PathLike,
    *,
    dtype: str = "float32",
    format: str = "auto",
    split: str | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    group_column: str = "group",
    options: PreprocessOptions | None = None,
    workers: int = 0,
    progress: bool = False,
) -> PoseStore:
    """Pre-process a data set once, into one folder of memory-mapped arrays that ``PoseDataset`` opens at once.

    Only one clip is held at a time. Interrupted, killed or stopped by a full disk, the same call goes on where it
    stopped; a store that is already there from the same source and options is opened and left as it is.

    Args:
        source: what ``PoseDataset`` reads, or a data set of clips. A pickle of a whole split is one object and is held.
        out: the store's folder, not inside the source; ``<out>.packing`` until it is whole.
        dtype: "float32" keeps every bit; "float16" halves the store, with errors up to 0.06 pixels of a hand's
            256-pixel box.
        format, split, path_column, label_column, split_column, group_column, options: as for ``PoseDataset``; without
            ``split`` every row is packed, and the split chosen when the store is opened.
        workers: processes that read; 0 reads here.
        progress: show a progress bar.
    Returns:
        The store, open. Files that could not be used are named in ``skipped`` and counted in one warning.
    Raises:
        DatasetError: the source cannot be used, two clips have one name, ``out`` exists and is something else, the
            disk is full, or what an interrupted call left there has other options or another source.

    >>> from slrfast.data import SyntheticSigns
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pack(SyntheticSigns(num_classes=2, clips_per_class=2), folder + "/signs", dtype="float16")[3].xy.dtype
    torch.float16
    """
    checks.choice("pack", DTYPES, dtype=dtype)
    checks.integer_between("pack", 0, 1024, workers=workers)
    check_format("pack", format)
    if isinstance(source, ClipDataset):
        kind, hint = type(source).__name__, "pack its .dataset; pictures and texts are added when it is opened"
        checks.require(not isinstance(source, WrappedDataset), "pack", "source", "hold poses alone", kind, hint)
        alone = options is None and split is None and format == "auto"
        rule = "be left out, the clips of a data set are pre-processed"
        checks.require(alone, "pack", "options, split and format", rule, (options, split, format))
        options, listed = source.options, _listed(source)
    elif looks_packed(source):
        checks.require(format == "auto", "pack", "format", "be left out for a packed store", format)
        store = PoseStore(source, split=split, options=options)
        options, listed = store.options, _listed(store)
        _check_outside(store.path, Path(out))
    else:
        options = options or PreprocessOptions()
        columns = (path_column, label_column, split_column, group_column)
        listed = open_source(source, format, split, columns, options)
        _check_outside(Path(source), Path(out))
    plan = {"dtype": dtype, "preprocess": plain(options), **_fingerprint(listed)}
    out = Path(os.path.abspath(out))
    with _writing(out):
        if os.path.lexists(out):
            return _finished(out, plan)
        store = _write(listed, out, plan, workers, progress)
    if store.skipped:
        warnings.warn(f"{listed.name}: " + "\n".join(skipped_lines(store.skipped)), stacklevel=2)
    return store


def _listed(dataset: ClipDataset) -> Source:
    """The clips of a data set as a source."""
    told = zip(dataset.names, dataset.labels, dataset.groups, dataset.splits, strict=True)
    entries = [Entry(name, label, group, split=split) for name, label, group, split in told]
    name = dataset.path.name if isinstance(dataset, PoseStore) else type(dataset).__name__
    if not entries:
        raise DatasetError(f"{name}: there are no clips")
    most = max(entry.label for entry in entries)
    if most >= MAX_CLASSES:
        raise DatasetError(f"{name}: a clip has the label {most}, more than {MAX_CLASSES} classes")
    class_names = [*dataset.class_names, *map(str, range(len(dataset.class_names), most + 1))]
    reader = _ClipReader(dataset)
    sums: Any = dataset.checksums() if isinstance(dataset, PoseStore) else map(reader.checksum, range(len(dataset)))
    content = hashlib.sha256(repr(list(sums)).encode()).hexdigest()
    return Source(name, entries, class_names, reader, content, dataset.notes)


class _ClipReader(Dataset):
    """Position -> Read of a clip that is pre-processed already."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Read:
        try:
            clip = self.dataset[i]
        except SlrfastError as error:  # a damaged clip of another store
            return None, None, str(error)
        if not clip.num_frames:
            return None, None, "has no frames"
        return clip.xy.numpy(), clip.confidence.numpy(), ""

    def checksum(self, i: int) -> int:
        xy, confidence, _ = self[i]
        return 0 if xy is None or confidence is None else zlib.crc32(confidence.tobytes(), zlib.crc32(xy.tobytes()))


def _fingerprint(source: Source) -> dict[str, Any]:
    """The names of the clips, which must differ, and a digest of all that decides what they become."""
    total = hashlib.sha256(json.dumps([list(source.class_names), source.content]).encode())
    seen: set[str] = set()
    for entry in source.entries:
        if entry.name in seen:
            raise DatasetError(f"{source.name}: two clips have the name {entry.name!r}; names must differ in a store")
        seen.add(entry.name)
        told = [entry.name, entry.label, entry.group, entry.split, entry.refused]
        total.update(json.dumps([*told, stamp(entry.path) if entry.path else ""]).encode())
    return {"entries": len(source.entries), "fingerprint": total.hexdigest()}


def _check_outside(source: Path, out: Path) -> None:
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise DatasetError(f"{out}: lies inside the source {source}, which would then hold its own store")


def _finished(out: Path, plan: dict[str, Any]) -> PoseStore:
    """The store that is there, if it is the one that was asked for."""
    if not looks_packed(out):
        raise DatasetError(f"{out}: exists and is no packed store; choose another name")
    store = PoseStore(out)
    if any(store.metadata.get(key) != value for key, value in plan.items()):
        raise DatasetError(f"{out}: is a store of another source or with other options; delete it or choose a new name")
    return store


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Whatever the file system refuses becomes one sentence."""
    try:
        yield
    except SlrfastError:
        raise
    except OSError as error:
        where, what = error.filename or out, error.strerror or error
        raise DatasetError(
            f"{where}: cannot be written ({what}); the same call goes on where this one stopped"
        ) from error


def _write(source: Source, out: Path, plan: dict[str, Any], workers: int, progress: bool) -> PoseStore:
    folder = out.with_name(f"{out.name}.packing")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, DatasetError(f"{folder}: another process is packing into it; wait or stop it")):
        if os.path.lexists(out):  # by a call that ended after this one looked
            with suppress(OSError):
                folder.rmdir()
            return _finished(out, plan)
        with naming_dead_workers(source.name, "reading"), _Growing(folder, plan) as growing:
            for entry, read in source.stream(len(growing.lengths), workers, progress):
                growing.add(entry, read)
            if not growing.frames:
                skipped = growing.skipped(source.entries)
                shutil.rmtree(folder)
                raise nothing_usable(source, skipped)
            growing.finish(source)
        folder.rename(out)
        _sync(out.parent)
        (out / JOURNAL).unlink()
    return PoseStore(out)


class _Growing:
    """A store being written: the arrays of frames, and the journal's line for every entry that is done.

    Attributes:
        lengths: frames of every entry so far, 0 where it could not be used.
        sums: two checksums for every entry.
        reasons: why an entry could not be used, by its position.
        notes: what reading an entry gave rise to say.
        frames: frames so far, of ``keypoints`` keypoints.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.plan, self.dtype = folder, plan, np.dtype(plan["dtype"]).newbyteorder("<")
        self.lengths, self.sums = array("q"), array("q")
        self.reasons: dict[int, str] = {}
        self.notes: list[str] = []
        self.frames = self.keypoints = 0
        with ExitStack() as stack:
            self.arrays = [stack.enter_context(_appending(folder / name)) for name in FRAMES]
            self.journal = stack.enter_context(_appending(folder / JOURNAL))
            self._go_on()
            self._open = stack.pop_all()

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, entry: Entry, read: Read) -> None:
        """Append a clip, and only then the line that makes it count."""
        line = self._stored(entry, read)
        _write_all(self.journal, json.dumps(line).encode() + b"\n")
        self._count(line)

    def _stored(self, entry: Entry, read: Read) -> dict[str, Any]:
        """Append the frames of a clip and return the journal's line for it."""
        xy, confidence, note = read
        if xy is None or confidence is None:
            return {"skipped": note}
        keypoints = xy.shape[1]
        if keypoints not in graphs.LAYOUTS or keypoints != (self.keypoints or keypoints):
            rule = f"not {self.keypoints} as those before" if self.keypoints else "which is no layout"
            raise DatasetError(f"clip {entry.name!r} has {keypoints} keypoints, {rule}")
        sums = []
        for file, values in zip(self.arrays, (xy, confidence), strict=True):
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(values, self.dtype)
            if not np.isfinite(stored).all():
                hint = "; use float32" if np.isfinite(values).all() else ""
                raise DatasetError(f"clip {entry.name!r} has values that {self.plan['dtype']} cannot hold{hint}")
            _write_all(file, stored.data)
            sums.append(zlib.crc32(stored.data))
        return {"frames": len(xy), "keypoints": keypoints, "crc32": sums, **({"note": note} if note else {})}

    def _count(self, line: dict[str, Any]) -> None:
        if "skipped" in line:
            self.reasons[len(self.lengths)] = line["skipped"]
        self.lengths.append(line.get("frames", 0))
        self.sums.extend(line.get("crc32", (0, 0)))
        self.notes += [line["note"]] if "note" in line else []
        self.frames += self.lengths[-1]
        self.keypoints = line.get("keypoints", self.keypoints)

    def _go_on(self) -> None:
        """Take up what an interrupted call left: all entries up to the first whose frames are not whole."""
        self.journal.seek(0)
        first, *lines = self.journal.read().split(b"\n")
        end = len(first) + 1 if lines else 0  # a line counts with its end
        if end and (difference := _difference(first, self.plan)):
            raise DatasetError(f"{self.folder}: {difference}; delete this folder to start anew")
        for file in self.arrays:
            file.seek(_HEADER)
        for text in lines[:-1][: self.plan["entries"]]:
            line = self._line(text)
            if line is None:
                break
            self._count(line)
            end += len(text) + 1
        for file, values in zip(self.arrays, (2, 1), strict=True):
            file.truncate(_HEADER + self.frames * self.keypoints * values * self.dtype.itemsize)
            file.seek(0, os.SEEK_END)
        self.journal.truncate(end)
        self.journal.seek(end)
        if not end:
            _write_all(self.journal, json.dumps(self.plan).encode() + b"\n")

    def _line(self, text: bytes) -> dict[str, Any] | None:
        """The journal's next line; None where a power cut left no line, or not the frames that it tells of."""
        try:
            line = json.loads(text)
            if "skipped" in line:
                return {"skipped": str(line["skipped"])}
            frames, keypoints = line["frames"], line["keypoints"]
            if type(frames) is not int or type(keypoints) is not int or not isinstance(line.get("note", ""), str):
                return None
            known = keypoints in graphs.LAYOUTS and keypoints == (self.keypoints or keypoints)
            if not known or not 0 < frames <= os.fstat(self.arrays[1].fileno()).st_size:
                return None
            size = frames * keypoints * self.dtype.itemsize
            sums = [zlib.crc32(file.read(size * values)) for file, values in zip(self.arrays, (2, 1), strict=True)]
            return line if sums == line["crc32"] else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def skipped(self, entries: Sequence[Entry]) -> list[tuple[str, str]]:
        """Name and reason of every entry that could not be used."""
        return [(entries[i].name, reason) for i, reason in self.reasons.items()]

    def finish(self, source: Source) -> None:
        """Write all that is known only now, the metadata last."""
        folder, shape = self.folder, (self.frames, self.keypoints)
        for file, full in zip(self.arrays, ((*shape, 2), shape), strict=True):
            file.seek(0)
            _write_all(file, _header(full, self.dtype))
            os.fsync(file.fileno())
        lengths = np.array(self.lengths)
        packed = np.flatnonzero(lengths)
        entries = [source.entries[i] for i in packed.tolist()]
        offsets = np.concatenate(([0], np.cumsum(lengths[packed])))
        sums = np.array(self.sums).reshape(-1, 2)[packed]
        index: tuple[Any, ...] = (offsets, [entry.label for entry in entries], sums)
        for (name, dtype), values in zip(INDEX.items(), index, strict=True):
            np.save(folder / name, np.array(values, dtype), allow_pickle=False)
        skipped = self.skipped(source.entries)
        clips = {
            "names": [entry.name for entry in entries],
            "groups": [entry.group for entry in entries],
            "splits": [entry.split for entry in entries],
            "skipped": [name for name, _ in skipped],
            "reasons": [reason for _, reason in skipped],
            "notes": [*source.notes, *several_people(self.notes)],
        }
        (folder / CLIPS).write_text(json.dumps(clips))
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "slrfast": slrfast.__version__,
            "source": Path(source.name).resolve().name,
            "clips": len(packed),
            "frames": self.frames,
            "keypoints": self.keypoints,
            "skipped": len(skipped),
            "class_names": list(source.class_names),
            **self.plan,
        }
        metadata["digest"] = digest(folder, metadata)
        for name in (*INDEX, CLIPS):
            _sync(folder / name)
        (folder / METADATA).write_text(json.dumps(metadata, indent=1) + "\n")
        _sync(folder / METADATA)
        _sync(folder)


def _appending(path: Path) -> FileIO:
    """A file to read and to append to, made if missing; unbuffered, so that a kill loses nothing that was written.

    What lies there as a link is refused: it would have another file cut off.
    """
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666), "r+")


def _write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write to the last byte: a disk that is nearly full takes a part first."""
    left = memoryview(data).cast("B")
    while left:
        left = left[file.write(left) :]


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """An .npy header of a fixed size, which is written when the shape is known."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11).encode() + b"\n"


def _difference(first: bytes, plan: dict[str, Any]) -> str:
    """In what the interrupted call, by the first line of its journal, differs from this one; "" in nothing."""
    try:
        began = json.loads(first)
        if began == plan:
            return ""
        before, now = began["preprocess"] or {}, plan["preprocess"] or {}
        pairs = {"dtype": (began["dtype"], plan["dtype"])}
        pairs |= {key: (before.get(key), now.get(key)) for key in {**before, **now}}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{JOURNAL} is damaged"
    for name, (old, new) in pairs.items():
        if old != new:
            return f"packing began with {name} {old}, not {new}"
    return "the source has changed since packing began"


def _sync(path: Path) -> None:
    """Have a file or folder written to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
