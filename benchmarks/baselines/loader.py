"""The loader as the field writes it: every sample deep-copies its video and, for each view and hand, looks for the box
of every frame in Python; then NumPy interpolation and augmentation clip by clip, then stacking.

A video is an entry of the authors' cache: "video_data" with "keypoints" [T, 133, 3] in pixels, "img_size" [[W, H]].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

HANDS = {"right": range(112, 133), "left": range(91, 112)}
ARMS = {"right": (6, 8, 10), "left": (5, 7, 9)}
TRUNK = [0, 5, 7, 9, 6, 8, 10]
MAX_FRAMES, THRESHOLD, ARM_THRESHOLD = 150, 0.4, 0.5
SWAPPED = np.r_[21:42, 0:21, 42:49]


class Change(NamedTuple):
    """What one view of one clip is changed by: its window, the matrix about (0.5, 0.5), lost joints, swapped hands."""

    start: int
    length: int
    matrix: np.ndarray
    dropped: np.ndarray
    swap: bool


class View(NamedTuple):
    """A view of one clip [T, 49, 2], or of stacked clips."""

    xy: Any
    motion: Any
    confidence: Any
    visible: Any


def crop_box(
    joints: np.ndarray, score: np.ndarray, arm: np.ndarray, arm_score: np.ndarray, width: int, height: int
) -> tuple[int, int, int, int] | None:
    """The box (x0, x1, y0, y1) of one hand [21, 2] in one frame, or None."""
    visible = joints[score > 0.1]
    if len(visible) >= 10:
        x_min, y_min = np.min(visible, axis=0)
        x_max, y_max = np.max(visible, axis=0)
        side = round(2.2 * max(x_max - x_min, y_max - y_min))
        x0, x1, y0, y1 = 0, width - 1, 0, height - 1
        small = side < min(width, height) - 1
        side = side if small else min(width, height) - 1
        if small or height <= width:
            x0 = round(max(0, (x_min + x_max) / 2 - side / 2))
            x1 = x0 + side
            if x1 > width - 1:
                x0, x1 = x0 - (x1 - (width - 1)), width - 1
        if small or width <= height:
            y0 = round(max(0, (y_min + y_max) / 2 - side / 2))
            y1 = y0 + side
            if y1 > height - 1:
                y0, y1 = y0 - (y1 - (height - 1)), height - 1
        box = int(x0), int(x1), int(y0), int(y1)
    else:
        shoulder, elbow, wrist = arm
        if not all(arm_score >= ARM_THRESHOLD) or not wrist[1] < height - 50:
            return None
        lower = math.sqrt((wrist[0] - elbow[0]) ** 2 + (wrist[1] - elbow[1]) ** 2)
        upper = math.sqrt((elbow[0] - shoulder[0]) ** 2 + (elbow[1] - shoulder[1]) ** 2)
        side = 1.1 * max(lower, 0.9 * upper)
        x = max(0, wrist[0] + 0.33 * (wrist[0] - elbow[0]) - side / 2)
        y = max(0, wrist[1] + 0.33 * (wrist[1] - elbow[1]) - side / 2)
        side = min(side, width - x if x + side > width else side, height - y if y + side > height else side)
        box = int(x), int(x) + int(side), int(y), int(y) + int(side)
    return box if box[1] > box[0] and box[3] > box[2] else None


def crop_hand(keypoints: np.ndarray, hand: str, width: int, height: int) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """One hand in its box, frame by frame: positions [21, 2] as fractions and scores [21], None without a box."""
    frames: list[tuple[np.ndarray, np.ndarray] | None] = []
    for frame in keypoints:
        joints, score = copy.deepcopy(frame[HANDS[hand], :2]), copy.deepcopy(frame[HANDS[hand], 2])
        arm = frame[ARMS[hand], :]
        box = crop_box(joints, score, arm[:, :2], arm[:, 2], width, height)
        if box is None:
            frames.append(None)
            continue
        x0, x1, y0, y1 = box
        joints[score < np.float32(THRESHOLD)] = 0
        score[score < np.float32(THRESHOLD)] = 0
        joints[:, 0] = (joints[:, 0] - x0) / (x1 - x0) * 256
        joints[:, 1] = (joints[:, 1] - y0) / (y1 - y0) * 256
        joints[joints < 0] = 0
        if hand == "left":
            joints[:, 0] = 256 - joints[:, 0]
            joints = np.where(joints < 255, joints, 0.0)
        joints[score == 0] = 0
        frames.append((joints / 256, score))
    return frames


def crop_video(video: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Positions [F, 49, 2] and scores [F, 49] of the frames that show a hand."""
    keypoints = copy.deepcopy(video["video_data"]["keypoints"])
    width, height = (int(n) for n in video["img_size"][0])
    if len(keypoints) > MAX_FRAMES:
        keypoints = keypoints[:: max(2, math.ceil(len(keypoints) / MAX_FRAMES))]
    right, left = (crop_hand(keypoints, hand, width, height) for hand in ("right", "left"))
    xy, confidence = [], []
    for frame, *hands in zip(keypoints, right, left, strict=True):
        if hands[0] is None and hands[1] is None:
            continue
        parts = [hand if hand is not None else (np.zeros((21, 2)), np.zeros(21)) for hand in hands]
        trunk, score = copy.deepcopy(frame[TRUNK, :2]) / [width, height], copy.deepcopy(frame[TRUNK, 2])
        trunk[score < np.float32(THRESHOLD)], score[score < np.float32(THRESHOLD)] = 0, 0
        xy.append(np.concatenate([parts[0][0], parts[1][0], trunk]))
        confidence.append(np.concatenate([parts[0][1], parts[1][1], score]))
    return np.stack(xy), np.stack(confidence)


