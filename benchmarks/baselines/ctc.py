"""CTC prefix beam search as it is written in plain Python: dicts from prefixes to two log-probabilities."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

NOTHING = -math.inf


def add(*logs: float) -> float:
    """log of the sum of their exponentials."""
    high = max(logs)
    return high if high == NOTHING else high + math.log(sum(math.exp(x - high) for x in logs))


def beam_search(
    log_probs: Tensor, lengths: Tensor, beam: int, likely: int | None = None, blank: int = 0
) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] with -1 behind and scores [B]; of each frame the ``likely`` best classes are tried (None: all).

    Without a limit, Hannun's recipe of 2014. With 2 beam + 1 classes, and those that a prefix in the beam ends in, the
    result is the same, and that is the least that a program in Python can get by with.
    """
    classes = log_probs.shape[2]
    best = log_probs.topk(min(likely or classes, classes), dim=2).indices.tolist()
    tokens = torch.full(log_probs.shape[:2], -1)
    scores = []
    for clip, (frames, length) in enumerate(zip(log_probs.double().tolist(), lengths.tolist(), strict=True)):
        labels, score = _clip(frames[:length], best[clip], beam, blank)
        tokens[clip, : len(labels)] = torch.tensor(labels, dtype=torch.int64)
        scores.append(score)
    return tokens, torch.tensor(scores, dtype=torch.float64)


def _clip(frames: list[list[float]], best: list[list[int]], beam: int, blank: int) -> tuple[tuple[int, ...], float]:
    beams: list[tuple[tuple[int, ...], tuple[float, float]]] = [((), (0.0, NOTHING))]
    for frame, tokens in zip(frames, best, strict=False):
        tried = ({*tokens} | {prefix[-1] for prefix, _ in beams if prefix}) - {blank}
        following: dict[tuple[int, ...], tuple[float, float]] = defaultdict(lambda: (NOTHING, NOTHING))
        for prefix, (in_blank, in_token) in beams:
            last = prefix[-1] if prefix else None
            both = add(in_blank, in_token)
            other, again = following[prefix]
            repeat = again if last is None else add(again, in_token + frame[last])
            following[prefix] = (add(other, both + frame[blank]), repeat)
            for token in tried:
                longer = (*prefix, token)
                other, own = following[longer]
                following[longer] = (other, add(own, (in_blank if token == last else both) + frame[token]))
        beams = sorted(following.items(), key=lambda item: add(*item[1]), reverse=True)[:beam]
    return beams[0][0], add(*beams[0][1])
