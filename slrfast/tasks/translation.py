"""Gloss-free sign language translation, as in SLP: frames -> MLP projector -> transformer decoder -> words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks
from slrfast.data import PoseBatch
from slrfast.data.subwords import BOS, EOS, PAD, UNK, Subwords
from slrfast.nn import DecoderCache, TokenDecoder, with_positions
from slrfast.nn.decoder import Memory
from slrfast.tasks.beam_search import Hypotheses, beam_search
from slrfast.tasks.finetuned import FinetuneConfig, Finetuned, check_frames


@dataclass(frozen=True)
class TranslatorConfig(FinetuneConfig):
    """How signing is translated; the defaults are the paper's table of settings.

    The paper names 3 blocks, 4 beams, AdamW at 1e-4 with weight decay 1e-4, batches of 32, 60 epochs, a tenth of them
    for warm-up, and a cosine. Its text has 1e-3 instead of 1e-4. The decoder's widths, dropout, label smoothing (0.2 in
    its recognition) and the length penalty are not in it and are ours.

    Args:
        dim, heads, ffn, layers, dropout: of the decoder.
        label_smoothing: epsilon of the cross-entropy.
        beams: hypotheses of every clip while translating.
        length_penalty: a hypothesis' log-probability is divided by its length to this power.
        max_tokens: of a sentence, <eos> included, in training and translation; longer ones are cut.
    """

    epochs: int = 60
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    warmup: float = 6.0
    dim: int = 512
    heads: int = 8
    ffn: int = 2048
    layers: int = 3
    dropout: float = 0.1
    label_smoothing: float = 0.2
    beams: int = 4
    length_penalty: float = 1.0
    max_tokens: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        op = type(self).__name__
        sizes = ("dim", "heads", "ffn", "layers", "beams")
        checks.integer_between(op, 1, 1 << 16, **{name: getattr(self, name) for name in sizes})
        checks.integer_between(op, 2, 1 << 16, max_tokens=self.max_tokens)
        fits = self.dim % self.heads == self.dim % 2 == 0
        checks.require(fits, op, "dim", f"be even and a multiple of {self.heads} heads", self.dim)
        checks.number_between(op, 0, 16, length_penalty=self.length_penalty)
        for name in ("dropout", "label_smoothing"):
            checks.require(0 <= getattr(self, name) < 1, op, name, "be in [0, 1)", getattr(self, name))

    @classmethod
    def slp(cls, **changes: Any) -> TranslatorConfig:
        """The paper's setting."""
        return replace(cls(), **changes)

    @classmethod
    def small(cls, **changes: Any) -> TranslatorConfig:
        """A decoder for CPUs and a few thousand sentences of a small vocabulary."""
        own = {"dim": 128, "heads": 4, "ffn": 256, "layers": 2, "learning_rate": 1e-3, "warmup": 1.0, "max_tokens": 32}
        return replace(cls(), **(own | changes))


