"""The five blocks of a graph network and its poolings in evaluation mode, frames to vectors, against the field's code.

slrfast's normalisations are folded beforehand, as often as the weights change; systems/hand_gcn.py counts the folding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baselines import gcn
from benchmarks.harness import GEMM, Case, as_test, main
from benchmarks.ops._blocks import (
    BF16,
    BLOCKS,
    CLIPS,
    FIELD_BF16,
    FRAMES,
    evaluation,
    normalizing,
    random,
    with_torch,
)
from slrfast import graphs, ops
from slrfast.nn import PartGCN
from slrfast.systems import STCConfig

OP = "part_gcn"
SKELETONS = {"hand": graphs.HAND21, "trunk": graphs.TRUNK7}


def networks(graph: graphs.SkeletonGraph, device: str) -> tuple[PartGCN, gcn.PartGCN]:
    """slrfast's network and the field's with the same parameters and running statistics that normalise something."""
    torch.manual_seed(0)
    config = STCConfig.paper()
    ours, field = PartGCN(graph, config.gcn_channels, config.dim), gcn.PartGCN(graph, config)
    gcn.load(gcn.renamed(normalizing(ours).state_dict()), field)
    return ours.to(device).eval(), field.to(device).eval()


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
            "slrfast": evaluation(function, x),
            GEMM: with_torch(evaluation(function, x)),
            BF16: evaluation(function, x, BF16),
            "eager": evaluation(field.vectors, field_x),
            FIELD_BF16: evaluation(field.vectors, field_x, FIELD_BF16),
            "torch.compile": evaluation(torch.compile(field.vectors, dynamic=False), field_x),
        },
        truth=evaluation(wide.vectors, field_x.double()),
        flops=2 * len(x) * sum(block.products for block in BLOCKS if block.part == name),
        bytes=x.nbytes + 4 * len(x) * BLOCKS[-1].outputs + sum(parameter.nbytes for parameter in ours.parameters()),
        tolerances={FIELD_BF16: 0.05},
        held_to={BF16: FIELD_BF16},
        device=device,
    )


def cases(device: str) -> Iterator[Case]:
    for name, graph in SKELETONS.items():
        yield case(name, graph, device)


test_part_gcn = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
