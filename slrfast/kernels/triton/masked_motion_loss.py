"""The distance of predicted motion to the residuals of masked frames: one program for each clip."""

from __future__ import annotations

from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._gcn import on
from slrfast.kernels.triton._select import bound

TILE, BLOCK = 4096, 1024  # entries of some frames, and frames, that a program holds


@triton.jit
def clip_loss(
    prediction,  # [B, T, ROW]
    residual,  # [B, T, ROW]
    weight,  # [B, T, ROW / REPEAT]
    mask,  # [B, T] uint8
    loss,  # [B] out
    grad,  # [B, T, ROW] out, with GRAD
    T,
    scale: tl.float64,
    ROW: tl.constexpr,
    REPEAT: tl.constexpr,  # entries that share a weight
    SQUARED: tl.constexpr,
    AVERAGE: tl.constexpr,
    GRAD: tl.constexpr,
    FRAMES: tl.constexpr,
    ENTRIES: tl.constexpr,  # of a row that are held at a time
    BLOCK: tl.constexpr,
):
    """loss = sum of the masked d^2 (or |d|), d = (prediction - scale residual) weight, / the masked frames."""
    compute: tl.constexpr = loss.dtype.element_ty
    clip = tl.program_id(0).to(tl.int64) * T
    masked = tl.zeros([BLOCK], tl.int32)
    for start in range(0, bound(T), BLOCK):
        frame = start + tl.arange(0, BLOCK)
        masked += (tl.load(mask + clip + frame, mask=frame < T, other=0) != 0).to(tl.int32)
    count = tl.maximum(tl.sum(masked), 1) if AVERAGE else tl.full([], 1, tl.int32)
    share = (1.0 / count.to(tl.float64)).to(compute)
    unit = tl.full([], scale, tl.float64).to(compute)
    total = tl.zeros([FRAMES, ENTRIES], compute)
    for start in range(0, bound(T), FRAMES):
        frame = start + tl.arange(0, FRAMES)
        chosen = tl.load(mask + clip + frame, mask=frame < T, other=0) != 0
        for first in range(0, ROW, ENTRIES):
            entry = first + tl.arange(0, ENTRIES)[None, :]
            at = (clip + frame)[:, None] * ROW + entry
            read = chosen[:, None] & (entry < ROW)
            factor = tl.load(weight + (clip + frame)[:, None] * (ROW // REPEAT) + entry // REPEAT, mask=read, other=0.0)
            factor = factor.to(compute)
            target = unit * tl.load(residual + at, mask=read, other=0.0).to(compute)
            distance = (tl.load(prediction + at, mask=read, other=0.0).to(compute) - target) * factor
            if SQUARED:
                total += distance * distance
                slope = distance + distance
            else:
                total += tl.abs(distance)
                slope = tl.where(distance > 0, 1.0, tl.where(distance < 0, -1.0, 0.0)).to(compute)
            if GRAD:
                slope = tl.where(read, slope * factor * share, 0.0)
                tl.store(grad + at, slope, mask=(frame < T)[:, None] & (entry < ROW))
    tl.store(loss + tl.program_id(0), tl.sum(total) * share)


def masked_motion_loss(
    prediction: Tensor,
    residual: Tensor,
    weight: Tensor,
    mask: Tensor,
    scale: float,
    squared: bool,
    average: bool,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Run the kernel for ``slrfast::masked_motion_loss``."""
    prediction, residual, weight, mask = (tensor.contiguous() for tensor in (prediction, residual, weight, mask))
    compute = reduce(torch.promote_types, (residual.dtype, weight.dtype, torch.float32), prediction.dtype)
    clips, frames, joints, _ = prediction.shape
    loss = torch.zeros(clips, dtype=compute, device=prediction.device)
    grad = loss.new_empty(prediction.shape if want_grad else 0)
    if prediction.numel():
        entries = min(TILE, triton.next_power_of_2(2 * joints))
        with on(prediction):
            clip_loss[(clips,)](
                prediction, residual, weight, mask.view(torch.uint8), loss, grad, frames, scale, 2 * joints,
                5 - weight.dim(), squared, average, want_grad, TILE // entries, entries,
                min(BLOCK, triton.next_power_of_2(frames)), num_warps=8, enable_fp_fusion=False,
            )  # fmt: skip
    return loss, grad
