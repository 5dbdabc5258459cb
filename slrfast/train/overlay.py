"""The skeleton of COCO-WholeBody's 133 keypoints drawn over frames of a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from slrfast import graphs
from slrfast.data import Pose
from slrfast.files import replacing

_NAMES = graphs.layout(133).names
_PARTS = graphs.layout(133).parts
_LIMBS = [
    *(("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")),
    *((f"{side}_{a}", f"{side}_{b}") for side in ("left", "right") for a, b in (
        ("shoulder", "elbow"), ("elbow", "wrist"), ("shoulder", "hip"), ("hip", "knee"), ("knee", "ankle"),
        ("eye", "ear"),
    )),
    *(("nose", "left_eye"), ("nose", "right_eye")),
]  # fmt: skip
_BODY = [(_NAMES.index(a), _NAMES.index(b)) for a, b in _LIMBS]
_HAND = [(4 * f + j if j else 0, 4 * f + j + 1) for f in range(5) for j in range(4)]
_COLORS = {"body": "#ffd23f", "left_hand": "#3fa7ff", "right_hand": "#ff5a5f", "face": "#e8e8e8"}
_SHOWN = 0.3  # confidence


def draw_overlay(pose: Pose, images: np.ndarray, frames: np.ndarray, path: str | Path) -> None:
    """A strip of frames with everybody's keypoints of confidence 0.3 and more over them.

    Args:
        pose: layout "coco133", with its image size.
        images: uint8 [K, h, w, 3], frames of the video at any size.
        frames: [K], which ones.
        path: PNG to write.
    """
    assert pose.size is not None
    count, height, width = images.shape[:3]
    tall = min(4 * height / width, 8.0)
    figure = Figure(figsize=(4 * count, tall + 0.3), layout="constrained")
    for place, (image, t) in enumerate(zip(images, frames, strict=True)):
        axes = figure.add_subplot(1, count, place + 1)
        axes.imshow(image, extent=(0, pose.size[0], pose.size[1], 0), interpolation="bilinear")
        for person in range(pose.num_people):
            _draw_person(axes, pose.xy[t, person], pose.confidence[t, person] >= _SHOWN)
        axes.set_xlim(0, pose.size[0])
        axes.set_ylim(pose.size[1], 0)
        axes.set_axis_off()
        axes.set_title(f"frame {t + 1} of {pose.num_frames}", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_person(axes: Axes, xy: np.ndarray, seen: np.ndarray) -> None:
    for part, bones in (("body", _BODY), ("left_hand", _HAND), ("right_hand", _HAND)):
        first = _PARTS[part].start
        lines = [xy[[first + a, first + b]] for a, b in bones if seen[first + a] and seen[first + b]]
        axes.add_collection(LineCollection(lines, colors=_COLORS[part], linewidths=1.4 if part == "body" else 0.9))
    for part, size in (("body", 8), ("left_hand", 2), ("right_hand", 2), ("face", 1)):
        points = xy[_PARTS[part]][seen[_PARTS[part]]]
        axes.scatter(points[:, 0], points[:, 1], s=size, color=_COLORS[part], linewidths=0, zorder=3)
