"""Max pooling over the joints of each part in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def part_max(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """out[r, p] = max over m of x[r, members[p, m]]; and, as uint8, the first m that has it (or is NaN)."""
    values = x[:, members.long()]
    best = ((values == values.amax(2, keepdim=True)) | values.isnan()).int().argmax(2, keepdim=True)
    return values.gather(2, best).squeeze(2), best.squeeze(2).to(torch.uint8)


def part_max_grad(grad: Tensor, chosen: Tensor, members: Tensor, nodes: int) -> Tensor:
    """The gradient of x [R, nodes, C]: every part's goes to the node chosen there; a node may be in several parts."""
    rows, parts, channels = grad.shape
    part = torch.arange(parts, device=grad.device)[:, None]
    node = members.long()[part, chosen.long()]
    return grad.new_zeros((rows, nodes, channels)).scatter_add_(1, node, grad)
