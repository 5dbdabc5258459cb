"""The accuracy runs as Markdown and as a picture: means over seeds, and what pre-training and its parts are worth."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.accuracy.recipes import ROWS

SETS = {
    "wlasl100": "WLASL100",
    "wlasl300": "WLASL300",
    "nepali": "Nepali letters, each of five signers left out in turn",
}
WAYS = {"finetune": "fine-tuned", "probe": "linear probe"}
QUESTIONS = (
    ("STC, above the same network from scratch", "STC", "scratch"),
    ("STC, above ridge", "STC", "ridge"),
    ("STC of joints alone, above the same from scratch", "STC, joint alone", "scratch, joint alone"),
    ("STC of motion alone, above the same from scratch", "STC, motion alone", "scratch, motion alone"),
    ("both streams of STC, above joints alone", "STC", "STC, joint alone"),
    ("knowledge transfer, above STC without", "STC", "STC without transfer"),
    ("consistency, above contrast alone", "STC without transfer", "STC, contrast alone"),
    ("MASA, above the same network from scratch", "MASA", "scratch, MASA's network"),
    ("MASA, above ridge", "MASA", "ridge"),
    ("SLP's masked poses, above the same from scratch", "SLP, masked poses", "scratch, SLP's network"),
)
"""What the papers say helps: a row and what it is compared with."""

Found = Mapping[tuple[str, str, str], Mapping[int, float]]


def collect(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[int, float]]:
    """(set, row, way) -> seed -> top-1 per cent; over the signers of a set the mean."""
    found: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for cell in sorted(cells, key=lambda each: each["seed"]):
        if cell["set"] not in SETS:
            continue
        for way in (*WAYS, "ridge"):
            values = [part[way]["top1_instance"] for part in cell["parts"] if way in part]
            if values:
                key = "finetune" if way == "ridge" else way
                found[cell["set"], cell["row"], key][cell["seed"]] = 100 * statistics.mean(values)
    return dict(found)


def render(run: Mapping[str, Any]) -> str:
    """All sets, one table each, and the table of questions."""
    found = collect(run["cells"])
    made = ", ".join(sorted({cell["commit"] for cell in run["cells"] if "commit" in cell}))
    lines = [
        f"### Accuracy on real signing: {run['accuracy']} configuration, {run['machine']}, commit {run['commit']}",
        "",
        f"The cells were made at the commits {made}.",
    ]
    for name, title in SETS.items():
        rows = [row for row in ("ridge", *ROWS) if (name, row, "finetune") in found]
        if not rows:
            continue
        clips = next(cell for cell in run["cells"] if cell["set"] == name)["parts"]
        count = sum(part["clips"] for part in clips)
        lines += ["", f"{title}, {count} test clips, top-1 in per cent:", "", "| | fine-tuned | linear probe | seeds |"]
        lines.append("|---|--:|--:|--:|")
        for row in rows:
            cells = [_shown([*found.get((name, row, way), {}).values()]) for way in WAYS]
            lines.append(f"| {row} | {cells[0]} | {cells[1]} | {len(found[name, row, 'finetune'])} |")
    return "\n".join([*lines, "", differences(run)])


def differences(run: Mapping[str, Any]) -> str:
    """What pre-training and its parts are worth, on all sets."""
    found = collect(run["cells"])
    held = [name for name in SETS if any(key[0] == name for key in found)]
    heads = [f"{SETS[name].split(',')[0]}, {title}" for name in held for title in WAYS.values()]
    lines = ["Differences in points, mean of the seeds that both have and its standard error:", ""]
    lines += ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for title, row, other in QUESTIONS:
        cells = [_difference(found, name, way, row, other) for name in held for way in WAYS]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _difference(found: Found, name: str, way: str, row: str, other: str) -> str:
    ours = found.get((name, row, way), {})
    theirs = found.get((name, other, "finetune" if other == "ridge" else way), {})
    if other == "ridge":  # nothing in it is drawn
        theirs = {seed: value for seed in ours for value in theirs.values()}
    gains = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
    if not gains:
        return ""
    error = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
    return f"{statistics.mean(gains):+.1f}{error}"


def draw(run: Mapping[str, Any], path: Path) -> None:
    """Bars of means, every seed a dot, one panel a set."""
    found = collect(run["cells"])
    held = [name for name in SETS if (name, "scratch", "finetune") in found or (name, "STC", "finetune") in found]
    figure = Figure(figsize=(4.6 * max(1, len(held)), 4.6), layout="constrained")
    axes = figure.subplots(1, max(1, len(held)), squeeze=False, sharey=True)[0]
    rows = [row for row in ("ridge", *ROWS) if any((name, row, "finetune") in found for name in held)][::-1]
    for axis, name in zip(axes, held, strict=False):
        for place, row in enumerate(rows):
            for shift, (way, color) in zip((0.2, -0.2), (("finetune", "#1f6fb4"), ("probe", "#8fb8dc")), strict=True):
                values = [*found.get((name, row, way), {}).values()]
                if values:
                    axis.barh(place + shift, statistics.mean(values), 0.38, color=color)
                    axis.plot(values, [place + shift] * len(values), ".", color="#222222", markersize=4)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_title(SETS[name].split(",")[0], fontsize=11)
        axis.set_xlabel("top-1, per cent")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Fine-tuned (dark) and linear probe (light); a dot is a seed", fontsize=11)
    figure.savefig(path, dpi=120, metadata={"Software": None})
