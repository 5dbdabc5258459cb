"""The pictures of a run folder: loss curves, augmented views and the map of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from slrfast.data import Clip, PoseBatch
from slrfast.files import replacing
from slrfast.train.projection import tsne
from slrfast.train.runs import RunFolder
from slrfast.train.skeleton import FAINT, INK, dots, draw_pose, frame

_PALETTE = ("#1f6fb4", "#d1495b", "#2e8b57", "#e08e1b", "#7b4fa3", "#118a9c", "#8c5a2b", "#d670ad", "#5d6b7a")
_NOT_LOSSES = ("step", "epoch", "seconds", "clips_per_second", "learning_rate")


def draw_losses(records: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """The total loss, smoothed over its raw values, and every named term against the epoch."""
    terms = [name for name in records[-1] if name not in (*_NOT_LOSSES, "loss", "knn_top1")]
    panels = ["loss", *terms, *(["knn_top1"] if any("knn_top1" in r for r in records) else []), "learning_rate"]
    columns = len(panels) if len(panels) <= 3 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * rows), layout="constrained")
    for place, name in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        points = np.array([(r["epoch"], r[name]) for r in records if name in r])
        color = INK if name == "loss" else _PALETTE[(place - 1) % len(_PALETTE)]
        if name in ("learning_rate", "knn_top1"):
            axes.plot(*points.T, color=color, marker="." if name == "knn_top1" else None)
        else:
            axes.plot(*points.T, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(points[:, 0], _smooth(points[:, 1]), color=color, linewidth=1.8)
        title = {"loss": "total loss", "knn_top1": "kNN top-1, held-out groups"}.get(name, name.replace("_", " "))
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel("epoch", fontsize=8)
        if name == "learning_rate":
            axes.set_ylim(0, 1.08 * max(points[:, 1].max(), 1e-12))
        axes.ticklabel_format(useOffset=False)
        _plain(axes)
    save_figure(figure, path)


def draw_views(
    views: Sequence[Any], names: Sequence[str], path: str | Path, *, moments: int = 6, clips: int = 3
) -> None:
    """The two augmented views of a few clips: trunk above, both hands enlarged below, missing joints left out.

    Args:
        views: two objects with xy [B, T, V, 2] and confidence [B, T, V]; V is 49, 75 or 79.
        names: one per clip.
        path: PNG to write.
        moments: frames per view.
        clips: the first so many clips are drawn.
    """
    count = min(clips, len(names))
    figure = Figure(figsize=(1.75 * moments + 0.9, 2.15 * 2 * count + 0.6), layout="constrained")
    figure.suptitle("Two augmented views of the same clips, as the two encoders see them", fontsize=12, color=INK)
    grid = figure.add_gridspec(2 * count, moments, hspace=0.02, wspace=0.02)
    for row in range(2 * count):
        clip, view = divmod(row, 2)
        xy, confidence = (getattr(views[view], key)[clip].detach().cpu().numpy() for key in ("xy", "confidence"))
        for column, moment in enumerate(np.linspace(0, len(xy) - 1, moments).round().astype(int)):
            axes = figure.add_subplot(grid[row, column])
            draw_pose(axes, xy[moment], confidence[moment])
            if column == row == 0:
                for x, label in ((-0.15, "right hand"), (0.55, "left hand")):
                    axes.text(x, 1.63, label, fontsize=6, color="#7c8591")
            if column == 0:
                axes.set_ylabel(f"{names[clip]}\nview {view + 1}", fontsize=9, color=INK)
            if row == 0:
                axes.set_title(f"frame {moment + 1} of {len(xy)}", fontsize=9, color=INK)
    save_figure(figure, path)


def draw_rgb(views: Sequence[Any], names: Sequence[str], path: str | Path, *, moments: int = 6) -> None:
    """The pictures of both views of a few clips.

    Args:
        views: two objects with rgb [B, 3, T, H, W] in [0, 1].
        names: one per clip.
        path: PNG to write.
        moments: frames per view.
    """
    rows = 2 * len(names)
    figure = Figure(figsize=(1.5 * moments + 0.9, 1.55 * rows + 0.6), layout="constrained")
    figure.suptitle("The pictures of two augmented views of the same clips", fontsize=12, color=INK)
    grid = figure.add_gridspec(rows, moments, hspace=0.02, wspace=0.02)
    for row in range(rows):
        clip, view = divmod(row, 2)
        frames = views[view].rgb[clip].detach().float().cpu().permute(1, 2, 3, 0).clamp(0, 1).numpy()
        for column, moment in enumerate(np.linspace(0, len(frames) - 1, moments).round().astype(int)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(frames[moment])
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(f"{names[clip]}\nview {view + 1}", fontsize=9, color=INK)
            if row == 0:
                axes.set_title(f"frame {moment + 1} of {len(frames)}", fontsize=9, color=INK)
    save_figure(figure, path)


def _caption(clip: Clip, class_names: Sequence[str]) -> str:
    """The class and group of a clip, or else its name, in at most 24 characters."""
    known = [class_names[clip.label] if clip.label >= 0 else "", clip.group]
    return legible(", ".join(word for word in known if word) or clip.name)


def legible(text: str) -> str:
    """A name as matplotlib may draw it: in at most 24 characters, whatever is in it; $ would start a formula."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= 24 else f"{text[:11]}…{text[-12:]}"
    return text.replace("$", r"\$")


