"""Every block of STC's graph networks in training mode, forward and backward, against ST-GCN's code.

Timed with dropout as published; compared with float64 without it, and without gradient in the few frames that have a
ReLU so close to its kink that rounding may flip it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from benchmarks.baselines import gcn
from benchmarks.harness import GEMM, Case, as_test, main, root_mean_square_error
from benchmarks.ops._blocks import (
    BF16,
    BLOCKS,
    FIELD_BF16,
    Block,
    Call,
    channels_first,
    channels_last,
    clips,
    named,
    random,
    smooth,
    training,
    with_torch,
)
from slrfast.nn import GCNBlock

OP, DROPOUT = "gcn_block", 0.05


def networks(block: Block, device: str, dropout: float) -> tuple[GCNBlock, gcn.Block]:
    """slrfast's block and the field's with the same parameters."""
    torch.manual_seed(0)
    ours = GCNBlock(block.inputs, block.outputs, block.graph, dropout=dropout, residual=block.residual)
    field = gcn.Block(block.inputs, block.outputs, torch.tensor(block.graph.dense()), block.residual, dropout)
    gcn.load(gcn.renamed(ours.state_dict()), field)
    return ours.to(device), field.to(device)


def case(block: Block, device: str) -> Case:
    x = block.input(device)
    wide = networks(block, device, 0.0)[1].double()
    field_x = channels_first(x)
    keep = smooth(wide, field_x.double()).view(-1, 1, 1)
    grad = random((*x.shape[:2], block.outputs), device, 1) * keep
    field_grad = channels_first(grad)

    def candidates(dropout: float, finish: Callable = lambda module, call: call) -> dict[str, Call]:
        ours, field = networks(block, device, dropout)

        def our(name: str) -> Call:
            return finish(ours, training(ours, x, grad, name, input_grad=True))

        def fields(name: str, module: nn.Module = field) -> Call:
            return finish(field, training(module, field_x, field_grad, name, input_grad=True))

        return {
            "slrfast": our(""),
            GEMM: with_torch(our("")),
            BF16: our(BF16),
            "eager": fields(""),
            FIELD_BF16: fields(FIELD_BF16),
            **({"torch.compile": fields("", torch.compile(field, dynamic=False))} if device == "cpu" else {}),
        }

    def shared(module: nn.Module, call: Call) -> Call:
        ours = isinstance(module, GCNBlock)
        return named(module, call, gcn.renamed if ours else dict, clips if ours else channels_last)

    torch.compiler.reset()
    return Case(
        name=f"{block.name}, forward + backward",
        shapes={"x": x.shape, "out": grad.shape},
        candidates=candidates(DROPOUT),
        checked=candidates(0.0, shared),
        truth=shared(wide, training(wide, field_x.double(), field_grad.double(), input_grad=True)),
        error=root_mean_square_error,
        flops=3 * 2 * len(x) * block.products,
        bytes=2 * (x.nbytes + grad.nbytes) + 8 * sum(parameter.numel() for parameter in wide.parameters()),
        tolerances={FIELD_BF16: 0.2},
        rounding=1e-6,  # sums over ten thousand rows
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
