"""The detectors that ``slrfast extract`` can drive, and what to tell somebody who lacks one."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slrfast.data import holistic
from slrfast.data.formats.base import stack
from slrfast.data.pose import LAYOUTS, Pose, as_coco133
from slrfast.errors import PoseFileError

WORKERS = Path(__file__).parent / "workers"
MODES = ("lightweight", "balanced", "performance")

_MMPOSE = (
    "python3.10 -m venv mm && mm/bin/pip install 'numpy<2' 'opencv-python<4.12' 'setuptools<81' torch==2.1.2 "
    "torchvision==0.16.2 mmdet==3.3.0 mmengine json_tricks munkres xtcocotools && "
    "mm/bin/pip install mmcv==2.1.0 -f https://download.openmmlab.com/mmcv/dist/cpu/torch2.1/index.html && "
    "mm/bin/pip install --no-deps mmpose==1.3.2"
)


class Backend(NamedTuple):
    """A detector.

    Attributes:
        worker: the script that runs it.
        missing: Python -> what to do if the detector is not installed there.
        offline: what to do if it cannot download its weights.
        own_files: whether ``det`` and ``pose`` are files, which must exist.
        keypoints: how many the worker gives.
    """

    worker: str
    missing: Callable[[str], str]
    offline: str
    own_files: bool
    keypoints: int


BACKENDS = {
    "rtmlib": Backend(
        "rtmlib_worker.py",
        lambda python: (
            f"{shlex.quote(python)} -m pip install rtmlib onnxruntime, or name another environment's Python "
            "with --python"
        ),
        "give local ONNX files with --det and --pose",
        True,
        133,
    ),
    "mmpose": Backend(
        "mmpose_worker.py",
        lambda python: (
            "its pins, mmcv < 2.2 and chumpy, do not install on current Python, so make an environment "
            f"({_MMPOSE}) and pass --python mm/bin/python; or run MMPose there yourself and hand its JSON to slrfast"
        ),
        "give local files with --pose_weights and --det_weights, and their configs with --pose and --det",
        False,
        133,
    ),
    "mediapipe": Backend(
        "mediapipe_worker.py",
        lambda python: (
            "it wants numpy < 2 and so an environment of its own: python3.11 -m venv mp && mp/bin/pip "
            "install mediapipe==0.10.21, then pass --python mp/bin/python"
        ),
        "mediapipe==0.10.21 has its models in the wheel",
        True,
        75 + holistic.MESH_POINTS,
    ),
}


def pose_of(backend: str, video: str, arrays: dict[str, np.ndarray]) -> Pose:
    """What a worker wrote as a Pose of COCO-WholeBody's 133 keypoints.

    Raises:
        PoseFileError: another number of keypoints, or positions that are none.
    """
    counts, xy, confidence = arrays["counts"], arrays["xy"], arrays["confidence"]
    wanted = BACKENDS[backend].keypoints
    if xy.ndim != 3 or xy.shape[1] != wanted:
        shown = xy.shape[1] if xy.ndim == 3 else list(xy.shape)
        raise PoseFileError(video, f"the model finds {shown} keypoints, {wanted} are needed: take a whole-body model")
    layout = "coco133"
    if backend == "mediapipe":
        layout, face = "holistic_face", 75 + np.array(holistic.FACE_MESH)
        columns = np.concatenate((np.arange(75), face))
        xy, confidence = xy[:, columns], confidence[:, columns]
    ends = np.cumsum(counts)
    frames = [list(zip(xy[e - n : e], confidence[e - n : e], strict=True)) for n, e in zip(counts, ends, strict=True)]
    assert xy.shape[1] == len(LAYOUTS[layout])
    size = (int(arrays["size"][0]), int(arrays["size"][1]))
    return as_coco133(Pose(*stack(video, frames, layout), float(arrays["fps"]), size, layout, video))
