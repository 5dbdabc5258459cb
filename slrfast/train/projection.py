"""Two-dimensional maps of features, for pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pca(features: Tensor, dimensions: int = 2) -> Tensor:
    """Principal components [N, dimensions] float64; every axis points to its largest value, so the sign is fixed."""
    x = features.double()
    u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    scores = F.pad(u * s, (0, max(0, dimensions - len(s))))[:, :dimensions]
    largest = scores.gather(0, scores.abs().argmax(0, keepdim=True))
    return scores * torch.where(largest < 0, -1.0, 1.0)


def tsne(features: Tensor, *, perplexity: float = 20.0, steps: int = 400) -> Tensor:
    """Exact t-SNE of cosine geometry (van der Maaten and Hinton 2008), [N, 2] float64, started from PCA: deterministic.

    Args:
        features: [N, D] float; time and memory grow with N squared, so keep N below about 2000.
        perplexity: effective number of neighbours, at most (N - 1) / 3.
        steps: of gradient descent, a quarter of them with early exaggeration.
    """
    count = len(features)
    if count < 8:
        return pca(features)
    x = F.normalize(features.double(), dim=1)
    p = _affinities(2 - 2 * x @ x.T, min(perplexity, (count - 1) / 3))
    p = ((p + p.T) / (2 * count)).clamp_min(1e-12)
    y = pca(x)
    y = 1e-4 * y / y.std().clamp_min(1e-12)
    velocity, gain = torch.zeros_like(y), torch.ones_like(y)
    rate = max(count / 12 / 4, 50.0)
    for step in range(steps):
        early = step < steps // 4
        kernel = 1 / (1 + torch.cdist(y, y).square())
        kernel.fill_diagonal_(0)
        force = (p * (12.0 if early else 1.0) - kernel / kernel.sum()) * kernel
        gradient = 4 * (force.sum(1, keepdim=True) * y - force @ y)
        gain = torch.where(gradient.sign() == velocity.sign(), gain * 0.8, gain + 0.2).clamp_min(0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gain * gradient
        y = y + velocity
        y = y - y.mean(0)
    return y


def _affinities(distance: Tensor, perplexity: float) -> Tensor:
    """Row-wise Gaussian affinities whose entropy is log(perplexity), found by bisection of the precision."""
    count = len(distance)
    itself = torch.eye(count, dtype=torch.bool)
    low, high = torch.zeros(count, 1, dtype=torch.float64), torch.full((count, 1), torch.inf, dtype=torch.float64)
    precision = torch.ones(count, 1, dtype=torch.float64)
    target = torch.tensor(perplexity, dtype=torch.float64).log()
    for _ in range(60):
        p = torch.softmax((-precision * distance).masked_fill(itself, -torch.inf), 1)
        entropy = -torch.special.xlogy(p, p).sum(1, keepdim=True)
        too_wide = entropy > target
        low, high = torch.where(too_wide, precision, low), torch.where(too_wide, high, precision)
        precision = torch.where(high.isinf(), precision * 2, (low + high) / 2)
    return p
