"""Pickles of MMPose 0.x and of the papers' authors, read without running them.

Three shapes are known: ``{keypoints [T, 133, 3], img_list}``; Uni-Sign's
``{keypoints [T][P, 133, 2], scores [T][P, 133], start, end}``, where positions may be fractions of the image; and the
authors' cache of a whole split, ``{video_name: {video_data, label, img_size}}``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from slrfast.data.formats.base import Format, Person, people, stack
from slrfast.data.formats.unpickle import load
from slrfast.data.pose import MAX_VALUES, Pose, check_length
from slrfast.errors import PoseFileError
from slrfast.files import replacing

_NUMBERED = re.compile(r"_\d+$")


def _matches(head: bytes) -> bool:
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def _read(path: Path, size: tuple[int, int] | None, drop_last: bool) -> Pose:
    content = load(str(path), path.read_bytes())
    if is_cache(content):
        raise PoseFileError(path, f"is a cache of {len(content)} videos; PoseDataset opens it")
    return from_video(str(path), content, size, drop_last)


def read_cache(path: Path) -> dict[str, dict[str, Any]]:
    """The authors' cache of a split: video name -> {video_data, label, img_size}."""
    content = load(str(path), path.read_bytes())
    if not is_cache(content):
        raise PoseFileError(path, "is no cache of videos, {name: {video_data, label, img_size}}")
    return content


def is_cache(content: object) -> bool:
    """Whether some value of a dict is a dict with ``video_data``."""
    return isinstance(content, dict) and any(isinstance(v, dict) and "video_data" in v for v in content.values())


def from_video(path: str, content: object, size: tuple[int, int] | None, drop_last: bool) -> Pose:
    """One video's dict as a Pose."""
    if isinstance(content, np.ndarray):
        content = {"keypoints": content}
    if not isinstance(content, dict) or "keypoints" not in content:
        raise PoseFileError(path, f"the key 'keypoints' is missing, found {_describe(content)}")
    keypoints = _per_frame(path, "keypoints", content["keypoints"])
    scores = None if content.get("scores") is None else _per_frame(path, "scores", content["scores"])
    if scores is not None and len(scores) != len(keypoints):
        raise PoseFileError(path, f"there are {len(keypoints)} frames of keypoints but {len(scores)} of scores")
    start, stop = _span(path, content, len(keypoints), drop_last)
    check_length(path, stop - start, 133)
    frames: list[list[Person]] = []
    detections = 0
    for t in range(start, stop):
        frames.append(people(path, t, keypoints[t], None if scores is None else scores[t]))
        detections += len(frames[-1])
        if detections * 133 > MAX_VALUES:  # one array may stand for every frame
            raise PoseFileError(path, f"{detections} people in {t + 1} frames are too much for one clip")
    xy, confidence = stack(path, frames)
    if scores is not None and _are_fractions(xy, confidence):
        if size is None:
            raise PoseFileError(path, "positions are fractions of the image, so its size=(width, height) is needed")
        xy = xy * np.asarray(size, np.float64)
    return Pose(xy, confidence, size=size, path=path)


def _per_frame(path: str, key: str, values: Any) -> Sequence:
    if isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.ndim):
        return values  # type: ignore[return-value]
    raise PoseFileError(path, f"{key} must have one entry per frame, got a {type(values).__name__}")


def _span(path: str, content: dict, length: int, drop_last: bool) -> tuple[int, int]:
    """The frames to read: as many as have a name that ends in ``_<integer>``, or Uni-Sign's [start, end)."""
    start, stop = content.get("start", 0), content.get("end", length)
    if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop <= length):
        raise PoseFileError(path, "start and end do not lie within the frames")
    if "img_list" in content:
        names = _per_frame(path, "img_list", content["img_list"])
        names = names[:-1] if drop_last else names
        named = sum(isinstance(name, str) and bool(_NUMBERED.search(PurePosixPath(name).stem)) for name in names)
        if length and not named:
            raise PoseFileError(path, "no name in img_list ends in _<number>, so there are no frames")
        stop = min(stop, start + named)
    return start, stop


def _are_fractions(xy: np.ndarray, confidence: np.ndarray) -> bool:
    seen = xy[confidence > 0.3]
    return bool(len(seen)) and bool((np.abs(seen - 0.5) <= 1.5).all())


def _describe(content: object) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    return ", ".join(repr(key)[:40] for key in list(content)[:8]) or "an empty dict"


def _write(path: Path, pose: Pose) -> None:
    """Write the first person as the authors' pickles do; the image size and the frame rate are lost, as in theirs."""
    keypoints = np.concatenate((pose.xy[:, 0], pose.confidence[:, 0, :, None]), -1)
    names = [f"img_{t + 1:05d}.jpg" for t in range(pose.num_frames)]
    with replacing(path) as temporary:
        temporary.write_bytes(pickle.dumps({"keypoints": keypoints, "img_list": names}, protocol=4))


FORMAT = Format((".pkl", ".pickle"), _matches, _read, _write)
