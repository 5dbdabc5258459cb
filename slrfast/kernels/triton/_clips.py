"""What the kernels over packed clips share: where a window is read, and the change of a tile of joints.

Products and sums are rounded one by one (the launchers forbid their fusion), so that every backend has the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FRAMES, JOINTS = 16, 64  # of a tile
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def place(
    offsets,  # [clips + 1]
    start,  # [windows]
    length,  # [windows]
    window,
    i,
    clips,
    out,
    inside,
    compute: tl.constexpr,
):
    """Per frame of the result: its clip, the packed frame before and the nearest, if and how the next is blended."""
    clip = window % clips
    frames = tl.load(length + window, mask=inside, other=1)
    first = tl.load(offsets + clip, mask=inside, other=0) + tl.load(start + window, mask=inside, other=0)
    unit = 2 * tl.cast(out, tl.int64)
    position = tl.maximum((2 * i + 1) * frames - out, 0)
    step = position // unit
    rest = position - step * unit
    if compute == tl.float64:
        fraction = rest.to(tl.float64) / unit.to(tl.float64)
    else:
        fraction = tl.div_rn(rest.to(tl.float32), unit.to(tl.float32))
    return clip, first + step, first + i * frames // out, (rest > 0) & (step + 1 < frames), fraction


@triton.jit
def change_of(
    linear,  # [clips, parts, 2, 2]
    part,  # [V]
    affected,  # [clips, V] uint8
    drop,  # [clips, V] uint8
    swap,  # [clips] uint8
    swap_index,  # [V]
    clip,
    v,
    V,
    parts,
    inside,
    compute: tl.constexpr,
):
    """Of the joints v of a clip: the joint each is before, index of its map, the map, whether it moves and stays."""
    swapped = tl.load(swap + clip + tl.zeros_like(v), mask=inside, other=0) != 0
    joint = tl.where(swapped, tl.load(swap_index + v, mask=v < V, other=0), v)
    at = clip * parts + tl.load(part + joint, mask=inside, other=0)
    m00 = tl.load(linear + 4 * at, mask=inside, other=0.0).to(compute)
    m01 = tl.load(linear + 4 * at + 1, mask=inside, other=0.0).to(compute)
    m10 = tl.load(linear + 4 * at + 2, mask=inside, other=0.0).to(compute)
    m11 = tl.load(linear + 4 * at + 3, mask=inside, other=0.0).to(compute)
    moved = tl.load(affected + clip * V + joint, mask=inside, other=0) != 0
    kept = tl.load(drop + clip * V + joint, mask=inside, other=0) == 0
    return joint, at, m00, m01, m10, m11, moved, kept


@triton.jit
def changed(x, y, cx, cy, m00, m01, m10, m11, moved, kept):
    """M (p - c) + c where a joint moves, 0 where it is not kept."""
    dx, dy = x - cx, y - cy
    new_x, new_y = (m00 * dx + m01 * dy) + cx, (m10 * dx + m11 * dy) + cy
    return tl.where(kept, tl.where(moved, new_x, x), 0.0), tl.where(kept, tl.where(moved, new_y, y), 0.0)


def plan_arguments(wide: torch.dtype, linear: Tensor, center: Tensor, part: Tensor, *others: Tensor) -> tuple:
    """Compact tensors of a plan, its truth values as bytes."""
    maps = (tensor.to(wide).contiguous() for tensor in (linear, center))
    *flags, swap_index = others
    return *maps, part.contiguous(), *(flag.contiguous().view(torch.uint8) for flag in flags), swap_index.contiguous()
