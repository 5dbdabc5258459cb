"""Fine-tuning for sign-text retrieval (SL-RT of SLP): InfoNCE over the fine-grained similarity, and the gallery's rows.

Zhou et al., "Scaling up Multimodal Pre-training for Sign Language Understanding", Table III: AdamW at 1e-4, weight
decay 1e-3, cosine, 60 epochs, batch 32, temperature 0.07, as Eq. 5. Where a batch has equal sentences, of which the
paper does not speak, a clip is told apart from those of its batch that are not equal to its own: they are no negatives
of each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks
from slrfast.data import PoseBatch
from slrfast.tasks.finetuned import FinetuneConfig, Finetuned
from slrfast.tasks.retrieval import retrieval_metrics, text_numbers
from slrfast.tasks.row_sets import RowSets, similarity_matrix

ENCODER = ("pairs", "similarity", "encode_signs", "encode_text", "sign_projection", "text_projection", "log_scale")


@dataclass(frozen=True)
class RetrieverConfig(FinetuneConfig):
    """How signs and texts are brought together; the defaults are SLP's.

    Args:
        temperature: sigma at the start; 1 / sigma is learned and stays <= 100.
        encoder_rate: of the pose encoder's learning rate to that of the two projections and sigma.
    """

    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-3
    schedule: str = "cosine"
    temperature: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        checks.positive(name, temperature=self.temperature)
        checks.require(self.temperature >= 0.01, name, "temperature", "be >= 0.01", self.temperature)

    @classmethod
    def slp(cls, **changes: Any) -> RetrieverConfig:
        """SLP's Table III."""
        return replace(cls(), **changes)


class Retriever(Finetuned):
    """Clips and texts that find each other: ``training_step``, and the rows of many clips or texts for a gallery.

    The projections into the space of both are the encoder's own, from its pre-training.

    Args:
        config: how to train.
        encoder: an SLP that has "contrast" in its tasks; its ``text`` must be set before texts are read.
        log_scale: log(1 / sigma) of one that is trained already; None starts at ``config.temperature``.
    Raises:
        TypeError: another encoder.
    """

    task = "retrieval"
    Config = RetrieverConfig

    def __init__(self, config: RetrieverConfig, encoder: Any, log_scale: float | None = None) -> None:
        missing = [name for name in ENCODER if not hasattr(encoder, name)]
        if missing:
            rule = "be an SLP that was pre-trained with 'contrast' in its tasks"
            got = f"{type(encoder).__name__} without {missing[0]}"
            raise TypeError(checks.message("Retriever", "encoder", rule, got))
        super().__init__(config, encoder)
        with torch.no_grad():
            encoder.log_scale.fill_(-math.log(config.temperature) if log_scale is None else log_scale)
        for parameter in self._shared():
            parameter.requires_grad_()

    def _shared(self) -> list[nn.Parameter]:
        encoder: Any = self.encoder
        projections = encoder.sign_projection, encoder.text_projection
        return [encoder.log_scale, *(p for projection in projections for p in projection.parameters())]

    def extra(self) -> dict[str, Any]:
        return {"log_scale": self.encoder.log_scale.item()}  # type: ignore[operator]

    @property
    def row_temperature(self) -> float:
        """Of the similarity's softmax over words."""
        found: float = self.encoder.config.row_temperature  # type: ignore[union-attr,assignment]
        return found

    # ---- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The contrast between the clips of a batch and their texts, both ways.

        Args:
            batch: clips on the encoder's device; those without a text take no part.
            generator: of which frames of a long clip are used; None is torch's default generator.
        Returns:
            Scalars "loss", with gradient, 0 without any text; and "temperature", sigma.
        Raises:
            TypeError, ValueError: what the encoder refuses, such as a batch with texts where it has no text encoder.
        """
        encoder: Any = self.encoder
        sign, text = encoder.pairs(batch, generator)
        scale = encoder.log_scale.exp()
        temperature = {"temperature": (1 / scale).detach()}
        count = len(sign.rows)
        if count == 0:
            return {"loss": sign.rows.sum() + text.rows.sum() + 0 * scale, **temperature}
        tokens = batch.tokens[batch.token_lengths > 0]  # type: ignore[index,operator]
        same = (tokens[:, None] == tokens).all(-1).fill_diagonal_(False)
        logits = (scale * encoder.similarity(sign, text)).masked_fill(same, -torch.inf)
        target = torch.arange(count, device=logits.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2
        return {"loss": loss, **temperature}

    def update_after_step(self) -> None:
        """Keep 1 / sigma at most 100."""
        self.encoder.update_after_step()  # type: ignore[operator]

    def optimizer(self) -> torch.optim.Optimizer:
        """As of any task; the projections learn at the whole rate, and the temperature does not decay."""
        optimizer, shared = super().optimizer(), self._shared()
        chosen = {id(p) for p in shared}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
        optimizer.add_param_group({"params": shared[:1], "rate": 1.0, "weight_decay": 0.0})
        optimizer.add_param_group({"params": shared[1:], "rate": 1.0})
        return optimizer

    # ---- galleries ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sign_rows(self, batches: Iterable[PoseBatch]) -> RowSets:
        """The windows of many clips, on the CPU, in evaluation mode; at least one batch.

        Raises:
            TypeError, ValueError: a batch that the encoder refuses.
        """
        with self.evaluating():
            parts = [_rows(self.encoder.encode_signs(batch)) for batch in batches]  # type: ignore[operator]
        return RowSets.cat(parts)

    @torch.no_grad()
    def text_rows(self, texts: Sequence[Tensor], batch_size: int = 256) -> RowSets:
        """The words of texts, each int64 tokens [L >= 1], on the CPU, in evaluation mode; at least one text.

        Raises:
            ValueError: an empty text, or no text encoder.
        """
        encoder: Any = self.encoder
        parts = []
        with self.evaluating():
            for start in range(0, len(texts), batch_size):
                some = texts[start : start + batch_size]
                tokens = nn.utils.rnn.pad_sequence(list(some), batch_first=True)
                lengths = torch.tensor([len(text) for text in some])
                device = encoder.log_scale.device
                parts.append(_rows(encoder.encode_text(tokens.to(device), lengths.to(device))))
        return RowSets.cat(parts)

    def test(self, batches: Iterable[PoseBatch], texts: Sequence[Tensor]) -> dict[str, float]:
        """``retrieval_metrics`` of clips, in batches, and their texts, one tokens [L] for every clip.

        Equal texts are one: it is in the gallery once, asks once, and all clips that it was written for are its own.
        """
        ids = text_numbers(tuple(text.tolist()) for text in texts)
        distinct = {number: text for number, text in zip(ids.tolist(), texts, strict=True)}
        signs, words = self.sign_rows(batches), self.text_rows([distinct[i] for i in range(len(distinct))])
        similarity = similarity_matrix(signs, words, row_temperature=self.row_temperature)
        return retrieval_metrics(similarity, ids, torch.arange(len(distinct)))


def _rows(sequences: Any) -> RowSets:
    rows, present = sequences
    return RowSets.of_padded(rows.float().cpu(), present.cpu())
