"""What the benchmarks over skeletons share: the blocks of STC's graph networks, the field's layout of frames, and calls
that run a module in training or in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slrfast
from slrfast import graphs

CLIPS, FRAMES = {"cpu": 8, "cuda": 64}, 64
CHANNELS = (2, 128, 128, 256, 512, 512)
BF16 = "slrfast, bf16"
FIELD_BF16 = "eager, bf16"
# ST-GCN's own layout; "eager" has that of STC's authors
FIELD_CLIPS, FIELD_CLIPS_BF16 = "eager, [B, C, T, V]", "eager, bf16, [B, C, T, V]"
# gradients of biases before a batch normalisation or, of a key or score, before a softmax
EXACTLY_ZERO = ("tcn.3.bias", "residual.0.bias", "fc.0.bias", "join.0.bias", ".k.bias", "_score.bias")
KINK = 1e-5  # inputs of ReLUs are of size one
Call = Callable[[], list[Tensor]]


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


def precision(name: str, device: str) -> torch.autocast:
    """The precision of a candidate: bfloat16 autocast where its name says so."""
    return torch.autocast(device, torch.bfloat16, enabled="bf16" in name)


def with_torch(call: Call) -> Call:
    """The same call over the reference in plain torch: its products are torch's."""

    def run() -> list[Tensor]:
        with slrfast.backend("reference"):
            return call()

    return run


@torch.no_grad()
def normalizing(module: nn.Module) -> nn.Module:
    """The module with running statistics that normalise something."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
    return module


def training(module: nn.Module, x: Tensor, grad: Tensor, name: str = "", input_grad: bool = False) -> Call:
    """Forward and backward: the result and the gradients, of x if wanted and of the parameters in their order."""
    x = x.detach().clone().requires_grad_(input_grad)
    leaves = [*([x] if input_grad else []), *module.parameters()]

    def run() -> list[Tensor]:
        with precision(name, x.device.type):
            y = module(x)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]

    return run


def evaluation(function: Callable[[Tensor], Tensor], x: Tensor, name: str = "") -> Call:
    """Forward without gradient."""

    def run() -> list[Tensor]:
        with torch.no_grad(), precision(name, x.device.type):
            return [function(x)]

    return run


def smooth(field: nn.Module, x: Tensor, reach: int = 0) -> Tensor:
    """Bool [clips, frames]: frames of x [clips, C, frames, ...] that see no ReLU so close to its kink that rounding
    may flip it, single flips of which would decide about the error of all gradients; each sees ``reach`` frames around.
    """
    nearest: list[Tensor] = []

    def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
        nearest.append(inputs[0].abs().transpose(1, 2).flatten(2).amin(2))

    hooks = [module.register_forward_pre_hook(look) for module in field.modules() if isinstance(module, nn.ReLU)]
    evaluation(field, x)()
    for hook in hooks:
        hook.remove()
    flips = (torch.stack(nearest).amin(0) < KINK).to(x)
    return F.max_pool1d(flips, 2 * reach + 1, 1, reach) == 0


def named(
    module: nn.Module,
    call: Call,
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Call:
    """The results of a training call in one order and layout for all implementations, without what is exactly zero.

    ``rename`` makes the gradients of parameters, ``view`` the other tensors what all candidates share.
    """
    names = [name for name, _ in module.named_parameters()]

    def run() -> list[Tensor]:
        results = call()
        own, grads = results[: -len(names)], results[-len(names) :]
        found = rename(dict(zip(names, grads, strict=True)))
        return [*map(view, own), *(found[name] for name in sorted(found) if not name.endswith(EXACTLY_ZERO))]

    return run
