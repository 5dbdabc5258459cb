"""Our own file: a NumPy archive with xy [T, P, V, 2], confidence [T, P, V], fps, size (0, 0 if unknown) and layout."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np

from slrfast.data.formats.base import Format
from slrfast.data.pose import MAX_VALUES, Pose
from slrfast.errors import PoseFileError
from slrfast.files import replacing

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


def _read(path: Path, size: tuple[int, int] | None, drop_last: bool) -> Pose:
    with zipfile.ZipFile(path) as archive:
        arrays = {key: _array(path, archive, key) for key in _KEYS}
    named = tuple(int(n) for n in arrays["size"].reshape(-1)[:3])
    return Pose(
        arrays["xy"],
        arrays["confidence"],
        float(arrays["fps"].reshape(-1)[0]),
        None if named == (0, 0) else named,  # type: ignore[arg-type]  # Pose checks the length
        str(arrays["layout"].reshape(-1)[0])[:32],
        str(path),
    )


def _array(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """One member, unpacked only if the archive's own table says that it fits."""
    try:
        member = archive.getinfo(f"{key}.npy")
    except KeyError:
        raise PoseFileError(path, f"the array {key!r} is missing") from None
    if member.file_size > 8 * MAX_VALUES:
        raise PoseFileError(path, f"the array {key!r} unpacks to {member.file_size} bytes, too much for one clip")
    return np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)


FORMAT = Format((".npz",), _matches, _read, save_npz)
