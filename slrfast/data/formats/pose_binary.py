"""The ``.pose`` binary, through the optional package pose-format: MediaPipe Holistic or COCO-WholeBody."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from types import ModuleType

import numpy as np

from slrfast.data.formats.base import Format
from slrfast.data.pose import LAYOUTS, Pose, check_length
from slrfast.errors import PoseFileError
from slrfast.files import replacing

_VERSIONS = tuple(struct.pack("<f", version) for version in (0.0, 0.1, 0.2))
_COMPONENTS = {
    "holistic": {"POSE_LANDMARKS": 33, "LEFT_HAND_LANDMARKS": 21, "RIGHT_HAND_LANDMARKS": 21},
    "coco133": {"BODY": 23, "FACE": 68, "LEFT_HAND": 21, "RIGHT_HAND": 21},
}


def _matches(head: bytes) -> bool:
    return head[:4] in _VERSIONS


def _package(path: Path) -> ModuleType:
    try:
        import pose_format
    except ImportError:
        raise PoseFileError(path, ".pose files need the package pose-format: pip install 'slrfast[pose]'") from None
    return pose_format


def _read(path: Path, size: tuple[int, int] | None, drop_last: bool) -> Pose:
    content = _package(path).Pose.read(path.read_bytes())
    found, start = {}, 0
    for component in content.header.components:
        found[component.name] = slice(start, start + len(component.points))
        start += len(component.points)
    layout = next((name for name, parts in _COMPONENTS.items() if parts.keys() <= found.keys()), None)
    if layout is None:
        raise PoseFileError(
            path, f"is neither Holistic nor COCO-WholeBody; it has {', '.join(found)[:200] or 'nothing'}"
        )
    for name, count in _COMPONENTS[layout].items():
        if found[name].stop - found[name].start != count:
            got = found[name].stop - found[name].start
            raise PoseFileError(path, f"component {name} must have {count} keypoints, got {got}")
    frames, people = content.body.data.shape[:2]
    check_length(str(path), frames, people * len(LAYOUTS[layout]))
    columns = np.concatenate([np.arange(s.start, s.stop) for s in (found[name] for name in _COMPONENTS[layout])])
    dimensions = content.header.dimensions
    named = (dimensions.width, dimensions.height)
    return Pose(
        np.asarray(content.body.data.data)[:, :, columns, :2],
        np.asarray(content.body.confidence)[:, :, columns],
        content.body.fps,
        named if all(named) else None,
        layout,
        str(path),
    )


def _write(path: Path, pose: Pose) -> None:
    """Write the pose with the components of its layout, z = 0."""
    _package(path)
    from pose_format import Pose as Content
    from pose_format.numpy import NumPyPoseBody
    from pose_format.pose_header import PoseHeader, PoseHeaderComponent, PoseHeaderDimensions

    components, start = [], 0
    for name, count in _COMPONENTS[pose.layout].items():
        points = list(LAYOUTS[pose.layout][start : start + count])
        components.append(PoseHeaderComponent(name, points, [], [], "XYZC"))
        start += count
    data = np.concatenate((pose.xy, np.zeros((*pose.xy.shape[:3], 1), np.float32)), -1)
    width, height = pose.size or (0, 0)
    header = PoseHeader(0.2, PoseHeaderDimensions(width, height, 0), components)
    buffer = io.BytesIO()
    Content(header, NumPyPoseBody(pose.fps, data, pose.confidence)).write(buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


FORMAT = Format((".pose",), _matches, _read, _write)
