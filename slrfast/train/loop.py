"""The training loop, the same for every system and every task."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from slrfast import checks
from slrfast.data import PoseBatch
from slrfast.data.sources import naming_dead_workers
from slrfast.errors import CheckpointError, SlrfastError
from slrfast.train.checkpoint import load_checkpoint, save_checkpoint
from slrfast.train.config import RunError, TrainConfig, choose_device
from slrfast.train.loading import load_batches
from slrfast.train.runs import RunFolder, RunLog
from slrfast.train.scoring import Labelled, knn_accuracy

LOOK = 10
"""Steps after which a term of the loss that was 0 in all of them is pointed out."""


class TrainingDiverged(SlrfastError, ArithmeticError):
    """A loss, gradient or weight is no longer finite; the last checkpoint is from before."""


@dataclass(frozen=True)
class PretrainResult:
    """How far a call of :func:`pretrain` came.

    Attributes:
        step: optimizer steps done, in all.
        steps: optimizer steps of the whole run.
        seconds: training time in all, resumed parts included.
        clips_per_second: of this call.
        stopped_by: None when the run is complete, else "SIGINT", "SIGTERM" or "time".
    """

    step: int
    steps: int
    seconds: float
    clips_per_second: float
    stopped_by: str | None


class BatchOrder(Sampler[list[int]]):
    """Batches of clip indices from a given step on; every epoch is a permutation drawn from (seed, epoch)."""

    def __init__(self, clips: int, batch_size: int, seed: int, first: int, last: int) -> None:
        self.clips, self.batch_size, self.seed, self.first, self.last = clips, batch_size, seed, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.clips // self.batch_size
        for step in range(self.first, self.last):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or step == self.first:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.clips)
            yield order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


def pretrain(
    system: Any,
    dataset: Dataset,
    config: TrainConfig,
    run: str | Path | RunFolder,
    *,
    resume: bool = False,
    time_limit: float | None = None,
    progress: bool = True,
    on_start: Callable[[], object] | None = None,
) -> PretrainResult:
    """Train a system or a task; on the CPU a stopped and resumed run equals an uninterrupted one bit for bit.

    Each step: ``training_step``, backward, optimizer step, ``update_after_step``, at the learning rate and with the
    system's ``epoch`` of the exact fractional epoch. SIGINT and SIGTERM let the step finish and save. Batch size and
    number of epochs are the system's own.

    Args:
        system: one of slrfast.systems or a tasks.Finetuned, with its initial weights.
        dataset: map-style dataset of data.Clip.
        config: seed, device and intervals.
        run: folder for metrics.jsonl, tensorboard, checkpoint.safetensors and, at the end, the saved model.
        resume: go on from the folder's checkpoint.
        time_limit: seconds after which to save and stop, or None.
        progress: draw a progress bar on stderr.
        on_start: called once everything has been checked and the checkpoint to resume read, before anything is written.
    Returns:
        How far it came.
    Raises:
        RunError: fewer clips than one batch, an unknown device, or another process is training in the folder.
        TrainingDiverged: a loss is not finite (the message names step and term).
        CheckpointError: a checkpoint cannot be written, or read to resume.
        DatasetError: a clip cannot be read, or a loader process was killed; the last checkpoint stands.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    batch_size, epochs = system.config.batch_size, system.config.epochs
    clips = len(dataset)  # type: ignore[arg-type]
    try:
        checks.integer_between("pretrain", 1, 2**31 - 1, batch_size=batch_size, epochs=epochs)
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
    if clips < batch_size:
        raise RunError(f"the dataset has {clips} usable clips, fewer than one batch of {batch_size}; lower batch_size")
    if config.knn_every:
        Labelled.of(dataset)  # unlabelled clips are refused now, not after an epoch
    per_epoch = clips // batch_size
    device = choose_device(config.device)
    system.to(device).train()
    optimizer = system.optimizer()
    views = torch.Generator(device).manual_seed(config.seed)
    session = _Session(system, optimizer, views, folder, clips, getattr(dataset, "made_of", {}))
    cuda = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        caught = stack.enter_context(_stop_signals())
        torch.manual_seed(config.seed)
        if resume:
            stack.enter_context(folder.locked())
            session.load()
        if on_start is not None:
            on_start()
        if not resume:
            stack.enter_context(folder.locked())
            session.save()
        first, last = session.step, epochs * per_epoch
        start, earlier = time.perf_counter(), session.seconds
        reason = None
        moved = {"learning_rate", *getattr(system, "measures", ())}
        with (
            naming_dead_workers("pretrain", "loader"),
            RunLog(folder, first) as log,
            tqdm(total=last * batch_size, initial=first * batch_size, unit=" clips", disable=not progress) as bar,
        ):
            order = BatchOrder(clips, batch_size, config.seed, first, last)
            for batch in load_batches(dataset, order, config.workers, device):
                epoch = session.step / per_epoch
                values = _train_step(session, batch.to(device), epoch, config)
                session.step += 1
                moved |= {name for name, value in values.items() if value != 0}
                if session.step == first + LOOK and (idle := sorted(values.keys() - moved)):
                    tqdm.write(
                        f"{', '.join(idle)}: 0 in each of {LOOK} steps, so nothing is learned from it", sys.stderr
                    )
                session.seconds = earlier + time.perf_counter() - start
                at_epoch_end, epoch_number = session.step % per_epoch == 0, session.step // per_epoch
                if config.knn_every and at_epoch_end and epoch_number % config.knn_every == 0:
                    values["knn_top1"] = knn_accuracy(system, dataset, batch_size=batch_size)
                if session.step % config.log_every == 0 or "knn_top1" in values or session.step == last:
                    speed = (session.step - first) * batch_size / (session.seconds - earlier)
                    log.write(
                        session.step, {"epoch": epoch, **values, "clips_per_second": speed, "seconds": session.seconds}
                    )
                bar.set_description(f"epoch {epoch_number}/{epochs}", refresh=False)
                bar.set_postfix_str(f"loss {values['loss']:.3f}", refresh=False)
                bar.update(batch_size)
                if caught:
                    reason = caught[0]
                elif time_limit is not None and time.perf_counter() - start > time_limit:
                    reason = "time"
                if session.step == last or reason or (at_epoch_end and epoch_number % config.checkpoint_every == 0):
                    session.save()
                if reason:
                    break
        system.save_pretrained(folder.model)
    done = (session.step - first) * batch_size
    speed = done / max(session.seconds - earlier, 1e-9)
    return PretrainResult(session.step, last, session.seconds, speed, reason if session.step < last else None)


