"""Resampling of windows: memory-bound, one tile of [frames of the result, elements] per program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._clips import OPTIONS, place
from slrfast.kernels.triton._gcn import on
from slrfast.kernels.triton._rounding import rounded

TILE = 2048


@triton.jit
def windows(
    frames,  # [F, row]
    offsets,  # [clips + 1]
    start,  # [windows]
    length,  # [windows]
    result,  # [count, row] out, count = windows * out
    clips,
    out,
    count,
    row,
    NEAREST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """result[w out + i] = the window w at its i-th position."""
    compute: tl.constexpr = tl.float64 if frames.dtype.element_ty == tl.float64 else tl.float32
    blocks = tl.cdiv(row, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    at = (program // blocks) * ROWS + tl.arange(0, ROWS)
    j = (program % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    _, before, nearest, blended, fraction = place(
        offsets, start, length, at // out, at % out, clips, out, at < count, compute
    )
    inside = (at < count)[:, None] & (j < row)
    if NEAREST:
        value = tl.load(frames + nearest[:, None] * row + j, mask=inside, other=0)
        tl.store(result + at[:, None] * row + j, value, mask=inside)
    else:
        source = frames + before[:, None] * row + j
        a = tl.load(source, mask=inside, other=0.0).to(compute)
        b = tl.load(source + row, mask=inside & blended[:, None], other=0.0).to(compute)
        value = tl.where(blended[:, None], a + (b - a) * fraction[:, None], a)
        tl.store(result + at[:, None] * row + j, rounded(value, result.dtype.element_ty), mask=inside)


def resample(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int, mode: str) -> Tensor:
    """Run the kernel for ``slrfast::resample``."""
    frames, shape, nearest = frames.contiguous(), (*start.shape, out_frames, *frames.shape[1:]), mode == "nearest"
    out = frames.new_empty(shape)
    if out.numel() == 0:
        return out
    source, target = (t if t.is_floating_point() else t.view(torch.uint8) for t in (frames, out))
    row = source.shape[1] * source.shape[2]
    block = min(TILE, triton.next_power_of_2(row))
    rows, count = max(1, TILE // block), start.numel() * out_frames
    with on(frames):
        windows[(triton.cdiv(count, rows) * triton.cdiv(row, block),)](
            source, offsets.contiguous(), start.contiguous(), length.contiguous(), target, len(offsets) - 1, out_frames,
            count, row, nearest, rows, block, **OPTIONS,
        )  # fmt: skip
    return out
