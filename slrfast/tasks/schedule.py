"""Learning rates of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence


def factor(
    schedule: str, epoch: float, epochs: float, *, warmup: float = 0.0, milestones: Sequence[float] = ()
) -> float:
    """The share of the learning rate that is used at a (fractional) epoch, after a linear warm-up if any.

    "steps": a tenth after every milestone. "cosine": ``(1 + cos(pi t)) / 2``, t the share of the epochs after the
    warm-up that is done.

    >>> [factor("steps", e, 60, milestones=(20, 40)) for e in (0, 20)]
    [1.0, 0.1]
    >>> [round(factor("cosine", e, 60, warmup=20), 2) for e in (10, 20, 40, 60)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if epoch < warmup:
        return epoch / warmup
    if schedule == "cosine":
        return (1 + math.cos(math.pi * min(1.0, (epoch - warmup) / max(epochs - warmup, 1e-9)))) / 2
    return math.prod(0.1 for milestone in milestones if epoch >= milestone)
