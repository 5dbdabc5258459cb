"""Pickles of MMPose 0.x and of the papers' authors, read without running them.

Known are ``{keypoints [T, 133, 3], img_list}``; Uni-Sign's ``{keypoints [T][P, 133, 2], scores [T][P, 133], start,
end}``, where positions may be fractions of the image; the authors' cache of a whole split, ``{video_name: {video_data,
label, img_size}}``; and PYSKL's annotations and data sets.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slrfast.data.formats import pyskl
from slrfast.data.formats.base import Asked, Format, Person, people, stack
from slrfast.data.formats.unpickle import load
from slrfast.data.pose import MAX_VALUES, Pose, check_length
from slrfast.errors import PoseFileError
from slrfast.files import replacing

_CERTAIN = 0.3
_NUMBERED = re.compile(r"_\d+(\.[^./]+)?\Z")  # at the end of a path's stem


def _matches(head: bytes) -> bool:
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def _read(path: Path, asked: Asked) -> Pose:
    content = load(str(path), path.read_bytes())
    if is_cache(content):
        raise PoseFileError(path, f"is a cache of {len(content)} videos; PoseDataset opens it")
    if pyskl.is_data_set(content):
        raise PoseFileError(path, f"is a PYSKL data set of {len(content['annotations'])} clips; PoseDataset opens it")
    return from_video(str(path), content, asked)


def read_cache(path: Path) -> dict[str, Any]:
    """The authors' cache of a split, video name -> {video_data, label, img_size}, or a PYSKL data set."""
    content = load(str(path), path.read_bytes())
    if not is_cache(content) and not pyskl.is_data_set(content):
        raise PoseFileError(path, "is no cache of videos, {name: {video_data, label, img_size}}, nor a PYSKL data set")
    return content


def is_cache(content: object) -> bool:
    """Whether some value of a dict is a dict with ``video_data``."""
    return isinstance(content, dict) and any(isinstance(v, dict) and "video_data" in v for v in content.values())


def from_video(path: str, content: Any, asked: Asked) -> Pose:
    """One video's dict, or a PYSKL annotation, as a Pose."""
    if pyskl.is_annotation(content):
        return pyskl.from_annotation(path, content, asked)
    if isinstance(content, np.ndarray):
        content = {"keypoints": content}
    if not isinstance(content, dict) or "keypoints" not in content:
        raise PoseFileError(path, f"the key 'keypoints' is missing, found {_describe(content)}")
    keypoints = _per_frame(path, "keypoints", content["keypoints"])
    scores = None if content.get("scores") is None else _per_frame(path, "scores", content["scores"])
    if scores is not None and len(scores) != len(keypoints):
        raise PoseFileError(path, f"there are {len(keypoints)} frames of keypoints but {len(scores)} of scores")
    start, stop = _span(path, content, len(keypoints), asked.drop_last)
    check_length(path, stop - start, 133)
    xy, confidence = _alone(keypoints, scores, start, stop) or _tracks(path, keypoints, scores, start, stop)
    fractions = scores is not None and asked.units == "auto" and _are_fractions(path, xy, confidence)
    return Pose(asked.pixels(path, xy, asked.size, fractions), confidence, size=asked.size, path=path)


def _alone(keypoints: Any, scores: Any, start: int, stop: int) -> tuple[np.ndarray, np.ndarray] | None:
    """xy [T, 1, 133, 2] and confidence [T, 1, 133] of arrays of one person a frame, the usual case; None of others."""
    for array in (keypoints, scores):
        if array is not None and not (isinstance(array, np.ndarray) and array.dtype.kind in "fiu"):
            return None
    one = keypoints[start:stop, None] if keypoints.ndim == 3 else keypoints[start:stop]
    if one.ndim != 4 or one.shape[1:3] != (1, 133) or one.shape[3] not in ((2, 3) if scores is not None else (3,)):
        return None
    if scores is None:
        return one[..., :2], one[..., 2]
    confidence = scores[start:stop, None] if scores.ndim == 2 else scores[start:stop]
    return (one[..., :2], confidence) if confidence.shape == one.shape[:3] else None


def _tracks(path: str, keypoints: Any, scores: Any, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The same, frame by frame, for any number of people [T, P, 133]."""
    frames: list[list[Person]] = []
    detections = 0
    for t in range(start, stop):
        frames.append(people(path, t, keypoints[t], None if scores is None else scores[t]))
        detections += len(frames[-1])
        if detections * 133 > MAX_VALUES:  # one array may stand for every frame
            raise PoseFileError(path, f"{detections} people in {t + 1} frames are too much for one clip")
    return stack(path, frames)


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
        named = sum(isinstance(name, str) and _NUMBERED.search(name) is not None for name in names)
        if length and not named:
            raise PoseFileError(path, "no name in img_list ends in _<number>, so there are no frames")
        stop = min(stop, start + named)
    return start, stop


def _are_fractions(path: str, xy: np.ndarray, confidence: np.ndarray) -> bool:
    """Whether all certain positions lie within [-1, 2]: no person is three pixels large."""
    seen = xy[confidence > _CERTAIN]
    near = (np.abs(seen - 0.5) <= 1.5).all(-1)
    if 0.5 < near.mean() < 1 if len(seen) else False:
        raise PoseFileError(path, "positions are neither all fractions of the image nor pixels; say units='fractions'")
    return bool(len(seen)) and bool(near.all())


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
