"""Graph convolution, forward and backward, against ST-GCN's code: 1x1 convolution to P * Cout, dense einsum."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.baselines.stc import GraphConvolution
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._gradients import with_gradients
from slrfast import graphs, ops

# Cin, Cout and the graph of STC's blocks on the hand, and its widest one on the trunk
BLOCKS = {
    "2 to 128, 21 joints": (2, 128, graphs.HAND21),
    "128 to 256, 21 joints": (128, 256, graphs.HAND21),
    "512 to 512, 6 parts": (512, 512, graphs.HAND6),
    "128 to 256, 7 joints": (128, 256, graphs.TRUNK7),
}
CLIPS, FRAMES = {"cpu": 8, "cuda": 64}, 64


def cases(device: str) -> Iterator[Case]:
    for name, (inputs, outputs, graph) in BLOCKS.items():
        generator = torch.Generator().manual_seed(0)
        rows, nodes, partitions = CLIPS[device] * FRAMES, graph.num_nodes, graph.num_partitions
        shapes = (
            *((rows, nodes, inputs), (partitions, inputs, outputs)),
            *((partitions, outputs), (rows, nodes, outputs)),
        )
        x, weight, bias, grad = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
        dense = torch.tensor(graph.dense(), device=device)
        nonzero = len(graph.edges)
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"x": x.shape, "weight": weight.shape},
            candidates={
                "slrfast": _compared(
                    with_gradients(lambda *a, g=graph: ops.graph_conv(*a, g), x, weight, bias, grad=grad)
                ),
                "eager": _compared(_field(x, weight, bias, grad, dense, lambda module: module)),
                "torch.compile": _compared(_field(x, weight, bias, grad, dense, torch.compile)),
            },
            truth=_compared(
                with_gradients(
                    lambda x, w, b, a=dense: torch.einsum(
                        "rpvo,pvw->rwo", torch.einsum("rvi,pio->rpvo", x, w) + b[:, None], a.double()
                    ),
                    *(tensor.double() for tensor in (x, weight, bias)),
                    grad=grad.double(),
                )
            ),
            flops=3 * 2 * rows * (partitions * nodes * inputs * outputs + nonzero * min(inputs, outputs)),
            bytes=2 * (x.nbytes + grad.nbytes + weight.nbytes),
            device=device,
        )


def _compared(run: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    """Without the bias gradient, a sum that torch's convolution forms to 4e-6 or 7e-7, depending on the threads."""
    return lambda: run()[:3]


def _field(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, dense: Tensor, wrap: Callable
) -> Callable[[], list[Tensor]]:
    """The same numbers in the field's layout, channels first: [clips, C, frames, V]."""
    partitions, inputs, outputs = weight.shape
    module = GraphConvolution(inputs, outputs, dense).to(x.device)
    with torch.no_grad():
        module.conv.weight.copy_(weight.mT.reshape(module.conv.weight.shape))
        module.conv.bias.copy_(bias.flatten())
    field_x = x.unflatten(0, (-1, FRAMES)).permute(0, 3, 1, 2).contiguous().requires_grad_()
    field_grad = grad.unflatten(0, (-1, FRAMES)).permute(0, 3, 1, 2).contiguous()
    function = wrap(module)

    def run() -> list[Tensor]:
        y = function(field_x)
        dx, dw, db = torch.autograd.grad(y, (field_x, module.conv.weight, module.conv.bias), field_grad)
        rows = [t.permute(0, 2, 3, 1).flatten(0, 1) for t in (y, dx)]
        return [*rows, dw.view(partitions, outputs, inputs).mT, db.view(partitions, outputs)]

    return run


test_graph_conv = as_test("graph_conv", cases)

if __name__ == "__main__":
    main("graph_conv", cases)
