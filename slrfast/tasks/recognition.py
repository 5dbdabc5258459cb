"""Isolated sign recognition: linear classifiers on the streams of a pre-trained encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks
from slrfast.data import AugmentPlan, PoseBatch
from slrfast.tasks.finetuned import FinetuneConfig, Finetuned
from slrfast.tasks.fusion import EarlyFusion
from slrfast.tasks.sampling import augmented, centre, window

FUSIONS = ("late", "sum", "concat", "adaptive")


@dataclass(frozen=True)
class RecognizerConfig(FinetuneConfig):
    """How signs are recognised; the defaults are STC's fine-tuning, :meth:`masa`, :meth:`ccl` and :meth:`slp` theirs.

    STC drops the learning rate at epochs that it does not state; its 60 epochs are the paper's, (40, 50) are ours.

    Args:
        streams: of the encoder, such as ("joint", "motion"); empty takes all.
        parts: of STC, "hand", "trunk" or both; empty takes all.
        fusion: of several streams: "late" averages the logits of a classifier each; "sum", "concat" and "adaptive" fuse
            the vectors, and one classifier reads that.
        supervision: in late fusion, what is taught: the average of the logits "together" (STC), or "each" classifier
            alone, whose losses are added (CCL-SLR).
        frames: of a clip that are seen, a random window in training, the middle one in testing; None sees all.
        min_crop: without ``frames``, training sees a random window of U[min_crop, 1] of a clip.
        label_smoothing: of the cross-entropy.
        swap_probability: how often the two hands are swapped in training.
        rotation, scale, joint_probability, joint_fraction: of further augmentation, as in pre-training; none in the
            papers.
        dropout: on the vectors that the classifiers read.
    """

    streams: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    fusion: str = "late"
    supervision: str = "together"
    frames: int | None = None
    min_crop: float = 0.5
    label_smoothing: float = 0.0
    swap_probability: float = 0.5
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    joint_probability: float = 0.0
    joint_fraction: float = 0.2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        checks.choice(name, FUSIONS, fusion=self.fusion)
        checks.choice(name, ("together", "each"), supervision=self.supervision)
        for field in ("streams", "parts"):
            values = getattr(self, field)
            checks.require(len(set(values)) == len(values), name, field, "name each once", ", ".join(values))
        if self.frames is not None:
            checks.integer_between(name, 1, 1 << 31, frames=self.frames)
        checks.require(0 < self.min_crop <= 1, name, "min_crop", "be in (0, 1]", self.min_crop)
        for field in ("label_smoothing", "dropout"):
            checks.require(0 <= getattr(self, field) < 1, name, field, "be in [0, 1)", getattr(self, field))
        self.augmentation  # which checks its own  # noqa: B018

    @property
    def augmentation(self) -> AugmentPlan:
        """How training changes a clip."""
        return AugmentPlan.paper(
            self.rotation, self.scale, self.joint_probability, self.joint_fraction, self.swap_probability
        )

    @classmethod
    def stc(cls, **changes: Any) -> RecognizerConfig:
        """STC: SGD, 60 epochs."""
        return replace(cls(), **changes)

    @classmethod
    def stc_code(cls, **changes: Any) -> RecognizerConfig:
        """The STC authors' code: 80 epochs, a tenth at 50 and 70."""
        return replace(cls(epochs=80, milestones=(50, 70)), **changes)

    @classmethod
    def linear(cls, **changes: Any) -> RecognizerConfig:
        """STC's linear evaluation: a frozen encoder, 70 epochs, a tenth at 50."""
        return replace(cls(epochs=70, milestones=(50,), encoder_rate=0.0), **changes)

    @classmethod
    def masa(cls, **changes: Any) -> RecognizerConfig:
        """MASA: SGD, 60 epochs, a tenth every 20, 32 frames."""
        return replace(cls(milestones=(20, 40), frames=32), **changes)

    @classmethod
    def ccl(cls, **changes: Any) -> RecognizerConfig:
        """CCL-SLR: SGD at 0.05, 40 epochs, a tenth at 25 and 35, batches of 128, every branch taught alone."""
        return replace(
            cls(learning_rate=0.05, epochs=40, milestones=(25, 35), batch_size=128, supervision="each"), **changes
        )

    @classmethod
    def slp(cls, **changes: Any) -> RecognizerConfig:
        """SLP: SGD at 1e-3, a tenth every 20, the encoder at 0.1 of it, label smoothing 0.2, 32 frames."""
        return replace(
            cls(
                learning_rate=1e-3, encoder_rate=0.1, weight_decay=1e-4, milestones=(20, 40), frames=32,
                label_smoothing=0.2,
            ),
            **changes,
        )  # fmt: skip


