"""Views of packed clips: memory-bound, one tile of [frames of the result, joints] per program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._clips import JOINTS, OPTIONS, change_of, changed, place, plan_arguments
from slrfast.kernels.triton._gcn import on
from slrfast.kernels.triton._rounding import rounded
from slrfast.kernels.triton._select import bound

FRAMES = 8  # of a tile: two positions and two motions of a joint leave no registers for more


@triton.jit
def difference(xy, frame, joint, first, last, V, inside, AFTER: tl.constexpr, compute: tl.constexpr):
    """xy[frame + AFTER] - xy[frame + AFTER - 1], zero where either is not in the clip; inside: [frames, joints]."""
    defined = inside & (frame + AFTER - 1 >= first)[:, None] & (frame + AFTER < last)[:, None]
    late = xy + 2 * (((frame + AFTER) * V)[:, None] + joint)
    dx = tl.load(late, mask=defined, other=0.0).to(compute) - tl.load(late - 2 * V, mask=defined, other=0.0).to(compute)
    dy = tl.load(late + 1, mask=defined, other=0.0).to(compute) - tl.load(late + 1 - 2 * V, mask=defined, other=0.0).to(
        compute
    )
    return dx, dy


@triton.jit
def blend(a, b, blended, fraction):
    """``fraction`` of the way from a to b."""
    return tl.where(blended, a + (b - a) * fraction, a)


@triton.jit
def views(
    xy,  # [F, V, 2]
    confidence,  # [F, V]
    offsets,  # [clips + 1]
    start,  # [windows]
    length,  # [windows]
    linear,  # [windows, parts, 2, 2], of the type that is computed in
    center,  # [windows, parts, 2]
    part,  # [V]
    affected,  # [windows, V] uint8
    drop,  # [windows, V] uint8
    swap,  # [windows] uint8
    swap_index,  # [V]
    xy_out,  # [count, V, 2] out, count = windows * out
    motion_out,  # [count, V, 2] out
    confidence_out,  # [count, V] out
    visible,  # [count, parts] uint8 out
    clips,
    out,
    count,
    V,
    parts,
    DIRECTION: tl.constexpr,
    FRAMES: tl.constexpr,
    JOINTS: tl.constexpr,
):
    """Frames of windows, read at their positions, changed and swapped; what is visible; DIRECTION -1: no motion."""
    compute: tl.constexpr = linear.dtype.element_ty
    stored: tl.constexpr = xy.dtype.element_ty
    frame = tl.program_id(0).to(tl.int64) * FRAMES + tl.arange(0, FRAMES)
    present, window = frame < count, frame // out
    clip, before, nearest, blended, fraction = place(
        offsets, start, length, window, frame % out, clips, out, present, compute
    )
    first = tl.load(offsets + clip, mask=present, other=0)
    last = tl.load(offsets + clip + 1, mask=present, other=0)
    between, share = blended[:, None], fraction[:, None]
    for begin in range(0, bound(V), JOINTS):
        v = begin + tl.arange(0, JOINTS)[None, :]
        inside = present[:, None] & (v < V)
        joint, at, m00, m01, m10, m11, moved, kept = change_of(
            linear, part, affected, drop, swap, swap_index, window[:, None], v, V, parts, inside, compute
        )
        source, target = (before * V)[:, None] + joint, (frame * V)[:, None] + v
        a = tl.load(confidence + source, mask=inside, other=0.0).to(compute)
        b = tl.load(confidence + source + V, mask=inside & between, other=0.0).to(compute)
        sure = blend(a, b, between, share)
        tl.store(confidence_out + target, rounded(tl.where(kept, sure, 0.0), stored), mask=inside)
        ax = tl.load(xy + 2 * source, mask=inside, other=0.0).to(compute)
        ay = tl.load(xy + 2 * source + 1, mask=inside, other=0.0).to(compute)
        bx = tl.load(xy + 2 * (source + V), mask=inside & between, other=0.0).to(compute)
        by = tl.load(xy + 2 * (source + V) + 1, mask=inside & between, other=0.0).to(compute)
        cx = tl.load(center + 2 * at, mask=inside, other=0.0)
        cy = tl.load(center + 2 * at + 1, mask=inside, other=0.0)
        px, py = blend(ax, bx, between, share), blend(ay, by, between, share)
        px, py = changed(px, py, cx, cy, m00, m01, m10, m11, moved & (sure > 0), kept)
        tl.store(xy_out + 2 * target, rounded(px, stored), mask=inside)
        tl.store(xy_out + 2 * target + 1, rounded(py, stored), mask=inside)
        if DIRECTION >= 0:
            ax, ay = difference(xy, before, joint, first, last, V, inside, DIRECTION, compute)
            bx, by = difference(xy, before + 1, joint, first, last, V, inside & between, DIRECTION, compute)
            px, py = blend(ax, bx, between, share), blend(ay, by, between, share)
            px, py = changed(px, py, 0.0, 0.0, m00, m01, m10, m11, moved, kept)
            tl.store(motion_out + 2 * target, rounded(px, stored), mask=inside)
            tl.store(motion_out + 2 * target + 1, rounded(py, stored), mask=inside)
    swapped = tl.load(swap + window, mask=present, other=0)[:, None] != 0
    for p in range(bound(parts)):
        found = tl.zeros([FRAMES], tl.int32)
        for begin in range(0, bound(V), JOINTS):
            v = begin + tl.arange(0, JOINTS)[None, :]
            mine = present[:, None] & (v < V) & (tl.load(part + v, mask=v < V, other=-1) == p)
            joint = tl.where(swapped, tl.load(swap_index + v, mask=v < V, other=0), v)
            sure = tl.load(confidence + (nearest * V)[:, None] + joint, mask=mine, other=0.0)
            found = tl.maximum(found, tl.max((sure > 0).to(tl.int32), 1))
        tl.store(visible + frame * parts + p, found.to(tl.uint8), mask=present)


def pose_views(xy: Tensor, confidence: Tensor, offsets: Tensor, start: Tensor, length: Tensor, *args):
    """Run the kernel for ``slrfast::pose_views``."""
    *tensors, out_frames, direction = args
    count, joints, parts = start.numel() * out_frames, xy.shape[1], tensors[0].shape[1]
    size = count * joints
    numbers = xy.new_empty(size * (3 if direction < 0 else 5))
    visible = xy.new_empty((*start.shape, out_frames, parts), dtype=torch.bool)
    points, moves, sure = numbers.split([2 * size, 0 if direction < 0 else 2 * size, size])
    if count == 0:
        return numbers, visible
    wide = torch.promote_types(xy.dtype, torch.float32)
    with on(xy):
        views[(triton.cdiv(count, FRAMES),)](
            xy.contiguous(), confidence.contiguous(), *(t.contiguous() for t in (offsets, start, length)),
            *plan_arguments(wide, *tensors), points, moves, sure, visible.view(torch.uint8), len(offsets) - 1,
            out_frames, count, joints, parts, direction, FRAMES, min(JOINTS, triton.next_power_of_2(max(joints, 1))),
            **OPTIONS, maxnreg=255,  # or the assembler spills a word or two to reach a rounder number
        )  # fmt: skip
    return numbers, visible
