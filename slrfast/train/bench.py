"""``slrfast bench``: a training step on this machine, with the kernels and with every operation in plain PyTorch."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import slrfast
from slrfast import checks
from slrfast.data import PoseBatch, PreprocessOptions, SyntheticSigns
from slrfast.ops import _dispatch
from slrfast.systems import SYSTEMS
from slrfast.train.config import RunError, build_system, choose_device, keypoints_of, presets, system_config
from slrfast.train.inputs import TRIAL, with_inputs
from slrfast.train.loop import compute_gradients
from slrfast.train.options import Parser
from slrfast.train.report import speaker
from slrfast.train.scoring import aligned

DESCRIPTION = """Time a training step (views, losses, backward, optimizer, EMA) on generated signs, and what each
operation takes of it. The same is done with all operations in plain PyTorch (backend "reference"); nothing is timed
unless losses and gradients of the first step agree. SLP's texts go through a tiny text encoder. Baselines written as
the field writes them, and torch.compile, are in the repository's benchmarks/."""
KINDS = ("slrfast", "reference")
AGREE = {"float32": (1e-2, 0.05), "bf16": (0.2, 0.7)}
"""What terms of the loss and gradients may differ by: rounding turns ReLUs and maxima over, gradients with them."""
_PREFIX = "slrfast::"


class WrongAnswer(RunError):
    """What the kernels compute is not what the reference does, so that nothing is timed."""


class Profile(NamedTuple):
    """Seconds of a profiled step, in all and by operation."""

    step: float
    operations: Mapping[str, float]


