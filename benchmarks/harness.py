"""How every benchmark here measures: no time for a wrong answer, interleaved rounds, medians, ratios within one run.

A benchmark module names its cases and hands them over::

    def cases(device): yield Case(...)
    test_motion = as_test("motion", cases)           # pytest benchmarks --benchmark-only
    if __name__ == "__main__": main("motion", cases)  # python -m benchmarks.ops.motion --json

Every run becomes one JSON file in benchmarks/results/<machine>/, from which ``benchmarks.report`` renders the tables.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine
from slrfast.files import replacing

RESULTS = Path(__file__).resolve().parent / "results"
OURS = "slrfast"
GEMM = f"{OURS}, torch's GEMM"  # over the reference in plain torch: its products are torch's, and so is what they err
EXACT = 1e-9  # error that is allowed in float64


class WrongAnswer(AssertionError):
    """A candidate's result is off, so it is not timed."""


def largest_error(result: Tensor, truth: Tensor) -> float:
    """The largest difference relative to the largest true value."""
    if result.shape != truth.shape:
        return float("inf")
    if truth.numel() == 0:
        return 0.0
    return ((result.detach().double() - truth).abs().max() / truth.abs().max().clamp_min(1e-300)).item()


def root_mean_square_error(result: Tensor, truth: Tensor) -> float:
    """The difference relative to result and truth together: 1 for zero, or for what has nothing to do with the truth.

    For what has kinks: where rounding moves a ReLU's input across zero, single gradients change by as much as they are.
    """
    if result.shape != truth.shape:
        return float("inf")
    result = result.detach().double()
    both = (result.norm() ** 2 + truth.norm() ** 2).sqrt()
    return ((result - truth).norm() / both.clamp_min(1e-300)).item()


@dataclass(frozen=True)
class Case:
    """One workload and everything that can do it.

    Attributes:
        name: for example "paper, forward + backward".
        shapes: what goes in, for the reader: {"x": [64, 64, 49, 2]}.
        candidates: name -> a call that does the whole timed work and returns the tensors that are checked;
            "slrfast" is ours, and so is what starts with "slrfast, " (another bank dtype, a CUDA graph ...).
        truth: the same tensors computed in float64.
        baseline: the candidate that ratios and allowed errors refer to.
        flops, bytes: what the work needs at least, every input read and every result written once. The floors are
            the time a large matrix product takes for as many operations, and a copy of the same size for the bytes.
        tolerance: relative error that the baseline and other people's code may have.
        tolerances: candidate -> its own allowed error, where the baseline's says nothing: bfloat16 banks. For float32
            code of ours only together with ``exact``: where single flips of ReLUs and maxima decide about the error.
        exact: the tensors as our code computes them in float64; they have to agree with the truth to 1e-9.
        rounding: what ours may be off however exact the baseline is.
        held_to: candidate of ours -> the one whose error it is measured by instead of the baseline's: of its own dtype.
        compared: makes the checked tensors of a call's results, outside the timing.
        checked: candidate -> the call that is compared with the truth where the timed one is random: without dropout.
        error: what a result may be off by; :func:`largest_error` unless told.
        threads: CPU threads that the case runs with; None leaves them as they are.
        skipped: candidate that cannot run here -> why.
        memory: measures what each candidate takes, as :func:`benchmarks.memory.peaks` does.
    """

    name: str
    shapes: Mapping[str, Sequence[int]]
    candidates: Mapping[str, Callable[[], Sequence[Tensor]]]
    truth: Callable[[], Sequence[Tensor]]
    flops: float
    bytes: float
    baseline: str = "eager"
    tolerance: float = 1e-4
    tolerances: Mapping[str, float] = field(default_factory=dict)
    exact: Callable[[], Sequence[Tensor]] | None = None
    rounding: float = 2e-7
    held_to: Mapping[str, str] = field(default_factory=dict)
    compared: Callable[[Sequence[Tensor]], Sequence[Tensor]] = list
    checked: Mapping[str, Callable[[], Sequence[Tensor]]] = field(default_factory=dict)
    error: Callable[[Tensor, Tensor], float] = largest_error
    device: str = "cpu"
    threads: int | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    memory: Callable[[], Mapping[str, Mapping[str, int]]] | None = None
    phases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loose = [name for name in self.tolerances if is_ours(name) and "bf16" not in name]
        if loose and self.exact is None:
            raise ValueError(f"{self.name}: {loose} may have tolerances only beside an exact check in float64")


