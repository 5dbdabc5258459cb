"""Max pooling over the joints of every part, forward and backward, against indexing, max_pool2d and concatenation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, as_test, main
from benchmarks.ops._blocks import BF16, CLIPS, FIELD_BF16, FRAMES, channels_first, channels_last, clips, random
from benchmarks.ops._gradients import with_gradients
from slrfast import graphs, ops

OP = "part_max"
SKELETONS = {"hand, 21 joints to 6 parts": (graphs.HAND21, 256), "trunk, 7 joints to 3 parts": (graphs.TRUNK7, 256)}


def field(x: Tensor, graph: graphs.SkeletonGraph) -> Tensor:
    """Of x [clips, C, frames, V]."""
    return torch.cat([F.max_pool2d(x[..., list(part)], (1, len(part))) for part in graph.parts], -1)


def viewed(call: Callable[[], list[Tensor]], view: Callable[[Tensor], Tensor]) -> Callable[[], list[Tensor]]:
    """The results of a call in the shape that all candidates share."""
    return lambda: [view(tensor) for tensor in call()]


def case(name: str, graph: graphs.SkeletonGraph, channels: int, device: str) -> Case:
    rows = CLIPS[device] * FRAMES
    x = random((rows, graph.num_nodes, channels), device).bfloat16().float()  # the same joints win in bfloat16
    grad = random((rows, len(graph.parts), channels), device, 1)
    field_x, field_grad = channels_first(x), channels_first(grad)

    def ours(dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        return viewed(with_gradients(lambda x: ops.part_max(x, graph), x.to(dtype), grad=grad.to(dtype)), clips)

    def fields(dtype: torch.dtype, function: Callable = field) -> Callable[[], list[Tensor]]:
        call = with_gradients(lambda x: function(x, graph), field_x.to(dtype), grad=field_grad.to(dtype))
        return viewed(call, channels_last)

    torch.compiler.reset()
    return Case(
        name=f"{name}, forward + backward",
        shapes={"x": x.shape},
        candidates={
            "slrfast": ours(torch.float32),
            BF16: ours(torch.bfloat16),
            "eager": fields(torch.float32),
            FIELD_BF16: fields(torch.bfloat16),
            "torch.compile": fields(torch.float32, torch.compile(field, dynamic=False)),
        },
        truth=fields(torch.float64),
        flops=x.numel(),
        bytes=2 * (x.nbytes + grad.nbytes),
        tolerances={FIELD_BF16: 2**-8},
        held_to={BF16: FIELD_BF16},
        device=device,
    )


def cases(device: str) -> Iterator[Case]:
    for name, (graph, channels) in SKELETONS.items():
        yield case(name, graph, channels, device)


test_part_max = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
