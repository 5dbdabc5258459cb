"""Graph convolution over the joints of a frame in plain torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from slrfast.graphs import SkeletonGraph


def graph_tensors(graph: SkeletonGraph, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The adjacency as one matrix per order, [V * P, V] and [V, V * P], and its column sums [V, P].

    Made once per device and dtype, outside any CUDA graph capture; a constant under ``torch.compile``.
    """
    return _graph_tensors(graph, device, dtype)


# torch.compiler.assume_constant_result(graph_tensors), without its import of the whole compiler
graph_tensors._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _graph_tensors(graph: SkeletonGraph, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    dense, nodes = graph.dense(), graph.num_nodes

    def constant(matrix: np.ndarray) -> Tensor:
        with torch.inference_mode(False):
            return torch.tensor(matrix, dtype=dtype, device=device)

    aggregate = constant(dense.transpose(2, 0, 1).reshape(-1, nodes))
    collect = constant(dense.transpose(2, 1, 0).reshape(nodes, -1))
    return aggregate, collect, constant(dense.sum(1, dtype=np.float64).T)


def graph_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, aggregate: Tensor, collect: Tensor, sums: Tensor
) -> Tensor:
    """out[w] = sum_p (sum_v A[p][v, w] x[v]) W_p + sum_p b_p sum_v A[p][v, w], in the order that moves fewer bytes."""
    rows, nodes, inputs = x.shape
    partitions, _, outputs = weight.shape
    if inputs <= outputs:
        neighbors = (aggregate @ x).reshape(rows * nodes, partitions * inputs)
        out = (neighbors @ weight.reshape(partitions * inputs, outputs)).view(rows, nodes, outputs)
    else:
        messages = x.reshape(rows * nodes, inputs) @ weight.permute(1, 0, 2).reshape(inputs, partitions * outputs)
        out = collect @ messages.view(rows, nodes * partitions, outputs)
    return out if bias is None else out.add_(sums @ bias)
