"""The ``.pose`` binary, through the optional package pose-format: MediaPipe Holistic or COCO-WholeBody."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from types import ModuleType

import numpy as np

from slrfast.data.formats.base import Asked, Format
from slrfast.data.holistic import FACE_MESH
from slrfast.data.pose import LAYOUTS, Pose, check_length, image_size
from slrfast.errors import PoseFileError
from slrfast.files import replacing

_VERSIONS = tuple(struct.pack("<f", version) for version in (0.0, 0.1, 0.2))
_COMPONENTS = {
    "holistic": {"POSE_LANDMARKS": 33, "LEFT_HAND_LANDMARKS": 21, "RIGHT_HAND_LANDMARKS": 21},
    "coco133": {"BODY": 23, "FACE": 68, "LEFT_HAND": 21, "RIGHT_HAND": 21},
}
_FACE = "FACE_LANDMARKS"


def _matches(head: bytes) -> bool:
    return head[:4] in _VERSIONS


def _package(path: Path) -> ModuleType:
    try:
        import pose_format
    except ImportError:
        raise PoseFileError(path, ".pose files need the package pose-format: pip install 'slrfast[pose]'") from None
    return pose_format


def _read(path: Path, asked: Asked) -> Pose:
    content = _package(path).Pose.read(path.read_bytes())
    found, start = {}, 0
    for component in content.header.components:
        found[component.name] = slice(start, start + len(component.points))
        if component.name == _FACE:
            mesh = {point: start + i for i, point in enumerate(component.points)}
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
    columns = np.concatenate([np.arange(s.start, s.stop) for s in (found[name] for name in _COMPONENTS[layout])])
    if layout == "holistic" and _FACE in found:  # often only some of the mesh is kept
        layout, face = "holistic_face", [mesh.get(str(point), -1) for point in FACE_MESH]
        columns = np.concatenate((columns, face))
    frames, people = content.body.data.shape[:2]
    check_length(str(path), frames, people * len(LAYOUTS[layout]))
    dimensions = content.header.dimensions
    named = (dimensions.width, dimensions.height)
    size = image_size(str(path), named) if all(named) else asked.size
    return Pose(
        asked.pixels(path, np.asarray(content.body.data.data)[:, :, columns, :2], size),
        np.where(columns >= 0, np.asarray(content.body.confidence)[:, :, columns], 0),
        content.body.fps,
        size,
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
    for name, count in (_COMPONENTS | {"holistic_face": _COMPONENTS["holistic"]})[pose.layout].items():
        points = list(LAYOUTS[pose.layout][start : start + count])
        components.append(PoseHeaderComponent(name, points, [], [], "XYZC"))
        start += count
    if pose.layout == "holistic_face":
        components.append(PoseHeaderComponent(_FACE, list(map(str, FACE_MESH)), [], [], "XYZC"))
    data = np.concatenate((pose.xy, np.zeros((*pose.xy.shape[:3], 1), np.float32)), -1)
    width, height = pose.size or (0, 0)
    header = PoseHeader(0.2, PoseHeaderDimensions(width, height, 0), components)
    buffer = io.BytesIO()
    Content(header, NumPyPoseBody(pose.fps, data, pose.confidence)).write(buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


FORMAT = Format((".pose",), _matches, _read, _write)
