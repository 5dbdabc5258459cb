"""One frame of joints as a drawing: body, face and mouth above, both hands enlarged below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.patches import Patch, Rectangle

from slrfast import graphs

INK, FAINT = "#22262b", "#c9ced6"
_HIDDEN, _ARROW = "#e9d8c0", "#b3261e"
_FINGER_COLORS = ("#d1495b", "#e08e1b", "#2e8b57", "#1f6fb4", "#7b4fa3")
_SIDE, _ZOOM, _TOP = 0.66, 1.5, 1.0  # of the hands' boxes; their middle is shown, enlarged
_HANDS = {"right_hand": -0.18, "left_hand": 0.52}  # where the box begins
_ARMS = {"left": "#1f6fb4", "right": "#d1495b"}
# what is drawn where it is in the image: a part's graph and the size of its dots
_PLACED = {
    "trunk": (graphs.TRUNK7, 4.0),
    "body": (graphs.BODY11, 4.0),
    "face": (graphs.FACE18, 1.4),
    "mouth": (graphs.MOUTH8, 1.4),
}
CONFIDENCE = colormaps["viridis"]
"""Colours of confidences from 0 to 1."""


def draw_pose(
    axes: Axes,
    xy: np.ndarray,
    confidence: np.ndarray,
    *,
    motion: np.ndarray | None = None,
    by_confidence: bool = False,
    shaded: bool = False,
) -> None:
    """Draw a frame; joints of confidence 0 are left out.

    Args:
        axes: to draw on; they are set up here.
        xy: [V, 2] as in a Clip of 49, 75 or 79 joints: the hands as fractions of their boxes, the left one mirrored;
            all others of the image.
        confidence: [V].
        motion: [V, 2] in the same units, drawn as arrows.
        by_confidence: colour joints by confidence instead of by finger.
        shaded: shade the background.
    """
    seen = confidence > 0
    parts = graphs.layout(len(xy)).parts
    motion = np.zeros_like(xy) if motion is None else motion
    axes.set_facecolor(_HIDDEN if shaded else "white")
    for part, left in _HANDS.items():
        joints = parts[part]
        flip = np.array([-1.0 if part == "left_hand" else 1.0, 1.0])  # stored mirrored
        box = Rectangle((left, _TOP), _SIDE, _SIDE, facecolor="#f4f5f7", edgecolor=FAINT, linewidth=0.6)
        axes.add_patch(box)
        colors: Sequence[Any] = [_FINGER_COLORS[(joint - 1) // 4] if joint else INK for joint in range(21)]
        colors = list(CONFIDENCE(confidence[joints])) if by_confidence else colors
        place = ((xy[joints] - 0.5) * flip * _ZOOM + 0.5) * _SIDE + (left, _TOP)
        _draw_bones(axes, place, seen[joints], graphs.HAND21, colors, 2.4, box)
        _draw_arrows(axes, place, motion[joints] * flip * _ZOOM * _SIDE, seen[joints], box)
    for part, (graph, dot) in _PLACED.items():
        if part in parts:
            joints = parts[part]
            colors = [_ARMS.get(name.split("_")[0], INK) if dot > 2 else INK for name in graph.names]
            colors = list(CONFIDENCE(confidence[joints])) if by_confidence else colors
            bones = graph if part != "face" else None  # its bones are a star around the nose
            _draw_bones(axes, xy[joints], seen[joints], bones, colors, dot, axes.patch)
            _draw_arrows(axes, xy[joints], motion[joints], seen[joints], axes.patch)
    axes.set_xlim(-0.22, 1.22)
    axes.set_ylim(1.7, 0.0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    frame(axes)


def _draw_bones(
    axes: Axes,
    xy: np.ndarray,
    seen: np.ndarray,
    graph: graphs.SkeletonGraph | None,
    colors: Sequence[Any],
    dot: float,
    clip: Patch,
) -> None:
    for partition, inner, outer, _ in graph.edges if graph else ():
        if partition == graphs.OUTWARD and seen[inner] and seen[outer]:
            (bone,) = axes.plot(*xy[[inner, outer]].T, color=colors[outer], linewidth=0.55 * dot)
            bone.set_clip_path(clip)
    shown = [color for color, visible in zip(colors, seen, strict=True) if visible]
    dots(axes, xy[seen], s=dot**2, c=shown, zorder=3).set_clip_path(clip)


def _draw_arrows(axes: Axes, xy: np.ndarray, motion: np.ndarray, seen: np.ndarray, clip: Patch) -> None:
    moving = seen & (np.abs(motion).max(1) > 0)
    if moving.any():
        arrows = axes.quiver(
            *xy[moving].T,
            *motion[moving].T,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.006,
            color=_ARROW,
            zorder=4,
        )
        arrows.set_clip_path(clip)


def dots(axes: Axes, points: np.ndarray, **style: Any) -> PathCollection:
    """Points [N, 2] without outlines."""
    return axes.scatter(points[:, 0], points[:, 1], linewidths=0, **style)


def frame(axes: Axes) -> None:
    """A faint frame."""
    for spine in axes.spines.values():
        spine.set_color(FAINT)
