"""Pictures of a signer drawn from keypoints, before a moving background: RGB clips where there are no videos."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from slrfast import checks, graphs
from slrfast.data.dataset import ClipDataset
from slrfast.data.motion_masks import MotionMasks
from slrfast.data.rgb import PictureDataset
from slrfast.data.video import spread

# colours of a picture's parts; 0 is the background
_SHIRT, _SKIN, _HAIR, _MOUTH, _ARM, _PALM, _FINGERS = 1, 2, 3, 4, 5, 6, 7
_FINGERS_OF = np.array([0, *(1 + joint // 4 for joint in range(20))])  # 0 the wrist, 1 the thumb, ... 5 the little one
_SKINS = np.array([(240, 205, 180), (222, 178, 140), (190, 140, 100), (140, 95, 65), (95, 62, 45)], np.float32)
_HAND_BOX = 1.1  # side of a hand's box, in shoulder widths
_SHOULDERS = 0.25  # width in images where they are never seen


def render(
    xy: np.ndarray,
    confidence: np.ndarray,
    *,
    frames: int = 32,
    size: int | tuple[int, int] = 112,
    seed: int = 0,
    signer: int = 0,
    background_motion: float = 1.0,
) -> np.ndarray:
    """Draw a clip: shirt, head, arms and both hands over a texture that drifts.

    Picture t shows the clip's frame ``data.video.spread(F, T)[t]``. A clip does not say where in the image a hand's box
    is: the hand is drawn at the wrist of the arm, in a usual size. Joints that are missing are not drawn.

    Args:
        xy: [F, V, 2] as in a Clip of any layout.
        confidence: [F, V].
        frames: T.
        size: (height, width) in pixels, or one number for both.
        seed: of the background and its path.
        signer: seed of the colours of skin, hair and shirt.
        background_motion: pixels a picture that the background drifts, at 112 pixels; 0 stands still.
    Returns:
        uint8 [3, T, H, W].

    >>> from slrfast.data import SyntheticSigns
    >>> clip = SyntheticSigns(num_classes=1, clips_per_class=1)[0]
    >>> render(clip.xy.numpy(), clip.confidence.numpy(), frames=8, size=64).shape
    (3, 8, 64, 64)
    """
    height, width = (size, size) if isinstance(size, int) else size
    checks.integer_between("render", 8, 2048, height=height, width=width)
    checks.integer_between("render", 1, 4096, frames=frames)
    checks.number_between("render", 0, 100, background_motion=background_motion)
    known = xy.ndim == 3 and xy.shape[1] in graphs.LAYOUTS and xy.shape[2] == 2 and len(xy) > 0
    shown = ", ".join(map(str, graphs.LAYOUTS))
    checks.require(known, "render", "xy", f"have shape [F, V, 2] with F > 0 and V one of {shown}", list(xy.shape))
    checks.require(confidence.shape == xy.shape[:2], "render", "confidence", f"have shape {list(xy.shape[:2])}",
                   list(confidence.shape))  # fmt: skip
    picked = spread(len(xy), frames)
    parts = _draw(np.asarray(xy[picked], np.float32), confidence[picked] > 0, height, width)
    background = _background(np.random.default_rng([seed, 1]), frames, height, width, background_motion)
    colours = _colours(np.random.default_rng([signer, 2]))
    person = parts > 0
    for channel in range(3):
        np.copyto(background[channel], colours[channel][parts], where=person)
    return background


class RenderedDataset(PictureDataset):
    """Clips of any data set with pictures drawn from their keypoints.

    Args:
        dataset: any ClipDataset or packed store.
        frames: pictures of every clip, T.
        size: of a picture in pixels, (height, width) or one number for both.
        seed: together with a clip's name it gives the background; the colours come from the clip's group.
        background_motion: as for :func:`render`.
        masks: makes or remembers motion masks.

    >>> from slrfast.data import SyntheticSigns
    >>> RenderedDataset(SyntheticSigns(num_classes=2, clips_per_class=2), frames=8, size=64).batch([3, 0]).rgb.shape
    torch.Size([2, 3, 8, 64, 64])
    """

    def __init__(
        self,
        dataset: ClipDataset,
        *,
        frames: int = 32,
        size: int | tuple[int, int] = 112,
        seed: int = 0,
        background_motion: float = 1.0,
        masks: MotionMasks | None = None,
    ) -> None:
        super().__init__(dataset, masks)
        checks.integer_between("RenderedDataset", 0, (1 << 63) - 1, seed=seed)
        self.frames, self.size, self.seed, self.background_motion = frames, size, seed, background_motion

    def pictures(self, index: int) -> Tensor:
        """uint8 [3, T, H, W], the same for the same clip and seed."""
        clip = self.dataset[index]
        drawn = render(
            clip.xy.float().numpy(),
            clip.confidence.float().numpy(),
            frames=self.frames,
            size=self.size,
            seed=self.seed + zlib.crc32(clip.name.encode("utf-8", "replace")),
            signer=zlib.crc32(clip.group.encode("utf-8", "replace")),
            background_motion=self.background_motion,
        )
        return torch.from_numpy(drawn)

    def _select(self, indices) -> None:
        pass


def _draw(xy: np.ndarray, seen: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which part is at every pixel: uint8 [T, H, W]."""
    layout = graphs.layout(xy.shape[1])
    frames = len(xy)
    canvas = np.zeros((frames, height, width), np.uint8)
    scale = np.array([width, height], np.float32)

    def joint(name: str) -> tuple[np.ndarray, np.ndarray]:
        place = layout.names.index(name)
        return xy[:, place] * scale, seen[:, place]

    (left, left_seen), (right, right_seen), (nose, nose_seen) = map(joint, ("left_shoulder", "right_shoulder", "nose"))
    both = left_seen & right_seen
    span = np.median(np.abs(left - right)[both, 0]) if both.any() else 0.0
    unit = float(min(span, width)) if span > 0.05 * width else _SHOULDERS * width
    _torso(canvas, left, right, both, unit)
    neck = _line(((left + right) / 2, both), (nose, nose_seen), 8)
    _stamp(canvas, *neck, 0.13 * unit, _SKIN)
    up = np.array([0, 0.12 * unit], np.float32)
    _stamp(canvas, (nose - 2 * up)[:, None], nose_seen[:, None], 0.36 * unit, _HAIR)
    _stamp(canvas, nose[:, None], nose_seen[:, None], 0.33 * unit, _SKIN)
    for part in ("mouth", "face"):
        if part in layout.parts:
            dots, there = xy[:, layout.parts[part]] * scale, seen[:, layout.parts[part]]
            _stamp(canvas, dots, there, 0.02 * unit, _MOUTH)
    for side, mirrored in (("right", False), ("left", True)):
        shoulder, elbow, wrist = (joint(f"{side}_{name}") for name in ("shoulder", "elbow", "wrist"))
        _stamp(canvas, *_line(shoulder, elbow, 10), 0.1 * unit, _ARM)
        _stamp(canvas, *_line(elbow, wrist, 10), 0.08 * unit, _ARM)
        hand, there = xy[:, layout.parts[f"{side}_hand"]], seen[:, layout.parts[f"{side}_hand"]]
        _hand(canvas, hand, there, wrist, _HAND_BOX * unit, mirrored)
    return canvas


