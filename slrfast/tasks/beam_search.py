"""Beam search over any function that gives the next token's log-probabilities, for all clips at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from slrfast import checks

Step = Callable[[Tensor, Tensor], Tensor]
"""(tokens int64 [B, K], parents int64 [B, K]) -> log-probabilities [B, K, V] of the next token: hypothesis k of a clip
continues hypothesis ``parents[:, k]`` of the call before by ``tokens[:, k]``. In the first call all tokens are <bos>.
"""


class Hypotheses(NamedTuple):
    """The best hypothesis of every clip.

    Attributes:
        tokens: int64 [B, L], without <bos> and <eos>, zeros behind.
        lengths: int64 [B].
        scores: float [B], what :func:`beam_search` maximises.
        finished: bool [B], False where <eos> did not come within ``max_length``.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    finished: Tensor

    def lists(self) -> list[list[int]]:
        """The tokens of every clip."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]


@torch.no_grad()
def beam_search(
    step: Step,
    clips: int,
    *,
    bos: int,
    eos: int,
    beams: int = 4,
    max_length: int = 128,
    length_penalty: float = 1.0,
    device: torch.device | str = "cpu",
) -> Hypotheses:
    """Search for the hypothesis of every clip with the largest

        score(y) = sum over t of log p(y_t | y_<t) / |y|^length_penalty,   |y| counting <eos>.

    Of all continuations of the ``beams`` hypotheses, an <eos> among the best ``beams`` finishes a hypothesis, and the
    best ``beams`` others go on. A clip is done once ``beams`` hypotheses are finished and none that goes on has, at its
    present length, a larger score than the worst of these; after ``max_length`` tokens those that go on count as
    they are. With one beam this is greedy decoding; with as many beams as there are sequences it is exhaustive. Beams
    for which there is no hypothesis, such as more than the vocabulary has tokens at the start, stay empty.

    Args:
        step: see :data:`Step`; -inf forbids a token.
        clips: B.
        bos, eos: token ids.
        beams: K, hypotheses of every clip.
        max_length: tokens at most, <eos> included.
        length_penalty: >= 0; 0 compares sums, 1 means per token, more prefers longer ones.
        device: where ``step`` takes its tokens.
    Returns:
        The best of each clip; what a clip gets does not depend on the clips beside it.
    Raises:
        TypeError, ValueError: numbers out of range, a step of another shape, log-probabilities that are NaN, a
            vocabulary of one token, or <eos> outside it.
    Numerics: scores are float32, of float64 steps float64. Waits for the device once a step. K * V floats per clip.

    >>> chain = torch.tensor([[0.0, 0.3, 0.7], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0]]).log()  # 0 is <bos> and <eos>
    >>> beam_search(lambda tokens, _: chain[tokens], 1, bos=0, eos=0, beams=3, max_length=4).lists()
    [[2, 1]]
    """
    op = "beam_search"
    checks.integer_between(op, 1, 1 << 16, beams=beams, max_length=max_length)
    checks.integer_between(op, 0, 1 << 31, clips=clips, bos=bos, eos=eos)
    checks.number_between(op, 0, 16, length_penalty=length_penalty)
    tokens = torch.full((clips, beams), bos, device=device)
    parents = torch.zeros_like(tokens)
    texts = tokens.new_zeros(clips, beams, max_length)  # of the hypotheses that go on
    answer, answer_length = tokens.new_zeros(clips, max_length), tokens.new_zeros(clips)
    done = torch.zeros(clips, dtype=torch.bool, device=device)
    going = finished = torch.zeros(clips, beams, device=device)
    for length in range(1, max_length + 1):
        probabilities = step(tokens, parents)
        if length == 1:
            vocabulary = checks.shapes(op, step=(probabilities, f"{clips} {beams} V"))["V"]
            checks.require(eos < vocabulary > 1, op, "eos", f"be one of {vocabulary} > 1 tokens", eos)
            going = torch.full_like(going, -math.inf, dtype=torch.promote_types(probabilities.dtype, torch.float32))
            finished = going.clone()
            going[:, 0] = 0
        best, place = (going.unsqueeze(2) + probabilities).flatten(1).topk(2 * beams)
        parents, tokens = place // vocabulary, place % vocabulary
        ends, scale = tokens == eos, length**length_penalty

        ended = (best / scale).masked_fill(~ends | done.unsqueeze(1), -math.inf)[:, :beams]
        score, which = ended.max(1)
        better = score > finished[:, 0]
        text = _rows(texts, parents.gather(1, which.unsqueeze(1))).squeeze(1)
        answer = torch.where(better.unsqueeze(1), text, answer)
        answer_length = torch.where(better, length - 1, answer_length)
        finished = torch.cat((finished, ended), 1).topk(beams).values

        going, which = best.masked_fill(ends, -math.inf).topk(beams)
        parents, tokens = parents.gather(1, which), tokens.gather(1, which)
        texts = _rows(texts, parents)
        texts[:, :, length - 1] = tokens
        done = done | (finished[:, -1] >= going[:, 0] / scale)
        over, broken = torch.stack((done.all(), best.isnan().any())).tolist()
        checks.require(not broken, op, "step", "give log-probabilities that are no NaN", f"NaN at token {length}")
        if over:
            break
    cut = ~done & (going[:, 0] / scale > finished[:, 0])
    return Hypotheses(
        torch.where(cut.unsqueeze(1), texts[:, 0], answer)[:, :length],
        torch.where(cut, length, answer_length),
        torch.where(cut, going[:, 0] / scale, finished[:, 0]),
        ~cut,
    )


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, K, L] at rows [B, R] -> [B, R, L]."""
    return x.gather(1, rows.unsqueeze(2).expand(-1, -1, x.shape[2]))
