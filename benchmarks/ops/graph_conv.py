"""Graph convolution of every block of STC's graph networks, forward and backward, and all ten in one call.

Against ST-GCN's code (1x1 convolution to P * Cout, dense einsum) and torch-geometric's message passing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from benchmarks.baselines.gcn import GraphConvolution
from benchmarks.harness import GEMM, Case, as_test, main
from benchmarks.ops._blocks import (
    BF16,
    BLOCKS,
    FIELD_BF16,
    Block,
    channels_first,
    channels_last,
    clips,
    random,
    with_torch,
)
from slrfast import ops

OP = "graph_conv"
# x [R, V, Cin], weight [P, Cin, Cout], bias [P, Cout] and the gradient of the result [R, V, Cout]
Values = tuple[Tensor, Tensor, Tensor, Tensor]
# a convolution's function of x, the leaves that get a gradient, the gradient of its result, and a view of result and
# gradients of x and weight that all candidates share
Layer = tuple[Callable[[Tensor], Tensor], Sequence[Tensor], Tensor, Callable[..., list[Tensor]]]


def values(block: Block, device: str) -> Values:
    x, partitions = block.input(device), block.graph.num_partitions
    weight = random((partitions, block.inputs, block.outputs), device, 1)
    bias = random((partitions, block.outputs), device, 2)
    return x, weight, bias, random((*x.shape[:2], block.outputs), device, 3)


def ours(block: Block, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> Layer:
    leaves = [leaf.clone().requires_grad_() for leaf in (x, weight, bias)]
    return (
        lambda x: ops.graph_conv(x, *leaves[1:], block.graph),
        leaves,
        grad,
        lambda y, dx, dw, _: [clips(y), clips(dx), dw],
    )


def field(block: Block, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> Layer:
    """The same numbers in the field's layout."""
    dense = torch.tensor(block.graph.dense(), dtype=x.dtype, device=x.device)
    module = GraphConvolution(block.inputs, block.outputs, dense).to(x.device, x.dtype)
    with torch.no_grad():
        module.conv.weight.copy_(weight.mT.reshape(module.conv.weight.shape))
        module.conv.bias.copy_(bias.flatten())
    shape = len(dense), block.outputs, block.inputs
    return (
        module,
        [channels_first(x).requires_grad_(), module.conv.weight, module.conv.bias],
        channels_first(grad),
        lambda y, dx, dw, _: [channels_last(y), channels_last(dx), dw.view(shape).mT],
    )


class RelationalConv(nn.Module):
    """torch-geometric's R-GCN with edge weights: its loop over the relations of one graph that holds all frames."""

    def __init__(self, block: Block, weight: Tensor, bias: Tensor, rows: int, sparse: bool) -> None:
        from torch_geometric.nn import SimpleConv
        from torch_geometric.utils import to_torch_csr_tensor

        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.propagate = SimpleConv(aggr="sum")
        dense = torch.tensor(block.graph.dense(), device=weight.device)
        self.sums, nodes = dense.sum(1).T, block.graph.num_nodes
        self.edges = []
        for adjacency in dense:
            source, target = adjacency.nonzero().T
            frame = torch.arange(rows, device=weight.device)[:, None] * nodes
            index = torch.stack([(source + frame).flatten(), (target + frame).flatten()])
            edges = (index, adjacency[source, target].repeat(rows))
            if sparse:  # the transposed adjacency instead of a list of edges, as its documentation advises
                edges = (to_torch_csr_tensor(index.flip(0), edges[1], (rows * nodes, rows * nodes)),)
            self.edges.append(edges)

    def forward(self, x: Tensor) -> Tensor:
        out = sum(self.propagate(x, *edges) @ weight for edges, weight in zip(self.edges, self.weight, strict=True))
        return out.unflatten(0, (-1, len(self.sums))) + self.sums @ self.bias