def bench_command(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser(
        "bench",
        DESCRIPTION,
        ["bench", "bench stc masa --batch_size 64", "bench ccl --preset paper --precision bf16 --json"],
    )
    parser.usage = "slrfast bench [SYSTEM ...] [options]"
    parser.add_argument("systems", type=str, nargs="*", default=[], help="default: all that have the preset")
    parser.add_argument("--preset", type=str, default="small", help="of the system: paper, legacy or small")
    parser.add_argument("--batch_size", type=int, help="clips of a step (default: the preset's)")
    parser.add_argument("--precision", type=str, default="float32", help="float32, or bf16: forward under autocast")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, of which medians are taken")
    parser.add_json()
    options = parser.read(argv)
    say = speaker(options.json)
    try:
        checks.choice("bench", ("paper", "legacy", "small"), preset=options.preset)
        checks.choice("bench", tuple(AGREE), precision=options.precision)
        checks.integer_between("bench", 1, 1000, rounds=options.rounds)
        if options.batch_size is not None:
            checks.integer_between("bench", 2, 10**5, batch_size=options.batch_size)
    except ValueError as error:
        raise RunError(str(error)) from error
    names = options.systems or [name for name in SYSTEMS if options.preset in presets(name)]
    for name in names:
        if name not in SYSTEMS:
            raise RunError(f"{name!r} is no system; there are {', '.join(SYSTEMS)}")
        if options.preset not in presets(name):
            raise RunError(f"{name} has the presets {', '.join(presets(name))}, not {options.preset!r}")
    device = choose_device(options.device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells on stderr when it starts and stops
    found = []
    for name in names:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
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
    systems = [step.system for step in steps.values()]
    batch = _batch(name, config.batch_size, systems[0]).to(device)
    if getattr(systems[0], "text", None) is not None:
        systems[1].text = systems[0].text
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    profiles: dict[str, list[Profile]] = {kind: [] for kind in KINDS}
    with tqdm(total=4 * (1 + options.rounds), desc=name, unit=" steps") as bar:

        def done(made: Any) -> Any:
            bar.update()
            return made

        first = [done(_on(kind, step.first, batch)) for kind, step in steps.items()]
        losses, gradients = differences(*first)
        if not (losses <= AGREE[options.precision][0] and gradients <= AGREE[options.precision][1]):
            raise WrongAnswer(
                f"{name}: losses differ from the reference's by {losses:.2g} and gradients by {gradients:.2g}, "
                "so nothing is timed"
            )
        for kind, step in steps.items():
            done(_on(kind, step.profiled, batch))  # the first of either kind warms up
        for turn in range(options.rounds):
            for kind in KINDS if turn % 2 else KINDS[::-1]:
                seconds[kind].append(done(_on(kind, steps[kind].timed, batch)))
                profiles[kind].append(done(_on(kind, steps[kind].profiled, batch)))
    medians = {kind: statistics.median(each) for kind, each in seconds.items()}
    operations = {kind: median_of(each) for kind, each in profiles.items()}
    return {
        "system": name,
        "preset": options.preset,
        "clips": batch.size,
        "frames": int(batch.lengths.sum()),
        "precision": options.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "backends": {op: _dispatch.choose(op, device.type) for op in operations["slrfast"].operations},
        "difference": {"losses": losses, "gradients": gradients},
        "seconds": medians,
        "clips_per_second": {kind: batch.size / each for kind, each in medians.items()},
        "ratio": medians["reference"] / medians["slrfast"],
        "profiled": {kind: each._asdict() for kind, each in operations.items()},
    }


class _Step:
    """A system with its optimizer and its random numbers, to be stepped on one batch."""

    def __init__(self, name: str, config: Any, device: torch.device, precision: str) -> None:
        self.system = build_system(name, config, 0).to(device).train()
        self.system.epoch = config.epochs / 2  # where all terms of the loss have their weight
        self.optimizer = self.system.optimizer()
        self.device, self.precision = device, precision
        self.views = torch.Generator(device).manual_seed(0)

    def first(self, batch: PoseBatch) -> tuple[dict[str, float], Tensor]:
        """All terms of the first step's loss, and its gradients as one vector; no step is made."""
        torch.manual_seed(0)  # of dropout
        terms = self._gradients(batch)
        gradients = [p.grad.float().flatten() for p in self.system.parameters() if p.grad is not None]
        return {key: float(value.detach()) for key, value in terms.items()}, torch.cat(gradients)

    def timed(self, batch: PoseBatch) -> float:
        """Seconds of a step."""
        self._wait()
        started = time.perf_counter()
        self._gradients(batch)
        self.optimizer.step()
        self.system.update_after_step()
        self._wait()
        return time.perf_counter() - started

    def profiled(self, batch: PoseBatch) -> Profile:
        """A step under the profiler, which makes it slower."""
        on_gpu = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as recorded:
            seconds = self.timed(batch)
        return Profile(seconds, by_operation(recorded.events(), on_gpu=on_gpu))

    def _gradients(self, batch: PoseBatch) -> dict[str, Tensor]:
        return compute_gradients(self.system, self.optimizer, batch, self.views, self.precision)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def by_operation(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Seconds of every operation of slrfast, forward and backward together.

    Args:
        events: of torch's profiler, of one step.
        on_gpu: counts the time of the kernels that an event of the CPU has launched, not its own.
    """
    total = "device_time_total" if on_gpu else "cpu_time_total"
    found: Counter[str] = Counter()
    for event in events:
        if event.device_type != DeviceType.CPU or not _is_op(event):
            continue  # the time of a kernel is that of the event that launched it
        if not any(_is_op(each) for each in _ancestors(event)):  # else its caller has its time
            found[event.name.removeprefix(_PREFIX).removesuffix("_grad")] += getattr(event, total) * 1e-6
    return dict(found)


def _is_op(event: Any) -> bool:
    return str(event.name).startswith(_PREFIX)


def _ancestors(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def median_of(profiles: Sequence[Profile]) -> Profile:
    """The medians of steps, the longest operation first."""
    names = {name for each in profiles for name in each.operations}
    medians = {name: statistics.median(each.operations.get(name, 0.0) for each in profiles) for name in names}
    ordered = sorted(medians.items(), key=lambda pair: -pair[1])
    return Profile(statistics.median(each.step for each in profiles), dict(ordered))


def differences(
    ours: tuple[Mapping[str, float], Tensor], reference: tuple[Mapping[str, float], Tensor]
) -> tuple[float, float]:
    """How far terms of the loss and gradients are from the reference's; NaN where one is.

    The largest difference of any term, relative to it or, where it is smaller, to one hundredth of the loss; and the
    length of the gradients' difference, relative to both together: 1 for gradients that have nothing to do with others.
    """
    (ours_terms, ours_gradient), (terms, gradient) = ours, reference
    least = max(1e-2 * abs(terms["loss"]), 1e-12)
    losses = torch.tensor([abs(ours_terms[key] - value) / max(abs(value), least) for key, value in terms.items()])
    both = (ours_gradient.norm() ** 2 + gradient.norm() ** 2).sqrt()
    gradients = (ours_gradient - gradient).norm() / both.clamp_min(1e-12)
    return float(losses.max()), float(gradients)  # the maximum of NaN and anything is NaN


def _on(kind: str, call: Callable[[PoseBatch], Any], batch: PoseBatch) -> Any:
    forced: AbstractContextManager[None] = contextlib.nullcontext() if kind == "slrfast" else slrfast.backend(kind)
    with forced:
        return call(batch)


def _batch(name: str, size: int, system: Any) -> PoseBatch:
    """Any generated signs, with all that the system's trials read; the system gets its text encoder."""
    options = PreprocessOptions(layout=keypoints_of(name))
    signs = SyntheticSigns(num_classes=20, clips_per_class=max(2, -(-size // 20)), num_signers=12, options=options)
    values = {**TRIAL.get(name, {}), "data": "synthetic", "split": None, "preprocess": None}
    chosen = np.random.default_rng(0).permutation(len(signs))[:size]
    return with_inputs(name, signs, values, system).batch(chosen.tolist())


def _text(found: Mapping[str, Any]) -> str:
    profiles = [Profile(**found["profiled"][kind]) for kind in KINDS]
    names = sorted(found["profiled"]["reference"]["operations"], key=lambda key: -profiles[1].operations[key])
    rows = [[f"{found['system']} {found['preset']}", "backend", "slrfast", "plain PyTorch", "ratio"]]

    def add(title: str, seconds: Iterable[float], backend: str = "", *, compare: bool = True) -> None:
        ours, plain = seconds
        rows.append([title, backend, _ms(ours), _ms(plain), f"{plain / ours:.1f}" if compare and ours else ""])

    for key in names:
        add(key, (each.operations.get(key, 0.0) for each in profiles), found["backends"].get(key, ""))
    rest = (max(each.step - sum(each.operations.values()), 0.0) for each in profiles)
    add("all else", rest, compare=False)
    add("a profiled step", (each.step for each in profiles), compare=False)
    add("a step", (found["seconds"][kind] for kind in KINDS))
    rows.append(["clips per second", "", *(f"{found['clips_per_second'][kind]:.1f}" for kind in KINDS), ""])
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    where = f"cpu, {threads}" if found["device"] == "cpu" else found["device"]
    head = f"{found['clips']} clips of {found['frames'] / found['clips']:.0f} frames, {found['precision']}, {where}"
    losses, gradients = (f"{found['difference'][key]:.1g}" for key in ("losses", "gradients"))
    return f"{head}; losses agree to {losses}, gradients to {gradients}\n\n{aligned(rows, text_columns=2)}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"
