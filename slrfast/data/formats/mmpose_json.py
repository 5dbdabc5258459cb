"""MMPose 1.x JSON: ``{meta_info, instance_info}`` of its demos, or the bare lists that its inferencer writes."""

from __future__ import annotations

import json
from pathlib import Path

from slrfast.data.formats.base import Asked, Format, Person, people, stack
from slrfast.data.pose import Pose, image_size
from slrfast.errors import PoseFileError
from slrfast.files import replacing


def _matches(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")


def _read(path: Path, asked: Asked) -> Pose:
    content = json.loads(path.read_bytes())
    meta: object = None
    if isinstance(content, dict):
        if "instance_info" not in content:
            raise PoseFileError(path, f"the key 'instance_info' is missing, found {_keys(content)}")
        meta, content = content.get("meta_info"), content["instance_info"]
    meta = meta if isinstance(meta, dict) else {}
    if not isinstance(content, list):
        raise PoseFileError(path, f"instance_info must be a list of frames, got {type(content).__name__}")
    if content and isinstance(content[0], dict) and "keypoints" in content[0]:
        content = [content]  # one image: its people without a list of frames around them
    frames = [_frame(str(path), t, frame) for t, frame in enumerate(content)]
    xy, confidence = stack(str(path), frames)
    size = image_size(str(path), meta.get("image_size")) or asked.size
    fps = meta.get("fps", 0.0)
    fps = fps if isinstance(fps, (int, float)) else 0.0
    return Pose(asked.pixels(path, xy, size), confidence, fps, size, path=str(path))


def _frame(path: str, t: int, frame: object) -> list[Person]:
    if isinstance(frame, dict):
        if "instances" not in frame:
            raise PoseFileError(path, f"frame {t}: the key 'instances' is missing, found {_keys(frame)}")
        frame = frame["instances"]
    if not isinstance(frame, list):
        raise PoseFileError(path, f"frame {t}: instances must be a list, got {type(frame).__name__}")
    found: list[Person] = []
    for instance in frame:
        if not isinstance(instance, dict) or "keypoints" not in instance:
            raise PoseFileError(path, f"frame {t}: an instance has no 'keypoints'")
        found += people(path, t, instance["keypoints"], instance.get("keypoint_scores"))
    return found


def _keys(content: dict) -> str:
    return ", ".join(repr(key[:40]) for key in list(content)[:8]) or "none"


def _write(path: Path, pose: Pose) -> None:
    """Write as MMPose's demos do, with the image size and the frame rate in ``meta_info``, where MMPose has neither."""
    meta: dict[str, object] = {"dataset_name": "coco_wholebody"}
    meta |= {"image_size": pose.size} if pose.size else {}
    meta |= {"fps": pose.fps} if pose.fps else {}
    frames = []
    for t in range(pose.num_frames):
        seen = [p for p in range(pose.num_people) if pose.confidence[t, p].any()]
        instances = [
            {"keypoints": pose.xy[t, p].tolist(), "keypoint_scores": pose.confidence[t, p].tolist()} for p in seen
        ]
        frames.append({"frame_id": t + 1, "instances": instances})
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"meta_info": meta, "instance_info": frames}))


FORMAT = Format((".json",), _matches, _read, _write)
