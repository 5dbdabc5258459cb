"""Where the time of a training step goes: forward and backward of modules, timed by hooks inside it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class Stopwatch:
    """Adds up seconds per phase on a device that executes eagerly in program order (a CPU).

    Args:
        phases: phase -> modules whose forward and backward passes belong to it. The input of each must need a gradient,
            or its backward pass is over before the hook sees it end.
    """

    def __init__(self, phases: Mapping[str, Sequence[nn.Module]]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.first_backward: float | None = None
        self._open: list[float] = []
        self._handles = []
        for phase, modules in phases.items():
            for module in modules:
                self._handles += [
                    module.register_forward_pre_hook(self._start),
                    module.register_forward_hook(self._stop(phase)),
                    module.register_full_backward_pre_hook(self._start_backward),
                    module.register_full_backward_hook(self._stop(phase)),
                ]

    def _start(self, *_: object) -> None:
        self._open.append(time.perf_counter())

    def _start_backward(self, *_: object) -> None:
        self._start()
        self.first_backward = self.first_backward or self._open[-1]

    def _stop(self, phase: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self.seconds[phase] += time.perf_counter() - self._open.pop()

        return hook

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block of the step as a phase of its own."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def profiled_step(
    phases: Mapping[str, Sequence[nn.Module]],
    load: Callable[[], object],
    embed: Callable[[object], object],
    losses: Callable[[object], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    update: Callable[[], None],
) -> dict[str, float]:
    """One training step split into the phases of the modules, and loader, losses, EMA, optimizer and the rest.

    Args:
        phases: as for :class:`Stopwatch`.
        load: draws the views of a batch, with inputs that need a gradient.
        embed: query and key embeddings of the views.
        losses: the loss of the embeddings, enqueueing included.
        optimizer: of the query encoders.
        update: the momentum update.
    Returns:
        Seconds per phase, and "total".
    """
    watch = Stopwatch(phases)
    begin = time.perf_counter()
    try:
        with watch.phase("loader"):
            views = load()
        embeddings = embed(views)
        with watch.phase("losses"):
            loss = losses(embeddings)
        with watch.phase("optimizer"):
            optimizer.zero_grad(set_to_none=True)
        start = time.perf_counter()
        loss.backward()
        watch.seconds["losses"] += (watch.first_backward or start) - start
        with watch.phase("optimizer"):
            optimizer.step()
        with watch.phase("ema"):
            update()
    finally:
        watch.close()
    total = time.perf_counter() - begin
    seconds = dict(watch.seconds)
    seconds["rest"] = total - sum(seconds.values())
    return {**seconds, "total": total}
