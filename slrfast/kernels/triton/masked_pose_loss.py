"""The error of reconstructed masked keypoints: one program for each part of a clip."""

from __future__ import annotations

from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._gcn import on
from slrfast.kernels.triton._select import bound

PART, BLOCK = 8192, 1024  # keypoints of a program, and that it holds at a time


@triton.jit
def part_loss(
    prediction,  # [B, keypoints, 2]
    target,  # [B, keypoints, 2]
    mask,  # [B, keypoints] uint8
    confidence,  # [B, keypoints]
    losses,  # [B, parts] out
    counts,  # [B, parts] int64 out
    grad,  # [B, keypoints, 2] out, with GRAD
    keypoints,
    GRAD: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """losses = sum over masked keypoints of confidence |prediction - target|^2."""
    compute: tl.constexpr = losses.dtype.element_ty
    first = tl.program_id(1) * PART
    clip = tl.program_id(0).to(tl.int64) * keypoints + first
    left = keypoints - first
    total = tl.zeros([2 * BLOCK], compute)
    masked = tl.zeros([2 * BLOCK], tl.int64)
    for start in range(0, bound(tl.minimum(left, PART)), BLOCK):
        coordinate = 2 * start + tl.arange(0, 2 * BLOCK)
        inside = coordinate < 2 * left
        at = clip + coordinate // 2
        chosen = tl.load(mask + at, mask=inside, other=0) != 0
        weight = tl.load(confidence + at, mask=chosen, other=0.0).to(compute)
        y = tl.load(prediction + 2 * clip + coordinate, mask=chosen, other=0.0).to(compute)
        difference = y - tl.load(target + 2 * clip + coordinate, mask=chosen, other=0.0).to(compute)
        weighted = difference * weight
        total += weighted * difference
        masked += (chosen & (coordinate % 2 == 0)).to(tl.int64)
        if GRAD:
            tl.store(grad + 2 * clip + coordinate, weighted + weighted, mask=inside)
    to = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(losses + to, tl.sum(total))
    tl.store(counts + to, tl.sum(masked))


def masked_pose_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, confidence: Tensor, want_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel for ``slrfast::masked_pose_loss``; the parts of a clip are added up in their order."""
    prediction, target, mask, confidence = (t.contiguous() for t in (prediction, target, mask, confidence))
    compute = reduce(torch.promote_types, (target.dtype, confidence.dtype, torch.float32), prediction.dtype)
    clips, keypoints = prediction.shape[0], prediction.shape[1] * prediction.shape[2]
    parts = triton.cdiv(keypoints, PART)
    losses = torch.empty(clips, parts, dtype=compute, device=prediction.device)
    counts = losses.new_empty((clips, parts), dtype=torch.int64)
    grad = losses.new_empty(prediction.shape if want_grad else 0)
    if prediction.numel():
        with on(prediction):
            part_loss[clips, parts](
                prediction, target, mask.view(torch.uint8), confidence, losses, counts, grad, keypoints, want_grad,
                PART, BLOCK, num_warps=8, enable_fp_fusion=False,
            )  # fmt: skip
    return losses.sum(1), counts.sum(1), grad
