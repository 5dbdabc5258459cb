"""Spatial augmentation: memory-bound, one tile of [frames, joints] of a clip per program."""

from __future__ import annotations

from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._clips import FRAMES, JOINTS, OPTIONS, change_of, changed, plan_arguments
from slrfast.kernels.triton._gcn import on
from slrfast.kernels.triton._rounding import rounded


@triton.jit
def change(
    x,  # [clips, T, V, 2]
    confidence,  # [clips, T, V]
    linear,  # [clips, parts, 2, 2], of the type that is computed in
    center,  # [clips, parts, 2]
    part,  # [V]
    affected,  # [clips, V] uint8
    drop,  # [clips, V] uint8
    swap,  # [clips] uint8
    swap_index,  # [V]
    x_out,  # [clips, T, V, 2] out
    confidence_out,  # [clips, T, V] out
    T,
    V,
    parts,
    FRAMES: tl.constexpr,
    JOINTS: tl.constexpr,
):
    """Joint v of the result is joint ``swap_index[v]`` in a swapped clip, moved if affected and seen, 0 if dropped."""
    compute: tl.constexpr = linear.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    blocks, tiles = tl.cdiv(V, JOINTS), tl.cdiv(T, FRAMES)
    v = (program % blocks) * JOINTS + tl.arange(0, JOINTS)
    t = (program // blocks % tiles) * FRAMES + tl.arange(0, FRAMES)
    clip = program // blocks // tiles
    joint, at, m00, m01, m10, m11, moved, kept = change_of(
        linear, part, affected, drop, swap, swap_index, clip, v, V, parts, v < V, compute
    )
    cx = tl.load(center + 2 * at, mask=v < V, other=0.0)
    cy = tl.load(center + 2 * at + 1, mask=v < V, other=0.0)
    inside = (t < T)[:, None] & (v < V)[None, :]
    source, target = ((clip * T + t) * V)[:, None] + joint[None, :], ((clip * T + t) * V)[:, None] + v[None, :]
    sure = tl.load(confidence + source, mask=inside, other=0.0)
    px = tl.load(x + 2 * source, mask=inside, other=0.0).to(compute)
    py = tl.load(x + 2 * source + 1, mask=inside, other=0.0).to(compute)
    moved, kept = moved[None, :] & (sure > 0), kept[None, :]
    px, py = changed(
        px, py, cx[None, :], cy[None, :], m00[None, :], m01[None, :], m10[None, :], m11[None, :], moved, kept
    )
    tl.store(x_out + 2 * target, rounded(px, x_out.dtype.element_ty), mask=inside)
    tl.store(x_out + 2 * target + 1, rounded(py, x_out.dtype.element_ty), mask=inside)
    tl.store(confidence_out + target, tl.where(kept, sure, 0.0), mask=inside)


def augment(x: Tensor, confidence: Tensor, linear: Tensor, center: Tensor, *changes: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernel for ``slrfast::augment``."""
    wide = reduce(torch.promote_types, (x.dtype, linear.dtype, center.dtype), torch.float32)
    x, confidence = x.contiguous(), confidence.contiguous()
    x_out, confidence_out = torch.empty_like(x), torch.empty_like(confidence)
    clips, frames, joints, _ = x.shape
    if x.numel() == 0:
        return x_out, confidence_out
    block = min(JOINTS, triton.next_power_of_2(joints))
    with on(x):
        change[(clips * triton.cdiv(frames, FRAMES) * triton.cdiv(joints, block),)](
            x, confidence, *plan_arguments(wide, linear, center, *changes), x_out, confidence_out, frames, joints,
            linear.shape[1], FRAMES, block, **OPTIONS,
        )  # fmt: skip
    return x_out, confidence_out
