"""Every block of STC's graph networks in training mode, forward and backward, against ST-GCN's code.

Timed with dropout as published; compared with float64 without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks.baselines import gcn
from benchmarks.harness import Case, as_test, main, root_mean_square_error
from benchmarks.ops._blocks import BF16, BLOCKS, FIELD_BF16, Block, channels_first, channels_last, clips, random
from slrfast.nn import GCNBlock

OP, DROPOUT = "gcn_block", 0.05
EXACTLY_ZERO = ("tcn.3.bias", "residual.0.bias")  # gradients of biases before a batch normalisation


def networks(block: Block, device: str, dropout: float) -> tuple[GCNBlock, gcn.Block]:
    """slrfast's block and the field's with the same parameters."""
    torch.manual_seed(0)
    ours = GCNBlock(block.inputs, block.outputs, block.graph, dropout=dropout, residual=block.residual)
    field = gcn.Block(block.inputs, block.outputs, torch.tensor(block.graph.dense()), block.residual, dropout)
    gcn.load(gcn.renamed(ours.state_dict()), field)
    return ours.to(device), field.to(device)


def timed(module: nn.Module, x: Tensor, grad: Tensor, autocast: bool = False) -> Callable[[], list[Tensor]]:
    """A call that returns the module's value and its gradients for x and for its parameters, in their order."""
    leaves = [x.detach().clone().requires_grad_(), *module.parameters()]

    def run() -> list[Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            y = module(leaves[0])
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]

    return run


def named(module: nn.Module, call: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    """The same results in one order and layout for both implementations."""

    def run() -> list[Tensor]:
        y, dx, *grads = call()
        found = dict(zip((name for name, _ in module.named_parameters()), grads, strict=True))
        if isinstance(module, GCNBlock):
            found, views = gcn.renamed(found), (clips(y), clips(dx))
        else:
            views = channels_last(y), channels_last(dx)
        return [*views, *(found[name] for name in sorted(found) if name not in EXACTLY_ZERO)]

    return run


def case(block: Block, device: str) -> Case:
    x = block.input(device)
    grad = random((*x.shape[:2], block.outputs), device, 1)
    field_x, field_grad = channels_first(x), channels_first(grad)

    def candidates(dropout: float, finish: Callable = lambda module, call: call) -> dict[str, Callable]:
        ours, field = networks(block, device, dropout)
        compiled = timed(torch.compile(field, dynamic=False), field_x, field_grad)
        return {
            "slrfast": finish(ours, timed(ours, x, grad)),
            BF16: finish(ours, timed(ours, x, grad, autocast=True)),
            "eager": finish(field, timed(field, field_x, field_grad)),
            FIELD_BF16: finish(field, timed(field, field_x, field_grad, autocast=True)),
            **({"torch.compile": finish(field, compiled)} if device == "cpu" else {}),
        }

    torch.compiler.reset()
    wide = networks(block, device, 0.0)[1].double()
    return Case(
        name=f"{block.name}, forward + backward",
        shapes={"x": x.shape, "out": grad.shape},
        candidates=candidates(DROPOUT),
        checked=candidates(0.0, named),
        truth=named(wide, timed(wide, field_x.double(), field_grad.double())),
        error=root_mean_square_error,
        flops=3 * 2 * len(x) * block.products,
        bytes=2 * (x.nbytes + grad.nbytes) + 8 * sum(parameter.numel() for parameter in wide.parameters()),
        tolerance=2e-3,
        tolerances={"slrfast": 2e-3, FIELD_BF16: 0.2},
        held_to={BF16: FIELD_BF16},
        # its evidence on a GPU has to fit into minutes
        skipped={} if device == "cpu" else {"torch.compile": "on a GPU in hand_gcn"},
        device=device,
    )


def cases(device: str) -> Iterator[Case]:
    for block in BLOCKS:
        yield case(block, device)


test_gcn_block = pytest.mark.timeout(900)(as_test(OP, cases))

if __name__ == "__main__":
    main(OP, cases)
