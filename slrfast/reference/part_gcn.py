"""The graph network of a frame with its normalisations folded into the weights, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slrfast.reference.graph_conv import graph_conv
from slrfast.reference.part_max import part_max

FIELDS = 5  # tensors of a block


def part_gcn(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    identity: Sequence[bool],
    edges: Tensor,
    coefficients: Tensor,
    members: Tensor,
    pooled_edges: Tensor,
    pooled_coefficients: Tensor,
    joint_blocks: int,
) -> Tensor:
    """Blocks on the joints, max over each part, blocks on the parts, max over them: [R, V, Cin] -> [R, Cout].

    A block is relu(relu(conv(x; weight) + node_bias) map^T + bias + residual(x)), residual(x) being x where
    ``identity`` says so, x residual^T, or nothing; ``parameters`` holds its weight [P, Cin, Cout], node_bias [V, Cout],
    map [Cout, Cout], bias [Cout] and residual [Cout, Cin] or None, block after block.
    """
    for i in range(len(identity)):
        weight, node_bias, mapping, bias, residual = (
            None if p is None else p.to(x.dtype) for p in parameters[FIELDS * i : FIELDS * (i + 1)]
        )
        assert weight is not None and node_bias is not None and mapping is not None
        if i == joint_blocks:
            x, edges, coefficients = part_max(x, members)[0], pooled_edges, pooled_coefficients
        y = torch.nn.functional.linear(
            (graph_conv(x, weight, None, edges, coefficients) + node_bias).relu(), mapping, bias
        )
        if identity[i]:
            y = y + x
        elif residual is not None:
            y = y + torch.nn.functional.linear(x, residual)
        x = y.relu()
    return x.amax(1)