class _Session:
    """What changes from step to step, and its checkpoint."""

    def __init__(
        self,
        system: Any,
        optimizer: torch.optim.Optimizer,
        views: torch.Generator,
        folder: RunFolder,
        clips: int,
        made_of: Mapping[str, str],
    ) -> None:
        self.made_of = dict(made_of)
        self.system, self.optimizer, self.views, self.folder, self.clips = system, optimizer, views, folder, clips
        self.step, self.seconds = 0, 0.0

    def save(self) -> None:
        for name, value in self.system.named_parameters():
            if not bool(torch.isfinite(value).all()):
                raise TrainingDiverged(f"after step {self.step}: weight {name!r} is not finite; {self.last_good()}")
        progress = {"step": self.step, "seconds": self.seconds, **self._fixed()}
        save_checkpoint(self.folder.checkpoint, self.system, self.optimizer, self.views, progress)

    def load(self) -> None:
        progress = load_checkpoint(self.folder.checkpoint, self.system, self.optimizer, self.views)
        for name, value in self._fixed().items():
            if progress.get(name) != value:
                raise CheckpointError(
                    f"{self.folder.checkpoint}: the run had {name} {progress.get(name)} and cannot go on with {value}"
                )
        self.step, self.seconds = progress.get("step", -1), progress.get("seconds", -1)
        counted = isinstance(self.step, int) and isinstance(self.seconds, (int, float))
        if not counted or self.step < 0 or self.seconds < 0:
            raise CheckpointError(
                f"{self.folder.checkpoint}: step {self.step!r} after {self.seconds!r} s is no state of a run"
            )

    def last_good(self) -> str:
        return f"the last good state is kept in {self.folder.checkpoint}; lower the learning rate or set clip_norm"

    def _fixed(self) -> dict[str, Any]:
        """What a run cannot go on without: a name each, for messages."""
        return {"clips": self.clips, "batch_size": self.system.config.batch_size, **self.made_of}


def compute_gradients(
    system: Any, optimizer: torch.optim.Optimizer, batch: PoseBatch, views: torch.Generator, precision: str
) -> dict[str, torch.Tensor]:
    """The terms of a step's loss; the gradients are in the parameters and wait for the optimizer."""
    with torch.autocast(batch.xy.device.type, torch.bfloat16, enabled=precision == "bf16"):
        terms: dict[str, torch.Tensor] = system.training_step(batch, generator=views)
    optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()
    return terms


def _train_step(session: _Session, batch: PoseBatch, epoch: float, config: TrainConfig) -> dict[str, float]:
    system, optimizer = session.system, session.optimizer
    system.epoch = epoch
    rate = system.learning_rate(epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
    terms = compute_gradients(system, optimizer, batch, session.views, config.precision)
    if config.clip_norm is not None:
        terms = {**terms, "gradient_norm": nn.utils.clip_grad_norm_(system.parameters(), config.clip_norm)}
    values = dict(zip(terms, torch.stack([term.detach().double() for term in terms.values()]).tolist(), strict=True))
    broken = [name for name in [*(n for n in values if n != "loss"), "loss"] if not math.isfinite(values[name])]
    if broken:
        raise TrainingDiverged(
            f"step {session.step + 1} (epoch {epoch:.2f}): {broken[0]} is {values[broken[0]]}; {session.last_good()}"
        )
    optimizer.step()
    system.update_after_step()
    return {**values, "learning_rate": rate}


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """Collect the name of the first SIGINT or SIGTERM; a second one acts at once as it did before."""
    caught: list[str] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number).name)
        print("\nstopping: this step is finished and saved first", file=sys.stderr)
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread, where signals cannot be caught
        previous.clear()
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
