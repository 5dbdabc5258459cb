"""What SLP compares: windows of frames and words as sequences of unit vectors, of one process or of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast.nn import Packing
from slrfast.nn.gather import gather_rows, num_processes


class Sequences(NamedTuple):
    """Unit vectors of B clips' windows or of B texts' words: [B, L, e], and which of them are real, bool [B, L]."""

    rows: Tensor
    present: Tensor


def average_windows(x: Tensor, packing: Packing, window: int) -> tuple[Tensor, Packing]:
    """The averages [R, D] of every ``window`` consecutive rows of a clip, and their packing; x is packed [S, D].

    The last window of a clip may be shorter: it is averaged over the rows it has.
    """
    counts = tuple(-(-length // window) for length in packing.lengths)
    windows = Packing(F.pad(((packing.offsets.diff() + window - 1) // window).cumsum(0), (1, 0)), counts)
    place = windows.offsets[packing.clip] * window + packing.number
    apart = x.new_zeros(windows.num_rows * window, x.shape[1]).index_copy(0, place, x)
    rows = (packing.offsets.diff()[windows.clip] - window * windows.number).clamp(max=window)
    return apart.unflatten(0, (-1, window)).sum(1) / rows[:, None], windows


def shorten(tokens: Tensor, lengths: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Of texts of more than ``limit`` tokens the first ones and the last two, <eos> and the language, as many in all.

    >>> shorten(torch.tensor([[5, 6, 7, 8, 2, 9], [5, 2, 9, 0, 0, 0]]), torch.tensor([6, 3]), 4)
    (tensor([[5, 6, 2, 9],
            [5, 2, 9, 0]]), tensor([4, 3]))
    """
    if tokens.shape[1] <= limit:
        return tokens, lengths
    number = torch.arange(limit, device=tokens.device)
    cut = (lengths - limit).clamp(min=0)[:, None]
    return tokens.gather(1, number + cut * (number >= limit - 2)), lengths.clamp(max=limit)


def unit_rows(projection: nn.Linear, x: Tensor, packing: Packing) -> Sequences:
    """Packed rows projected, in float32 also under autocast, scaled to length one, and padded."""
    rows = projection(x)
    rows = F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
    return Sequences(packing.pad(rows), packing.present)


def gathered_contrast(
    similarity: Callable[[Sequences, Sequences], Tensor], sign: Sequences, text: Sequences, scale: Tensor
) -> Tensor:
    """Eq. 5 with the clips and texts of all processes; its mean over the processes is that of one joint batch.

    Every process takes part, also one without a text.
    """
    mine = torch.tensor([len(sign.rows), sign.rows.shape[1], text.rows.shape[1]], device=scale.device)
    pairs, signs, words = gather_rows(mine).unbind(1)
    total, most = int(pairs.sum()), [int(sizes.max()) for sizes in (pairs, signs, words)]
    if total == 0:
        return sign.rows.sum() + text.rows.sum() + 0 * scale  # sums of nothing
    both = [
        F.pad(x, (0, 0, 0, longest - x.shape[1], 0, most[0] - len(x)))
        for x, longest in ((sign.rows, most[1]), (text.rows, most[2]))
    ]
    rows = gather_rows(torch.cat(both, 1)).flatten(0, 1)  # in one call, so that the backward passes are in step
    present = [
        gather_rows(F.pad(x, (0, longest - x.shape[1], 0, most[0] - len(x))).byte()).flatten(0, 1).bool()
        for x, longest in ((sign.present, most[1]), (text.present, most[2]))
    ]
    real = torch.arange(most[0], device=scale.device) < pairs[:, None]
    real = real.flatten().nonzero()[:, 0]
    rows, all_signs, all_words = (x.index_select(0, real) for x in (rows, *present))
    everything = Sequences(rows[:, : most[1]], all_signs), Sequences(rows[:, most[1] :], all_words)
    nothing = 0 * scale + 0 * rows.sum()
    if len(sign.rows) == 0:
        return nothing
    target = int(pairs[: torch.distributed.get_rank()].sum()) + torch.arange(len(sign.rows), device=scale.device)
    to_text = F.cross_entropy(scale * similarity(sign, everything[1]), target, reduction="sum")
    to_sign = F.cross_entropy(scale * similarity(everything[0], text).mT, target, reduction="sum")
    return num_processes() / total * (to_text + to_sign) / 2 + nothing
