"""Our own file: a NumPy archive with xy [T, P, V, 2], confidence [T, P, V], fps, size (0, 0 if unknown) and layout."""

from __future__ import annotations

import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from slrfast.data.formats.base import Asked, Format
from slrfast.data.pose import MAX_VALUES, Pose, image_size
from slrfast.errors import PoseFileError
from slrfast.files import replacing

_SMALL = 4096
_KEYS = ("xy", "confidence", "fps", "size", "layout")


def save_npz(path: str | os.PathLike, pose: Pose) -> None:
    """Write a pose as a compressed NumPy archive that ``load_pose`` reads back exactly.

    Raises:
        CheckpointError: the file cannot be written; one that stood there before is left whole.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            xy=pose.xy,
            confidence=pose.confidence,
            fps=np.float64(pose.fps),
            size=np.array(pose.size or (0, 0), np.int64),
            layout=np.array(pose.layout),
        )


def _matches(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


def _read(path: Path, asked: Asked) -> Pose:
    with zipfile.ZipFile(path) as archive:
        most = {key: 8 * MAX_VALUES if key in ("xy", "confidence") else _SMALL for key in _KEYS}
        arrays = {key: read_array(path, archive, key, most[key]) for key in _KEYS}
    named = tuple(int(n) for n in arrays["size"].reshape(-1)[:3])
    size = asked.size if named == (0, 0) else image_size(str(path), named)
    return Pose(
        asked.pixels(path, arrays["xy"], size),
        arrays["confidence"],
        float(arrays["fps"].reshape(-1)[0]),
        size,
        str(arrays["layout"].reshape(-1)[0])[:32],
        str(path),
    )


def read_array(path: Path, archive: zipfile.ZipFile, key: str, most: int, what: str = "clip") -> np.ndarray:
    """One member, unpacked only if the archive's own table says that it fits into ``most`` bytes; never unpickled."""
    try:
        member = archive.getinfo(f"{key}.npy")
    except KeyError:
        raise PoseFileError(path, f"the array {key!r} is missing") from None
    if member.file_size > most:
        raise PoseFileError(path, f"the array {key!r} unpacks to {member.file_size} bytes, too much for one {what}")
    data = archive.read(member)
    _check_header(path, key, data)
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _check_header(path: Path, key: str, data: bytes) -> None:
    """Refuse an array that claims another size than it has, before memory is taken for it."""
    file = io.BytesIO(data)
    parse = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in parse:
        raise ValueError(f"version {version} of the array {key!r}")
    shape, _, dtype = parse[version](file)
    if dtype.kind not in "fiubUO":
        raise PoseFileError(path, f"the array {key!r} must be numbers or text, got {str(dtype)[:40]}")
    wanted = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (wanted != len(data) - file.tell() or min(shape, default=0) < 0):
        raise PoseFileError(path, f"the array {key!r} has {len(data) - file.tell()} bytes, which do not fit its shape")


FORMAT = Format((".npz",), _matches, _read, save_npz)
