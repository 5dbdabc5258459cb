"""The check of windows of packed clips, which several ops are given."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slrfast import checks


def check(op: str, frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor) -> None:
    """Shapes, dtypes and devices of windows [..., B]; their values where those may be read."""
    sizes = checks.shapes(op, start=(start, "... B"), offsets=(offsets, "B+1"), length=(length, "..."))
    checks.require(sizes["B+1"] == sizes["B"] + 1, op, "offsets", f"have {sizes['B'] + 1} entries", sizes["B+1"])
    checks.require(
        length.shape == start.shape, op, "length", f"have start's shape {list(start.shape)}", list(length.shape)
    )
    checks.dtype(op, torch.int64, offsets=offsets, start=start, length=length)
    checks.same_device(op, frames=frames, offsets=offsets, start=start, length=length)
    if not checks.may_read(offsets):
        return
    ends, first, count = (tensor.cpu().numpy() for tensor in (offsets, start, length))
    checks.rising(op, frames.shape[0], offsets=ends.tolist())
    frames_of = np.diff(ends)
    outside = (first < 0) | (count < 1) | (first > frames_of - count)
    if outside.any():
        window = tuple(np.argwhere(outside)[0])
        clip = f"for clip {window[-1]} of {frames_of[window[-1]]} frames"
        got = f"start {first[window]} and length {count[window]} {clip}"
        checks.require(False, op, "start and length", "name at least one frame inside the clip", got)
