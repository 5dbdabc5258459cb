"""CTC prefix beam search in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NOTHING = -math.inf


def ctc_beam_search(log_probs: Tensor, lengths: Tensor, beam: int, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, T] with -1 behind, their counts [B] and scores [B] float64 of log_probs [B, T, C], lengths [B]."""
    clips = zip(log_probs.double().tolist(), lengths.tolist(), strict=True)
    found = [prefix_beam_search(frames[:length], beam, blank) for frames, length in clips]
    tokens = torch.full(log_probs.shape[:2], -1, dtype=torch.int64)
    for row, (labels, _) in zip(tokens, found, strict=True):
        row[: len(labels)] = torch.tensor(labels, dtype=torch.int64)
    counts = torch.tensor([len(labels) for labels, _ in found], dtype=torch.int64)
    return tokens, counts, torch.tensor([score for _, score in found], dtype=torch.float64)


def prefix_beam_search(frames: Sequence[Sequence[float]], beam: int, blank: int) -> tuple[tuple[int, ...], float]:
    """The best labelling of one clip and its log-probability over the alignments that the beam saw.

    Every prefix has two log-probabilities: of its alignments that end in blank, and of those that end in its last
    token. A blank keeps the prefix; so does its last token right behind itself; a token behind a blank, or another
    one, makes it longer (Graves 2012, section 7.5.1; Hannun et al. 2014, algorithm 1). Of equal scores a prefix that
    stays goes before one that has grown, then the child of the better parent, then the token that is more probable
    in this frame, then the lower token.
    """
    prefixes: list[tuple[int, ...]] = [()]
    ends: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NOTHING)}
    for frame in frames:
        stayed = {}
        for prefix in prefixes:
            in_blank, in_token = ends[prefix]
            again = in_token + frame[prefix[-1]] if prefix else NOTHING
            stayed[prefix] = (either(in_blank, in_token) + frame[blank], again)
        order = {prefix: (0, place, 0.0, 0) for place, prefix in enumerate(prefixes)}
        grown = {}
        for place, prefix in enumerate(prefixes):
            in_blank, in_token = ends[prefix]
            for token, log_prob in enumerate(frame):
                if token == blank:
                    continue
                before = in_blank if prefix and token == prefix[-1] else either(in_blank, in_token)
                longer = (*prefix, token)
                if longer in stayed:
                    stayed[longer] = (stayed[longer][0], either(stayed[longer][1], before + log_prob))
                else:
                    grown[longer] = (NOTHING, before + log_prob)
                    order[longer] = (1, place, -log_prob, token)
        scores = {prefix: either(*both) for prefix, both in (stayed | grown).items()}
        possible = [prefix for prefix, score in scores.items() if score > NOTHING]
        prefixes = sorted(possible, key=lambda prefix: (-scores[prefix], order[prefix]))[:beam]
        ends = {prefix: (stayed | grown)[prefix] for prefix in prefixes}
    return (prefixes[0], either(*ends[prefixes[0]])) if prefixes else ((), NOTHING)


def either(a: float, b: float) -> float:
    """log(exp a + exp b)."""
    low, high = min(a, b), max(a, b)
    return high if low == NOTHING else high + math.log1p(math.exp(low - high))
