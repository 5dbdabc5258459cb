"""Recognition metrics from class scores. A tie is worth its expected value under a random order of the tied classes."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks


def class_ranks(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How many classes score above the true class, and how many score the same (the true class included).

    Args:
        scores: [N, C] float, higher is better; infinities are fine, NaN is refused.
        labels: [N] int64 in [0, C).
    Returns:
        above [N] int64 and tied [N] int64 (>= 1).
    Raises:
        ValueError, TypeError: wrong shape or dtype, N = 0, a label outside [0, C), a NaN.

    >>> class_ranks(torch.tensor([[0.1, 0.7, 0.7]]), torch.tensor([2]))
    (tensor([0]), tensor([2]))
    """
    sizes = checks.shapes("class_ranks", scores=(scores, "N C"), labels=(labels, "N"))
    checks.floating("class_ranks", scores=scores)
    checks.dtype("class_ranks", torch.int64, labels=labels)
    checks.require(sizes["N"] > 0, "class_ranks", "scores", "have at least one row", sizes["N"])
    low, high = int(labels.min()), int(labels.max())
    in_range = low >= 0 and high < sizes["C"]
    checks.require(in_range, "class_ranks", "labels", f"be in [0, {sizes['C'] - 1}]", f"[{low}, {high}]")
    checks.require(not bool(scores.isnan().any()), "class_ranks", "scores", "hold no NaN", "NaN")
    true = scores.gather(1, labels[:, None])
    return (scores > true).sum(1), (scores == true).sum(1)


def top_k_hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Probability that the true class is among the k best, 0 or 1 except where a tie straddles place k.

    ``hit = clamp((k - above) / tied, 0, 1)``, so constant scores are worth exactly k / C.

    Args:
        scores: [N, C] float.
        labels: [N] int64.
        k: places that count, 1 to C.
    Returns:
        [N] float64.
    Raises:
        ValueError, TypeError: as :func:`class_ranks`, or k outside [1, C].

    >>> top_k_hits(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([1, 2]), 2).tolist()
    [1.0, 0.0]
    """
    above, tied = class_ranks(scores, labels)
    checks.integer_between("top_k_hits", 1, scores.shape[1], k=k)
    return ((k - above) / tied.double()).clamp(0, 1)


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Top-k accuracy per instance: the mean of :func:`top_k_hits`, in [0, 1].

    >>> top_k_accuracy(torch.tensor([[3.0, 2.0], [3.0, 2.0]]), torch.tensor([0, 1]))
    0.5
    """
    return float(top_k_hits(scores, labels, k).mean())


def per_class_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Top-k accuracy per class: the mean, over the classes that occur in ``labels``, of each class's accuracy.

    >>> per_class_accuracy(torch.tensor([[1.0, 0.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
    0.5
    """
    hits = top_k_hits(scores, labels, k)
    total = torch.zeros(scores.shape[1], dtype=torch.float64).index_add_(0, labels.cpu(), hits.cpu())
    count = torch.bincount(labels.cpu(), minlength=scores.shape[1])
    return float((total / count)[count > 0].mean())


def mean_rank(scores: Tensor, labels: Tensor) -> float:
    """Mean place of the true class, 1 is best; a class tied with others takes the mean of their places.

    >>> mean_rank(torch.tensor([[3.0, 2.0, 1.0], [3.0, 3.0, 1.0]]), torch.tensor([1, 0]))
    1.75
    """
    above, tied = class_ranks(scores, labels)
    return float((1 + above + (tied - 1) / 2).double().mean())


def recognition_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 per instance and per class (top-C with fewer than five classes), and the mean rank.

    >>> recognition_metrics(torch.eye(3), torch.arange(3))["top1_instance"]
    1.0
    """
    five = min(5, scores.shape[1])
    return {
        "top1_instance": top_k_accuracy(scores, labels, 1),
        "top5_instance": top_k_accuracy(scores, labels, five),
        "top1_class": per_class_accuracy(scores, labels, 1),
        "top5_class": per_class_accuracy(scores, labels, five),
        "mean_rank": mean_rank(scores, labels),
    }
