"""Render benchmarks/results as Markdown and pictures: README.md, docs/results.md, roofline.md and unproven.md.

Tables go between a page's markers, and no number is in them that no JSON has. ``python -m benchmarks.report``
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from benchmarks import roofline
from benchmarks.accuracy import table as accuracy
from benchmarks.harness import OURS, RESULTS, is_ours
from benchmarks.plots import draw_curves, draw_gains, draw_roofline

README = RESULTS.parents[1] / "README.md"
DOCS = README.parent / "docs"
CURVES, GAINS, ROOFLINE, ACCURACY = (DOCS / f"{name}.png" for name in ("loss_curves", "gains", "roofline", "accuracy"))


def newest(results: Path, kind: str = "op") -> dict[str, list[dict]]:
    """Machine -> the newest run of every op (or of every "demo"), sorted by name."""
    runs: dict[tuple[str, str], dict] = {}
    for path in sorted(results.glob("*/*.json")):
        run = json.loads(path.read_text())
        if kind not in run:
            continue
        key = run["machine"], run[kind]
        if key not in runs or run["date"] > runs[key]["date"]:
            runs[key] = run
    machines: dict[str, list[dict]] = {}
    for (machine, _), run in sorted(runs.items()):
        machines.setdefault(machine, []).append(run)
    return machines


def render(machines: Mapping[str, Sequence[Mapping]]) -> str:
    """One section per machine: a row per case, and tables of their own for what has phases, threads or memory."""
    sections = [_section(machine, runs) for machine, runs in machines.items()]
    return "\n\n".join(sections) if sections else "No results have been recorded yet."


def render_summary(machines: Mapping[str, Sequence[Mapping]]) -> str:
    """A row per benchmark: the cases in which slrfast gains least and most, whatever comes out."""
    lines: list[str] = []
    for machine, runs in machines.items():
        lines += [
            f"On {machine}, {runs[-1]['threads']} threads, float32:",
            "",
            "| benchmark | cases | least gain | most gain | commit |",
            "|---|--:|---|---|---|",
        ]
        for run in runs:
            gains = sorted((_gain(case), case["name"], _baseline(case)) for case in run["cases"])
            least, most = (f"{gain:.2f}x of {against}: {name}" for gain, name, against in (gains[0], gains[-1]))
            row = run["op"], str(len(gains)), least, most if len(gains) > 1 else "", run["commit"]
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines).strip() or "No results have been recorded yet."


def _baseline(case: Mapping) -> str:
    others = [name for name in case["seconds"] if not is_ours(name)]
    named = case.get("baseline", "eager")
    return named if named in others else others[0]


def _gain(case: Mapping) -> float:
    return case["seconds"][_baseline(case)] / case["seconds"][OURS]


def _section(machine: str, runs: Sequence[Mapping]) -> str:
    lines = [
        f"## {machine}",
        "",
        "Median time of a call; in brackets how much faster (or slower, below 1) slrfast is in the same run, "
        "every form of it in their order.",
        "",
        "| op | case | slrfast | against | x floor | error | commit |",
        "|---|---|--:|---|--:|--:|---|",
    ]
    whole_losses = [run for run in runs if run["op"].startswith("stc_loss")]
    memory = [run for run in runs if run["op"] == "bank_memory"]
    for run in runs:
        if run not in whole_losses + memory:
            lines += [_row(run, case) for case in run["cases"]]
    if whole_losses:
        lines += ["", *_whole_losses(whole_losses)]
    for run in memory:
        lines += ["", *_memory(run)]
    for run in runs:
        for case in run["cases"]:
            if case.get("phases"):
                title = f"{run['op']}, {case['name']}, by phase (commit {run['commit']}):"
                lines += ["", title, "", *_phases(case["phases"])]
            if case.get("peak_bytes") and run not in memory:
                title = f"{run['op']}, {case['name']}, peak memory (commit {run['commit']}):"
                lines += ["", title, "", *_peaks(case)]
    versions = runs[-1]["versions"]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "python") if name in versions)
    return "\n".join([*lines, "", f"{shown}; {runs[-1]['threads']} CPU threads."])


def _row(run: Mapping, case: Mapping) -> str:
    forms = {name: seconds for name, seconds in case["seconds"].items() if is_ours(name)}
    others = [
        f"{name} {duration(seconds)} ({', '.join(f'{seconds / ours:.2f}x' for ours in forms.values())})"
        for name, seconds in case["seconds"].items()
        if name not in forms
    ]
    skipped = [f"{name}: {reason}" for name, reason in case.get("skipped", {}).items()]
    ours = ", ".join(f"{name.removeprefix(OURS + ', ')} {duration(seconds)}" for name, seconds in forms.items())
    return (
        f"| {run['op']} | {case['name']} {_shapes(case['shapes'])} | {ours.removeprefix(OURS + ' ')} "
        f"| {', '.join(others + skipped)} "
        f"| {case['times_floor'][OURS]:.1f} | {case['error'][OURS]:.0e} | {run['commit']} |"
    )


def _whole_losses(runs: Sequence[Mapping]) -> list[str]:
    """A row for each form of slrfast, with its kernels' instruction set and the threads."""
    lines = [
        "The whole STC loss (B=64, N=16384, D=128, K=8192), forward and backward:",
        "",
        "| slrfast | kernels | CPU threads | time | against | x float32 floor | error | commit |",
        "|---|---|--:|--:|---|--:|--:|---|",
    ]
    for run in runs:
        for case in run["cases"]:
            for name, seconds in case["seconds"].items():
                if not is_ours(name):
                    continue
                others = ", ".join(
                    f"{other} {duration(theirs)} ({theirs / seconds:.2f}x)"
                    for other, theirs in case["seconds"].items()
                    if not is_ours(other)
                )
                kernels = run["isa"] if case["device"] == "cpu" else "GPU"
                form = name.removeprefix(OURS).removeprefix(", ")
                if "banks" not in form:
                    form = ", ".join(filter(None, ("float32 banks", form)))
                lines.append(
                    f"| {form} | {kernels} | {case['threads']} | {duration(seconds)} | {others} "
                    f"| {case['times_floor'][name]:.1f} | {case['error'][name]:.0e} | {run['commit']} |"
                )
    return lines


