"""Graph convolution over the joints of a frame in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.reference.precision import accumulation_dtype


def adjacency(edges: Tensor, coefficients: Tensor, partitions: int, nodes: int, dtype: torch.dtype) -> Tensor:
    """Dense A[P, V, V] of the edges (partition, source, target) int32 [E, 3] and their coefficients [E]."""
    dense = torch.zeros((partitions, nodes, nodes), dtype=dtype, device=edges.device)
    return dense.index_put_(tuple(edges.long().unbind(1)), coefficients.to(dtype))


def graph_conv(x: Tensor, weight: Tensor, bias: Tensor | None, edges: Tensor, coefficients: Tensor) -> Tensor:
    """out[w] = sum_p (sum_v A[p][v, w] x[v]) W_p + sum_p b_p sum_v A[p][v, w], in the order that moves fewer bytes."""
    rows, nodes, inputs = x.shape
    partitions, _, outputs = weight.shape
    weight, dense = weight.to(x.dtype), adjacency(edges, coefficients, partitions, nodes, x.dtype)
    if inputs <= outputs:
        neighbors = dense.permute(2, 0, 1).reshape(nodes * partitions, nodes) @ x
        out = neighbors.reshape(rows * nodes, partitions * inputs) @ weight.reshape(partitions * inputs, outputs)
    else:
        messages = x.reshape(rows * nodes, inputs) @ weight.permute(1, 0, 2).reshape(inputs, partitions * outputs)
        out = dense.permute(2, 1, 0).reshape(nodes, -1) @ messages.view(rows, nodes * partitions, outputs)
    out = out.view(rows, nodes, outputs)
    return out if bias is None else out.add_(dense.sum(1).T @ bias.to(x.dtype))


def graph_conv_grad(
    grad: Tensor, x: Tensor, weight: Tensor, edges: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, sums formed in float32 or float64."""
    partitions, inputs, outputs = weight.shape
    rows, nodes, _ = x.shape
    dtype = accumulation_dtype(grad, x, weight)
    dense = adjacency(edges, coefficients, partitions, nodes, dtype)
    spread = (dense.permute(1, 0, 2).reshape(nodes * partitions, nodes) @ grad.to(dtype)).view(
        rows, nodes, partitions, outputs
    )
    grad_x = spread.flatten(2) @ weight.to(dtype).transpose(1, 2).reshape(partitions * outputs, inputs)
    grad_weight = x.to(dtype).reshape(rows * nodes, inputs).T @ spread.reshape(rows * nodes, partitions * outputs)
    grad_weight = grad_weight.view(inputs, partitions, outputs).transpose(0, 1)
    grad_bias = spread.sum((0, 1))
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype).contiguous(), grad_bias.to(weight.dtype)