def spread(count: int, most: int = 800) -> Tensor:
    """At most so many positions of ``count``, evenly spread, [N] int64."""
    return torch.linspace(0, count - 1, min(most, count)).round().long()


def draw_embedding(maps: Mapping[str, Tensor], labels: Tensor, names: Sequence[str], path: str | Path) -> None:
    """A t-SNE map per set of features, coloured by class; short class names are drawn as the points themselves.

    Args:
        maps: title -> features [N, D], all of the same N clips; of more than 800, an evenly spread choice is drawn.
        labels: [N] int64 index into ``names``, -1 unknown (grey).
        names: class names.
        path: PNG to write.
    """
    chosen = spread(len(labels))
    shown = labels[chosen]
    short = all(len(name) <= 2 for name in names)
    legend = not short and len(names) <= 30
    figure = Figure(figsize=(5.6 * len(maps) + (1.8 if legend else 0), 5.9), layout="constrained")
    colors = _class_colors(len(names))
    for place, (title, features) in enumerate(maps.items()):
        axes = figure.add_subplot(1, len(maps), place + 1)
        points = tsne(features[chosen]).numpy()
        dots(axes, points[shown.numpy() < 0], s=10, color=FAINT)
        for index, name in enumerate(names):
            mine = points[shown.numpy() == index]
            if short:
                dots(axes, mine, s=0)
                for x, y in mine:
                    axes.text(
                        x, y, legible(name), color=colors[index], fontsize=8, ha="center", va="center", weight="bold"
                    )
            else:
                dots(axes, mine, s=14, color=colors[index], label=legible(name), alpha=0.85)
        axes.set_title(f"{title}  ({len(chosen)} clips, t-SNE)", fontsize=11, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.margins(0.04)
        frame(axes)
    if legend:
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right center", fontsize=8, frameon=False, markerscale=1.5)
    save_figure(figure, path)


def draw_training(folder: RunFolder, system: Any, dataset: Any) -> None:
    """loss.png, and of the first three clips views.png and, if they have pictures, rgb.png."""
    draw_losses(folder.read_metrics(), folder.loss_picture)
    few = [dataset[i] for i in range(min(3, len(dataset)))]
    device = next(system.parameters()).device
    views = system.views(PoseBatch.collate(few).to(device), torch.Generator(device).manual_seed(0))
    names = [_caption(clip, dataset.class_names) for clip in few]
    draw_views(views, names, folder.views_picture)
    if getattr(views[0], "rgb", None) is not None:
        draw_rgb(views, names, folder.rgb_picture)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over a twentieth of the curve, shorter at its ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _class_colors(count: int) -> list[tuple[float, ...]]:
    """Hues around the circle, neighbours told apart by lightness."""
    hues = np.arange(count) / max(count, 1)
    value = np.where(np.arange(count) % 2 == 0, 0.85, 0.55)
    return [tuple(c) for c in hsv_to_rgb(np.stack([hues, np.full(count, 0.85), value], 1))]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png")