class Translator(Finetuned):
    """Sentences of clips: ``training_step`` (label-smoothed cross-entropy), ``translate`` (beam search).

    The encoder's frames go through a two-layer MLP, get sinusoidal positions and are what the decoder attends to.

    Args:
        config: how to train and translate.
        encoder: MASA or SLP, or any module with ``keypoints``, ``frame_dim`` and ``frame_features`` as theirs.
        vocabulary: Subwords, or what ``Subwords.to_json`` gave.
    Raises:
        TypeError, ValueError: the encoder has no features of frames, or the vocabulary is none.
    """

    task = "slt"
    Config = TranslatorConfig

    def __init__(self, config: TranslatorConfig, encoder: nn.Module, vocabulary: Subwords | Mapping[str, Any]) -> None:
        super().__init__(config, encoder)
        check_frames("Translator", encoder)
        width: Any = encoder.frame_dim
        self.vocabulary = vocabulary if isinstance(vocabulary, Subwords) else Subwords.from_json(vocabulary)
        dim = config.dim
        self.projector = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))
        self.decoder = TokenDecoder(len(self.vocabulary), dim, config.heads, config.ffn, config.layers, config.dropout)

    def extra(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.to_json()}

    def read(self, batch: PoseBatch) -> Memory:
        """What the decoder attends to in every clip, without gradient to a frozen encoder."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            frames, packing = self.encoder.frame_features(batch)  # type: ignore[operator]
        return self.decoder.read(with_positions(self.projector(frames), packing.number), packing)

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The label-smoothed cross-entropy of the batch's tokens, each given those before it.

        loss = mean over tokens of -(1 - e) log p(y_t | y_<t, x) - e/V sum_v log p(v | y_<t, x), e = label_smoothing.

        Args:
            batch: clips on the encoder's device with ``tokens`` that end with <eos>, as of TranslationDataset. A clip
                without a sentence takes no part; a batch of such clips has loss 0.
            generator: not used: nothing is drawn but dropout.
        Returns:
            Scalars: "loss", with gradient, and "perplexity", exp of the mean -log p(y_t), without.
        Raises:
            TypeError, ValueError: a batch without tokens, tokens outside the vocabulary, or what the encoder refuses.
        """
        tokens, lengths = self._targets(batch)
        memory = self.read(batch)
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        given = F.pad(tokens[:, :-1], (1, 0), value=BOS)
        targets = tokens[real]
        logits = self.decoder.logits(self.decoder.hidden(given, memory)[real])
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        count, smoothing = max(1, len(targets)), self.config.label_smoothing
        likelihood = F.nll_loss(log_p, targets, reduction="sum") / count
        loss = (1 - smoothing) * likelihood - smoothing * log_p.mean(-1).sum() / count
        return {"loss": loss, "perplexity": likelihood.detach().exp()}

    @torch.no_grad()
    def search(self, batch: PoseBatch, beams: int | None = None) -> Hypotheses:
        """The best hypothesis of every clip in evaluation mode; see :func:`beam_search`.

        <pad>, <bos> and <unk> are never chosen. Keys and values of the frames are computed once per clip, those of the
        tokens once per token.

        Args:
            batch: clips on the encoder's device; their tokens are not read.
            beams: instead of the config's; may be more than the vocabulary has tokens.
        """
        with self.evaluating():
            cache = DecoderCache(self.read(batch))
            beams = self.config.beams if beams is None else beams
            first = torch.arange(batch.size, device=batch.xy.device)[:, None] * beams

            def step(tokens: Tensor, parents: Tensor) -> Tensor:
                cache.select((first + parents).flatten())
                logits = self.decoder.step(tokens.flatten(), cache)
                logits[:, [PAD, BOS, UNK]] = -torch.inf
                return (
                    logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).view(*tokens.shape, -1)
                )

            return beam_search(
                step,
                batch.size,
                bos=BOS,
                eos=EOS,
                beams=beams,
                max_length=self.config.max_tokens,
                length_penalty=self.config.length_penalty,
                device=batch.xy.device,
            )

    def translate(self, batch: PoseBatch, beams: int | None = None) -> list[str]:
        """A sentence for every clip, "" where the model has none; arguments as of :meth:`search`."""
        return [self.vocabulary.decode(tokens) for tokens in self.search(batch, beams).lists()]

    def _targets(self, batch: PoseBatch) -> tuple[Tensor, Tensor]:
        tokens, lengths = batch.tokens, batch.token_lengths
        if tokens is None or lengths is None:
            raise ValueError(checks.message("Translator", "batch", "have tokens", "none", "use a TranslationDataset"))
        if checks.may_read(tokens) and tokens.numel():
            low, high, size = int(tokens.min()), int(tokens.max()), len(self.vocabulary)
            within = 0 <= low and high < size
            checks.require(within, "Translator", "tokens", f"be in [0, {size - 1}]", f"[{low}, {high}]")
        return tokens, lengths
