"""Graph convolution: one program has one node in a block of frames, so that the node's edges are the same for all rows.

Neighbours are added up on the way to the product, partition by partition: neither averages nor messages are stored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._gcn import PROGRAMS, on, precision, product, store_moments, tiles, wide
from slrfast.kernels.triton._rounding import rounded
from slrfast.kernels.triton._select import bound

KEY, BLOCK = 16, 256  # what one program of `sort` compares


class Neighbors(NamedTuple):
    """The edges sorted by the node and the partition that they are added up for."""

    offsets: Tensor  # [V P + 1] int32: where the edges of node v in partition p begin is at v P + p
    sources: Tensor  # [E] int32: the node at the other end
    coefficients: Tensor  # [E] float32
    strengths: Tensor  # [V P] float64: their sums


@triton.jit
def sort(
    edges,  # [E, 3]: partition, source, target
    weights,  # [E]
    offsets,  # [sides, V P + 1] out: Neighbors, for each node as a target, then as a source
    sources,  # [sides, E] out
    coefficients,  # [sides, E] out
    strengths,  # [sides, V P] out
    E,
    P,
    KEYS,  # V P
    KEY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find the edges of every node in every partition, KEY of them at a time; they keep their order."""
    side = tl.program_id(1)
    key = tl.program_id(0) * KEY + tl.arange(0, KEY)
    place = tl.zeros([KEY], tl.int32)
    for start in range(0, bound(E), BLOCK):
        e = start + tl.arange(0, BLOCK)
        own = tl.load(edges + e * 3 + 2 - side, mask=e < E, other=0) * P + tl.load(edges + e * 3, mask=e < E, other=0)
        place += tl.sum(((own[None, :] < key[:, None]) & (e < E)[None, :]).to(tl.int32), 1)
    tl.store(offsets + side * (KEYS + 1) + key, place, mask=key <= KEYS)
    strength = tl.zeros([KEY], tl.float64)
    for start in range(0, bound(E), BLOCK):
        e = start + tl.arange(0, BLOCK)
        own = tl.load(edges + e * 3 + 2 - side, mask=e < E, other=0) * P + tl.load(edges + e * 3, mask=e < E, other=0)
        mine = (own[None, :] == key[:, None]) & (e < E)[None, :]
        to = side * E + place[:, None] + tl.cumsum(mine.to(tl.int32), 1) - 1
        other = tl.load(edges + e * 3 + 1 + side, mask=e < E, other=0)
        weight = tl.load(weights + e, mask=e < E, other=0.0)
        tl.store(sources + to, tl.broadcast_to(other[None, :], (KEY, BLOCK)), mask=mine)
        tl.store(coefficients + to, tl.broadcast_to(weight[None, :], (KEY, BLOCK)), mask=mine)
        strength += tl.sum(tl.where(mine, weight[None, :].to(tl.float64), 0.0), 1)
        place += tl.sum(mine.to(tl.int32), 1)
    tl.store(strengths + side * KEYS + key, strength, mask=key < KEYS)


def neighbors(edges: Tensor, coefficients: Tensor, nodes: int, partitions: int, sides: int = 1) -> list[Neighbors]:
    """The edges that end in every node, and with two sides those that begin there.

    Sorted anew in each call, by one small kernel: a copy that is kept could belong to the memory of a CUDA graph.
    """
    count, keys = len(edges), nodes * partitions
    found = Neighbors(
        edges.new_empty((sides, keys + 1)),
        edges.new_empty((sides, count)),
        coefficients.new_empty((sides, count)),
        coefficients.new_empty((sides, keys), dtype=torch.float64),
    )
    block = min(BLOCK, max(16, triton.next_power_of_2(count)))
    with on(edges):
        sort[triton.cdiv(keys + 1, KEY), sides](
            edges.contiguous(), coefficients.contiguous(), *found, count, partitions, keys, KEY, block
        )
    return [Neighbors(*tensors) for tensors in zip(*(tensor.unbind() for tensor in found), strict=True)]


@triton.jit
def gather(
    x,  # [frames, V, K]
    sources,  # [E]
    coefficients,  # [E]
    begin,
    end,
    at,  # offsets of a tile for node 0
    inside,
    K: tl.constexpr,
    compute: tl.constexpr,
):
    """The tile's weighted sum over the nodes that the edges begin..end (int64) come from."""
    total = tl.full(at.shape, 0.0, compute)
    while begin < end:
        tile = tl.load(x + tl.load(sources + begin).to(tl.int64) * K + at, mask=inside, other=0.0)
        total += tl.load(coefficients + begin).to(compute) * tile.to(compute)
        begin += 1
    return total


