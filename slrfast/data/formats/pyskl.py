"""PYSKL's (and MMAction2's) skeleton data sets: one pickle ``{split: {name: [frame_dir]}, annotations: [...]}``.

An annotation is ``{frame_dir, label, img_shape (height, width), total_frames, keypoint [M, T, V, 2],
keypoint_score [M, T, V]}`` for M people. Only V = 133, COCO-WholeBody, has hands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from slrfast.data.formats.base import Asked
from slrfast.data.pose import Pose, check_length
from slrfast.errors import PoseFileError

_JOINTS = 133


class Video(NamedTuple):
    """One clip of a data set; ``missing`` if a split names it but there is no annotation."""

    name: str
    label: object
    split: str
    annotation: object
    missing: bool = False


def is_data_set(content: object) -> bool:
    """Whether a pickle's content is a whole data set."""
    return isinstance(content, dict) and isinstance(content.get("annotations"), (list, tuple))


def is_annotation(content: object) -> bool:
    """Whether it is one annotation."""
    return isinstance(content, dict) and "keypoint" in content and "keypoints" not in content


def videos(path: str, content: dict[str, Any], split: str | None) -> list[Video]:
    """The clips of a data set in the order of its annotations, or only those that ``split`` names.

    A clip's split is the one that was asked for, else the only one that names it, else "".

    Raises:
        PoseFileError: there is no such split, or the lists of clips are no lists of names.
    """
    splits = {str(name): list(_names(path, name, listed)) for name, listed in _splits(path, content)}
    if split is not None and split not in splits:
        known = ", ".join(map(repr, list(splits)[:20])) or "none"
        raise PoseFileError(path, f"there is no split {split!r}; there are {known}")
    wanted = dict.fromkeys(splits[split] if split is not None else [n for names in splits.values() for n in names])
    times = Counter(name for names in splits.values() for name in dict.fromkeys(names))
    of = {name: key for key, names in splits.items() for name in names if times[name] == 1}
    found = []
    for i, annotation in enumerate(content["annotations"]):
        annotation = annotation if isinstance(annotation, dict) else {}
        name = annotation.get("frame_dir")
        name = name if isinstance(name, str) else f"annotation {i}"
        if split is None or name in wanted:
            found.append(Video(name, annotation.get("label"), split or of.get(name, ""), annotation))
    annotated = {video.name for video in found}
    lost = [Video(name, None, split or of.get(name, ""), None, True) for name in wanted if name not in annotated]
    return found + lost


def _splits(path: str, content: dict[str, Any]) -> Iterator[tuple[object, object]]:
    splits = content.get("split") or {}
    if not isinstance(splits, dict):
        raise PoseFileError(path, f"split must be a dict of names, got a {type(splits).__name__}")
    yield from splits.items()


def _names(path: str, split: object, listed: object) -> Iterator[str]:
    listed = listed.tolist() if isinstance(listed, np.ndarray) else listed
    if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) for name in listed):
        raise PoseFileError(path, f"the split {str(split)[:40]!r} must be a list of names")
    yield from listed


def from_annotation(path: str, annotation: dict[str, Any], asked: Asked) -> Pose:
    """One annotation as a Pose; people keep their places, and where a score is 0 a keypoint is missing."""
    keypoint = _array(path, annotation, "keypoint")
    if keypoint.ndim != 4:
        raise PoseFileError(path, f"keypoint must have shape [M, T, V, 2], got {list(keypoint.shape)}")
    people, frames, joints, axes = keypoint.shape
    if joints != _JOINTS:
        hint = "the 17 of COCO have no hands" if joints == 17 else "other skeletons are not read"
        raise PoseFileError(path, f"there are {joints} keypoints, COCO-WholeBody's {_JOINTS} are needed; {hint}")
    if axes != 2:
        raise PoseFileError(path, f"keypoints must have 2 coordinates, got {axes}")
    score = _array(path, annotation, "keypoint_score")
    if score.shape != keypoint.shape[:3]:
        wanted = list(keypoint.shape[:3])
        raise PoseFileError(path, f"keypoint_score must have shape {wanted}, got {list(score.shape)}")
    if annotation.get("total_frames", frames) != frames:
        raise PoseFileError(path, f"total_frames is {annotation['total_frames']!r:.40}, but there are {frames} frames")
    check_length(path, frames, people * _JOINTS)
    size = _size(path, annotation) or asked.size
    xy = asked.pixels(path, keypoint.swapaxes(0, 1), size)
    return Pose(xy, score.swapaxes(0, 1), size=size, path=path)


def _array(path: str, annotation: dict[str, Any], key: str) -> np.ndarray:
    value = annotation.get(key)
    if value is None:
        raise PoseFileError(path, f"the key {key!r} is missing")
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise PoseFileError(path, f"{key} must be an array of numbers, got {got}")
    return value


def _size(path: str, annotation: dict[str, Any]) -> tuple[int, int] | None:
    """``img_shape`` is (height, width)."""
    shape = annotation.get("img_shape") or annotation.get("original_shape")
    if shape is None:
        return None
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise PoseFileError(path, "img_shape must be (height, width)")
    return shape[1], shape[0]
