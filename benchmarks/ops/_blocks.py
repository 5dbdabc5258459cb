"""What the benchmarks over skeletons share: the blocks of STC's graph networks, and the field's layout of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from slrfast import graphs

CLIPS, FRAMES = {"cpu": 8, "cuda": 64}, 64
CHANNELS = (2, 128, 128, 256, 512, 512)
BF16 = "slrfast, bf16"
FIELD_BF16 = "eager, bf16"


@dataclass(frozen=True)
class Block:
    """One block of a graph network: its channels and the skeleton, and whether its input is added to its output."""

    part: str
    inputs: int
    outputs: int
    graph: graphs.SkeletonGraph
    residual: bool

    @property
    def name(self) -> str:
        return f"{self.part} {self.inputs} to {self.outputs}, {self.graph.num_nodes} nodes"

    @property
    def products(self) -> int:
        """Multiplications per frame of the whole block: aggregation, convolution, map and the residual's map."""
        linear = self.residual and self.inputs != self.outputs
        columns = self.graph.num_partitions * self.inputs + self.outputs + linear * self.inputs
        return self.graph.num_nodes * columns * self.outputs + len(self.graph.edges) * self.inputs

    def input(self, device: str) -> Tensor:
        """Random frames [R, V, Cin]."""
        return random((CLIPS[device] * FRAMES, self.graph.num_nodes, self.inputs), device)


BLOCKS = [
    Block(part, inputs, outputs, graph if place < 3 else graph.pooled, place > 0)
    for part, graph in (("hand", graphs.HAND21), ("trunk", graphs.TRUNK7))
    for place, (inputs, outputs) in enumerate(pairwise(CHANNELS))
]


def random(shape: Sequence[int], device: str, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(device)


def channels_first(x: Tensor) -> Tensor:
    """Frames [R, V, C] as the field holds them, [clips, C, frames, V]."""
    return x.unflatten(0, (-1, FRAMES)).permute(0, 3, 1, 2).contiguous()


def channels_last(x: Tensor) -> Tensor:
    """A view [clips, frames, V, C] of the field's tensor."""
    return x.permute(0, 2, 3, 1)


def clips(x: Tensor) -> Tensor:
    """Frames [R, V, C] in the same shape."""
    return x.unflatten(0, (-1, FRAMES))
