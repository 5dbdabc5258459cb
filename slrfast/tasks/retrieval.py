"""Sign-text retrieval (SL-RT): how well texts find their clips and clips their texts.

What is correct goes by ids: a clip and a text belong together where they have the same. So a sentence that is equal to
a clip's own counts as its own, whichever clip it was written for, and any of its clips is a hit for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from slrfast import checks

PLACES = (1, 5, 10)
_CHUNK = 1 << 24  # scores that are looked at together


class Ranks(NamedTuple):
    """Where the best correct item of every query is, int64 [Q] each.

    Attributes:
        above: items that score more.
        wrong: items that score the same and are not correct.
        right: correct items that score the same, itself included, >= 1.
    """

    above: Tensor
    wrong: Tensor
    right: Tensor

    def hits(self, k: int) -> Tensor:
        """Probability that a correct item is among the k best under a random order of equal scores, float64 [Q]."""
        left = (k - self.above).clamp(min=0)  # places for items of this score
        miss = torch.ones(len(left), dtype=torch.float64, device=left.device)
        for i in range(k):  # no correct one among the first `left` of wrong + right
            share = (self.wrong - i).clamp(min=0) / (self.wrong + self.right - i).clamp(min=1).double()
            miss = torch.where(i < left, miss * share, miss)
        return 1 - miss

    def expected(self) -> Tensor:
        """The expected place of the first correct item under a random order of equal scores, 1 is best, float64 [Q]."""
        return self.above + (self.wrong + self.right + 1) / (self.right + 1).double()


def text_numbers(texts: Iterable[Hashable]) -> Tensor:
    """A number for every text, the same for equal ones, int64 [N].

    >>> text_numbers(["rain", "sun", "rain"])
    tensor([0, 1, 0])
    """
    known: dict[Hashable, int] = {}
    return torch.tensor([known.setdefault(text, len(known)) for text in texts], dtype=torch.int64)


def retrieval_ranks(similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Ranks:
    """Rank the best correct item of every query.

    Args:
        similarity: [Q, N] float, higher is better; infinities are fine, NaN is refused.
        query_ids: [Q] int64.
        gallery_ids: [N] int64; an item is correct for the queries with its id.
    Raises:
        TypeError, ValueError: wrong shapes, dtypes or devices, no query, a NaN, a query without a correct item.

    >>> ranks = retrieval_ranks(torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([7]), torch.tensor([3, 4, 7]))
    >>> ranks.expected().item(), ranks.hits(2).item()
    (2.5, 0.5)
    """
    op = "retrieval_ranks"
    arguments = {"similarity": similarity, "query_ids": query_ids, "gallery_ids": gallery_ids}
    patterns = ("Q N", "Q", "N")
    sizes = checks.shapes(op, **{k: (v, p) for (k, v), p in zip(arguments.items(), patterns, strict=True)})
    checks.floating(op, similarity=similarity)
    checks.dtype(op, torch.int64, query_ids=query_ids, gallery_ids=gallery_ids)
    checks.same_device(op, **arguments)
    checks.require(sizes["Q"] > 0, op, "similarity", "have at least one query", sizes["Q"])
    unanswered = (~torch.isin(query_ids, gallery_ids)).nonzero()
    first = int(unanswered[0]) if len(unanswered) else -1
    checks.require(first < 0, op, "gallery_ids", "hold a correct item for every query", f"none for query {first}")
    parts = []
    step = max(1, _CHUNK // sizes["N"])
    for start in range(0, sizes["Q"], step):
        scores = similarity[start : start + step]
        checks.require(not bool(scores.isnan().any()), op, "similarity", "hold no NaN", "NaN")
        correct = query_ids[start : start + step, None] == gallery_ids
        best = scores.masked_fill(~correct, -torch.inf).amax(1, keepdim=True)
        same = scores == best
        parts.append(((scores > best).sum(1), (same & ~correct).sum(1), (same & correct).sum(1)))
    return Ranks(*(torch.cat(found) for found in zip(*parts, strict=True)))


def retrieval_metrics(similarity: Tensor, sign_ids: Tensor, text_ids: Tensor) -> dict[str, float]:
    """R@1, R@5 and R@10 (all of a gallery that has fewer items) and the median rank, both ways.

    R@k is the share of queries with a correct item among the k best; the rank is the place of the first correct item. A
    tie is worth its expected value under a random order, as in :mod:`slrfast.tasks.metrics`. The median of an even
    number of ranks is the mean of the middle two.

    Args:
        similarity: [B, M] of B clips and M texts.
        sign_ids: [B] int64, which text belongs to every clip.
        text_ids: [M] int64.
    Returns:
        "t2v_r1", "t2v_r5", "t2v_r10" in [0, 1] and "t2v_median_rank" >= 1, where texts look for clips, and the same
        from "v2t", where clips look for texts.
    Raises:
        TypeError, ValueError: as for :func:`retrieval_ranks`, either way.

    >>> metrics = retrieval_metrics(torch.eye(3), torch.arange(3), torch.tensor([0, 2, 1]))
    >>> metrics["t2v_median_rank"], round(metrics["v2t_r1"], 3)
    (2.5, 0.333)
    """
    found = {}
    for name, scores, queries, gallery in (
        ("t2v", similarity.mT, text_ids, sign_ids),
        ("v2t", similarity, sign_ids, text_ids),
    ):
        ranks = retrieval_ranks(scores, queries, gallery)
        for k in PLACES:
            found[f"{name}_r{k}"] = float(ranks.hits(min(k, len(gallery))).mean())
        found[f"{name}_median_rank"] = float(ranks.expected().quantile(0.5))
    return found
