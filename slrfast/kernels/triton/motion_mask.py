"""Motion residuals, their weights and the frames to mask: one program for each clip.

It writes residuals and weights frame by frame and notes the candidates in the mask; of these it finds the border of
the smallest random keys by bisection of their bits, as _select does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._gcn import on
from slrfast.kernels.triton._rounding import rounded
from slrfast.kernels.triton._select import bound, ordered

TILE = 4096  # entries that a program holds, of some frames
MOST_FRAMES = 8192  # whose keys one program holds


@triton.jit
def choose(order, candidate, wanted):
    """The ``wanted`` candidates with the smallest order, the first of equal ones."""
    last: tl.constexpr = 0x7FFFFFFFFFFFFFFF if order.dtype == tl.int64 else 0x7FFFFFFF
    low = tl.min(tl.where(candidate, order, last))
    high = tl.max(tl.where(candidate, order, -last - 1))
    found = tl.sum(candidate.to(tl.int32))  # candidates up to ``high``, at least as many as wanted
    while (found != wanted) & (low < high):
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        count = tl.sum((candidate & (order <= middle)).to(tl.int32))
        found = tl.where(count >= wanted, count, found)
        high = tl.where(count >= wanted, middle, high)
        low = tl.where(count >= wanted, low, middle + 1)
    below = candidate & (order < high)
    ties = candidate & (order == high)
    return below | (ties & (tl.cumsum(ties.to(tl.int32), 0) <= wanted - tl.sum(below.to(tl.int32))))


@triton.jit
def mask_clip(
    x,  # [B, T, V, 2], contiguous
    confidence,  # [B, T, V], contiguous
    lengths,  # [B] or None
    keys,  # [B, T], contiguous
    residual,  # [B, T, V, 2] out
    weight,  # [B, T, V] out
    mask,  # [B, T] uint8 out
    T,
    interval,
    confidence_threshold: tl.float64,
    motion_threshold: tl.float64,
    joint_fraction: tl.float64,
    mask_ratio: tl.float64,
    V: tl.constexpr,
    NORM: tl.constexpr,
    DOUBLE: tl.constexpr,
    FRAMES: tl.constexpr,
    ENTRIES: tl.constexpr,  # 2 V or more
    BLOCK: tl.constexpr,  # T or more
):
    """Residual, weight and mask of one clip: MASA Algorithm 1."""
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    clip = tl.program_id(0).to(tl.int64) * T
    length = T if lengths is None else tl.load(lengths + tl.program_id(0))
    end = tl.minimum(length, T) - interval
    sure = tl.full([], confidence_threshold, tl.float64).to(compute)
    moves = tl.full([], motion_threshold, tl.float64)
    entry = tl.arange(0, ENTRIES)[None, :]
    joint = entry // 2
    counted = (entry < 2 * V) & (entry % 2 == 0) if NORM else entry < 2 * V
    for start in range(0, bound(T), FRAMES):
        frame = start + tl.arange(0, FRAMES)
        inside = (frame < T)[:, None] & (entry < 2 * V)
        defined = (frame < end)[:, None] & (entry < 2 * V)
        now = (clip + frame)[:, None]
        later = now + interval
        a = tl.load(confidence + now * V + joint, mask=defined, other=0.0).to(compute)
        b = tl.load(confidence + later * V + joint, mask=defined, other=0.0).to(compute)
        factor = tl.where(a >= sure, a, 0.0) * tl.where(b >= sure, b, 0.0)
        before = tl.load(x + now * (2 * V) + entry, mask=defined, other=0.0).to(compute)
        moved = tl.load(x + later * (2 * V) + entry, mask=defined, other=0.0).to(compute) - before
        tl.store(residual + now * (2 * V) + entry, rounded(moved, residual.dtype.element_ty), mask=inside)
        tl.store(weight + now * V + joint, rounded(factor, weight.dtype.element_ty), mask=inside & (entry % 2 == 0))
        distance = tl.abs(moved).to(tl.float64)
        if NORM:
            other = entry ^ 1
            before = tl.load(x + now * (2 * V) + other, mask=defined, other=0.0).to(compute)
            moved = tl.load(x + later * (2 * V) + other, mask=defined, other=0.0).to(compute) - before
            distance = tl.sqrt(distance * distance + moved.to(tl.float64) * moved.to(tl.float64))
        moving = defined & counted & (distance * factor.to(tl.float64) >= moves)
        share = tl.sum(moving.to(tl.int32), 1).to(tl.float64) / tl.full([], V if NORM else 2 * V, tl.float64)
        candidate = (frame < end) & (share >= tl.full([], joint_fraction, tl.float64))
        tl.store(mask + clip + frame, candidate.to(tl.uint8), mask=frame < T)
    tl.debug_barrier()  # another thread reads them back
    frame = tl.arange(0, BLOCK)
    candidate = tl.load(mask + clip + frame, mask=frame < T, other=0) != 0
    count = tl.sum(candidate.to(tl.int32)).to(tl.float64)
    wanted = (count * tl.full([], mask_ratio, tl.float64)).to(tl.int32)
    order = ordered(tl.load(keys + clip + frame, mask=frame < T, other=0.0))
    tl.debug_barrier()
    tl.store(mask + clip + frame, choose(order, candidate, wanted).to(tl.uint8), mask=frame < T)


def fits(frames: int, joints: int) -> bool:
    """Whether one program can hold the keys of a clip and the entries of a frame."""
    return frames <= MOST_FRAMES and 2 * joints <= TILE


def motion_mask(
    x: Tensor,
    confidence: Tensor,
    lengths: Tensor | None,
    random_keys: Tensor,
    interval: int,
    confidence_threshold: float,
    motion_threshold: float,
    joint_fraction: float,
    mask_ratio: float,
    norm: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel for ``slrfast::motion_mask``."""
    x, confidence, keys = x.contiguous(), confidence.contiguous(), random_keys.contiguous()
    keys = keys if keys.dtype in (torch.float32, torch.float64) else keys.float()
    clips, frames, joints = confidence.shape
    residual, weight = torch.empty_like(x), torch.empty_like(confidence)
    mask = torch.zeros(clips, frames, dtype=torch.uint8, device=x.device)
    if x.numel():
        entries = triton.next_power_of_2(2 * joints)
        with on(x):
            mask_clip[(clips,)](
                x, confidence, lengths if lengths is None else lengths.contiguous(), keys, residual, weight, mask,
                frames, interval, confidence_threshold, motion_threshold, joint_fraction, mask_ratio, joints, norm,
                torch.float64 in (x.dtype, confidence.dtype), max(1, TILE // entries), entries,
                triton.next_power_of_2(frames), num_warps=8, enable_fp_fusion=False,
            )  # fmt: skip
    return residual, weight, mask.bool()
