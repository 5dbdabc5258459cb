"""SLP's hierarchical random masking: over single joints, over whole frames, and over clips of consecutive frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slrfast import checks


def hierarchical_mask(
    lengths: Tensor, keys: Tensor, *, ratio: float = 0.4, levels: Sequence[float] = (1.0, 1.0, 1.0), span: int = 8
) -> Tensor:
    """Which joints of which frames are masked: of every clip the share ``ratio``, exactly.

    With n = round(ratio T V) joints to mask in a clip of T frames and w the ``levels`` over their sum, floor(ratio w_2
    T) frames are masked in disjoint spans of ``span`` consecutive frames, one of them shorter; floor(ratio w_1 T)
    further frames one by one; and as many joints of the frames left as are missing to n, so that what rounding left
    over is made up for there. The three levels are SignBERT+'s, which SLP spreads over all joints; the paper states
    the total, the division is ours.

    Args:
        lengths: int64 [B], T of every clip.
        keys: [B, T', V + 2] uniform in [0, 1), T' the longest T: at each level the smallest are masked. The last two
            columns are those of spans and of frames.
        ratio: share of the joints, in [0, 1].
        levels: weights of joints, frames and clips, not all 0; without a weight for joints, rounding is down.
        span: frames of a masked clip, >= 1.
    Returns:
        bool [B, T', V], False behind a clip's end. No gradient.
    Raises:
        TypeError, ValueError: shapes that do not fit, or settings out of range.

    >>> keys = torch.rand(1, 10, 6, generator=torch.Generator().manual_seed(0))
    >>> hierarchical_mask(torch.tensor([10]), keys, ratio=0.5, span=2).sum()
    tensor(20)
    """
    op = "hierarchical_mask"
    shape = checks.shapes(op, lengths=(lengths, "B"), keys=(keys, "B T V"))
    joints = shape["V"] - 2
    checks.require(joints >= 1, op, "keys", "have a column for each joint and two more", list(keys.shape))
    checks.number_between(op, 0, 1, ratio=ratio)
    checks.integer_between(op, 1, 1 << 31, span=span)
    check_levels(op, levels)
    checks.lengths(op, shape["T"], lengths)
    single, frame, clip = (weight / sum(levels) for weight in levels)
    size = lengths.double()
    in_spans, in_frames = ((size * ratio * share + 1e-9).long() for share in (clip, frame))
    number = torch.arange(shape["T"], device=keys.device)
    present = number < lengths[:, None]
    spans = _spans(keys[..., -2], lengths, in_spans, span) & present
    whole = spans | _smallest(keys[..., -1], present & ~spans, in_frames)
    candidates = (present & ~whole).unsqueeze(-1).expand(-1, -1, joints)
    missing = (size * joints * ratio + 0.5).long() - joints * (in_spans + in_frames)
    if single == 0:
        missing = torch.zeros_like(missing)
    chosen = _smallest(keys[..., :-2].flatten(1), candidates.flatten(1), missing)
    return whole.unsqueeze(-1) | chosen.unflatten(1, (-1, joints))


def check_levels(op: str, levels: Sequence[float]) -> None:
    """Three weights >= 0, not all 0."""
    right = checks.are_numbers(levels, 3) and all(0 <= weight < float("inf") for weight in levels) and sum(levels) > 0
    checks.require(right, op, "levels", "be three finite weights >= 0, not all 0", levels)


def _smallest(keys: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """Of every row's candidates [B, N] the ``count`` [B] with the smallest keys."""
    order = keys.masked_fill(~candidates, float("inf")).argsort(dim=-1, stable=True)
    return torch.zeros_like(candidates).scatter(-1, order, _first(order, count))


def _first(like: Tensor, count: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device) < count[:, None]


def _spans(keys: Tensor, lengths: Tensor, count: Tensor, span: int) -> Tensor:
    """Frames [B, T] that lie in disjoint random spans, ``count`` [B] of every clip.

    A clip is a row of slots, each one free frame or one span; which slots are spans is drawn.
    """
    spans = (count + span - 1) // span
    slots = _first(keys, lengths - count + spans)
    order = keys.masked_fill(~slots, float("inf")).argsort(dim=-1, stable=True)
    rank = torch.arange(keys.shape[1], device=keys.device)
    last = count - (spans - 1) * span  # frames of the span that is drawn last
    size = torch.where(rank == spans[:, None] - 1, last[:, None], span)
    size = torch.where(rank < spans[:, None], size, 1)
    ends = torch.zeros_like(order).scatter(-1, order, size).cumsum(-1)
    slot = torch.searchsorted(ends, rank.expand_as(ends).contiguous(), right=True).clamp_(max=keys.shape[1] - 1)
    return torch.zeros_like(slots).scatter(-1, order, rank < spans[:, None]).gather(-1, slot)