def _memory(run: Mapping) -> list[str]:
    """Cost per product and peak memory of InfoNCE by size."""
    lines = [
        "InfoNCE, forward and backward, by size: time, also for each of the B N D products, and peak memory beyond "
        f"the inputs, without the bank (commit {run['commit']}):",
        "",
        "| B | N | D | slrfast | each B N D | eager | each B N D | memory slrfast | memory eager | share |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case in run["cases"]:
        (b, d), (n, _) = case["shapes"]["query"], case["shapes"]["bank"]
        times = " | ".join(
            f"{duration(case['seconds'][name])} | {1e12 * case['seconds'][name] / (b * n * d):.1f} ps"
            for name in (OURS, "eager")
        )
        peak = case["peak_bytes"]
        sizes = " | ".join(f"{peak[name] / 2**20:.1f} MiB" for name in (OURS, "eager"))
        lines.append(f"| {b} | {n} | {d} | {times} | {sizes} | {peak[OURS] / peak['eager']:.1%} |")
    return lines


def _peaks(case: Mapping) -> list[str]:
    """Peak memory of every candidate, with its share of the baseline's: beyond what it found, and with all of that."""
    columns = {"beyond what was there before": case["peak_bytes"]}
    if whole := case.get("whole_peak_bytes"):
        columns["all in all: weights, their gradients and momentum, banks and inputs as well"] = whole
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for name in case["peak_bytes"]:
        sizes = ((peaks[name], peaks[case["baseline"]]) for peaks in columns.values())
        lines.append(
            f"| {name} | {' | '.join(f'{size / 2**20:.0f} MiB ({size / base:.0%})' for size, base in sizes)} |"
        )
    return lines


def render_curves(machines: Mapping[str, Sequence[Mapping]]) -> str:
    """The statement under the picture of the loss curves; nothing where none have been recorded."""
    texts = [""]
    for run in (run for runs in machines.values() for run in runs):
        results = run["results"]
        same, moved, other = (results["distance"][key] for key in ("same_seed", "other_weights", "other_seed"))
        texts.append(
            f"{len(results['losses'][OURS][0])} training steps of a small {run['curves']} with slrfast's kernels and "
            f"with the reference: from the same seed their losses are {same:.2g} apart on average. From weights that "
            f"are 1e-7 off slrfast is {moved:.2g} from itself, from another seed the reference {other:.2g}. "
            f"{run['machine']}, commit {run['commit']}."
            f"\n\n![Loss curves]({CURVES.name})"
        )
    return "\n\n".join(texts)


def render_demos(machines: Mapping[str, Sequence[Mapping]]) -> str:
    """Accuracies of every recorded demo."""
    lines = []
    for machine, runs in machines.items():
        for run in runs:
            results = run["results"]
            minutes = (
                f"{results['seconds'] / 60:.1f} min on {machine}, of which {results['pretraining_seconds'] / 60:.1f}"
            )
            lines += [
                f"`--data {run['demo']}`: {results['test_clips']} test clips of {results['classes']} classes, "
                f"{results['protocol']}; {minutes} pre-training; standard error "
                f"{100 * results['standard_error']:.1f}; commit {run['commit']}.",
                "",
                "| network | classifier | top-1 | top-5 | top-1 per class | top-5 per class |",
                "|---|---|--:|--:|--:|--:|",
            ]
            for row in results["rows"]:
                keys = ("top1_instance", "top5_instance", "top1_class", "top5_class")
                numbers = " | ".join(f"{100 * row[key]:.1f}" for key in keys)
                lines.append(f"| {row['network']} | {row['classifier']} | {numbers} |")
            lines.append("")
    return "\n".join(lines).strip() or "No demo has been recorded yet."


def _phases(phases: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = list(phases)
    rows = [f"| phase | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for phase in phases[names[0]]:
        rows.append(f"| {phase} | {' | '.join(duration(phases[name][phase]) for name in names)} |")
    return rows


def _shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def gains(machines: Mapping[str, Sequence[Mapping]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Machine -> benchmark -> least and most gain over the baselines of its cases."""
    return {
        machine: {run["op"]: (min(found), max(found)) for run in runs if (found := [_gain(c) for c in run["cases"]])}
        for machine, runs in machines.items()
    }


def positions(machines: Mapping[str, Sequence[Mapping]]) -> dict[str, list[roofline.Position]]:
    """Machine -> all its cases on the roofline."""
    return {
        machine: [roofline.position(run, case, _baseline(case)) for run in runs for case in run["cases"]]
        for machine, runs in machines.items()
    }


def render_unproven(text: str) -> str:
    """What the table of GPU evidence says, kernels that have not run first."""
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    missing = [(Path(path), commit) for path, commit, result in rows if result.strip() == "unproven"]
    proven = [row for row in rows if row[2].strip() != "unproven"]
    lines = [f"{len(missing)} of {len(rows)} kernels have not run on a GPU with the code that they have now.", ""]
    if missing:
        lines += ["| operation | kernel | last commit proven on a GPU |", "|---|---|---|"]
        lines += [f"| `{path.stem}` | `{path}` | {commit.strip()} |" for path, commit in missing]
    if proven:
        lines += ["", "| proven kernel | commit | result |", "|---|---|---|"]
        lines += [f"| `{path}` | {commit.strip()} | {result.strip()} |" for path, commit, result in proven]
    return "\n".join(lines).strip()


def insert(text: str, tables: str, name: str = "results") -> str:
    """``text`` with everything between the markers of that name replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"the page must contain {begin} and, after it, {end}")
    return f"{head}{begin}\n{tables}\n{end}{tail}"


def render_accuracy(machines: Mapping[str, Sequence[Mapping]], epochs: Mapping[str, Sequence[Mapping]]) -> str:
    """The accuracy runs of every machine and size, and what of their epochs is not training."""
    found = [accuracy.render(run) for runs in machines.values() for run in runs]
    found = [f"![Accuracy]({ACCURACY.name})", *found] if found else ["No results have been recorded yet."]
    for run in (run for runs in epochs.values() for run in runs):
        for case in run["cases"]:
            seconds = case["seconds"]
            where = f"{run['machine']}, commit {run['commit']}: {seconds['epoch']:.1f} s"
            found.append(
                f"Of a fine-tuning epoch of {case['clips']} {run['data']} clips ({case['name']} configuration, batches "
                f"of {case['batch_size']}, {where}) the loader and the metrics take {100 * case['share']:.2f} %."
            )
    return "\n\n".join(found)


def pages() -> dict[Path, dict[str, str]]:
    """Page -> marker -> what belongs between the markers of that name."""
    results, curves = newest(RESULTS), newest(RESULTS, "curves")
    picture = f"![Gains]({GAINS.relative_to(README.parent)})"
    return {
        README: {
            "results": f"{render_summary(results)}\n\n{picture}",
            "demo": render_demos(newest(RESULTS, "demo")),
            "accuracy": "\n\n".join(map(accuracy.differences, chain(*newest(RESULTS, "accuracy").values()))),
        },
        DOCS / "results.md": {"results": render(results) + render_curves(curves)},
        DOCS / "roofline.md": {"roofline": roofline.render(positions(results))},
        DOCS / "accuracy.md": {"accuracy": render_accuracy(newest(RESULTS, "accuracy"), newest(RESULTS, "epoch"))},
        DOCS / "unproven.md": {"unproven": render_unproven((RESULTS / "README.md").read_text())},
    }


def draw() -> None:
    """The pictures of the pages."""
    results = newest(RESULTS)
    if results:
        draw_gains(gains(results), GAINS)
        draw_roofline(positions(results), ROOFLINE)
    for runs in newest(RESULTS, "curves").values():
        draw_curves(runs[0], CURVES)
    for runs in newest(RESULTS, "accuracy").values():
        accuracy.draw(runs[-1], ACCURACY)


def main() -> int:
    """Rewrite the pages, or with --check only say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is out of date")
    check = parser.parse_args().check
    stale = []
    for page, tables in pages().items():
        before = after = page.read_text()
        for name, text in tables.items():
            after = insert(after, text, name)
        stale += [page.name] if after != before else []
        if not check and after != before:
            page.write_text(after)
    if check:
        print(*(f"{name} is out of date: make report" for name in stale), sep="\n", end="\n" if stale else "")
        return int(bool(stale))
    draw()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
