"""The picture of a confusion matrix, legible for ten classes and for two thousand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

from slrfast import checks
from slrfast.tasks.confusion import most_confused
from slrfast.train.pictures import legible, save_figure
from slrfast.train.skeleton import FAINT, INK, frame

_ALL_CELLS, _ALL_NAMES, _PAIRS = 20, 120, 30
_COLOR = "#1f6fb4"


def draw_confusion(matrix: Tensor, class_names: Sequence[str], path: str | Path) -> None:
    """Draw what is taken for what.

    Up to 120 classes are a map of every class's clips over what they are taken for, up to 20 with the percentages in
    it; classes without a test clip are hatched. More classes than that are the 30 pairs that are confused most, beside
    the accuracies of all classes, sorted. A name that the font cannot write is drawn as the class's number.

    Args:
        matrix: [C, C] from ``confusion_matrix``.
        class_names: C of them.
        path: PNG to write.
    Raises:
        ValueError, TypeError: another number of names, or no such matrix. CheckpointError: the file cannot be written.
    """
    pairs = most_confused(matrix, _PAIRS)
    classes = len(matrix)
    checks.require(
        len(class_names) == classes, "draw_confusion", "class_names", f"be {classes} names", len(class_names)
    )
    labels = [_label(i, name) for i, name in enumerate(class_names)]
    counts = matrix.double().cpu()
    total = counts.sum(1)
    if classes > _ALL_NAMES:
        rows = max(len(pairs), 8)
        figure = Figure(figsize=(12.5, 1.3 + 0.24 * rows), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        bars = [(labels[p.true], labels[p.taken_for], p.clips, float(total[p.true])) for p in pairs]
        _draw_pairs(left, bars)
        _draw_accuracies(right, counts, total)
    else:
        side = max(4.2, 2.0 + (0.52 if classes <= _ALL_CELLS else 0.125) * classes)
        figure = Figure(figsize=(side + 0.9, side), layout="constrained")
        _draw_map(figure, figure.add_subplot(), counts, total, labels)
    figure.suptitle(_title(counts, total), fontsize=11, color=INK)
    save_figure(figure, path)


def _title(counts: Tensor, total: Tensor) -> str:
    clips, classes, empty = float(total.sum()), len(total), int((total == 0).sum())
    if not clips:
        return f"no test clips of {classes} classes"
    right = counts.diagonal()
    per_class = float((right[total > 0] / total[total > 0]).mean())
    per_instance = float(right.sum()) / clips
    text = f"{clips:g} clips: top-1 {100 * per_instance:.1f} % per instance, {100 * per_class:.1f} % per class"
    return text + (f"; {empty} of {classes} classes have no test clip" if empty else "")


def _draw_map(figure: Figure, axes: Axes, counts: Tensor, total: Tensor, labels: Sequence[str]) -> None:
    share = (counts / total.clamp(min=1e-300)[:, None]).numpy()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = 9 if len(labels) <= _ALL_CELLS else 5.5
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.tick_params(length=0, colors=INK)
    axes.set_xlabel("taken for", fontsize=10, color=INK)
    axes.set_ylabel("true class", fontsize=10, color=INK)
    for label in (total == 0).nonzero()[:, 0].tolist():
        axes.axhspan(label - 0.5, label + 0.5, facecolor="none", edgecolor=FAINT, hatch="////", linewidth=0)
    if len(labels) <= _ALL_CELLS:
        for row, column in zip(*np.nonzero(share >= 0.005), strict=True):
            color = "white" if share[row, column] > 0.55 else INK
            text = f"{100 * share[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    frame(axes)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, format=lambda value, _: f"{100 * value:.0f} %")
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)


def _draw_pairs(axes: Axes, bars: Sequence[tuple[str, str, float, float]]) -> None:
    """Bars of the share of a class's clips that are taken for another, the worst pair on top."""
    axes.set_title(f"the {len(bars)} pairs that are confused most", fontsize=10, color=INK)
    place = np.arange(len(bars))
    axes.barh(place, [100 * clips / total for _, _, clips, total in bars], color=_COLOR, height=0.7)
    axes.set_yticks(place, [f"{true} → {other}" for true, other, _, _ in bars], fontsize=8)
    for i, (_, _, clips, total) in enumerate(bars):
        axes.annotate(
            f"{clips:g} of {total:g}",
            (100 * clips / total, i),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 20))
    axes.set_ylim(max(len(bars), 1) - 0.4, -0.6)
    axes.set_xlabel("% of the true class's clips", fontsize=9, color=INK)
    _plain(axes)


def _draw_accuracies(axes: Axes, counts: Tensor, total: Tensor) -> None:
    """Top-1 of every tested class, sorted."""
    tested = total > 0
    accuracy = torch.sort(100 * counts.diagonal()[tested] / total[tested], descending=True).values
    axes.set_title(f"top-1 of the {len(accuracy)} classes with test clips, sorted", fontsize=10, color=INK)
    axes.fill_between(
        np.arange(len(accuracy) + 1), [*accuracy[:1], *accuracy], step="pre", color=_COLOR, alpha=0.85, linewidth=0
    )
    axes.set_xlim(0, max(len(accuracy), 1))
    axes.set_ylim(0, 100)
    axes.set_xlabel("classes", fontsize=9, color=INK)
    axes.set_ylabel("%", fontsize=9, color=INK)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)


def _label(number: int, name: str) -> str:
    text = legible(name)
    return text if text.strip() and all(_has_glyph(letter) for letter in text) else f"class {number}"


@cache
def _has_glyph(letter: str) -> bool:
    """Whether matplotlib's font can write it; DejaVu Sans has no Chinese."""
    return get_font(findfont(FontProperties())).get_char_index(ord(letter)) > 0
