"""What frozen features are worth: nearest neighbours and a linear probe, on groups that training never saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slrfast import checks, ops
from slrfast.tasks.metrics import top_k_accuracy

L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def group_folds(groups: Sequence[str], folds: int) -> list[np.ndarray]:
    """Split clips into folds of about equal size that never divide a group (a signer, a sign language).

    Groups go, largest first, to the fold that is smallest so far; ties go by name. So the split is a function of
    ``groups`` alone.

    Args:
        groups: the group of every clip.
        folds: number of folds, 2 to the number of different groups.
    Returns:
        For every fold the sorted int64 indices of its clips.
    Raises:
        ValueError: fewer groups than folds.

    >>> [fold.tolist() for fold in group_folds(["a", "b", "a", "c"], 2)]
    [[0, 2], [1, 3]]
    """
    names, inverse, counts = np.unique(np.asarray(groups, dtype=str), return_inverse=True, return_counts=True)
    checks.require(
        2 <= folds <= len(names), "group_folds", "folds", f"be in [2, {len(names)}] (the number of groups)", folds
    )
    fold_of = np.empty(len(names), dtype=np.int64)
    sizes = [0] * folds
    for group in sorted(range(len(names)), key=lambda g: (-counts[g], names[g])):
        fold_of[group] = sizes.index(min(sizes))
        sizes[fold_of[group]] += int(counts[group])
    return [np.flatnonzero(fold_of[inverse] == fold) for fold in range(folds)]


def known_groups(groups: Sequence[str]) -> list[str]:
    """Groups to divide clips by: one whose group is not known ("") is a group of its own, and so is every clip where
    there is but one group.

    >>> known_groups(["anna", "", "anna", ""])
    ['anna', 'clip 000000001', 'anna', 'clip 000000003']
    """
    told = len(set(groups)) > 1
    return [group if told and group else f"clip {i:09d}" for i, group in enumerate(groups)]


def knn_scores(
    features: Tensor, labels: Tensor, queries: Tensor, num_classes: int, *, k: int = 10, temperature: float = 0.07
) -> Tensor:
    """Class scores by a weighted vote of the k nearest training clips in cosine similarity s.

    ``score[c] = sum over the k nearest i with label c of exp((s_i - 1) / temperature)`` (Wu et al. 2018, section 3.4).

    Args:
        features: [N, D] float, training features; normalised here.
        labels: [N] int64 in [0, num_classes).
        queries: [B, D] float.
        num_classes: C.
        k: votes, 1 to N.
        temperature: > 0; a larger one makes the votes more alike.
    Returns:
        [B, C] float32, no gradient.
    Raises:
        ValueError, TypeError: wrong shapes, k > N, temperature <= 0.

    >>> knn_scores(torch.eye(2), torch.tensor([1, 0]), torch.tensor([[2.0, 0.0]]), 2, k=1).argmax(1)
    tensor([1])
    """
    sizes = checks.shapes("knn_scores", features=(features, "N D"), labels=(labels, "N"), queries=(queries, "B D"))
    checks.integer_between("knn_scores", 1, sizes["N"], k=k)
    checks.positive("knn_scores", temperature=temperature)
    with torch.no_grad():
        bank = F.normalize(features.float(), dim=1)
        similarity, nearest = ops.topk_similarity(F.normalize(queries.float(), dim=1), bank, k)
        scores = similarity.new_zeros(sizes["B"], num_classes)
        return scores.scatter_add_(1, labels[nearest], ((similarity - 1) / temperature).exp())


def linear_probe_scores(
    features: Tensor,
    labels: Tensor,
    groups: Sequence[str],
    queries: Tensor,
    num_classes: int,
    *,
    grid: Sequence[float] = L2_GRID,
    inner_folds: int = 3,
) -> tuple[Tensor, float]:
    """Class scores of a linear classifier on frozen features, with L2 strength chosen on training groups only.

    Minimises ``mean cross-entropy(W x + b) + l2 / 2 |W|^2`` over standardised x by L-BFGS from zero in float64; l2 is
    the grid value with the best top-1 accuracy over an inner leave-groups-out split (the stronger of equals).

    Args:
        features: [N, D] float, training features.
        labels: [N] int64 in [0, num_classes).
        groups: the group of every training clip; with one group alone the inner split is over clips.
        queries: [B, D] float, clips of groups that are not among ``groups``.
        num_classes: C.
        grid: candidate values of l2.
        inner_folds: folds of the inner split.
    Returns:
        Logits [B, C] float64 and the chosen l2. Deterministic.
    Raises:
        ValueError, TypeError: wrong shapes.

    >>> x = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]])
    >>> scores, _ = linear_probe_scores(x, torch.tensor([0, 0, 1, 1]), ["a", "b", "a", "b"], x, 2)
    >>> scores.argmax(1)
    tensor([0, 0, 1, 1])
    """
    checks.shapes("linear_probe_scores", features=(features, "N D"), labels=(labels, "N"), queries=(queries, "B D"))
    strengths = sorted(grid, reverse=True)
    best = strengths[0]
    if len(strengths) > 1 and len(labels) > 1:
        best = strengths[int(np.argmax(_inner_accuracy(features, labels, groups, num_classes, strengths, inner_folds)))]
    *_, logits = _logits_per_strength(features, labels, queries, num_classes, [s for s in strengths if s >= best])
    return logits, best


def _inner_accuracy(
    features: Tensor,
    labels: Tensor,
    groups: Sequence[str],
    num_classes: int,
    strengths: Sequence[float],
    inner_folds: int,
) -> np.ndarray:
    names = known_groups(groups)
    hits = np.zeros(len(strengths))
    for fold in group_folds(names, min(inner_folds, len(set(names)))):
        held = torch.zeros(len(labels), dtype=torch.bool)
        held[torch.from_numpy(fold)] = True
        train, queries, truth = features[~held], features[held], labels[held]
        for i, logits in enumerate(_logits_per_strength(train, labels[~held], queries, num_classes, strengths)):
            hits[i] += top_k_accuracy(logits, truth) * len(truth)
    return hits / len(labels)


def _logits_per_strength(
    features: Tensor, labels: Tensor, queries: Tensor, num_classes: int, strengths: Sequence[float]
) -> list[Tensor]:
    """Logits of the queries for every l2, strongest first, each fit starting from the one before."""
    x, q = features.double(), queries.double()
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = torch.where(deviation > 1e-8 * x.abs().amax(0), deviation, 1.0)
    x, q = (x - mean) / deviation, (q - mean) / deviation
    if x.shape[1] > x.shape[0]:
        # the solution lies in the row space of x, so solving in an orthonormal basis of it is the same problem
        basis = torch.linalg.qr(x.T).Q
        x, q = x @ basis, q @ basis
    weight = x.new_zeros(x.shape[1] + 1, num_classes)
    results = []
    for strength in strengths:
        weight = _fit(x, labels, weight, strength)
        results.append(q @ weight[:-1] + weight[-1])
    return results


def _fit(x: Tensor, labels: Tensor, start: Tensor, l2: float) -> Tensor:
    weight = start.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight],
        max_iter=200,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad(set_to_none=True)
        loss = F.cross_entropy(x @ weight[:-1] + weight[-1], labels) + 0.5 * l2 * weight[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach()