@triton.jit
def convolve(
    x,  # [R, V, K]
    weight,  # [P, K, N]
    bias,  # [P, N], with BIAS
    along,  # [R, V, N], with ALONG: added to the result
    out,  # [R, V, N] out
    partial,  # [2, blocks V, N] out, with MOMENTS: mean and sum of squared deviations of the rows of a program
    offsets,  # Neighbors
    sources,
    coefficients,
    strengths,
    FRAMES,  # of a group
    blocks,  # of all groups
    V,
    P,
    weight_partition,
    weight_row,
    weight_column,
    K: tl.constexpr,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    ALONG: tl.constexpr,
    MOMENTS: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[w] = sum_p ((sum_v A_p[v, w] x[v]) weight_p + (sum_v A_p[v, w]) bias_p), and the moments of the result."""
    dtype: tl.constexpr = x.dtype.element_ty
    compute: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    parts: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    first_column = (program % parts).to(tl.int32) * COLUMNS
    column = first_column + tl.arange(0, COLUMNS)
    node = program // parts % V
    block = program // parts // V
    of_group = tl.cdiv(FRAMES, ROWS)
    own = (block % of_group) * ROWS
    first = (block // of_group * FRAMES + own) * V
    row, inside = tl.arange(0, ROWS) * V, tl.arange(0, ROWS) < FRAMES - own  # 32 bits are enough inside a block

    x += first * K
    offsets += node * P
    strengths += node * P
    partitions, weight_partition = bound(P), tl.cast(weight_partition, tl.int64)
    total = tl.full([ROWS, COLUMNS], 0.0, compute)
    for start in range(0, K, INNER):
        k = start + tl.arange(0, INNER)
        at, mask = row[:, None] * K + k[None, :], inside[:, None] & (k < K)[None, :]
        weights = weight + k[:, None] * weight_row + column[None, :] * weight_column
        filled = (k < K)[:, None] & (column < N)[None, :]
        for p in range(partitions):
            begin, end = tl.load(offsets + p).to(tl.int64), tl.load(offsets + p + 1)
            if end > begin:
                w = tl.load(weights + p * weight_partition, mask=filled, other=0.0)
                mean = gather(x, sources, coefficients, begin, end, at, mask, K, compute)
                total = product(mean, w, total, dtype, EXACT, PRECISION)
    if BIAS:
        for p in range(partitions):
            b = tl.load(bias + p * N + column, mask=column < N, other=0.0).to(compute)
            total += (tl.load(strengths + p).to(compute) * b)[None, :]

    out += (first + node) * N
    along += (first + node) * N
    at = row[:, None] * N + column[None, :]
    store = inside[:, None] & (column < N)[None, :]
    if ALONG:
        total += tl.load(along + at, mask=store, other=0.0).to(compute)
    tl.store(out + at, rounded(total, dtype), mask=store)
    if MOMENTS:
        store_moments(
            out,
            tl.minimum(FRAMES - own, ROWS),
            V * N,
            partial,
            block * V + node,
            tl.cast(blocks, tl.int64) * V,
            first_column,
            N,
            ROWS,
            COLUMNS,
        )


def launch_convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    along: Tensor | None,
    edges: Neighbors,
    groups: int = 1,
    moments: bool = False,
    exact: bool = False,
) -> tuple[Tensor, Tensor, int]:
    """Run :func:`convolve`. Returns the result, the moments of its blocks, and the frames of a block."""
    (rows, nodes, inner), (partitions, _, columns) = x.shape, weight.shape
    out = x.new_empty((rows, nodes, columns))
    frames = rows // groups
    tile = tiles(x, frames, inner, columns)
    blocks = triton.cdiv(frames, tile.rows) * groups
    partial = x.new_empty((2, blocks * nodes if moments else 0, columns), dtype=wide(x))
    with on(x):
        convolve[(blocks * nodes * triton.cdiv(columns, tile.columns),)](
            x, weight, out if bias is None else bias, out if along is None else along, out, partial, *edges, frames,
            blocks, nodes, partitions, *weight.stride(), inner, columns, bias is not None, along is not None, moments,
            exact, precision(), *tile[:3], **tile.options,
        )  # fmt: skip
    return out, partial, tile.rows


@triton.jit
def outer(
    x,  # [R, V, M]
    grad,  # [R, V, N]
    partial,  # [splits, P, M, N] out
    offsets,  # Neighbors, with GRAPH
    sources,
    coefficients,
    R,
    V,
    P,
    STEPS,  # blocks of rows of a split
    M: tl.constexpr,
    N: tl.constexpr,
    GRAPH: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """partial[s, p] = sum over a split's frames and the nodes w of (sum_v A_p[v, w] x[v]) grad[w]^T.

    Without GRAPH there is one node, and its own x takes the place of the sum.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    compute: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    p = (program % P).to(tl.int32)
    parts: tl.constexpr = (N + WIDTH - 1) // WIDTH
    n = (program // P % parts).to(tl.int32) * WIDTH + tl.arange(0, WIDTH)
    heights: tl.constexpr = (M + HEIGHT - 1) // HEIGHT
    m = (program // P // parts % heights).to(tl.int32) * HEIGHT + tl.arange(0, HEIGHT)
    part = program // P // parts // heights
    total = tl.full([HEIGHT, WIDTH], 0.0, compute)
    for node in range(bound(V)):
        begin, end = 0, 1
        if GRAPH:
            edge = offsets + node * P + p
            begin, end = tl.load(edge).to(tl.int64), tl.load(edge + 1)
        for step in range(bound(tl.where(end > begin, STEPS, 0))):
            first = (part * STEPS + step) * ROWS
            row, real = tl.arange(0, ROWS) * V, tl.arange(0, ROWS) < R - first  # 32 bits are enough inside a block
            g = tl.load(
                grad + (first * V + node) * N + row[:, None] * N + n[None, :],
                mask=real[:, None] & (n < N)[None, :],
                other=0.0,
            )
            at, inside = row[None, :] * M + m[:, None], real[None, :] & (m < M)[:, None]
            if GRAPH:
                tile = gather(x + first * V * M, sources, coefficients, begin, end, at, inside, M, compute)
            else:
                tile = tl.load(x + first * V * M + at, mask=inside, other=0.0)
            total = product(tile, g, total, dtype, EXACT, PRECISION)
    to = (part * P + p) * M * N + m[:, None] * N + n[None, :]
    tl.store(partial + to, total, mask=(m < M)[:, None] & (n < N)[None, :])


def launch_outer(
    x: Tensor, grad: Tensor, partitions: int = 1, edges: Neighbors | None = None, exact: bool = False
) -> Tensor:
    """Sum over rows of x [R, V, M] times grad [R, V, N], with :func:`outer`: [P, M, N], float32 or float64."""
    if edges is None:
        x, grad = x.flatten(0, -2)[:, None], grad.flatten(0, -2)[:, None]
    (rows, nodes, height), width = x.shape, grad.shape[2]
    tile = tiles(x, height, rows, width)
    blocks = triton.cdiv(rows, tile.inner)
    outputs = partitions * triton.cdiv(height, tile.rows) * triton.cdiv(width, tile.columns)
    steps = triton.cdiv(blocks, max(1, PROGRAMS // max(1, outputs))) or 1
    splits = triton.cdiv(blocks, steps)
    partial = x.new_empty((splits, partitions, height, width), dtype=wide(x))
    with on(x):
        outer[(outputs * splits,)](
            x, grad, partial, *((x,) * 3 if edges is None else edges[:3]), rows, nodes, partitions, steps, height,
            width, edges is not None, exact, precision(), tile.inner, tile.rows, tile.columns, **tile.options,
        )  # fmt: skip
    return partial.sum(0)


def graph_conv(x: Tensor, weight: Tensor, bias: Tensor | None, edges: Tensor, coefficients: Tensor) -> Tensor:
    """Run the kernel for ``slrfast::graph_conv``."""
    bias = None if bias is None else bias.contiguous()
    (incoming,) = neighbors(edges, coefficients, x.shape[1], weight.shape[0])
    return launch_convolve(x.contiguous(), weight.to(x.dtype), bias, None, incoming)[0]


def graph_conv_grad(
    grad: Tensor, x: Tensor, weight: Tensor, edges: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernels for ``slrfast::graph_conv_grad``."""
    grad, half = grad.to(x.dtype).contiguous(), x.element_size() == 2
    return grads(grad, x.contiguous(), weight, edges, coefficients, along=None, exact=half)


def grads(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    edges: Tensor,
    coefficients: Tensor,
    along: Tensor | None,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of x, weight and bias, ``along`` added to the first; not ``exact`` where ``grad`` is rounded already."""
    nodes, partitions = x.shape[1], weight.shape[0]
    incoming, outgoing = neighbors(edges, coefficients, nodes, partitions, 2)
    back = weight.to(x.dtype).transpose(1, 2)
    grad_x, *_ = launch_convolve(grad, back, None, along, outgoing, exact=exact)
    grad_weight = launch_outer(x, grad, partitions, incoming, exact)
    of_nodes = grad.sum(0, dtype=grad_weight.dtype)  # [V, Cout]
    strengths = incoming.strengths.to(grad_weight.dtype).view(nodes, partitions)
    grad_bias = (strengths[:, :, None] * of_nodes[:, None]).sum(0)
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
