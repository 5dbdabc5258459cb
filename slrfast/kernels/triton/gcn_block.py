"""The ST-GCN block in few passes: moments come with the product, normalisation and dropout with the next one's reads.

The backward pass recomputes every mask from the seed. Of the tensors between two products it stores only what two
products read: the gradient of a map's result, and what the map was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton import graph_conv
from slrfast.kernels.triton._gcn import dropout_factor, merge_moments, norm_of, on, place, tile, wide
from slrfast.kernels.triton._gcn_map import Norm, Settings, launch_linear, launch_linear_grad, norm_grad, settings
from slrfast.kernels.triton._rounding import rounded

ROWS, CHANNELS, WARPS = 64, 64, 8  # what one program of the elementwise kernels holds
SPATIAL, MAPPED, RESIDUAL = range(3)  # the norms; dropout after the first two is drawn at the site of that number


@triton.jit
def preactivation(
    mapped,
    residual,
    stats,
    norm_weight,
    norm_bias,
    residual_stats,
    residual_weight,
    residual_bias,
    factor,
    at,
    inside,
    group,
    groups,
    c,
    eps,
    C: tl.constexpr,
    RESIDUAL: tl.constexpr,
    compute: tl.constexpr,
):
    """norm(mapped) factor + residual, and both inputs in units of their deviation."""
    mean, inverse, gamma, beta = norm_of(stats, norm_weight, norm_bias, group, groups, c, C, eps, compute)
    y = (tl.load(mapped + at, mask=inside, other=0.0).to(compute) - mean[None, :]) * inverse[None, :]
    value = (y * gamma[None, :] + beta[None, :]) * factor
    other = y
    if RESIDUAL == "identity":
        value += tl.load(residual + at, mask=inside, other=0.0).to(compute)
    elif RESIDUAL == "linear":
        mean, inverse, gamma, beta = norm_of(
            residual_stats, residual_weight, residual_bias, group, groups, c, C, eps, compute
        )
        other = (tl.load(residual + at, mask=inside, other=0.0).to(compute) - mean[None, :]) * inverse[None, :]
        value += other * gamma[None, :] + beta[None, :]
    return value, y, other


@triton.jit
def output(
    mapped,  # [groups rows, C]
    residual,  # [groups rows, C], unless RESIDUAL is "none"
    out,  # [groups rows, C] out
    stats,  # Norm of mapped
    norm_weight,
    norm_bias,
    residual_stats,  # Norm of residual, where it is "linear"
    residual_weight,
    residual_bias,
    seed,  # Settings
    threshold: tl.int64,
    scale: tl.float64,
    eps: tl.float64,
    rows,
    groups,
    C: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROP: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """out = relu(drop(norm(mapped)) + residual)."""
    compute: tl.constexpr = stats.dtype.element_ty
    group, _, first, real, first_channel = place(rows, ROWS, C, CHANNELS)
    c = first_channel + tl.arange(0, CHANNELS)
    factor = tl.full([], 1.0, compute)
    if DROP:
        factor = dropout_factor(seed, 1, first, real, c, threshold, scale, compute)
    at, inside = tile(real, c, C)
    value, _, _ = preactivation(
        mapped + first * C, residual + first * C, stats, norm_weight, norm_bias, residual_stats, residual_weight,
        residual_bias, factor, at, inside, group, groups, c, eps, C, RESIDUAL, compute,
    )  # fmt: skip
    tl.store(out + first * C + at, rounded(tl.where(value <= 0.0, 0.0, value), out.dtype.element_ty), mask=inside)


@triton.jit
def output_grad(
    grad,  # [groups rows, C]
    mapped,  # [groups rows, C]
    residual,  # [groups rows, C], unless RESIDUAL is "none"
    masked,  # [groups rows, C] out: grad where the result is not 0
    partial,  # [2 or 4, blocks, C] out: sums over a block's rows of the gradients of the norms' results, and of their
    #           products with the norms' inputs in units of deviation; first of mapped, then of residual
    stats,  # as `output`
    norm_weight,
    norm_bias,
    residual_stats,
    residual_weight,
    residual_bias,
    seed,
    threshold: tl.int64,
    scale: tl.float64,
    eps: tl.float64,
    rows,
    groups,
    blocks,  # of all groups
    C: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROP: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gradient before the last ReLU, and what the gradients of both norms need to know of it."""
    compute: tl.constexpr = stats.dtype.element_ty
    group, block, first, real, first_channel = place(rows, ROWS, C, CHANNELS)
    c = first_channel + tl.arange(0, CHANNELS)
    factor = tl.full([], 1.0, compute)
    if DROP:
        factor = dropout_factor(seed, 1, first, real, c, threshold, scale, compute)
    at, inside = tile(real, c, C)
    value, y, other = preactivation(
        mapped + first * C, residual + first * C, stats, norm_weight, norm_bias, residual_stats, residual_weight,
        residual_bias, factor, at, inside, group, groups, c, eps, C, RESIDUAL, compute,
    )  # fmt: skip
    g = tl.load(grad + first * C + at, mask=inside, other=0.0)
    g = tl.where(value <= 0.0, 0.0, g)
    tl.store(masked + first * C + at, g, mask=inside)
    g = g.to(compute)
    to = block * C + c
    plane = tl.cast(blocks, tl.int64) * C
    tl.store(partial + to, tl.sum(g * factor, 0), mask=c < C)
    tl.store(partial + plane + to, tl.sum(g * factor * y, 0), mask=c < C)
    if RESIDUAL == "linear":
        tl.store(partial + 2 * plane + to, tl.sum(g, 0), mask=c < C)
        tl.store(partial + 3 * plane + to, tl.sum(g * other, 0), mask=c < C)


