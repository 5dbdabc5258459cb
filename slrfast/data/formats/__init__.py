"""Pose file formats. To add one: write a file with a ``FORMAT`` beside the others, and add its line to ``FORMATS``."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from slrfast import checks
from slrfast.data.formats import mmpose_json, mmpose_pickle, npz, pose_binary
from slrfast.data.formats.base import Asked, Format, reading
from slrfast.data.pose import UNITS, Pose, image_size
from slrfast.errors import PoseFileError

FORMATS: dict[str, Format] = {
    "npz": npz.FORMAT,
    "mmpose_json": mmpose_json.FORMAT,
    "mmpose_pickle": mmpose_pickle.FORMAT,
    "pose": pose_binary.FORMAT,
}
_HEAD = 64
MAX_BYTES = 1 << 31
"""A clip of an hour is smaller in every format."""


def load_pose(
    path: str | os.PathLike,
    format: str = "auto",
    *,
    size: tuple[int, int] | None = None,
    drop_last: bool = False,
    units: str = "auto",
) -> Pose:
    """Read one pose file, whatever wrote it.

    Args:
        path: a file of one clip.
        format: "npz", "mmpose_json", "mmpose_pickle", "pose", or "auto": the first bytes decide, else the extension.
        size: (width, height) of the image in pixels, for files that do not name it (MMPose's).
        drop_last: ignore the last entry of a pickle's ``img_list``, as the authors do for WLASL and SLR500.
        units: of the positions in the file: "pixels", "fractions" of the image, or "auto": pixels, but Uni-Sign's
            pickles, which come in both, hold fractions if every certain position lies within [-1, 2].
    Returns:
        A Pose: finite float32 pixels [T, P, V, 2], confidences [T, P, V].
    Raises:
        PoseFileError: the file is missing, empty, damaged, of another kind, or wants to run code. Nothing that a file
            holds is ever executed.

    >>> from slrfast.data import SyntheticSigns
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = SyntheticSigns(num_classes=2, clips_per_class=1).save(folder, "npz")
    ...     load_pose(files[0]).layout
    'coco133'
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"load_pose: format must be 'auto' or one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    checks.choice("load_pose", UNITS, units=units)
    size = image_size(str(path), size)
    with reading(path):
        _check_file(path)
        name = detect(path) if format == "auto" else format
        pose = FORMATS[name].read(path, Asked(size, drop_last, units))
    if pose.size is None:
        pose.size = size
    return pose


def _check_file(path: Path) -> None:
    """Refuse what has no end (a pipe, a device) or cannot be one clip, before anything of it is read."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise PoseFileError(path, "is a pipe or a device, not a file")
    if status.st_size > MAX_BYTES:
        raise PoseFileError(path, f"has {status.st_size} bytes, too many for one clip")


def detect(path: Path) -> str:
    """The name of the format of a file, by its first bytes, else by its extension."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise PoseFileError(path, "is empty")
    suffix = path.suffix.lower()
    by_content = [name for name, form in FORMATS.items() if form.matches(head)]
    by_suffix = [name for name, form in FORMATS.items() if suffix in form.suffixes]
    both = [name for name in by_content if name in by_suffix]
    for names in (both, by_content, by_suffix):
        if names:
            return names[0]
    raise PoseFileError(path, f"is no pose file; known formats are {', '.join(FORMATS)}")


def suffixes(format: str = "auto") -> frozenset[str]:
    """The file extensions that a folder is searched for."""
    forms = FORMATS.values() if format == "auto" else [FORMATS[format]]
    return frozenset(suffix for form in forms for suffix in form.suffixes)
