"""From pixels to network input: person, frames, the layout's joints, hand boxes, normalisation.

The rules are those of the STC and MASA authors' feeders, for whole clips at once. Positions are computed in float64, so
the result does not depend on the order of the work, and stored as float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from slrfast import checks, graphs
from slrfast.data.batch import Clip
from slrfast.data.crop import crop_normalise, hand_boxes
from slrfast.data.pose import UNITS, Pose, image_size, joint_indices
from slrfast.errors import PoseFileError

_SIDES = ("right", "left")
_HANDS = 2 * len(graphs.HAND_NAMES)
_FRACTIONS = 2  # no person is so small in pixels, and no fraction of an image so large


@dataclass(frozen=True)
class PreprocessOptions:
    """How a Pose becomes a Clip; the defaults are the papers' where they say, the authors' code where they do not.

    Attributes:
        hand_threshold: a hand joint with less confidence is missing (MASA: 0.4).
        trunk_threshold: the same for every other joint: trunk, body, feet, face and mouth.
        arm_threshold: least confidence of shoulder, elbow and wrist for a box without a visible hand.
        visible_threshold: a joint counts for the hand's box above this confidence.
        min_visible: so many joints make a box.
        box_scale: side of the box over the extent of the hand.
        bottom_margin: an arm gives no box if its wrist is within so many pixels of the lower edge; None: never mind.
        max_frames: longer clips keep every s-th frame, s = max(2, ceil(F / max_frames)).
        person: which person of the file; None takes the one that is largest and most certain over the whole clip.
        size: (width, height) of the image, used when the file does not say.
        drop_last: ignore the last name of an author-style pickle's ``img_list``.
        layout: keypoints of the clip: 49 (STC, MASA), 75 (CCL-SLR), 79 (SLP) or 133 (all of COCO-WholeBody).
        units: what the files' positions are, as for ``load_pose``: "auto", "pixels" or "fractions".
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
    layout: int = 49
    units: str = "auto"

    def __post_init__(self) -> None:
        known = isinstance(self.layout, int) and self.layout in graphs.LAYOUTS
        shown = ", ".join(map(str, graphs.LAYOUTS))
        checks.require(known, "PreprocessOptions", "layout", f"be one of {shown}", repr(self.layout))
        checks.choice("PreprocessOptions", UNITS, units=self.units)
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
    """Select the layout's joints, cut out and normalise the hands, drop the frames that show no hand.

    Hand (spec: the authors' feeders): u = (p - box corner) / box side, at least 0; the left hand is mirrored,
    u_x = 1 - u_x, and of it whatever is not below 255/256 becomes 0. Any other joint: p / (width, height).

    Args:
        pose: pixels of the whole image, in any of ``data.pose.LAYOUTS``; what it lacks of the wanted layout (MediaPipe
            has no small toes) is missing in every frame.
        options: thresholds and choices.
    Returns:
        A Clip with label -1, float32 [F, V, 2] and [F, V], V = ``options.layout``, F <= ``options.max_frames``.
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
    clip = normalise([select(pose, options)], options)[0]
    if isinstance(clip, PoseFileError):
        raise clip
    return clip


class Selected(NamedTuple):
    """The joints and frames of a pose that a clip is made of, planar, time last: the hands first, right and left.

    ``xy`` is float32 [2, V, T] pixels, ``confidence`` [V, T], ``size`` (width, height).
    """

    xy: np.ndarray
    confidence: np.ndarray
    size: tuple[int, int]
    path: str


def select(pose: Pose, options: PreprocessOptions) -> Selected:
    """Choose the person, the frames and the layout's joints; PoseFileError as :func:`preprocess` names them."""
    size = pose.size or image_size(pose.path, options.size)
    if size is None:
        raise PoseFileError(pose.path, "the file does not name the image size; give size=(width, height)")
    if options.units == "auto" and 0 < np.abs(pose.xy).max() <= _FRACTIONS < min(size):
        what = "positions look like fractions of the image, pixels are needed; say units='fractions' when reading"
        raise PoseFileError(pose.path, what)
    stride = frame_stride(pose.num_frames, options)
    joints = joint_indices(pose.layout, options.layout)[_order(options.layout)[0]]
    person = choose_person(pose, options.person)
    xy = np.ascontiguousarray(pose.xy[::stride, person].take(joints, 1).T)
    confidence = np.ascontiguousarray(pose.confidence[::stride, person].take(joints, 1).T)
    if (joints < 0).any():
        xy[:, joints < 0], confidence[joints < 0] = 0, 0
    return Selected(xy, confidence, size, pose.path)


