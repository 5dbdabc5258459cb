"""From pixels to network input: person, frames, 49 joints, hand boxes, normalisation.

The rules are those of the STC and MASA authors' feeders, for whole clips at once. Positions are computed in float64, so
the result does not depend on the order of the work, and stored as float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from slrfast import checks, graphs
from slrfast.data.batch import Clip
from slrfast.data.pose import LAYOUTS, Pose, image_size
from slrfast.errors import PoseFileError

_SIGN49 = graphs.layout(49)
_PARTS = _SIGN49.parts
_RIGHT, _LEFT, _TRUNK = _PARTS["right_hand"], _PARTS["left_hand"], _PARTS["trunk"]
_ARMS = {
    side: [_SIGN49.names.index(f"{side}_{j}") for j in ("shoulder", "elbow", "wrist")] for side in ("left", "right")
}
BOX = 256
"""Side of the square, in pixels, that a hand's box is scaled to."""

_FRACTIONS = 2  # no person is so small in pixels, and no fraction of an image so large


@dataclass(frozen=True)
class PreprocessOptions:
    """How a Pose becomes a Clip; the defaults are the papers' where they say, the authors' code where they do not.

    Attributes:
        hand_threshold: a hand joint with less confidence is missing (MASA: 0.4).
        trunk_threshold: the same for the trunk.
        arm_threshold: least confidence of shoulder, elbow and wrist for a box without a visible hand.
        visible_threshold: a joint counts for the hand's box above this confidence.
        min_visible: so many joints make a box.
        box_scale: side of the box over the extent of the hand.
        bottom_margin: an arm gives no box if its wrist is within so many pixels of the lower edge; None: never mind.
        max_frames: longer clips keep every s-th frame, s = max(2, ceil(F / max_frames)).
        person: which person of the file; None takes the one that is largest and most certain over the whole clip.
        size: (width, height) of the image, used when the file does not say.
        drop_last: ignore the last name of an author-style pickle's ``img_list``.
    """

    hand_threshold: float = 0.4
    trunk_threshold: float = 0.4
    arm_threshold: float = 0.5
    visible_threshold: float = 0.1
    min_visible: int = 10
    box_scale: float = 2.2
    bottom_margin: int | None = 50
    max_frames: int = 150
    person: int | None = None
    size: tuple[int, int] | None = None
    drop_last: bool = False

    def __post_init__(self) -> None:
        for name in ("hand_threshold", "trunk_threshold", "arm_threshold", "visible_threshold"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(checks.message("PreprocessOptions", name, "be a number", type(value).__name__))
            checks.require(math.isfinite(value), "PreprocessOptions", name, "be finite", value)
        if self.bottom_margin is not None:
            checks.integer_between("PreprocessOptions", -(1 << 20), 1 << 20, bottom_margin=self.bottom_margin)
        image_size("PreprocessOptions", self.size)
        checks.positive("PreprocessOptions", box_scale=self.box_scale)
        checks.integer_between("PreprocessOptions", 1, 21, min_visible=self.min_visible)
        checks.integer_between("PreprocessOptions", 1, 1 << 20, max_frames=self.max_frames)
        if self.person is not None:
            checks.integer_between("PreprocessOptions", 0, 1 << 20, person=self.person)

    @classmethod
    def legacy(cls, dataset: str) -> PreprocessOptions:
        """The authors' published settings for "wlasl", "msasl", "nmfs_csl" or "slr500"."""
        checks.choice("PreprocessOptions.legacy", tuple(_LEGACY), dataset=dataset)
        return cls(trunk_threshold=0.0, **_LEGACY[dataset])


_LEGACY: dict[str, dict] = {
    "wlasl": dict(hand_threshold=0.5, arm_threshold=0.8, drop_last=True),
    "msasl": dict(hand_threshold=0.5, arm_threshold=0.8),
    "nmfs_csl": dict(hand_threshold=0.5, arm_threshold=0.5),
    "slr500": dict(hand_threshold=0.4, arm_threshold=0.5, bottom_margin=None, drop_last=True),
}


def preprocess(pose: Pose, options: PreprocessOptions | None = None) -> Clip:
    """Select 49 joints, cut out and normalise the hands, drop the frames that show no hand.

    Hand (spec: the authors' feeders): u = (p - box corner) / box side, at least 0; the left hand is mirrored,
    u_x = 1 - u_x, and of it whatever is not below 255/256 becomes 0. Trunk: p / (width, height).

    Args:
        pose: pixels of the whole image; layout "coco133", "holistic" or "sign49".
        options: thresholds and choices.
    Returns:
        A Clip with label -1, float32 [F, 49, 2] and [F, 49], F <= ``options.max_frames``.
    Raises:
        PoseFileError: the image size is unknown, positions are no pixels, the person does not exist, or no frame
            shows a hand.

    >>> from slrfast.data import SyntheticSigns
    >>> preprocess(SyntheticSigns(num_classes=2, clips_per_class=1).pose(0)).xy.shape[1:]
    torch.Size([49, 2])
    """
    xy, confidence = arrays(pose, options or PreprocessOptions())
    return Clip(torch.from_numpy(xy), torch.from_numpy(confidence), name=pose.path)


def arrays(pose: Pose, options: PreprocessOptions) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`preprocess` puts into the Clip, as NumPy arrays."""
    size = pose.size or image_size(pose.path, options.size)
    if size is None:
        raise PoseFileError(pose.path, "the file does not name the image size; give size=(width, height)")
    if 0 < np.abs(pose.xy).max() <= _FRACTIONS < min(size):
        raise PoseFileError(pose.path, "positions look like fractions of the image, pixels are needed")
    stride = max(2, math.ceil(pose.num_frames / options.max_frames)) if pose.num_frames > options.max_frames else 1
    joints = joint_indices(pose.layout)
    person = _choose_person(pose, options.person, joints)
    xy = pose.xy[::stride, person, joints].astype(np.float64)
    confidence = pose.confidence[::stride, person, joints]

    out = np.zeros_like(xy)
    out_confidence = np.zeros_like(confidence)
    kept = np.zeros(len(xy), bool)
    for side, part in (("right", _RIGHT), ("left", _LEFT)):
        arm = _ARMS[side]
        box, ok = hand_boxes(xy[:, part], confidence[:, part], xy[:, arm], confidence[:, arm], size, options)
        out[:, part], out_confidence[:, part] = crop_normalise(
            xy[:, part], confidence[:, part], box, ok, options.hand_threshold, mirror=side == "left"
        )
        kept |= ok
    seen = np.greater_equal(confidence[:, _TRUNK], np.float32(options.trunk_threshold))
    out[:, _TRUNK] = np.where(np.expand_dims(seen, -1), xy[:, _TRUNK] / np.array(size, np.float64), 0)
    out_confidence[:, _TRUNK] = np.where(seen, confidence[:, _TRUNK], 0)
    if not (out_confidence[kept][:, : _TRUNK.start] > 0).any():
        raise PoseFileError(pose.path, "no hand is visible in any frame")
    return out[kept].astype(np.float32), out_confidence[kept]


def joint_indices(layout: str) -> np.ndarray:
    """Where the 49 joints stand in a layout's keypoints, int64 [49]."""
    names = LAYOUTS[layout]
    return np.array([names.index(name) for name in _SIGN49.names])


def hand_boxes(
    hand: np.ndarray,
    confidence: np.ndarray,
    arm: np.ndarray,
    arm_confidence: np.ndarray,
    size: tuple[int, int],
    options: PreprocessOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """The square that a hand is cut out by, from its joints, else from its arm.

    Args:
        hand: float64 [F, 21, 2] pixels.
        confidence: float32 [F, 21].
        arm: float64 [F, 3, 2] shoulder, elbow, wrist.
        arm_confidence: float32 [F, 3].
        size: (width, height).
        options: thresholds.
    Returns:
        int64 [F, 4] (x0, y0, x1, y1) and bool [F] whether there is a box.
    """
    visible = confidence > np.float32(options.visible_threshold)
    from_hand, side = _box_of_joints(hand, visible, size, options.box_scale)
    from_arm, arm_side = _box_of_arm(arm, size)
    certain = (arm_confidence >= np.float32(options.arm_threshold)).all(1)
    if options.bottom_margin is not None:
        certain &= arm[:, 2, 1] < size[1] - options.bottom_margin
    enough = visible.sum(1) >= options.min_visible
    box = np.where(enough[:, None], from_hand, from_arm)
    return box, np.where(enough, side > 0, certain & (arm_side > 0))


def _box_of_joints(
    hand: np.ndarray, visible: np.ndarray, size: tuple[int, int], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    any_visible = visible.any(1, keepdims=True)
    low = np.where(any_visible, np.where(visible[..., None], hand, np.inf).min(1), 0)
    high = np.where(any_visible, np.where(visible[..., None], hand, -np.inf).max(1), 0)
    center = (low + high) / 2
    side = np.rint(scale * (high - low).max(1))
    limit = min(size) - 1
    side = np.minimum(side, limit)[:, None]
    corner = np.minimum(np.rint(np.maximum(0, center - side / 2)), np.array(size) - 1 - side)
    return np.concatenate((corner, corner + side), 1).astype(np.int64), side[:, 0]


def _box_of_arm(arm: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    shoulder, elbow, wrist = arm[:, 0], arm[:, 1], arm[:, 2]
    lower, upper = _length(wrist - elbow), _length(elbow - shoulder)
    side = 1.1 * np.maximum(lower, 0.9 * upper)
    corner = np.maximum(0, wrist + 0.33 * (wrist - elbow) - side[:, None] / 2)
    side = np.trunc(np.minimum(side, (np.array(size) - corner).min(1)))
    corner = np.trunc(corner)
    return np.concatenate((corner, corner + side[:, None]), 1).astype(np.int64), side


def _length(vector: np.ndarray) -> np.ndarray:
    return np.sqrt(vector[:, 0] * vector[:, 0] + vector[:, 1] * vector[:, 1])


def crop_normalise(
    hand: np.ndarray, confidence: np.ndarray, box: np.ndarray, ok: np.ndarray, threshold: float, *, mirror: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A hand's joints as fractions of its box; (0, 0) and confidence 0 below the threshold and without a box.

    Args:
        hand: float64 [F, 21, 2] pixels.
        confidence: float32 [F, 21].
        box: int64 [F, 4] (x0, y0, x1, y1).
        ok: bool [F].
        threshold: least confidence.
        mirror: whether to mirror inside the box, as for a left hand.
    Returns:
        float64 [F, 21, 2] and float32 [F, 21].
    """
    seen = confidence >= np.float32(threshold)
    extent = np.where(ok[:, None], box[:, 2:] - box[:, :2], 1)
    u = np.where(seen[..., None], hand, 0)
    u = np.maximum((u - box[:, None, :2]) / extent[:, None] * BOX, 0)
    if mirror:
        u[..., 0] = BOX - u[..., 0]
        u = np.where(u < BOX - 1, u, 0)
    u = np.where((ok[:, None] & seen)[..., None], u, 0)
    return u / BOX, np.where(ok[:, None] & seen, confidence, 0)


def _choose_person(pose: Pose, person: int | None, joints: np.ndarray) -> int:
    if person is not None:
        if person >= pose.num_people:
            raise PoseFileError(pose.path, f"person {person} was asked for, but there are {pose.num_people}")
        return person
    if pose.num_people == 1:
        return 0
    confidence = pose.confidence[:, :, joints]
    seen = np.greater(confidence, 0)[..., None]
    xy = pose.xy[:, :, joints]
    extent = np.where(seen, xy, -np.inf).max(2) - np.where(seen, xy, np.inf).min(2)
    diagonal = np.where(seen.any(2)[..., 0], np.sqrt((np.maximum(extent, 0) ** 2).sum(-1)), 0)
    return int((confidence.mean(2) * diagonal).sum(0).argmax())
