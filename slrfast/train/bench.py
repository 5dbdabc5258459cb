"""``slrfast bench``: a training step on this machine, with the kernels and with every operation in plain PyTorch."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import slrfast
from slrfast import checks
from slrfast.data import PoseBatch, PreprocessOptions, SyntheticSigns
from slrfast.systems import SYSTEMS
from slrfast.train.config import (
    RunError,
    build_system,
    choose_device,
    keypoints_of,
    presets,
    system_config,
)
from slrfast.train.inputs import TRIAL, with_inputs
from slrfast.train.options import Parser
from slrfast.train.report import speaker
from slrfast.train.scoring import aligned

DESCRIPTION = """Time a training step (views, losses, backward, optimizer, EMA) on generated signs, and what each
operation takes of it. The same is done with all operations in plain PyTorch (backend "reference"); nothing is timed
unless the losses agree. Baselines written as the field writes them, and torch.compile, are in the repository's
benchmarks/."""
KINDS = ("slrfast", "reference")
AGREE = 1e-2
"""Relative difference of any term of the loss that rounding can make in float32, TensorFloat-32 included."""
REST = "all else"
_PREFIX = "slrfast::"


class WrongAnswer(RunError):
    """The kernels' losses are not the reference's, so that nothing is timed."""


def bench_command(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser(
        "bench",
        DESCRIPTION,
        ["bench", "bench stc masa --batch_size 64", "bench ccl --preset paper --precision bf16 --json"],
    )
    parser.usage = "slrfast bench [SYSTEM ...] [options]"
    parser.add_argument("systems", type=str, nargs="*", help=f"{', '.join(SYSTEMS)} (default: all of them)")
    parser.add_argument("--preset", type=str, default="small", help="of the system: paper, legacy or small")
    parser.add_argument("--batch_size", type=int, help="clips of a step (default: the preset's)")
    parser.add_argument(
        "--precision", type=str, default="float32", help="float32, or bf16: forward passes under autocast"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of either kind; the median counts")
    parser.add_json()
    options = parser.read(argv)
    say = speaker(options.json)
    names = options.systems or list(SYSTEMS)
    try:
        checks.choice("bench", ("float32", "bf16"), precision=options.precision)
        checks.integer_between("bench", 1, 1000, rounds=options.rounds)
        if options.batch_size is not None:
            checks.integer_between("bench", 2, 10**5, batch_size=options.batch_size)
    except ValueError as error:
        raise RunError(str(error)) from error
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise RunError(f"{unknown[0]!r} is no system; there are {', '.join(SYSTEMS)}")
    for name in names:
        if options.preset not in presets(name):
            raise RunError(f"{name} has the presets {', '.join(presets(name))}, not {options.preset!r}")
    device = choose_device(options.device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells on stderr when it starts and stops
    found = []
    for name in names:
        found.append(_bench(name, options, device))
        say(_text(found[-1]) + "\n")
    if options.json:
        print(json.dumps({"version": slrfast.__version__, "torch": torch.__version__, "systems": found}))
    return 0


def _bench(name: str, options: Any, device: torch.device) -> dict[str, Any]:
    config = system_config(name, options.preset)
    if options.batch_size is not None:
        config = replace(config, batch_size=options.batch_size)
    steps = {kind: _Step(name, config, device, options.precision) for kind in KINDS}
    batch = [_batch(name, config.batch_size, step.system) for step in steps.values()][0].to(device)
    with tqdm(total=2 * (3 + options.rounds), desc=name, unit=" steps") as bar:

        def done(made: Any) -> Any:
            bar.update()
            return made

        first = {kind: done(_on(kind, step.terms, batch)) for kind, step in steps.items()}
        error = _disagreement(*first.values())
        if not error <= AGREE:
            raise WrongAnswer(f"{name}: losses differ from the reference's by {error:.2g}, so nothing is timed")
        for kind, step in steps.items():
            done(_on(kind, step, batch))
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(options.rounds):
            for kind in KINDS if turn % 2 else KINDS[::-1]:
                seconds[kind].append(done(_on(kind, steps[kind].timed, batch)))
        operations = {kind: done(_on(kind, step.profiled, batch)) for kind, step in steps.items()}
    medians = {kind: statistics.median(each) for kind, each in seconds.items()}
    return {
        "system": name,
        "preset": options.preset,
        "clips": batch.size,
        "frames": int(batch.lengths.sum()),
        "precision": options.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "difference": error,
        "seconds": medians,
        "clips_per_second": {kind: batch.size / each for kind, each in medians.items()},
        "ratio": medians["reference"] / medians["slrfast"],
        "operations": operations,
    }


class _Step:
    """A system with its optimizer and its random numbers, to be stepped on one batch."""

    def __init__(self, name: str, config: Any, device: torch.device, precision: str) -> None:
        self.system = build_system(name, config, 0).to(device).train()
        self.optimizer = self.system.optimizer()
        self.device, self.precision = device, precision
        self.views = torch.Generator(device).manual_seed(0)

    def terms(self, batch: PoseBatch) -> dict[str, float]:
        """All terms of the loss of a first step in float32; dropout draws from the same seed."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            terms = self.system.training_step(batch, generator=self.views)
        return {key: float(value.detach()) for key, value in terms.items()}

    def __call__(self, batch: PoseBatch) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            terms = self.system.training_step(batch, generator=self.views)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        self.optimizer.step()
        self.system.update_after_step()

    def timed(self, batch: PoseBatch) -> float:
        self._wait()
        started = time.perf_counter()
        self(batch)
        self._wait()
        return time.perf_counter() - started

    def profiled(self, batch: PoseBatch) -> dict[str, float]:
        """Seconds of a step by operation, forward and backward together, and of all else."""
        on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as recorded:
            self(batch)
            self._wait()
        return shares(recorded.events(), on_gpu=on_gpu)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def shares(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Seconds by operation, forward and backward together, the longest first, and of all else.

    Args:
        events: of torch's profiler, of one step.
        on_gpu: counts the time of the kernels that an event of the CPU has launched, not its own.
    """
    total, own = (
        ("device_time_total", "self_device_time_total") if on_gpu else ("cpu_time_total", "self_cpu_time_total")
    )
    found: Counter[str] = Counter()
    whole = 0.0
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, which the event that launched it counts
        whole += getattr(event, f"self_{total}")
        if _is_op(event) and not any(_is_op(each) for each in _ancestors(event)):  # else its caller has its time
            found[event.name.removeprefix(_PREFIX).removesuffix("_grad")] += getattr(event, total)
    seconds = {name: 1e-6 * each for name, each in found.most_common()}
    return {**seconds, REST: max(1e-6 * (whole - found.total()), 0.0)}


def _is_op(event: Any) -> bool:
    return str(event.name).startswith(_PREFIX)


def _ancestors(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def _on(kind: str, call: Callable[[PoseBatch], Any], batch: PoseBatch) -> Any:
    forced: AbstractContextManager[None] = contextlib.nullcontext() if kind == "slrfast" else slrfast.backend(kind)
    with forced:
        return call(batch)


def _batch(name: str, size: int, system: Any) -> PoseBatch:
    """Generated signs with all that the system's trials read; the system gets its text encoder."""
    options = PreprocessOptions(layout=keypoints_of(name))
    signs = SyntheticSigns(num_classes=20, clips_per_class=-(-size // 20), num_signers=12, options=options)
    values = {**TRIAL.get(name, {}), "data": "synthetic", "split": None, "preprocess": None}
    return with_inputs(name, signs, values, system).batch(range(size))


def _disagreement(ours: dict[str, float], reference: dict[str, float]) -> float:
    """The largest difference of any term, relative to it or, where it is smaller, to one thousandth of the loss."""
    least = 1e-3 * abs(reference["loss"])
    return max(
        (abs(ours[key] - value) / max(abs(value), least, 1e-12) for key, value in reference.items()),
        key=lambda error: (error != error, error),
    )


def _text(found: dict[str, Any]) -> str:
    seconds, operations = found["seconds"], found["operations"]
    rows = [[f"{found['system']} {found['preset']}", "slrfast", "plain PyTorch", "ratio"]]
    names = [*(key for key in operations["reference"] if key != REST), REST]
    for key in sorted(names, key=lambda key: (key == REST, -operations["reference"][key])):
        ours, plain = (operations[kind].get(key, 0.0) for kind in KINDS)
        rows.append([key, _ms(ours), _ms(plain), f"{plain / ours:.1f}" if ours and key != REST else ""])
    rows.append(["a step", *(_ms(seconds[kind]) for kind in KINDS), f"{found['ratio']:.1f}"])
    rows.append(["clips per second", *(f"{found['clips_per_second'][kind]:.1f}" for kind in KINDS), ""])
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    where = f"cpu, {threads}" if found["device"] == "cpu" else found["device"]
    head = f"{found['clips']} clips of {found['frames'] / found['clips']:.0f} frames, {found['precision']}, {where}"
    return f"{head}; losses agree to {found['difference']:.1g}\n\n{aligned(rows, text_columns=1)}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"