def allowed(case: Case, found: Mapping[str, float]) -> dict[str, float]:
    """The error that every candidate may have.

    Ours 1.5 times what the baseline (or the one it is held to) errs by, plus ``rounding``; a candidate with its own
    tolerance that one; the baseline, other people's code and torch's products ``tolerance``.
    """
    limits = dict.fromkeys(found, case.tolerance)
    ours = [name for name in found if is_ours(name) and name != GEMM]
    limits |= {name: 1.5 * found[case.held_to.get(name, case.baseline)] + case.rounding for name in ours}
    return limits | dict(case.tolerances)


def is_ours(candidate: str) -> bool:
    """Whether a candidate is slrfast in one form or another."""
    return candidate == OURS or candidate.startswith(f"{OURS}, ")


def errors(case: Case) -> dict[str, float]:
    """Largest error of every candidate over the checked tensors; WrongAnswer where it is not allowed.

    Every candidate is called once, so one that changes its own state is compared with the truth's first step. On a GPU
    the field's convolutions are compared without TensorFloat-32, which they are timed with as torch's default is.
    """
    with machine.full_float32():
        return _errors(case)


def _errors(case: Case) -> dict[str, float]:
    truth = [t.detach().double() for t in case.truth()]

    def error_of(name: str, results: Sequence[Tensor]) -> float:
        if len(results) != len(truth):
            raise WrongAnswer(f"{case.name}: {name} returns {len(results)} tensors instead of {len(truth)}")
        return max(map(case.error, results, truth), key=lambda error: (error != error, error))  # NaN is most

    if case.exact and not (error := error_of(OURS, case.compared(case.exact()))) <= EXACT:
        raise WrongAnswer(f"{case.name}: {OURS} is off by {error:.3g} in float64, allowed {EXACT:.3g}")
    calls = {name: case.checked.get(name, call) for name, call in case.candidates.items()}
    found = {name: error_of(name, case.compared(call())) for name, call in calls.items()}
    limits = allowed(case, found)
    for name, error in found.items():
        if not error <= limits[name]:
            limit = limits[name]
            raise WrongAnswer(f"{case.name}: {name} is off by {error:.3g}, allowed {limit:.3g}")
    return found


def samples(case: Case, rounds: int = 15, seconds: float = 0.02, at_most: float = 20.0) -> dict[str, list[float]]:
    """Seconds per call: in every round each candidate runs for about ``seconds``, in an order that rotates.

    Each turn starts with a call that is not timed, so that no candidate pays for the caches, or for the threads still
    spinning in another OpenMP runtime, that the one before it left behind. A case that is slow gets fewer rounds, but
    at least three, once it has taken ``at_most`` seconds.
    """
    names = list(case.candidates)
    repeats = {}
    for name in names:
        for _ in range(3):
            took = machine.timed(case.candidates[name], 1, case.device)
        repeats[name] = max(1, min(1000, round(seconds / took)))
    found: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    started = time.monotonic()
    try:
        for turn in range(rounds):
            if turn >= 3 and time.monotonic() - started > at_most:
                break
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                case.candidates[name]()
                found[name].append(machine.timed(case.candidates[name], repeats[name], case.device))
    finally:
        gc.enable()
    return found


def summary(case: Case, error: Mapping[str, float], times: Mapping[str, Sequence[float]]) -> dict:
    """One case of a result file: medians, their spread, ratios to the baseline, and the two floors."""
    flop_rate, copy_rate = machine.flop_rate(case.device), machine.copy_rate(case.device, round(case.bytes))
    medians = {name: statistics.median(values) for name, values in times.items()}
    floors = {"flops": case.flops / flop_rate, "bytes": case.bytes / copy_rate}
    return {
        "name": case.name,
        "shapes": {name: list(shape) for name, shape in case.shapes.items()},
        "device": case.device,
        "threads": torch.get_num_threads(),
        "baseline": case.baseline,
        "seconds": medians,
        "fastest": {name: min(values) for name, values in times.items()},
        "slowest": {name: max(values) for name, values in times.items()},
        "speedup": {name: medians[case.baseline] / seconds for name, seconds in medians.items()},
        "error": dict(error),
        "machine": {"flops_per_second": flop_rate, "copied_bytes_per_second": copy_rate},
        "floor_seconds": floors,
        "times_floor": {name: seconds / max(floors.values()) for name, seconds in medians.items()},
        **({"skipped": dict(case.skipped)} if case.skipped else {}),
        **({"phases": {name: dict(phases) for name, phases in case.phases.items()}} if case.phases else {}),
    }


