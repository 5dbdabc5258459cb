"""Max pooling over the joints of each part, and its gradient: a node gathers what it was chosen for."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._gcn import on
from slrfast.kernels.triton._rounding import rounded
from slrfast.kernels.triton._select import bound

ROWS, CHANNELS = 16, 128  # what one program holds of one part, or of one node


@triton.jit
def tile_of(count, R, C: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of a program over [blocks of R rows, count, blocks of C]: row, which of count, channel, and what there is."""
    program = tl.program_id(0).to(tl.int64)
    blocks: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    channel = (program % blocks).to(tl.int32) * CHANNELS + tl.arange(0, CHANNELS)
    row = (program // blocks // count) * ROWS + tl.arange(0, ROWS)
    return row[:, None], program // blocks % count, channel[None, :], (row < R)[:, None] & (channel < C)[None, :]


@triton.jit
def pool(
    x,  # [R, V, C]
    members,  # [Q, M]
    pooled,  # [R, Q, C] out
    chosen,  # [R, Q, C] uint8 out
    R,
    V,
    Q,
    M,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """pooled[r, q] = max_m x[r, members[q, m]], and the first m that has it; NaN is the largest number."""
    compute: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    row, part, channel, inside = tile_of(Q, R, C, ROWS, CHANNELS)
    first = tl.load(members + part * M).to(tl.int64)
    best = tl.load(x + (row * V + first) * C + channel, mask=inside, other=0.0).to(compute)
    index = tl.zeros([ROWS, CHANNELS], tl.int32)
    for m in range(1, bound(M)):
        node = tl.load(members + part * M + m).to(tl.int64)
        value = tl.load(x + (row * V + node) * C + channel, mask=inside, other=0.0).to(compute)
        larger = (value > best) | ((value != value) & (best == best))
        best = tl.where(larger, value, best)
        index = tl.where(larger, m, index)
    at = (row * Q + part) * C + channel
    tl.store(pooled + at, rounded(best, x.dtype.element_ty), mask=inside)
    tl.store(chosen + at, index.to(tl.uint8), mask=inside)


@triton.jit
def spread(
    grad,  # [R, Q, C]
    chosen,  # [R, Q, C] uint8
    members,  # [Q, M]
    grad_x,  # [R, V, C] out
    R,
    V,
    Q,
    M,
    C: tl.constexpr,
    LISTED: tl.constexpr,  # M or more
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """grad_x[r, v] = sum of the grad[r, q] of the parts q that chose v. A part is filled up with its first member."""
    compute: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    row, node, channel, inside = tile_of(V, R, C, ROWS, CHANNELS)
    total = tl.zeros([ROWS, CHANNELS], compute)
    m = tl.arange(0, LISTED)
    for part in range(bound(Q)):
        listed = tl.load(members + part * M + m, mask=m < M, other=-1)
        place = tl.min(tl.where(listed == node, m, LISTED))
        mine = inside & (place < LISTED)
        at = (row * Q + part) * C + channel
        choice = tl.load(chosen + at, mask=mine, other=0).to(tl.int32)
        g = tl.load(grad + at, mask=mine, other=0.0).to(compute)
        total += tl.where(choice == place, g, 0.0)
    tl.store(grad_x + (row * V + node) * C + channel, rounded(total, grad_x.dtype.element_ty), mask=inside)


def _grid(rows: int, count: int, channels: int) -> tuple[int]:
    return (triton.cdiv(rows, ROWS) * count * triton.cdiv(channels, CHANNELS),)


def part_max(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernel for ``slrfast::part_max``."""
    x, (parts, longest), (rows, nodes, channels) = x.contiguous(), members.shape, x.shape
    pooled = x.new_empty((rows, parts, channels))
    chosen = torch.empty_like(pooled, dtype=torch.uint8)
    with on(x):
        pool[_grid(rows, parts, channels)](
            x, members, pooled, chosen, rows, nodes, parts, longest, channels, ROWS, CHANNELS
        )
    return pooled, chosen


def part_max_grad(grad: Tensor, chosen: Tensor, members: Tensor, nodes: int) -> Tensor:
    """Run the kernel for ``slrfast::part_max_grad``."""
    grad, chosen, (parts, longest) = grad.contiguous(), chosen.contiguous(), members.shape
    rows, _, channels = grad.shape
    grad_x = grad.new_empty((rows, nodes, channels))
    with on(grad):
        spread[_grid(rows, nodes, channels)](
            grad, chosen, members, grad_x, rows, nodes, parts, longest, channels,
            triton.next_power_of_2(longest), ROWS, CHANNELS,
        )  # fmt: skip
    return grad_x