def draw(length: int, rng: np.random.Generator) -> Change:
    """The paper's views: a window, rotation and scale, a fifth of the joints lost, the hands swapped."""
    keep = min(length, max(32, int(rng.uniform(0.1, 1.0) * length)))
    angle, scale = rng.uniform(-15, 15) * np.pi / 180, rng.uniform(0.8, 1.2)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    dropped = rng.choice(49, 10, replace=False) if rng.random() < 0.5 else np.zeros(0, int)
    return Change(int(rng.integers(0, length - keep + 1)), keep, matrix, dropped, rng.random() < 0.5)


def make_view(xy: np.ndarray, confidence: np.ndarray, change: Change, frames: int) -> View:
    """Cut the window out, interpolate it to so many frames, and augment it."""
    motion = np.zeros_like(xy)
    motion[1:] = xy[1:] - xy[:-1]
    seen = np.stack([confidence[:, :21].max(1) > 0, confidence[:, 21:42].max(1) > 0], 1)
    window = slice(change.start, change.start + change.length)
    nearest = np.arange(frames) * change.length // frames
    xy, motion, confidence = (interpolate(x[window], frames) for x in (xy, motion, confidence))
    visible = seen[window][nearest]
    moved = (xy - 0.5) @ change.matrix.T + 0.5
    xy = np.where(confidence[..., None] > 0, moved, xy)
    motion = motion @ change.matrix.T
    xy[:, change.dropped], motion[:, change.dropped], confidence[:, change.dropped] = 0, 0, 0
    if change.swap:
        xy, motion, confidence = xy[:, SWAPPED], motion[:, SWAPPED], confidence[:, SWAPPED]
        visible = visible[:, ::-1]
    return View(xy, motion, confidence, visible)


def interpolate(x: np.ndarray, frames: int) -> np.ndarray:
    """Linear along the first axis, half-pixel centres."""
    position = np.maximum((np.arange(frames) + 0.5) * len(x) / frames - 0.5, 0)
    before = np.floor(position).astype(int)
    after = np.minimum(before + 1, len(x) - 1)
    weight = (position - before).reshape(-1, *[1] * (x.ndim - 1))
    return x[before] * (1 - weight) + x[after] * weight


def load_batch(
    videos: Sequence[dict[str, Any]],
    frames: int,
    rng: np.random.Generator,
    changes: Sequence[Sequence[Change]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[View]:
    """Two views of every video, made one video after the other and stacked.

    ``changes`` names them instead of drawing them: per view, one for every video.
    """
    views: list[list[View]] = [[], []]
    for i, source in enumerate(videos):
        video = copy.deepcopy(source)
        for number, view in enumerate(views):
            xy, confidence = crop_video(video)
            view.append(make_view(xy, confidence, changes[number][i] if changes else draw(len(xy), rng), frames))
    return [View(*(stacked([clip[field] for clip in view], dtype) for field in range(4))) for view in views]


def stacked(clips: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
    """The clips as one tensor, padded with zeros to the longest."""
    longest = max(len(clip) for clip in clips)
    padded = [np.concatenate([clip, np.zeros((longest - len(clip), *clip.shape[1:]), clip.dtype)]) for clip in clips]
    batch = torch.from_numpy(np.stack(padded))
    return batch if batch.dtype == torch.bool else batch.to(dtype)
