"""The five blocks of a graph network and its poolings in evaluation mode, frames to vectors, against the field's code.

slrfast's normalisations are folded beforehand, as often as the weights change; systems/hand_gcn.py counts the folding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.baselines import gcn
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._blocks import BF16, BLOCKS, CLIPS, FIELD_BF16, FRAMES, random
from slrfast import graphs, ops
from slrfast.nn import PartGCN
from slrfast.systems import STCConfig

OP = "part_gcn"
SKELETONS = {"hand": graphs.HAND21, "trunk": graphs.TRUNK7}


@torch.no_grad()
def networks(graph: graphs.SkeletonGraph, device: str) -> tuple[PartGCN, gcn.PartGCN]:
    """slrfast's network and the field's with the same parameters and running statistics that normalise something."""
    generator, config = torch.manual_seed(0), STCConfig.paper()
    ours, field = PartGCN(graph, config.gcn_channels, config.dim), gcn.PartGCN(graph, config)
    for module in ours.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    gcn.load(gcn.renamed(ours.state_dict()), field)
    return ours.to(device).eval(), field.to(device).eval()


def without_gradient(function: Callable[[Tensor], Tensor], x: Tensor, autocast: bool = False) -> Callable:
    def run() -> list[Tensor]:
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            return [function(x)]

    return run


def case(name: str, graph: graphs.SkeletonGraph, device: str) -> Case:
    ours, field = networks(graph, device)
    wide = networks(graph, device)[1].double()
    x = random((CLIPS[device] * FRAMES, graph.num_nodes, 2), device)
    field_x = x.mT.contiguous().unsqueeze(2)
    with torch.no_grad():
        folded = ours.folded()

    def function(x: Tensor) -> Tensor:
        return ops.part_gcn(x, *folded, graph)

    torch.compiler.reset()
    return Case(
        name=f"{name}, forward",
        shapes={"x": x.shape},
        candidates={
            "slrfast": without_gradient(function, x),
            BF16: without_gradient(function, x, autocast=True),
            "eager": without_gradient(field.vectors, field_x),
            FIELD_BF16: without_gradient(field.vectors, field_x, autocast=True),
            "torch.compile": without_gradient(torch.compile(field.vectors, dynamic=False), field_x),
        },
        truth=without_gradient(wide.vectors, field_x.double()),
        flops=2 * len(x) * sum(block.products for block in BLOCKS if block.part == name),
        bytes=x.nbytes + 4 * len(x) * BLOCKS[-1].outputs + sum(parameter.nbytes for parameter in ours.parameters()),
        tolerances={BF16: 0.05, FIELD_BF16: 0.05},
        device=device,
    )


def cases(device: str) -> Iterator[Case]:
    for name, graph in SKELETONS.items():
        yield case(name, graph, device)


test_part_gcn = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
