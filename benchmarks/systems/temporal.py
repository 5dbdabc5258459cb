"""What follows the graph networks, for one part of the body: two temporal blocks, and a transformer block with
attention pooling, forward and backward in training mode against the field's code.

"one convolution" is slrfast's temporal block with the convolutions of width 5 and 3 that share its input as a single
one of width 5, the weights of width 3 padded with zeros: one pass over the input for a quarter more products.

Timed with dropout as published; compared with float64 without it, and without gradient in frames that see a ReLU so
close to its kink that rounding may flip it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines import gcn
from benchmarks.baselines.stc import Transformer, renamed
from benchmarks.harness import OURS, Case, as_test, is_ours, main, root_mean_square_error
from benchmarks.ops._blocks import BF16, CLIPS, FIELD_BF16, FRAMES, Call, named, random, smooth, training
from slrfast.nn import AttentionPool, PoseTransformer, TemporalBlock
from slrfast.systems import STCConfig

OP = "temporal"
ONE, ONE_BF16 = "slrfast, one convolution", f"{BF16}, one convolution"


class Widened(TemporalBlock):
    """A temporal block whose first two convolutions are one."""

    def _branches(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight = torch.cat((self.wide.weight, F.pad(self.narrow1.weight, (1, 1))))
        wide, narrow = F.conv1d(x, weight, torch.cat((self.wide.bias, self.narrow1.bias)), padding=2).chunk(2, 1)
        return wide, self.narrow2(torch.relu(narrow))


class Ours(nn.Module):
    """Transformer block and pooling: [B, T, dim] -> [B, dim]."""

    def __init__(self, config: STCConfig) -> None:
        super().__init__()
        self.trunk_transformer = PoseTransformer(
            config.dim, config.heads, config.trunk_ffn, config.layers, config.transformer_dropout
        )
        self.trunk_pool = AttentionPool(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk_pool(self.trunk_transformer(x))


class Field(nn.Module):
    """The same as the field writes it."""

    def __init__(self, config: STCConfig) -> None:
        super().__init__()
        self.trunk_transformer = Transformer(config.dim, config.trunk_ffn, config)
        self.trunk_score = nn.Linear(config.dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk_transformer(x)
        return torch.matmul(torch.softmax(self.trunk_score(x), 1).permute(0, 2, 1), x).squeeze(1)


Networks = dict[str, nn.Module]


def temporal_blocks(dropout: bool = True) -> Networks:
    """Two temporal blocks of every kind, with the same parameters."""
    torch.manual_seed(0)
    dim = STCConfig.paper().dim
    kinds = {OURS: TemporalBlock, ONE: Widened, "eager": gcn.TemporalBlock}
    found = {name: nn.Sequential(kind(dim), kind(dim)) for name, kind in kinds.items()}
    found[ONE].load_state_dict(found[OURS].state_dict())
    gcn.load(gcn.renamed(found[OURS].state_dict()), found["eager"])
    return found


def transformer_and_pooling(dropout: bool = True) -> Networks:
    """One transformer block with the pooling behind it."""
    torch.manual_seed(0)
    config = STCConfig.paper(layers=1, **({} if dropout else {"transformer_dropout": 0.0}))
    ours, field = Ours(config), Field(config)
    gcn.load(renamed(ours.state_dict()), field)
    return {OURS: ours, "eager": field}


def case(name: str, networks: Callable[..., Networks], x: Tensor, grad: Tensor, flops: float) -> Case:
    """``flops`` of a forward pass over all frames."""
    device = x.device.type

    def calls(dropout: bool, finish: Callable[..., Call]) -> dict[str, Call]:
        modules = {kind: module.to(device) for kind, module in networks(dropout).items()}
        torch.compiler.reset()
        field = torch.compile(modules["eager"], dynamic=False)
        names = [*modules, BF16, *([ONE_BF16] if ONE in modules else []), FIELD_BF16, "torch.compile"]
        if device == "cuda":  # compiled bfloat16 convolutions take ten times the eager ones on a CPU
            names.append("torch.compile, bf16")

        def call(name: str) -> Call:
            module = modules["eager" if "compile" in name else name.replace(", bf16", "")]
            run = training(field if "compile" in name else module, x, grad, name, input_grad=True)
            return finish(module, run, renamed if is_ours(name) else dict)

        return {name: call(name) for name in names}

    wide = networks(dropout=False)["eager"].to(device, torch.float64)
    weights = sum(parameter.numel() for parameter in wide.parameters())
    return Case(
        name=f"{name}, forward + backward",
        shapes={"x": x.shape},
        candidates=calls(True, lambda module, run, rename: run),
        checked=calls(False, named),
        truth=named(wide, training(wide, x.double(), grad.double(), input_grad=True)),
        error=root_mean_square_error,
        flops=3 * flops,
        bytes=2 * (x.nbytes + grad.nbytes) + 3 * 4 * weights,  # weights read twice, their gradients written
        tolerances=dict.fromkeys((FIELD_BF16, "torch.compile, bf16"), 0.2),
        held_to={BF16: FIELD_BF16, ONE_BF16: FIELD_BF16},
        rounding=1e-6,  # sums over hundreds of frames, through two blocks
        device=device,
    )


def cases(device: str) -> Iterator[Case]:
    config, clips = STCConfig.paper(), CLIPS[device]
    shape, frames = (clips, config.dim, FRAMES), clips * FRAMES
    x = random(shape, device)
    wide = temporal_blocks()["eager"].to(device, torch.float64)
    grad = random(shape, device, 1) * smooth(wide, x.double(), reach=4).unsqueeze(1)
    yield case("two temporal blocks", temporal_blocks, x, grad, 2 * (11 + 2) * 2 * config.dim**2 * frames)
    x, grad = random((clips, FRAMES, config.dim), device), random((clips, config.dim), device, 1)
    products = 4 * config.dim**2 + 2 * config.dim * config.trunk_ffn + 2 * FRAMES * config.dim
    yield case("transformer block and pooling", transformer_and_pooling, x, grad, 2 * products * frames)


test_temporal = pytest.mark.timeout(900)(as_test(OP, cases))

if __name__ == "__main__":
    main(OP, cases)
