"""Values that are computed once and kept: a folder that only grows, checked by fingerprints, read as mapped memory.

    slrfast-cache.json   format, version, what is kept, and the fingerprints of whatever made it
    index.bin            64 bytes a value: SHA-256 of what it belongs to, its place, size and checksum, and their own
    values.bin           the values' bytes, one after another

A value is written before its record, so an interruption costs the values of one call at most. Several processes may
write; each of them then sees what the others wrote. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from slrfast.errors import CheckpointError, DatasetError
from slrfast.files import replacing

HEADER, INDEX, VALUES = "slrfast-cache.json", "index.bin", "values.bin"
_FORMAT, _VERSION = "slrfast cache", 1
_RECORD = np.dtype(
    [("key", "V32"), ("start", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("zero", "<u8"), ("check", "<u4")]
)
_CHUNK = 1 << 22


class CacheError(DatasetError):
    """A cache cannot be used: it is damaged, cannot be written, or was made by something else."""


class Cache:
    """Bytes by key, on disk.

    Args:
        folder: created if missing.
        kind: what is kept, for messages and checked: "text features".
        made_by: fingerprints of what the values depend on, by name: {"tokenizer": "5f...", "text encoder": "a0..."}.
    Raises:
        CacheError: the folder is something else, its values are of another kind or made by another tokenizer (or
            whatever ``made_by`` names), or a record is damaged. A damaged value is found when it is first read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = Cache(folder + "/squares", "squares", {"power": "2"})
    ...     cache.put({Cache.key(b"3"): b"9"})
    ...     bytes(cache.get(Cache.key(b"3"))), cache.get(Cache.key(b"4"))
    (b'9', None)
    """

    def __init__(self, folder: str | os.PathLike, kind: str, made_by: Mapping[str, str]) -> None:
        self.folder, self.kind, self.made_by = Path(folder), kind, dict(made_by)
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._verified: set[bytes] = set()
        self._records = self._end = 0
        self._values = np.zeros(0, np.uint8)
        self._open()
        self._refresh()

    @staticmethod
    def key(*parts: bytes) -> bytes:
        """SHA-256 of byte strings, each with its length."""
        total = hashlib.sha256()
        for part in parts:
            total.update(len(part).to_bytes(8, "little"))
            total.update(part)
        return total.digest()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        if key not in self._places:
            self._refresh()
        return key in self._places

    def get(self, key: bytes) -> np.ndarray | None:
        """The value as uint8 [size], a read-only view of the mapped file; None if there is none.

        Raises:
            CacheError: its checksum is wrong.
        """
        if key not in self:
            return None
        start, size, crc = self._places[key]
        if start + size > len(self._values):
            self._values = self._map()
        value = self._values[start : start + size]
        if key not in self._verified:
            if zlib.crc32(value) != crc:
                raise self._damaged(VALUES, f"the {size} bytes from {start} on have a wrong checksum")
            self._verified.add(key)
        return value

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Append values, flushed to disk before anything refers to them; a key that is there already keeps its value.

        Raises:
            CacheError: the disk is full or the folder cannot be written; what was there is unchanged.
        """
        try:
            with open(self.folder / INDEX, "r+b") as index, _alone(index.fileno()):
                self._refresh()
                fresh = {key: value for key, value in values.items() if key not in self._places}
                records, start = [], self._end
                try:
                    with open(self.folder / VALUES, "r+b") as file:
                        file.truncate(start)  # what an interrupted call left
                        file.seek(start)
                        for key, value in fresh.items():
                            file.write(value)
                            records.append(_record(key, start, value))
                            start += len(value)
                        file.flush()
                        os.fsync(file.fileno())
                    index.seek(self._records * _RECORD.itemsize)
                    index.write(b"".join(records))
                    index.flush()
                    os.fsync(index.fileno())
                    index.truncate()
                except BaseException:
                    os.truncate(self.folder / INDEX, self._records * _RECORD.itemsize)
                    raise
                self._refresh()
        except OSError as error:
            raise self._unwritable(error) from error

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "kind": self.kind, "made_by": self.made_by}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]  # another process maps the files itself

    def _open(self) -> None:
        header = self.folder / HEADER
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not header.is_file():
                if any(name not in (INDEX, VALUES) and not name.startswith(".") for name in os.listdir(self.folder)):
                    raise CacheError(f"{self.folder}: is no cache and not empty; name another folder")
                for name in (INDEX, VALUES):
                    (self.folder / name).touch()
                told = {"format": _FORMAT, "version": _VERSION, "kind": self.kind, "made_by": self.made_by}
                with replacing(header) as temporary:
                    temporary.write_text(json.dumps(told, indent=1))
            content = header.read_bytes()
        except (OSError, CheckpointError) as error:
            raise self._unwritable(error) from error
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            raise self._damaged(HEADER, "it is no JSON") from None
        if not isinstance(found, dict) or found.get("format") != _FORMAT or found.get("version") != _VERSION:
            raise CacheError(f"{header}: was not written by this version of slrfast; name another folder or delete it")
        if found.get("kind") != self.kind:
            raise CacheError(
                f"{self.folder}: holds {str(found.get('kind'))[:40]}, not {self.kind}; name another folder"
            )
        made_by = found.get("made_by")
        for what, wanted in self.made_by.items():
            there = str(made_by.get(what)) if isinstance(made_by, dict) else "none"
            if there != wanted:
                which = f"{what} (fingerprint {there[:12]}, not {wanted[:12]})"
                raise CacheError(
                    f"{self.folder}: these {self.kind} were made with another {which}; name another folder or delete it"
                )

    def _refresh(self) -> None:
        """Read the records that were added since, by whomever."""
        path = self.folder / INDEX
        try:
            if os.stat(path).st_size // _RECORD.itemsize <= self._records:
                return
            with open(path, "rb") as file:
                file.seek(self._records * _RECORD.itemsize)
                content = file.read()
            available = os.stat(self.folder / VALUES).st_size
        except OSError as error:
            raise CacheError(f"{self.folder}: cannot be read ({error.strerror or error})") from error
        records = np.frombuffer(content, _RECORD, len(content) // _RECORD.itemsize)
        while len(records) and not any(records[-1].tobytes()):  # a file that grew before its bytes were written
            records = records[:-1]
        for record in records:
            key, (start, size, crc) = bytes(record["key"]), (int(record[name]) for name in ("start", "size", "crc"))
            if zlib.crc32(record.tobytes()[:-4]) != int(record["check"]) or start != self._end:
                raise self._damaged(INDEX, f"record {self._records} has a wrong checksum")
            if start + size > available:
                raise self._damaged(
                    VALUES, f"it is cut short, it has {available} bytes and record {self._records} more"
                )
            self._places[key] = start, size, crc
            self._records, self._end = self._records + 1, start + size

    def _map(self) -> np.ndarray:
        try:
            return np.asarray(np.memmap(self.folder / VALUES, np.uint8, "r"))
        except (OSError, ValueError) as error:
            raise CacheError(f"{self.folder / VALUES}: cannot be read ({error})") from error

    def _damaged(self, name: str, how: str) -> CacheError:
        return CacheError(f"{self.folder / name}: is damaged, {how}; delete the folder, and it is computed anew")

    def _unwritable(self, error: Exception) -> CacheError:
        why = getattr(error, "strerror", None) or error
        return CacheError(f"{self.folder}: the {self.kind} cannot be kept there ({why}); earlier ones are unchanged")


def files_fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 of files' names and contents.

    Raises:
        OSError: one cannot be read.
    """
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                total.update(chunk)
    return total.hexdigest()


def _record(key: bytes, start: int, value: bytes) -> bytes:
    record = np.zeros((), _RECORD)
    record["key"], record["start"], record["size"] = np.void(key), start, len(value)
    record["crc"] = zlib.crc32(value)
    record["check"] = zlib.crc32(record.tobytes()[:-4])
    return record.tobytes()


@contextmanager
def _alone(handle: int) -> Iterator[None]:
    """Wait until no other process writes; the lock goes when the file is closed, however the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows: one writer only
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass
    yield