def normalise(
    clips: Sequence[Selected], options: PreprocessOptions
) -> list[tuple[np.ndarray, np.ndarray] | PoseFileError]:
    """Crop and scale clips, all at once: positions and confidences of each, or why there is nothing to see in it."""
    _, back, _ = _order(options.layout)
    lengths, frames, xy, confidence, size, hands, scores, corner, side = _boxes(clips, options)
    hands, scores = crop_normalise(hands, scores, corner, side, options.hand_threshold, mirrored=(1,))
    seen = confidence[_HANDS:] >= np.float32(options.trunk_threshold)
    rest = np.where(seen, xy[:, _HANDS:] / size[:, None], 0)
    out = np.concatenate((hands.reshape(2, _HANDS, frames), rest), 1, dtype=np.float32)[:, back].T
    out_confidence = np.concatenate((scores.reshape(_HANDS, frames), np.where(seen, confidence[_HANDS:], 0)))[back].T
    kept: np.ndarray = np.any(side > 0, 0)
    shown: np.ndarray = np.any(scores > 0, (0, 1))
    found: list[tuple[np.ndarray, np.ndarray] | PoseFileError] = []
    for clip, length, end in zip(clips, lengths, np.cumsum(lengths).tolist(), strict=True):
        these = np.arange(end - length, end)[kept[end - length : end]]
        if shown[these].any():
            found.append((np.ascontiguousarray(out[these]), np.ascontiguousarray(out_confidence[these])))
        else:
            found.append(PoseFileError(clip.path, "no hand is visible in any frame"))
    return found


def _boxes(clips: Sequence[Selected], options: PreprocessOptions) -> tuple[Any, ...]:
    """Clips behind each other: lengths, their sum, positions, confidences, image sizes, hands, scores and boxes."""
    arms = _order(options.layout)[2]
    lengths = [clip.xy.shape[2] for clip in clips]
    xy = np.concatenate([clip.xy for clip in clips], 2, dtype=np.float64)
    confidence = np.concatenate([clip.confidence for clip in clips], 1)
    size = np.repeat(np.array([clip.size for clip in clips], np.float64).T, lengths, 1)
    frames = sum(lengths)
    hands, scores = xy[:, :_HANDS].reshape(2, 2, -1, frames), confidence[:_HANDS].reshape(2, -1, frames)
    corner, side = hand_boxes(
        hands,
        scores,
        xy[:, arms],
        confidence[arms],
        size,
        visible_threshold=options.visible_threshold,
        min_visible=options.min_visible,
        box_scale=options.box_scale,
        arm_threshold=options.arm_threshold,
        bottom_margin=options.bottom_margin,
    )
    return lengths, frames, xy, confidence, size, hands, scores, corner, side


def kept_frames(pose: Pose, options: PreprocessOptions) -> np.ndarray:
    """Which frames of a pose, and so of its video, the clip of :func:`preprocess` consists of: rising int64 [F].

    Raises:
        PoseFileError: the image size is unknown, positions are no pixels, or the person does not exist.
    """
    *_, side = _boxes([select(pose, options)], options)
    return np.flatnonzero(np.any(side > 0, 0)) * frame_stride(pose.num_frames, options)


def frame_stride(frames: int, options: PreprocessOptions) -> int:
    """Every how manieth frame of a clip is kept."""
    return max(2, math.ceil(frames / options.max_frames)) if frames > options.max_frames else 1


@lru_cache
def _order(keypoints: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints of a layout in the order right hand, left hand, rest [V]; the way back [V]; the arms in it [2, 3]."""
    layout = graphs.layout(keypoints)
    hands = [v for side in _SIDES for v in range(keypoints)[layout.parts[f"{side}_hand"]]]
    order = np.array([*hands, *sorted(set(range(keypoints)) - set(hands))])
    back = np.argsort(order)
    joints = ("shoulder", "elbow", "wrist")
    arms = [[back[layout.names.index(f"{side}_{joint}")] for joint in joints] for side in _SIDES]
    return order, back, np.array(arms)


def choose_person(pose: Pose, person: int | None) -> int:
    """The person that was asked for, or (None) the largest and most certain by the joints that signs are made of."""
    if person is not None:
        if person >= pose.num_people:
            raise PoseFileError(pose.path, f"person {person} was asked for, but there are {pose.num_people}")
        return person
    if pose.num_people == 1:
        return 0
    joints = joint_indices(pose.layout, 49)
    confidence = pose.confidence[:, :, joints]
    seen = np.greater(confidence, 0)[..., None]
    xy = pose.xy[:, :, joints]
    extent = np.where(seen, xy, -np.inf).max(2) - np.where(seen, xy, np.inf).min(2)
    diagonal = np.where(seen.any(2)[..., 0], np.sqrt((np.maximum(extent, 0) ** 2).sum(-1)), 0)
    return int((confidence.mean(2) * diagonal).sum(0).argmax())


def person_rule(person: int | None) -> str:
    """How one of several people is chosen, in words."""
    return "the largest and most certain one over the clip" if person is None else f"person {person}"
