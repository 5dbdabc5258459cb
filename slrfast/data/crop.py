"""Cutting out hands: their boxes, and their joints as fractions of them, for both hands and all frames at once.

Arrays are planar with time last, [2, H, 21, T] for x and y of H hands: so every step is one pass over long rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BOX = 256
"""Side of the square, in pixels, that a hand's box is scaled to."""


def hand_boxes(
    hands: np.ndarray,
    confidence: np.ndarray,
    arms: np.ndarray,
    arm_confidence: np.ndarray,
    size: np.ndarray,
    *,
    visible_threshold: float,
    min_visible: int,
    box_scale: float,
    arm_threshold: float,
    bottom_margin: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The square that each hand is cut out by: around its visible joints, if there are enough, else at its arm's end.

    Args:
        hands: float64 [2, H, 21, T] pixels.
        confidence: float32 [H, 21, T].
        arms: float64 [2, H, 3, T] shoulder, elbow, wrist.
        arm_confidence: float32 [H, 3, T].
        size: float64 [2, T], width and height of the image.
        visible_threshold, min_visible, box_scale, arm_threshold, bottom_margin: as in ``PreprocessOptions``.
    Returns:
        The upper left corner [2, H, T] and the side [H, T], whole pixels in float64; the side is 0 where there is no
        box.
    """
    visible = confidence > np.float32(visible_threshold)
    enough = np.add.reduce(visible, 1, dtype=np.uint8) >= min_visible
    corner, side = _around_joints(hands, visible, enough, size, box_scale)
    if enough.all():
        return corner, side
    certain = (arm_confidence >= np.float32(arm_threshold)).all(1)
    if bottom_margin is not None:
        certain &= arms[1, :, 2] < size[1] - bottom_margin
    arm_corner, arm_side = _at_arm(arms, size)
    side = np.where(enough, side, np.where(certain, np.maximum(arm_side, 0), 0))
    return np.where(enough, corner, arm_corner), side


def _around_joints(
    hands: np.ndarray, visible: np.ndarray, enough: np.ndarray, size: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    low = np.where(enough, np.where(visible, hands, np.inf).min(2), 0)
    high = np.where(enough, np.where(visible, hands, -np.inf).max(2), 0)
    side = np.minimum(np.rint(scale * (high - low).max(0)), size.min(0) - 1)
    corner = np.rint(np.maximum(0, (low + high) / 2 - side / 2))
    return np.minimum(corner, size[:, None] - 1 - side), side


def _at_arm(arms: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shoulder, elbow, wrist = arms[:, :, 0], arms[:, :, 1], arms[:, :, 2]
    lower, upper = wrist - elbow, elbow - shoulder
    side = 1.1 * np.maximum(_length(lower), 0.9 * _length(upper))
    corner = np.maximum(0, wrist + 0.33 * lower - side / 2)
    side = np.minimum(side, (size[:, None] - corner).min(0))
    return np.trunc(corner), np.trunc(side)


def _length(vector: np.ndarray) -> np.ndarray:
    return np.sqrt(vector[0] * vector[0] + vector[1] * vector[1])


def crop_normalise(
    hands: np.ndarray,
    confidence: np.ndarray,
    corner: np.ndarray,
    side: np.ndarray,
    threshold: float,
    mirrored: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The hands' joints as fractions of their boxes; (0, 0) and confidence 0 below the threshold and without a box.

    Args:
        hands: float64 [2, H, 21, T] pixels.
        confidence: float32 [H, 21, T].
        corner, side: what :func:`hand_boxes` returns.
        threshold: least confidence.
        mirrored: the hands that are mirrored inside their box, as left ones are; of these, what is not below 255/256
            becomes 0.
    Returns:
        float64 [2, H, 21, T] and float32 [H, 21, T].
    """
    seen = (confidence >= np.float32(threshold)) & (side > 0)[:, None]
    u = hands - corner[:, :, None]
    u /= np.maximum(side, 1)[:, None]
    np.maximum(u, 0, out=u)
    for hand in mirrored:
        u[0, hand] = 1 - u[0, hand]
        u[:, hand] = np.where(u[:, hand] < (BOX - 1) / BOX, u[:, hand], 0)
    return np.where(seen, u, 0), np.where(seen, confidence, 0)
