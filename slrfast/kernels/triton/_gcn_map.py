"""The maps of an ST-GCN block: what comes before and after the product happens on the way into it and out of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._gcn import (
    PIECE,
    dropout_factor,
    merge_moments,
    norm_of,
    place,
    precision,
    product,
    store_moments,
    tile,
    tiles,
)
from slrfast.kernels.triton._rounding import rounded


class Norm(NamedTuple):
    """A batch normalisation."""

    stats: Tensor  # [2, groups, C]: mean and biased variance
    weight: Tensor  # [C]
    bias: Tensor  # [C]


class Settings(NamedTuple):
    """What is the same for all kernels of a block."""

    seed: Tensor
    threshold: int  # a 32-bit word from here on keeps its element
    scale: float  # of what is kept
    eps: float
    rows: int  # frames times nodes of a group
    groups: int

    def blocks(self, rows: int) -> int:
        """How many blocks of so many rows there are in all groups."""
        return triton.cdiv(self.rows, rows) * self.groups


def settings(x: Tensor, seed: Tensor, dropout: float, eps: float, groups: int) -> Settings:
    """The settings of a block for x [R, V, C]."""
    threshold = min(2**32 - 1, int(dropout * 2**32))
    scale = 1 / (1 - dropout) if dropout < 1 else 0.0
    return Settings(seed, threshold, scale, eps, x.shape[0] * x.shape[1] // groups, groups)


@triton.jit
def linear(
    x,  # [groups rows, K]
    weight,  # [N, K]
    bias,  # [N]
    out,  # [groups rows, N] out
    partial,  # [2, blocks, N] out: mean and sum of squared deviations of a block's rows
    stats,  # Norm of x, with NORM
    norm_weight,
    norm_bias,
    seed,  # Settings
    threshold: tl.int64,
    scale: tl.float64,
    eps: tl.float64,
    rows,
    groups,
    blocks,  # of all groups
    K: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    DROP: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out = drop(relu(norm(x))) weight^T + bias, or x weight^T + bias, and the moments of the result."""
    dtype: tl.constexpr = x.dtype.element_ty
    compute: tl.constexpr = partial.dtype.element_ty
    group, block, first, real, first_column = place(rows, ROWS, N, COLUMNS)
    n = first_column + tl.arange(0, COLUMNS)
    total = tl.full([ROWS, COLUMNS], 0.0, compute)
    for start in range(0, K, INNER):
        k = start + tl.arange(0, INNER)
        at, inside = tile(real, k, K)
        y = tl.load(x + first * K + at, mask=inside, other=0.0)
        w = tl.load(weight + n[None, :] * K + k[:, None], mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)
        if NORM:
            mean, inverse, gamma, beta = norm_of(stats, norm_weight, norm_bias, group, groups, k, K, eps, compute)
            y = (y.to(compute) - mean[None, :]) * (inverse * gamma)[None, :] + beta[None, :]
            y = tl.where(y <= 0.0, 0.0, y)
            if DROP:
                y *= dropout_factor(seed, 0, first, real, k, threshold, scale, compute)
        total = product(y, w, total, dtype, False, PRECISION)
    total += tl.load(bias + n, mask=n < N, other=0.0).to(compute)[None, :]
    at, inside = tile(real, n, N)
    tl.store(out + first * N + at, rounded(total, dtype), mask=inside)
    count = tl.minimum(rows - (first - group * rows), ROWS)
    store_moments(out + first * N, count, N, partial, block, blocks, first_column, N, ROWS, COLUMNS)


def launch_linear(
    x: Tensor, weight: Tensor, bias: Tensor, norm: Norm | None, drop: bool, stats: Tensor, call: Settings
) -> Tensor:
    """Run :func:`linear`; the moments of the result go to ``stats`` [2, groups, N]."""
    columns, inner = weight.shape
    sizes = tiles(x, call.rows, inner, columns, broad=True)
    y, blocks = x.new_empty((*x.shape[:2], columns)), call.blocks(sizes.rows)
    partial = stats.new_empty((2, blocks, columns))
    linear[(blocks * triton.cdiv(columns, sizes.columns),)](
        x, weight.to(x.dtype), bias, y, partial, *(norm or (stats,) * 3), *call, blocks, inner, columns,
        norm is not None, drop, precision(), *sizes[:3], **sizes.options,
    )  # fmt: skip
    merge_moments(partial, stats, call.rows, 1, sizes.rows)
    return y


@triton.jit
def norm_grad(g, y, inverse, gamma, sums, group, groups, rows, c, C: tl.constexpr):
    """The gradient of a batch norm's input from that of its result; y is the input in units of deviation."""
    compute: tl.constexpr = g.dtype
    count = tl.full([], rows, compute)
    mean = tl.load(sums + group * C + c, mask=c < C, other=0.0) / count
    slope = tl.load(sums + (groups + group) * C + c, mask=c < C, other=0.0) / count
    return (g - mean[None, :] - y * slope[None, :]) * (inverse * gamma)[None, :]