@triton.jit
def spatial_grad(
    grad,  # [groups rows, C], replaced by the gradient of the norm's input
    y,  # [groups rows, C]: the norm's input
    stats,  # Norm of y
    norm_weight,
    norm_bias,
    sums,  # [2, groups, C]: those of `output_grad` for the norm of y
    eps: tl.float64,
    rows,
    groups,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The way back through the first norm."""
    compute: tl.constexpr = stats.dtype.element_ty
    group, _, first, real, first_channel = place(rows, ROWS, C, CHANNELS)
    c = first_channel + tl.arange(0, CHANNELS)
    at, inside = tile(real, c, C)
    mean, inverse, gamma, beta = norm_of(stats, norm_weight, norm_bias, group, groups, c, C, eps, compute)
    units = (tl.load(y + first * C + at, mask=inside, other=0.0).to(compute) - mean[None, :]) * inverse[None, :]
    g = tl.load(grad + first * C + at, mask=inside, other=0.0).to(compute)
    g = norm_grad(g, units, inverse, gamma, sums, group, groups, rows, c, C)
    tl.store(grad + first * C + at, rounded(g, grad.dtype.element_ty), mask=inside)


def elementwise(call: Settings, channels: int) -> tuple[int]:
    """The grid of the kernels without a product."""
    return (call.blocks(ROWS) * triton.cdiv(channels, CHANNELS),)


def mode(identity: bool, residual: Tensor) -> str:
    """What is added before the last ReLU."""
    return "identity" if identity else "linear" if residual.numel() else "none"


def gcn_block(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    edges: Tensor,
    coefficients: Tensor,
    seed: Tensor,
    dropout: float,
    eps: float,
    groups: int,
    identity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the kernels for ``slrfast::gcn_block``: two products (three with a residual map), then one pass."""
    x, drop = x.contiguous(), dropout > 0
    p: list[Any] = [None if parameter is None else parameter.contiguous() for parameter in parameters]
    nodes, partitions, channels = x.shape[1], p[0].shape[0], p[0].shape[2]
    call = settings(x, seed, dropout, eps, groups)
    stats = x.new_empty((2 + (p[8] is not None), 2, groups, channels), dtype=wide(x))
    norms = [Norm(of, *p[4 * i + 2 : 4 * i + 4]) for i, of in enumerate(stats)]
    (incoming,) = graph_conv.neighbors(edges, coefficients, nodes, partitions)
    with on(x):
        spatial, partial, block = graph_conv.launch_convolve(x, p[0].to(x.dtype), p[1], None, incoming, groups, True)
        merge_moments(partial, stats[SPATIAL], call.rows // nodes, nodes, block)
        mapped = launch_linear(spatial, p[4], p[5], norms[SPATIAL], drop, stats[MAPPED], call)
        residual = x.new_empty(0)
        if p[8] is not None:
            residual = launch_linear(x, p[8], p[9], None, False, stats[RESIDUAL], call)
        out = torch.empty_like(mapped)
        output[elementwise(call, channels)](
            mapped, x if identity else residual, out, *norms[MAPPED], *norms[-1], *call, channels,
            mode(identity, residual), drop, ROWS, CHANNELS, num_warps=WARPS,
        )  # fmt: skip
    return out, spatial, mapped, residual, stats


def gcn_block_grad(
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor | None],
    edges: Tensor,
    coefficients: Tensor,
    seed: Tensor,
    dropout: float,
    eps: float,
    groups: int,
    identity: bool,
    spatial: Tensor,
    mapped: Tensor,
    residual: Tensor,
    stats: Tensor,
) -> list[Tensor]:
    """Run the kernels for ``slrfast::gcn_block_grad``: the forward pass's, the other way round."""
    grad, drop = grad.to(x.dtype).contiguous(), dropout > 0
    x, spatial, mapped, residual, stats = (t.contiguous() for t in (x, spatial, mapped, residual, stats))
    p: list[Any] = [None if parameter is None else parameter.contiguous() for parameter in parameters]
    channels = p[0].shape[2]
    call = settings(x, seed, dropout, eps, groups)
    norms = [Norm(of, *p[4 * i + 2 : 4 * i + 4]) for i, of in enumerate(stats)]
    masked, blocks = torch.empty_like(mapped), call.blocks(ROWS)
    partial = stats.new_empty((2 * len(norms) - 2, blocks, channels))
    with on(x):
        output_grad[elementwise(call, channels)](
            grad, mapped, x if identity else residual, masked, partial, *norms[MAPPED], *norms[-1], *call, blocks,
            channels, mode(identity, residual), drop, ROWS, CHANNELS, num_warps=WARPS,
        )  # fmt: skip
        sums = [stats[0], *partial.view(-1, 2, groups, blocks // groups, channels).sum(3)]
        grad_mapped, grad_spatial, z, sums[SPATIAL] = launch_linear_grad(
            masked, mapped, p[4], norms[MAPPED], sums[MAPPED], (spatial, norms[SPATIAL]), drop, call
        )
        maps = {4: graph_conv.launch_outer(grad_mapped, z)[0]}
        along = masked if identity else None
        if p[8] is not None:
            grad_residual, along, *_ = launch_linear_grad(
                masked, residual, p[8], norms[RESIDUAL], sums[RESIDUAL], None, False, call
            )
            maps[8] = graph_conv.launch_outer(grad_residual, x)[0]
        spatial_grad[elementwise(call, channels)](
            grad_spatial, spatial, *norms[SPATIAL], sums[SPATIAL], eps, call.rows, groups, channels, ROWS, CHANNELS,
            num_warps=WARPS,
        )  # fmt: skip
    grad_x, *grads = graph_conv.grads(grad_spatial, x, p[0], edges, coefficients, along, exact=False)
    for i, of in enumerate(sums):
        grads += [of[1].sum(0), of[0].sum(0)]
        if 4 * i + 4 in maps:  # a norm takes away whatever a bias before it adds
            grads += [maps[4 * i + 4], torch.zeros_like(grads[-1])]
    grads += [x.new_empty(0) for _ in p[len(grads) :]]
    return [grad_x, *(g if q is None else g.to(q.dtype) for g, q in zip(grads, p, strict=True))]