class Recognizer(Finetuned):
    """Classes of clips: ``training_step`` (cross-entropy), ``forward`` (logits) and ``scores`` of many clips.

    Args:
        config: how to train.
        encoder: one of slrfast.systems, or any module with ``widths`` and ``features(batch)``.
        class_names: a name for every class.
    Raises:
        ValueError: fewer than two classes, a stream or part that the encoder does not have.
    """

    task = "islr"
    measures = ("top1",)
    Config = RecognizerConfig

    def __init__(self, config: RecognizerConfig, encoder: nn.Module, class_names: Sequence[str]) -> None:
        super().__init__(config, encoder)
        self.class_names = list(class_names)
        checks.integer_between("Recognizer", 2, 1 << 24, **{"len(class_names)": len(self.class_names)})
        widths: dict[str, int] = encoder.widths  # type: ignore[assignment]
        parts: tuple[str, ...] = encoder.parts  # type: ignore[assignment]
        for what, asked, known in (("streams", config.streams, tuple(widths)), ("parts", config.parts, parts)):
            unknown = [name for name in asked if name not in known]
            rule = f"be among {', '.join(known)}" if known else "be empty: this encoder has none"
            checks.require(not unknown, "Recognizer", f"config.{what}", rule, ", ".join(unknown))
        self.streams = config.streams or tuple(widths)
        several = len(self.streams) > 1 or config.fusion == "late"
        checks.require(several, "Recognizer", "config.fusion", "be 'late' for one stream", repr(config.fusion))
        sizes = {name: widths[name] for name in self.streams}
        self.fuse = EarlyFusion(list(sizes.values()), config.fusion) if config.fusion != "late" else None
        sizes = sizes if self.fuse is None else {"fused": self.fuse.width}
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(self.class_names)) for name, width in sizes.items()})
        for head in self.heads.values():
            nn.init.normal_(head.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        self.drop = nn.Dropout(config.dropout)

    def extra(self) -> dict[str, Any]:
        return {"class_names": self.class_names}

    def features(self, batch: PoseBatch) -> dict[str, Tensor]:
        """The vectors that the classifiers read, [B, width] each, without gradient to a frozen encoder."""
        parts = {"parts": self.config.parts} if self.config.parts else {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found: dict[str, Tensor] = self.encoder.features(batch, **parts)  # type: ignore[operator]
        missing = [name for name in self.streams if name not in found]
        checks.require(not missing, "Recognizer", "batch", f"have what stream {missing} reads", "none")
        chosen = {name: found[name] for name in self.streams}
        return chosen if self.fuse is None else {"fused": self.fuse(list(chosen.values()))}

    def forward(self, batch: PoseBatch) -> Tensor:
        """Logits [B, C] of the clips as they are; of several streams the average."""
        return self._logits(batch).mean(0)

    def _logits(self, batch: PoseBatch) -> Tensor:
        """Of every classifier, [H, B, C]."""
        vectors = self.features(batch)
        return torch.stack([head(self.drop(vectors[name])) for name, head in self.heads.items()])

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The cross-entropy of a random window of every clip, and the share of clips that are recognised.

        Args:
            batch: clips on the encoder's device, all labelled.
            generator: of windows and augmentation, on the batch's device; None is torch's default generator.
        Returns:
            Scalars "loss", with gradient, and "top1".
        Raises:
            TypeError, ValueError: a label outside the classes, or what the encoder refuses.
        """
        config, classes = self.config, len(self.class_names)
        low, high = (int(x) for x in batch.label.aminmax())
        rule = f"be in [0, {classes - 1}]"
        checks.require(0 <= low and high < classes, "Recognizer", "batch.label", rule, f"[{low}, {high}]")
        with torch.no_grad():
            seen = window(batch, config.frames, config.min_crop, generator)
            seen = augmented(seen, config.augmentation, generator)
        each = self._logits(seen).float()
        logits = each.mean(0)
        taught = each if config.supervision == "each" else logits[None]
        losses = [F.cross_entropy(x, batch.label, label_smoothing=config.label_smoothing) for x in taught]
        top1 = (logits.detach().argmax(1) == batch.label).float().mean()
        return {"loss": torch.stack(losses).sum(), "top1": top1}

    @torch.no_grad()
    def scores(self, batches: Iterable[PoseBatch]) -> Tensor:
        """Logits of whole clips (of the middle ``frames`` frames), [N, C] float32 on the CPU, in evaluation mode."""
        with self.evaluating():
            found = [self(centre(batch, self.config.frames)).float().cpu() for batch in batches]
        checks.require(len(found) > 0, "Recognizer", "batches", "be one or more", 0)
        return torch.cat(found)
