"""Continuous recognition: the glosses of a sentence from the frames of a pre-trained encoder, by CTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks, ops
from slrfast.data import PoseBatch
from slrfast.data.glosses import GlossVocabulary
from slrfast.nn import Packing
from slrfast.tasks.finetuned import FinetuneConfig, Finetuned, check_frames

BLANK = 0
KERNEL, POOLED = 5, 2
FRAMES_A_STEP = POOLED**2


@dataclass(frozen=True)
class ContinuousConfig(FinetuneConfig):
    """How sentences are recognised; the defaults are SLP's (section 5 of its table: 1e-4, 1e-5, batch 8, 40 epochs).

    SLP states neither the optimizer, nor the epochs at which the learning rate falls to a tenth, nor any size of the
    head. AdamW is ours, as in its pre-training; (20, 30) are where VAC (Min et al. 2021) has 40 and 60 of 80 epochs; so
    are 1024 channels and a BiLSTM of 512 units each way; the encoder learns as fast as the head.

    Args:
        channels: of the temporal convolutions.
        units: of the LSTM, in each direction.
        layers: of the LSTM.
        dropout: between the layers of the LSTM.
        beam: prefixes of the search in testing.
    """

    epochs: int = 40
    batch_size: int = 8
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    milestones: tuple[int, ...] = (20, 30)
    channels: int = 1024
    units: int = 512
    layers: int = 2
    dropout: float = 0.3
    beam: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        checks.integer_between(
            name, 1, 1 << 16, channels=self.channels, units=self.units, layers=self.layers, beam=self.beam
        )
        checks.require(0 <= self.dropout < 1, name, "dropout", "be in [0, 1)", self.dropout)

    @classmethod
    def slp(cls, **changes: Any) -> ContinuousConfig:
        """SLP."""
        return replace(cls(), **changes)

    @classmethod
    def small(cls, **changes: Any) -> ContinuousConfig:
        """A head of 64 channels, small batches, a high learning rate of the head, for a trial."""
        small = cls(channels=64, units=64, dropout=0.0, learning_rate=5e-3, encoder_rate=0.1, batch_size=4)
        return replace(small, **changes)


class TemporalConvolution(nn.Module):
    """Twice: convolution over 5 frames, batch normalisation, ReLU, maximum of 2 frames; [S, in] -> [S', channels].

    The convolutions see zeros outside a clip, whatever stands beside it in the batch, and normalisation counts frames
    of clips only. An odd last frame is pooled alone, so that n frames become ceil(n / 4).
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        widths = (inputs, channels)
        self.convs = nn.ModuleList(nn.Conv1d(width, channels, KERNEL, padding=KERNEL // 2) for width in widths)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in widths)

    def forward(self, x: Tensor, packing: Packing) -> tuple[Tensor, Packing]:
        """Rows [S, inputs] and their packing -> rows [S', channels] and theirs."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = packing.unpad(conv(packing.pad(x).transpose(1, 2)).transpose(1, 2))
            if self.training and len(x) == 1:  # of one frame there is no variance
                x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)  # type: ignore
            else:
                x = norm(x)
            padded = packing.pad(x.relu()).transpose(1, 2)  # zeros behind a clip are never above a ReLU's output
            padded = F.max_pool1d(padded, POOLED, ceil_mode=True)
            lengths = tuple(-(-length // POOLED) for length in packing.lengths)
            packing = Packing.of(torch.tensor((0, *lengths)).cumsum(0), x.device)
            x = packing.unpad(padded.transpose(1, 2))
        return x, packing


class ContinuousRecognizer(Finetuned):
    """Glosses of sentences: ``training_step`` (CTC), ``forward`` (logits) and ``decode`` (gloss lists).

    Encoder frames -> :class:`TemporalConvolution` -> bidirectional LSTM -> linear, a class a gloss and class 0 the
    blank. A clip's logits do not depend on the clips beside it, in evaluation mode.

    Args:
        config: how to train.
        encoder: MASA or SLP, or any module with ``keypoints``, ``frame_dim`` and
            ``frame_features(batch) -> (rows, Packing)``.
        glosses: a name for every class from 1 on, all different.
    Raises:
        ValueError: an encoder without features of frames, no glosses or one twice.
    """

    task = "cslr"
    Config = ContinuousConfig

    def __init__(self, config: ContinuousConfig, encoder: nn.Module, glosses: Sequence[str]) -> None:
        super().__init__(config, encoder)
        self.vocabulary = GlossVocabulary(glosses)
        check_frames("ContinuousRecognizer", encoder)
        self.convolution = TemporalConvolution(int(encoder.frame_dim), config.channels)  # type: ignore[arg-type]
        dropout = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(
            config.channels, config.units, config.layers, batch_first=True, dropout=dropout, bidirectional=True
        )
        self.classifier = nn.Linear(2 * config.units, len(self.vocabulary) + 1)

    def extra(self) -> dict[str, Any]:
        return {"glosses": self.vocabulary.glosses}

    def forward(self, batch: PoseBatch) -> tuple[Tensor, Tensor]:
        """Logits [B, T, C] float32 with zeros behind every clip, and the steps of every clip, int64 [B] on the CPU.

        Raises:
            ValueError: a clip without frames, or what the encoder refuses.
        """
        shortest = int(batch.lengths.min()) if batch.size else 0
        rule = "have clips, and at least one frame in each"
        checks.require(shortest > 0, "ContinuousRecognizer", "batch", rule, shortest if batch.size else "no clip")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            rows, packing = self.encoder.frame_features(batch)  # type: ignore[operator]
        rows, packing = self.convolution(rows, packing)
        steps = torch.tensor(packing.lengths)
        packed = nn.utils.rnn.pack_padded_sequence(packing.pad(rows), steps, batch_first=True, enforce_sorted=False)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        logits = self.classifier(packing.unpad(hidden)).float()
        return packing.pad(logits), steps

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """CTC of the glosses in ``batch.tokens``, -log p(glosses) averaged over the clips.

        A clip with fewer steps than its glosses, and a blank between equal ones, need cannot be aligned: it counts 0
        and has no gradient (``zero_infinity``). A clip without glosses teaches blanks.

        Args:
            batch: clips on the encoder's device with tokens in [1, C - 1].
            generator: not used: clips are seen whole and as they are.
        Returns:
            Scalars "loss", with gradient, and "alignable", the share of clips that are long enough for their glosses.
        Raises:
            ValueError: a batch without tokens, a token outside the vocabulary, or what the encoder refuses.
        """
        op, classes = "ContinuousRecognizer", len(self.vocabulary) + 1
        checks.require(batch.tokens is not None, op, "batch", "carry glosses as tokens", "none", "use GlossedDataset")
        tokens, counts = batch.tokens.cpu(), batch.token_lengths.cpu()  # type: ignore[union-attr]
        checks.lengths(op, tokens.shape[1], counts)
        present = torch.arange(tokens.shape[1]) < counts[:, None]
        wrong = ((tokens < 1) | (tokens >= classes)) & present
        got = int(tokens[wrong][0]) if wrong.any() else 0
        checks.require(not wrong.any(), op, "batch.tokens", f"be in [1, {classes - 1}]", got)
        logits, steps = self(batch)
        log_probs = logits.log_softmax(2).transpose(0, 1)
        losses = F.ctc_loss(
            log_probs, tokens.to(logits.device), steps, counts, BLANK, reduction="none", zero_infinity=True
        )
        long_enough = (steps >= steps_needed(tokens, counts)).float()
        return {"loss": losses.mean(), "alignable": long_enough.mean().to(losses.device)}

    @torch.no_grad()
    def decode(self, batch: PoseBatch, beam: int | None = None) -> list[list[str]]:
        """The glosses of every clip, in evaluation mode.

        Args:
            batch: clips on the encoder's device; tokens are not read.
            beam: prefixes that :func:`slrfast.ops.ctc_beam_search` keeps, None as the config says; 0 is greedy.
        """
        return self.decode_each(batch, (self.config.beam if beam is None else beam,))[0]

    @torch.no_grad()
    def decode_each(self, batch: PoseBatch, beams: Sequence[int]) -> list[list[list[str]]]:
        """:meth:`decode` for every one of several beams, from one pass of the network."""
        for beam in beams:
            checks.integer_between("ContinuousRecognizer.decode", 0, 1 << 16, beam=beam)
        with self.evaluating():
            logits, steps = self(batch)
        log_probs = logits.log_softmax(2).cpu()
        return [self._read(log_probs, steps, beam) for beam in beams]

    def _read(self, log_probs: Tensor, steps: Tensor, beam: int) -> list[list[str]]:
        if beam:
            tokens, counts, _ = ops.ctc_beam_search(log_probs, steps, beam=beam, blank=BLANK)
        else:
            tokens, counts = greedy(log_probs, steps)
        found = zip(tokens.tolist(), counts.tolist(), strict=True)
        return [self.vocabulary.glosses_of(row[:count]) for row, count in found]


def greedy(scores: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """The labelling of the best class of every step: repeats merged, then blanks removed.

    Args:
        scores: [B, T, C], logits or log-probabilities; of equal ones the lowest class counts.
        steps: int64 [B] on the same device, in [0, T]; what follows is padding.
    Returns:
        tokens [B, T] int64 with -1 behind, and their counts [B].

    >>> greedy(torch.eye(3)[torch.tensor([[1, 1, 0, 1, 2]])], torch.tensor([5]))
    (tensor([[ 1,  1,  2, -1, -1]]), tensor([3]))
    """
    sizes = checks.shapes("greedy", scores=(scores, "B T C"), steps=(steps, "B"))
    best = scores.argmax(2)
    number = torch.arange(sizes["T"], device=best.device)
    new = F.pad(best[:, 1:] != best[:, :-1], (1, 0), value=True) if sizes["T"] else best.bool()
    kept = new & (best != BLANK) & (number < steps[:, None])
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    counts = kept.sum(1)
    return torch.where(number < counts[:, None], best.gather(1, order), -1), counts


def steps_needed(tokens: Tensor, counts: Tensor) -> Tensor:
    """Steps that CTC needs for labellings [B, L] of so many tokens [B]: one a token, one more between equal ones."""
    behind = torch.arange(1, max(1, tokens.shape[1]), device=tokens.device) < counts[:, None]
    return counts + ((tokens[:, 1:] == tokens[:, :-1]) & behind).sum(1)