@triton.jit
def gate(
    grad,
    x,
    z,
    partial,
    stats,
    norm_weight,
    norm_bias,
    seed,
    threshold,
    scale,
    eps,
    group,
    groups,
    block,
    blocks,
    first,
    real,
    first_column,
    N: tl.constexpr,
    DROP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The way back through dropout and ReLU for the gradients that `linear_grad` has just stored, in their place.

    They are read back from the cache in narrow pieces, which need fewer registers than the product's own layout.
    """
    dtype: tl.constexpr = grad.dtype.element_ty
    compute: tl.constexpr = stats.dtype.element_ty
    WIDTH: tl.constexpr = COLUMNS if COLUMNS < PIECE else PIECE
    tl.debug_barrier()
    for start in range(0, COLUMNS, WIDTH):
        n = first_column + start + tl.arange(0, WIDTH)
        at, inside = tile(real, n, N)
        mean, inverse, gamma, beta = norm_of(stats, norm_weight, norm_bias, group, groups, n, N, eps, compute)
        units = (tl.load(x + at, mask=inside, other=0.0).to(compute) - mean[None, :]) * inverse[None, :]
        value = units * gamma[None, :] + beta[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(compute)
        g = tl.where(value <= 0.0, 0.0, g)
        value = tl.where(value <= 0.0, 0.0, value)
        if DROP:
            factor = dropout_factor(seed, 0, first, real, n, threshold, scale, compute)
            g, value = g * factor, value * factor
        tl.store(grad + at, rounded(g, dtype), mask=inside)
        tl.store(z + at, rounded(value, dtype), mask=inside)
        to = block * N + n
        tl.store(partial + to, tl.sum(g, 0), mask=n < N)
        tl.store(partial + tl.cast(blocks, tl.int64) * N + to, tl.sum(g * units, 0), mask=n < N)


@triton.jit
def linear_grad(
    masked,  # [groups rows, K]
    y,  # [groups rows, K]: the map's result
    weight,  # [K, N]
    grad_y,  # [groups rows, K] out
    grad_x,  # [groups rows, N] out; with GATE before norm, ReLU and dropout, else of the map's input
    x,  # [groups rows, N]: what came into norm, ReLU and dropout, with GATE
    z,  # [groups rows, N] out: what came out of them, with GATE
    partial,  # [2, blocks, N] out, with GATE: the sums of `output_grad` for the norm of x
    stats,  # Norm of y
    norm_weight,
    norm_bias,
    sums,  # [2, groups, K]: those of `output_grad` for the norm of y
    x_stats,  # Norm of x
    x_weight,
    x_bias,
    seed,  # Settings
    threshold: tl.int64,
    scale: tl.float64,
    eps: tl.float64,
    rows,
    groups,
    blocks,  # of all groups
    K: tl.constexpr,
    N: tl.constexpr,
    GATE: tl.constexpr,
    DROP: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The way back from norm (and dropout) after a map through the map and, with GATE, dropout and ReLU before it."""
    dtype: tl.constexpr = masked.dtype.element_ty
    compute: tl.constexpr = stats.dtype.element_ty
    group, block, first, real, first_column = place(rows, ROWS, N, COLUMNS)
    n = first_column + tl.arange(0, COLUMNS)
    total = tl.full([ROWS, COLUMNS], 0.0, compute)
    for start in range(0, K, INNER):
        k = start + tl.arange(0, INNER)
        at, inside = tile(real, k, K)
        g = tl.load(masked + first * K + at, mask=inside, other=0.0).to(compute)
        units = tl.load(y + first * K + at, mask=inside, other=0.0).to(compute)
        w = tl.load(weight + k[:, None] * N + n[None, :], mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)
        if DROP and GATE:
            g *= dropout_factor(seed, 1, first, real, k, threshold, scale, compute)
        mean, inverse, gamma, beta = norm_of(stats, norm_weight, norm_bias, group, groups, k, K, eps, compute)
        units = (units - mean[None, :]) * inverse[None, :]
        g = norm_grad(g, units, inverse, gamma, sums, group, groups, rows, k, K)
        tl.store(grad_y + first * K + at, rounded(g, dtype), mask=inside & (first_column == 0))
        total = product(g, w, total, dtype, False, PRECISION)
    at, inside = tile(real, n, N)
    tl.store(grad_x + first * N + at, rounded(total, dtype), mask=inside)
    if GATE:
        gate(
            grad_x + first * N, x + first * N, z + first * N, partial, x_stats, x_weight, x_bias, seed, threshold,
            scale, eps, group, groups, block, blocks, first, real, first_column, N, DROP, COLUMNS,
        )  # fmt: skip


def launch_linear_grad(
    masked: Tensor, y: Tensor, weight: Tensor, norm: Norm, sums: Tensor, gate: tuple[Tensor, Norm] | None, drop: bool,
    call: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run :func:`linear_grad` for weight [K, N]; ``gate`` is what came into the norm before the map, and that norm.

    Returns the gradients of y and of the map's input (before norm, ReLU and dropout with ``gate``), what the map was
    given, and the sums for the norm before it; the last two empty without ``gate``.
    """
    inner, columns = weight.shape
    sizes = tiles(y, call.rows, inner, columns, broad=True)
    blocks = call.blocks(sizes.rows)
    grad_y, grad_x = torch.empty_like(y), y.new_empty((*y.shape[:2], columns))
    z = torch.empty_like(grad_x) if gate else y.new_empty(0)
    partial = sums.new_empty((2, blocks if gate else 0, columns))
    x, x_norm = gate or (y, norm)
    linear_grad[(blocks * triton.cdiv(columns, sizes.columns),)](
        masked, y, weight.to(y.dtype), grad_y, grad_x, x, z, partial, *norm, sums, *x_norm, *call, blocks, inner,
        columns, gate is not None, drop, precision(), *sizes[:3], **sizes.options,
    )  # fmt: skip
    return grad_y, grad_x, z, partial.view(2, call.groups, -1, columns).sum(2) if gate else partial