def geometric(sparse: bool) -> Callable[..., Layer]:
    """torch-geometric over lists of edges, or over sparse matrices."""

    def layer(block: Block, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> Layer:
        module = RelationalConv(block, weight, bias, len(x), sparse)
        leaves = [x.flatten(0, 1).clone().requires_grad_(), *module.parameters()]
        return module, leaves, grad, lambda y, dx, dw, _: [clips(y), clips(dx.view(x.shape)), dw]

    return layer


def truth(block: Block, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> Layer:
    dense = torch.tensor(block.graph.dense(), dtype=x.dtype, device=x.device)
    leaves = [leaf.clone().requires_grad_() for leaf in (x, weight, bias)]

    def convolution(x: Tensor) -> Tensor:
        messages = torch.einsum("rvi,pio->rpvo", x, leaves[1]) + leaves[2][:, None]
        return torch.einsum("rpvo,pvw->rwo", messages, dense)

    return convolution, leaves, grad, lambda y, dx, dw, _: [clips(y), clips(dx), dw]


def timed(layers: Sequence[Layer], wrap: Callable = lambda function: function) -> Callable[[], list[Tensor]]:
    """A call that runs every layer forward, then all backward."""
    functions, leaves, grads, views = zip(*layers, strict=True)
    forward = wrap(lambda *inputs: [function(x) for function, x in zip(functions, inputs, strict=True)])

    def run() -> list[Tensor]:
        results = forward(*(own[0] for own in leaves))
        found = torch.autograd.grad(results, [leaf for own in leaves for leaf in own], grads)
        return [
            tensor
            for place, view in enumerate(views)
            for tensor in view(results[place].detach(), *found[3 * place : 3 * place + 3])
        ]

    return run


def case(name: str, blocks: Sequence[Block], device: str) -> Case:
    problems = [(block, values(block, device)) for block in blocks]

    def layers(build: Callable[..., Layer], dtype: torch.dtype = torch.float32) -> list[Layer]:
        return [build(block, *(tensor.to(dtype) for tensor in given)) for block, given in problems]

    torch.compiler.reset()
    candidates = {
        "slrfast": timed(layers(ours)),
        GEMM: with_torch(timed(layers(ours))),
        BF16: timed(layers(ours, torch.bfloat16)),
        "eager": timed(layers(field)),
        FIELD_BF16: timed(layers(field, torch.bfloat16)),
    }
    skipped = {}
    if device == "cpu" or len(blocks) > 1:
        candidates["torch.compile"] = timed(layers(field), lambda function: torch.compile(function, dynamic=False))
    else:
        skipped["torch.compile"] = "on a GPU in all ten"  # its evidence has to fit into minutes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.jit in its import, and of sparse matrices in torch
            candidates["torch-geometric"] = timed(layers(geometric(sparse=False)))
            candidates["torch-geometric, sparse"] = timed(layers(geometric(sparse=True)))
    except ImportError:
        warnings.warn("torch-geometric is not installed: pip install torch_geometric", stacklevel=2)
        skipped["torch-geometric"] = "torch-geometric is not installed"
    inputs, weights = ([given[place] for _, given in problems] for place in (0, 1))
    return Case(
        name=f"{name}, forward + backward",
        shapes={"x": inputs[0].shape, "weight": weights[0].shape} if len(blocks) == 1 else {"blocks": (len(blocks),)},
        candidates=candidates,
        truth=lambda: timed(layers(truth, torch.float64))(),
        flops=sum(
            3 * 2 * len(x) * (weight.numel() * x.shape[1] + len(block.graph.edges) * min(weight.shape[1:]))
            for block, (x, weight, *_) in problems
        ),
        bytes=2 * sum(x.nbytes + weight.nbytes + grad.nbytes for _, (x, weight, _, grad) in problems),
        tolerances={FIELD_BF16: 0.02},
        held_to={BF16: FIELD_BF16},
        skipped=skipped,
        device=device,
    )


def cases(device: str) -> Iterator[Case]:
    for block in BLOCKS:
        yield case(block.name, [block], device)
    yield case("all ten", BLOCKS, device)


test_graph_conv = pytest.mark.timeout(900)(as_test(OP, cases))

if __name__ == "__main__":
    main(OP, cases)
