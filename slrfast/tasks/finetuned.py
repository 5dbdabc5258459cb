"""What the tasks share: an encoder that pre-training made, a head on it, and how both are trained and saved."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slrfast import checks
from slrfast.data import PoseBatch
from slrfast.errors import CheckpointError, one_line
from slrfast.files import replacing
from slrfast.nn.modes import evaluating
from slrfast.tasks.schedule import factor

HEAD, TASK = "head.safetensors", "task.json"


@dataclass(frozen=True)
class FinetuneConfig:
    """How an encoder and a head are trained; the tasks add their own settings.

    Args:
        epochs, batch_size: of a full run.
        optimizer: "sgd" or "adamw".
        learning_rate: of the head.
        encoder_rate: the encoder's learning rate as a factor of the head's; 0 leaves the encoder as it is, in
            evaluation mode.
        momentum: of SGD.
        betas: of AdamW.
        weight_decay: of both.
        schedule: after ``warmup`` epochs of linear increase "steps" falls to a tenth at every one of ``milestones``,
            "cosine" to zero at the end.
    """

    epochs: int = 60
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    encoder_rate: float = 1.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "steps"
    milestones: tuple[int, ...] = (40, 50)
    warmup: float = 0.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        checks.integer_between(name, 1, 1 << 31, epochs=self.epochs, batch_size=self.batch_size)
        checks.positive(name, learning_rate=self.learning_rate)
        checks.choice(name, ("sgd", "adamw"), optimizer=self.optimizer)
        checks.choice(name, ("steps", "cosine"), schedule=self.schedule)
        for field in ("encoder_rate", "weight_decay", "warmup"):
            value = getattr(self, field)
            checks.require(0 <= value < float("inf"), name, field, "be finite and >= 0", value)
        begin = all(milestone >= 0 for milestone in self.milestones)
        checks.require(begin, name, "milestones", "be epochs >= 0", self.milestones)
        for field in ("momentum", *(["betas"] if self.optimizer == "adamw" else [])):
            values = getattr(self, field)
            inside = all(0 <= value < 1 for value in (values if isinstance(values, tuple) else (values,)))
            checks.require(inside, name, field, "be in [0, 1)", values)


class Finetuned(nn.Module):
    """An encoder and a head that are trained together; ``slrfast.train`` trains it as it trains a system.

    A task derives from it, makes its head after ``super().__init__``, and defines ``training_step`` and ``extra``.

    Args:
        config: how to train.
        encoder: one of slrfast.systems.
    Attributes:
        task: its name on the command line.
        measures: what ``training_step`` returns that is no term of the loss.
        epoch: the (fractional) epoch that training has come to.
    """

    task: ClassVar[str]
    Config: ClassVar[type[Any]] = FinetuneConfig
    measures: ClassVar[tuple[str, ...]] = ()
    epoch: float = 0.0

    def __init__(self, config: Any, encoder: nn.Module) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        if self.frozen:
            encoder.requires_grad_(False)

    @property
    def frozen(self) -> bool:
        """Whether the encoder stays as it is."""
        return self.config.encoder_rate == 0

    def train(self, mode: bool = True) -> Finetuned:
        """As of any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def evaluating(self) -> AbstractContextManager[None]:
        """All modules in evaluation mode, and afterwards each as it was."""
        return evaluating(self)

    def encode(self, batch: PoseBatch) -> Tensor:
        """The encoder's features of every clip, [B, D], as of its own ``encode``."""
        return self.encoder.encode(batch)  # type: ignore[operator]

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The losses of one batch: "loss", with gradient, and named terms."""
        raise NotImplementedError

    def extra(self) -> dict[str, Any]:
        """JSON values that the constructor takes besides ``config`` and ``encoder``."""
        return {}

    def update_after_step(self) -> None:
        """Nothing: no task has a momentum encoder."""

    def head_parameters(self) -> list[nn.Parameter]:
        """All parameters that are not the encoder's."""
        return [p for name, p in self.named_parameters() if not name.startswith("encoder.")]

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD or AdamW over the encoder, at ``encoder_rate`` times the learning rate, and the head."""
        config = self.config
        groups = [{"params": self.head_parameters(), "rate": 1.0}]
        trained = [p for p in self.encoder.parameters() if p.requires_grad]
        groups += [{"params": trained, "rate": config.encoder_rate}] if trained else []
        if config.optimizer == "sgd":
            return torch.optim.SGD(
                groups, config.learning_rate, config.momentum, weight_decay=config.weight_decay, fused=True
            )
        return torch.optim.AdamW(
            groups, config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=True
        )

    def learning_rate(self, epoch: float) -> float:
        """The head's learning rate at a (fractional) epoch."""
        config = self.config
        return config.learning_rate * factor(
            config.schedule, epoch, config.epochs, warmup=config.warmup, milestones=config.milestones
        )

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the encoder into ``folder/encoder``, the head and ``task.json`` beside it.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        folder = Path(folder)
        self.encoder.save_pretrained(folder / "encoder")  # type: ignore[operator]
        head = {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith("encoder.")}
        try:
            with replacing(folder / HEAD) as path:
                save_file(head, path)
        except SafetensorError as error:
            raise CheckpointError(one_line(f"{folder / HEAD}: cannot be written ({error})")) from error
        values = {
            "task": self.task,
            "system": type(self.encoder).__name__,
            "config": dataclasses.asdict(self.config),
            "extra": self.extra(),
        }
        with replacing(folder / TASK) as path:
            path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def load_head(self, folder: str | os.PathLike) -> None:
        """Put a saved head into this one; CheckpointError when it does not fit."""
        path = Path(folder) / HEAD
        try:
            missing, unexpected = self.load_state_dict(load_file(path), strict=False)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(one_line(f"{path}: cannot be read as this head ({reason})")) from error
        wrong = [name for name in [*missing, *unexpected] if not name.startswith("encoder.")]
        if wrong:
            raise CheckpointError(f"{path}: is no head of this task, {wrong[0]!r} does not fit")


def check_frames(op: str, encoder: Any) -> None:
    """ValueError unless the encoder has features of single frames; a run of two frames is tried."""
    rule, hint = "have features of single frames", "use MASA (masking='frame') or SLP"
    known = hasattr(encoder, "frame_features") and hasattr(encoder, "frame_dim")
    name = type(encoder).__name__
    checks.require(known, op, "encoder", rule, name, hint)
    own = next(encoder.parameters())
    try:
        trial = PoseBatch.random(1, min_frames=2, max_frames=2, keypoints=encoder.keypoints).to(own.device)
        with torch.no_grad(), evaluating(encoder):
            encoder.frame_features(trial)
    except ValueError as error:
        raise ValueError(checks.message(op, "encoder", rule, f"{name} ({error})", hint)) from error