def measure(case: Case, rounds: int = 15) -> dict:
    """Check, then time, one case."""
    with machine.threads(case.threads):
        error = errors(case)
        result = {**summary(case, error, samples(case, rounds)), "allowed_error": allowed(case, error)}
    return result | (case.memory() if case.memory else {})


def save(op: str, cases: Sequence[Mapping], folder: str | os.PathLike | None = None) -> Path:
    """Write one run, with what is needed to repeat it, as <folder>/<op>-<commit>.json."""
    return write(op, {"op": op, **facts(cases[0]["device"]), "cases": list(cases)}, folder)


def write(name: str, run: Mapping, folder: str | os.PathLike | None = None) -> Path:
    """Write a run with its :func:`facts` as <folder>/<name>-<commit>.json."""
    folder = Path(folder or os.environ.get("SLRFAST_BENCHMARK_OUT") or RESULTS / run["machine"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{run['commit']}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(run, indent=1) + "\n")
    return path


def facts(device: str) -> dict:
    """What is needed to repeat a run."""
    return {
        "machine": machine.label(device),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
        "isa": machine.isa(),
        "load": round(os.getloadavg()[0], 2),  # processes that wanted a core, ours included: above that, mistrust
    }


@lru_cache
def commit() -> str:
    """Short hash of the measured tree, "-dirty" when it has changes outside the results; "unknown" without git."""
    root = RESULTS.parents[1]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        command = [
            "git",
            "status",
            "--porcelain",
            "--",
            ".",
            ":!benchmarks/results",
            ":!README.md",
            ":!docs",
        ]
        changes = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SLRFAST_COMMIT", "unknown")
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def devices() -> list[str]:
    """The devices to measure on: the CPU, and a GPU where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def run_all(
    op: str,
    cases: Callable[[str], Iterable[Case | dict]],
    folder: str | os.PathLike | None = None,
    only: str | None = None,
) -> list[dict]:
    """Measure and save every case (a dict is a summary already) on every device, or on one; returns the summaries."""
    found: list[dict] = []
    for device in [only] if only else devices():
        results = [case if isinstance(case, dict) else measure(case) for case in cases(device)]
        save(op, results, folder)
        found += results
    return found


def as_test(op: str, cases: Callable[[str], Iterable[Case]]) -> Callable:
    """A pytest-benchmark test: :func:`run_all`, then our call of the first case for pytest-benchmark's table."""

    def test(benchmark) -> None:
        results = run_all(op, cases)
        for result in results:
            benchmark.extra_info[f"{result['device']} {result['name']}"] = {"speedup": result["speedup"]}
            print(f"\n{line(op, result)}", end="")
        benchmark.group = op
        benchmark.pedantic(next(iter(cases("cpu"))).candidates[OURS], rounds=20, warmup_rounds=3)

    test.__name__ = f"test_{op}"
    return test


def line(op: str, result: Mapping) -> str:
    """One case in one line of text."""
    times = ", ".join(
        f"{name} {1e6 * seconds:.1f} us ({result['speedup'][name]:.2f}x)" for name, seconds in result["seconds"].items()
    )
    skipped = "".join(f"; skipped {name}: {reason}" for name, reason in result.get("skipped", {}).items())
    head = f"{op} [{result['device']}, {result['threads']} threads] {result['name']}"
    return f"{head}: {times}; ours {result['times_floor'][OURS]:.1f} x floor{skipped}"


def main(op: str, cases: Callable[[str], Iterable[Case | dict]], show: Callable[[str, Mapping], str] = line) -> None:
    """The command line of a benchmark module; ``show`` makes text of a summary."""
    parser = argparse.ArgumentParser(description=f"Benchmark {op} and save the run under benchmarks/results.")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--out", metavar="FOLDER", help="save there instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="measure on this one only")
    arguments = parser.parse_args()
    results = run_all(op, cases, arguments.out, arguments.device)
    print(json.dumps(results, indent=1) if arguments.json else "\n".join(show(op, result) for result in results))