def _torso(canvas: np.ndarray, left: np.ndarray, right: np.ndarray, seen: np.ndarray, unit: float) -> None:
    """From the shoulders down, a little wider below."""
    height, width = canvas.shape[1:]
    low, high = np.minimum(left, right), np.maximum(left, right)
    rows = np.arange(height, dtype=np.float32)
    below = np.maximum(rows - low[:, 1:], 0) * 0.08 + 0.08 * unit  # [T, H]
    columns = np.arange(width, dtype=np.float32)
    inside = (columns >= (low[:, :1] - below)[..., None]) & (columns <= (high[:, :1] + below)[..., None])
    shown = (rows >= (low[:, 1:] + high[:, 1:]) / 2 - 0.08 * unit) & seen[:, None]
    canvas[inside & shown[..., None]] = _SHIRT


def _hand(
    canvas: np.ndarray,
    hand: np.ndarray,
    seen: np.ndarray,
    wrist: tuple[np.ndarray, np.ndarray],
    side: float,
    mirrored: bool,
) -> None:
    """A hand [T, 21, 2] in its box, at the arm's wrist: the palm, then every finger in its own shade."""
    origin = np.where(seen[:, :1], hand[:, 0], np.array([0.5, 0.75], np.float32))
    points = (hand - origin[:, None]) * np.array([-side if mirrored else side, side], np.float32) + wrist[0][:, None]
    shown = seen & wrist[1][:, None]
    for knuckle in (5, 9, 13, 17):
        both = (points[:, 0], shown[:, 0]), (points[:, knuckle], shown[:, knuckle])
        _stamp(canvas, *_line(*both, 5), 0.055 * side, _PALM)
    for finger in range(1, 6):
        joints = (
            [0, *range(4 * finger - 3, 4 * finger + 1)] if finger == 1 else list(range(4 * finger - 3, 4 * finger + 1))
        )
        lines = [
            _line((points[:, a], shown[:, a]), (points[:, b], shown[:, b]), 4)
            for a, b in zip(joints, joints[1:], strict=False)
        ]
        places, there = (np.concatenate(arrays, 1) for arrays in zip(*lines, strict=True))
        _stamp(canvas, places, there, 0.035 * side, _FINGERS + finger - 1)


