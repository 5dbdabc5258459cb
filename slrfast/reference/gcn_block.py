"""The ST-GCN block in training mode in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slrfast.reference.dropout import keep_mask
from slrfast.reference.graph_conv import graph_conv, graph_conv_grad
from slrfast.reference.precision import widen

Parameters = Sequence[Any]  # Tensor, or None


def moments(y: Tensor, groups: int) -> Tensor:
    """Mean and biased variance [2, groups, C] of y [R, V, C], over the frames of each group and their joints."""
    rows = widen(y)[0].reshape(groups, -1, y.shape[-1])
    variance, mean = torch.var_mean(rows, 1, correction=0)
    return torch.stack((mean, variance))


def normalize(y: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch normalisation of y [R, V, C] with the moments of its group, in the accumulation type."""
    mean, variance = stats.unsqueeze(2)
    rows = widen(y, mean)[0].reshape(len(stats[0]), -1, y.shape[-1])
    return ((rows - mean) * (variance + eps).rsqrt() * weight + bias).view(y.shape)


def gcn_block(
    x: Tensor,
    parameters: Parameters,
    edges: Tensor,
    coefficients: Tensor,
    seed: Tensor,
    dropout: float,
    eps: float,
    groups: int,
    identity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out = relu(drop(BN(drop(relu(BN(conv(x)))) M + m)) + residual(x)).

    ``parameters``: weight and bias of conv, of its BN, of the map M, of its BN, of the residual map and of its BN, the
    last four None unless the residual is a map. Map weights are [Cout, Cin].
    Returns out and what the backward pass needs: conv(x), the outputs of both maps before their BN (the second empty
    without a residual map), and the moments of the BNs [2 or 3, 2, groups, C].
    """
    weight, bias, norm_weight, norm_bias, map_weight, map_bias, map_norm_weight, map_norm_bias, *extra = parameters

    def drop(y: Tensor, site: int) -> Tensor:
        return dropped(y, seed, site, dropout)

    spatial = graph_conv(x, weight, bias, edges, coefficients)
    stats = [moments(spatial, groups)]
    z = drop(normalize(spatial, stats[0], norm_weight, norm_bias, eps).relu(), 0).to(x.dtype)
    mapped = torch.nn.functional.linear(z, map_weight.to(x.dtype), map_bias.to(x.dtype))
    stats.append(moments(mapped, groups))
    out = drop(normalize(mapped, stats[1], map_norm_weight, map_norm_bias, eps), 1)
    residual = x.new_empty(0)
    if identity:
        out = out + x
    elif extra[0] is not None:
        residual = torch.nn.functional.linear(x, extra[0].to(x.dtype), extra[1].to(x.dtype))
        stats.append(moments(residual, groups))
        out = out + normalize(residual, stats[2], extra[2], extra[3], eps)
    return out.relu().to(x.dtype), spatial, mapped, residual, torch.stack(stats)


def gcn_block_grad(
    grad: Tensor,
    x: Tensor,
    parameters: Parameters,
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
) -> tuple[Tensor, ...]:
    """The gradients of x and of the parameters, empty for None; sums in float32 or float64."""
    weight, _, norm_weight, norm_bias, map_weight, _, map_norm_weight, map_norm_bias, *extra = parameters
    nothing = [x.new_empty(0) for _ in range(4)]

    def drop(y: Tensor, site: int) -> Tensor:
        return dropped(y, seed, site, dropout)

    out = drop(normalize(mapped, stats[1], map_norm_weight, map_norm_bias, eps), 1)
    if identity:
        out = out + x
    elif extra[0] is not None:
        out = out + normalize(residual, stats[2], extra[2], extra[3], eps)
    masked = torch.where(out <= 0, 0.0, grad)  # a NaN passes it on, as in torch
    grad_mapped, *of_map_norm = normalize_grad(drop(widen(masked)[0], 1), mapped, stats[1], map_norm_weight, eps)
    before = normalize(spatial, stats[0], norm_weight, norm_bias, eps).relu()
    grad_z, *of_map = linear_grad(grad_mapped, drop(before, 0).to(x.dtype), map_weight)
    grad_z = drop(torch.where(before <= 0, 0.0, widen(grad_z)[0]), 0)
    grad_spatial, *of_norm = normalize_grad(grad_z, spatial, stats[0], norm_weight, eps)
    grad_x, *of_conv = graph_conv_grad(grad_spatial, x, weight, edges, coefficients)
    of_residual = nothing
    if identity:
        grad_x = grad_x + masked
    elif extra[0] is not None:
        grad_residual, *of_residual_norm = normalize_grad(masked, residual, stats[2], extra[2], eps)
        along, *of_residual_map = linear_grad(grad_residual, x, extra[0])
        grad_x, of_residual = grad_x + along, [*of_residual_map, *of_residual_norm]
    grads = [*of_conv, *of_norm, *of_map, *of_map_norm, *of_residual]
    return grad_x.to(x.dtype), *(g if p is None else g.to(p.dtype) for g, p in zip(grads, parameters, strict=True))


def dropped(y: Tensor, seed: Tensor, site: int, dropout: float) -> Tensor:
    """y [R, V, C] after a dropout."""
    if not dropout:
        return y
    keep = keep_mask(seed, site, y[..., 0].numel(), y.shape[-1], dropout).view(y.shape)
    return y * keep * (1 / (1 - dropout) if dropout < 1 else 0.0)


def normalize_grad(grad: Tensor, y: Tensor, stats: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of y, in its dtype, and of gamma and beta from that of :func:`normalize`."""
    mean, variance = stats.unsqueeze(2)
    inverse = (variance + eps).rsqrt()
    rows, grads = (widen(t, mean)[0].reshape(len(stats[0]), -1, y.shape[-1]) for t in (y, grad))
    unit = (rows - mean) * inverse
    along = (grads * unit).mean(1, keepdim=True)
    grad_y = weight * inverse * (grads - grads.mean(1, keepdim=True) - unit * along)
    return grad_y.view(y.shape).to(y.dtype), (grads * unit).sum((0, 1)), grads.sum((0, 1))


def linear_grad(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias of a linear map."""
    rows, inputs = (widen(t)[0].flatten(0, 1) for t in (grad, x))
    return grad @ weight.to(x.dtype), rows.T @ inputs, rows.sum(0)
