"""The pictures of the report, from the recorded runs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import OURS
from benchmarks.roofline import Position
from slrfast.files import replacing

TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200)
BEYOND_CACHES = 1 << 26
BLUE, ORANGE, GREY = "#1f6fb4", "#e08e1b", "#7c8591"


def draw_gains(gains: Mapping[str, Mapping[str, tuple[float, float]]], path: Path) -> None:
    """Machine -> benchmark -> (least, most) gain over the baseline: a bar from one to the other."""
    rows = max(len(found) for found in gains.values())
    figure = Figure(figsize=(7.2 * len(gains), 0.9 + 0.19 * rows), layout="constrained")
    panels = figure.subplots(1, len(gains), squeeze=False)[0]
    for axes, (machine, found) in zip(panels, gains.items(), strict=True):
        order = sorted(found, key=lambda name: found[name][1])
        for row, name in enumerate(order):
            least, most = found[name]
            color = BLUE if least >= 1 else ORANGE
            axes.plot((least, most), (row, row), color=color, linewidth=6, solid_capstyle="butt")
            axes.plot((least, most), (row, row), "|", color="#22262b", markersize=7)
        axes.axvline(1, color=GREY, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yticks(range(len(order)), order, fontsize=7)
        axes.set_ylim(-0.8, len(order) - 0.2)
        axes.set_xticks(TICKS, [f"{tick:g}x" for tick in TICKS])
        axes.minorticks_off()
        _finish(axes, f"faster than the baseline, least and most of the cases: {machine}", "")
    save(figure, path)


def draw_roofline(positions: Mapping[str, Sequence[Position]], path: Path) -> None:
    """Every operation at its arithmetic intensity: slrfast filled, its baseline hollow."""
    figure = Figure(figsize=(7.2 * len(positions), 5), layout="constrained")
    panels = figure.subplots(1, len(positions), squeeze=False)[0]
    for axes, (machine, found) in zip(panels, positions.items(), strict=True):
        shown = sorted((p for p in one_each(found) if p.flops), key=lambda p: p.intensity)
        peak = max(p.peak for p in found)
        x = np.geomspace(0.5 * min(p.intensity for p in shown), 2 * max(p.intensity for p in shown), 200)
        far = [p.copied for p in found if p.bytes >= BEYOND_CACHES]
        axes.plot(x, np.minimum(peak, max(p.copied for p in found) * x), "--", color=GREY, linewidth=1, label="caches")
        if far:
            axes.plot(x, np.minimum(peak, min(far) * x), color=GREY, linewidth=1, label="memory")
        for seconds, fill, name in (("seconds", BLUE, OURS), ("baseline_seconds", "none", "baseline")):
            y = [p.flops / getattr(p, seconds) for p in shown]
            axes.scatter(
                [p.intensity for p in shown], y, s=16, facecolor=fill, edgecolor=BLUE, linewidth=0.8, label=name
            )
        for number, p in enumerate(shown, 1):
            at = (p.intensity, p.flops / p.seconds)
            axes.annotate(str(number), at, (3, 3), textcoords="offset points", fontsize=6)
        key = "\n".join(f"{number} {p.op}" for number, p in enumerate(shown, 1))
        axes.annotate(key, (1.02, 1), xycoords="axes fraction", fontsize=6, va="top", linespacing=1.3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(fontsize=7, frameon=False, loc="lower right")
        _finish(axes, f"FLOP/s, one case of every benchmark: {machine}", "FLOP per byte")
    save(figure, path)


def one_each(positions: Sequence[Position]) -> list[Position]:
    """Of every benchmark the case of the paper's size, else the one with most to do."""
    chosen: dict[str, Position] = {}
    for p in positions:
        rank = ("paper" in p.case, p.flops)
        if p.op not in chosen or rank > ("paper" in chosen[p.op].case, chosen[p.op].flops):
            chosen[p.op] = p
    return list(chosen.values())


def draw_curves(run: Mapping, path: Path) -> None:
    """Losses of every seed, and how far the runs are apart, as means over ten steps."""
    losses = {name: np.array(runs) for name, runs in run["results"]["losses"].items()}
    ours, reference, moved = losses.values()
    pairs = list(combinations(range(len(reference)), 2))
    figure = Figure(figsize=(7.2, 2.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for seed in range(len(ours)):
        color = (BLUE, "#d1495b", "#2e8b57")[seed % 3]
        left.plot(_smooth(reference[seed]), color=color, linewidth=2.4, alpha=0.35, label="reference")
        left.plot(_smooth(ours[seed]), color=color, linewidth=0.9, linestyle="--", label=OURS)
    other = np.mean([abs(reference[a] - reference[b]) for a, b in pairs], axis=0)
    right.plot(_smooth(other), color=ORANGE, label="reference, other seed")
    right.plot(_smooth(abs(ours - moved).mean(0)), color=GREY, label=f"{OURS}, weights 1e-7 off")
    right.plot(_smooth(abs(ours - reference).mean(0)), color="#22262b", label=f"{OURS} and reference, same seed")
    right.set_yscale("log")
    handles, names = left.get_legend_handles_labels()
    left.legend(handles[:2], names[:2], fontsize=7, frameon=False)
    right.legend(fontsize=7, frameon=False)
    for axes, title in ((left, f"loss, {len(ours)} seeds"), (right, "mean difference of two losses")):
        _finish(axes, title, "step")
    save(figure, path)


def _smooth(values: np.ndarray, width: int = 10) -> np.ndarray:
    return np.convolve(values, np.full(width, 1 / width), "valid")


def _finish(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(below, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """As PNG, in one piece and without the date and version that would change it from run to run."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