def _line(
    start: tuple[np.ndarray, np.ndarray], stop: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points on the way between two joints, each (positions [T, 2], seen [T]): [T, count, 2] and [T, count]."""
    share = np.linspace(0, 1, count, dtype=np.float32)[:, None]
    points = start[0][:, None] * (1 - share) + stop[0][:, None] * share
    return points, np.repeat((start[1] & stop[1])[:, None], count, 1)


def _stamp(canvas: np.ndarray, points: np.ndarray, seen: np.ndarray, radius: float, part: int) -> None:
    """Discs around points [T, P, 2] where seen [T, P]."""
    frames, height, width = canvas.shape
    reach = int(np.ceil(radius))
    grid = np.arange(-reach, reach + 1)
    dy, dx = (offset.reshape(-1) for offset in np.meshgrid(grid, grid, indexing="ij"))
    inside = dx * dx + dy * dy <= max(radius, 0.8) ** 2
    frame, place = np.nonzero(seen)
    centres = np.rint(np.clip(points[frame, place], -1e4, 1e4)).astype(np.int32)
    x, y = centres[:, :1] + dx[inside], centres[:, 1:] + dy[inside]
    valid = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat = (frame[:, None] * height + y) * width + x
    canvas.reshape(-1)[flat[valid]] = part


def _background(rng: np.random.Generator, frames: int, height: int, width: int, motion: float) -> np.ndarray:
    """A texture of three scales that drifts to and fro, [3, T, H, W]."""
    step = motion * min(height, width) / 112
    margin = int(min(np.ceil(step * frames), max(height, width))) + 1
    rows, columns = height + margin, width + margin
    base = rng.uniform(40, 215, (3, 1, 1)).astype(np.float32)
    texture = np.broadcast_to(base, (3, rows, columns)).copy()
    for cells, strength in ((4, 45.0), (11, 30.0), (37, 22.0)):
        coarse = rng.normal(0, strength, (3, cells, cells)).astype(np.float32)
        texture += _enlarged(coarse, rows, columns)
    texture = np.clip(texture, 0, 255).astype(np.uint8)
    angle, start = rng.uniform(0, 2 * np.pi), rng.uniform(0, margin, 2)
    travel = start[:, None] + step * np.arange(frames) * np.array([[np.sin(angle)], [np.cos(angle)]])
    period = 2 * max(margin - 1, 1)
    offset = np.rint(np.abs((travel % period) - period / 2)).astype(int)
    out = np.empty((3, frames, height, width), np.uint8)
    for t, (y, x) in enumerate(offset.T):
        out[:, t] = texture[:, y : y + height, x : x + width]
    return out


def _enlarged(coarse: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear, [3, h, w] -> [3, rows, columns]."""
    for axis, size in ((1, rows), (2, columns)):
        place = np.linspace(0, coarse.shape[axis] - 1, size, dtype=np.float32)
        low = np.minimum(place.astype(int), coarse.shape[axis] - 2)
        share = (place - low).reshape((-1, 1) if axis == 1 else (-1,))
        coarse = coarse.take(low, axis) * (1 - share) + coarse.take(low + 1, axis) * share
    return coarse


def _colours(rng: np.random.Generator) -> np.ndarray:
    """uint8 [3, parts] of a signer."""
    skin = _SKINS[rng.integers(len(_SKINS))] + rng.normal(0, 6, 3)
    shirt = rng.uniform(20, 220, 3)
    hair = rng.uniform(15, 90) * np.array([1, 0.8, 0.6])
    sleeve = shirt * 0.8
    shades = [skin * shade for shade in (0.82, 1.08, 1.0, 0.93, 0.86, 0.78)]
    table = [np.zeros(3), shirt, skin, hair, skin * (0.6, 0.35, 0.35), sleeve, *shades]
    return np.clip(table, 0, 255).astype(np.uint8).T.copy()
