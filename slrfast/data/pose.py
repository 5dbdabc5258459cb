"""A pose file in memory: the pixels and confidences of every person in every frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from slrfast import graphs
from slrfast.data import holistic
from slrfast.errors import PoseFileError

MAX_FRAMES = 100_000
"""Almost an hour at 30 frames a second. A longer "clip" is a damaged or hostile file."""
MAX_VALUES = 1 << 24
"""No reader keeps more keypoints than this for one clip."""
MAX_POSITION = 1e6
"""Pixels; a coordinate beyond it is damage, not a detection."""
GIVE_SIZE = "give it: --preprocess.size 640x480 (evaluate: --size), or PreprocessOptions(size=(640, 480))"
"""What to do about a file that does not name the size of its images."""
UNITS = ("auto", "pixels", "fractions")
"""What the positions in a file may be said to be."""

LAYOUTS: dict[str, tuple[str, ...]] = {
    "coco133": graphs.layout(133).names,
    "holistic": (*holistic.BODY, *holistic.HANDS),
    "holistic_face": (*holistic.BODY, *holistic.HANDS, *holistic.FACE),
    "sign49": graphs.layout(49).names,
}
"""Keypoint names of every layout that a file may have: COCO-WholeBody; MediaPipe Holistic (33 body, left hand, right
hand) without and with the 68 face points; the 49 of STC."""


@dataclass(eq=False)
class Pose:
    """Keypoints as a detector gives them, checked: whatever holds a Pose holds finite numbers.

    A keypoint with confidence 0 (or below) is missing: its position is ignored and becomes (0, 0).

    Attributes:
        xy: float32 [T, P, V, 2], pixels of the original image, T frames, P people, V keypoints.
        confidence: float32 [T, P, V].
        fps: frames per second, 0 if the file does not say.
        size: (width, height) of the image in pixels, None if the file does not say.
        layout: one of ``LAYOUTS``.
        path: where it came from, for error messages.
    Raises:
        PoseFileError: wrong shapes, no frames, or a position or confidence that is not a finite number; the message
            names the frame and the keypoint.

    >>> Pose(np.zeros((3, 1, 49, 2)), np.ones((3, 1, 49)), size=(640, 480), layout="sign49").num_frames
    3
    """

    xy: np.ndarray = field(repr=False)
    confidence: np.ndarray = field(repr=False)
    fps: float = 0.0
    size: tuple[int, int] | None = None
    layout: str = "coco133"
    path: str = "<memory>"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise PoseFileError(self.path, f"layout {self.layout!r} is unknown; known are {', '.join(LAYOUTS)}")
        self._check_shapes()
        with np.errstate(over="ignore", invalid="ignore"):
            self.xy = np.array(self.xy, np.float32)
            self.confidence = np.array(self.confidence, np.float32)
        self._check_numbers()
        missing = self.confidence <= 0
        self.confidence[missing] = 0
        self.xy[missing] = 0
        self.fps = float(self.fps)
        if not 0 <= self.fps < 1e6:
            raise PoseFileError(self.path, f"the frame rate is {self.fps:g}")
        self.size = image_size(self.path, self.size)

    @property
    def num_frames(self) -> int:
        """T."""
        return self.xy.shape[0]

    @property
    def num_people(self) -> int:
        """P."""
        return self.xy.shape[1]

    def _check_shapes(self) -> None:
        shape, count = np.shape(self.xy), len(LAYOUTS[self.layout])
        if len(shape) != 4 or shape[3] != 2:
            raise PoseFileError(self.path, f"positions must have shape [T, P, V, 2], got {list(shape)}")
        if np.shape(self.confidence) != shape[:3]:
            got = list(np.shape(self.confidence))
            raise PoseFileError(self.path, f"confidences must have shape {list(shape[:3])}, got {got}")
        for what, array in (("positions", self.xy), ("confidences", self.confidence)):
            dtype = np.asarray(array).dtype
            if dtype.kind not in "fiub":
                raise PoseFileError(self.path, f"{what} must be numbers, got {dtype}")
        if shape[2] != count:
            raise PoseFileError(self.path, f"layout {self.layout} has {count} keypoints, got {shape[2]}")
        if shape[0] == 0:
            raise PoseFileError(self.path, "there are no frames")
        if shape[1] == 0:
            raise PoseFileError(self.path, "there is nobody in any frame")
        check_length(self.path, shape[0], shape[1] * count)

    def _check_numbers(self) -> None:
        names = LAYOUTS[self.layout]
        unclear = ~np.isfinite(self.confidence)
        if unclear.any():
            frame, person, v = np.argwhere(unclear)[0]
            value = self.confidence[frame, person, v]
            raise PoseFileError(self.path, f"frame {frame}: keypoint {v} ({names[v]}) has the confidence {value:g}")
        with np.errstate(invalid="ignore"):
            astray = ~(np.abs(self.xy) <= MAX_POSITION).all(-1) & (self.confidence > 0)
        if astray.any():
            frame, person, v = np.argwhere(astray)[0]
            x, y = self.xy[frame, person, v]
            raise PoseFileError(self.path, f"frame {frame}: keypoint {v} ({names[v]}) is at ({x:g}, {y:g})")


def check_length(path: str, frames: int, values_per_frame: int) -> None:
    """PoseFileError if a clip is too long, or too large in memory, to be one."""
    if frames > MAX_FRAMES:
        raise PoseFileError(path, f"{frames} frames are more than the {MAX_FRAMES} that one clip may have")
    if frames * values_per_frame > MAX_VALUES:
        raise PoseFileError(path, f"{frames} frames of {values_per_frame} keypoints are too much for one clip")


def image_size(path: str, size: object) -> tuple[int, int] | None:
    """(width, height) as two integers; None for None."""
    if size is None:
        return None
    try:
        with np.errstate(invalid="ignore"):
            numbers = np.asarray(size, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        shown = repr(size)[:40]
        raise PoseFileError(path, f"the image size must be two whole numbers (width, height), got {shown}") from None
    if numbers.shape != (2,) or not ((numbers >= 1) & (numbers <= 1e5) & (numbers == np.floor(numbers))).all():
        shown = ", ".join(f"{n:g}" for n in numbers[:4])
        raise PoseFileError(path, f"the image size must be two whole numbers (width, height), got ({shown})")
    return int(numbers[0]), int(numbers[1])


@lru_cache
def joint_indices(source: str, keypoints: int = 49) -> np.ndarray:
    """Where the joints of ``graphs.layout(keypoints)`` stand in a file's layout, int64 [V], -1 for those it lacks."""
    places = {name: i for i, name in enumerate(LAYOUTS[source])}
    indices = np.array([places.get(name, -1) for name in graphs.layout(keypoints).names])
    indices.flags.writeable = False
    return indices


def as_coco133(pose: Pose) -> Pose:
    """The same pose by COCO-WholeBody's 133 keypoints; those that its own layout lacks are missing in every frame."""
    joints = joint_indices(pose.layout, 133)
    confidence = np.where(joints >= 0, pose.confidence[:, :, joints], 0)
    return Pose(pose.xy[:, :, joints], confidence, pose.fps, pose.size, "coco133", pose.path)
