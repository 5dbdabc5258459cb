"""Motion residual, weights and the choice of masked frames, against the same part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.baselines import motion_mask as field
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._clips import clips
from slrfast import ops

SHAPES = {"one clip": (1, 64), "paper": (64, 64), "long": (16, 2048)}


def joined(function: Callable, *tensors: Tensor) -> Callable[[], list[Tensor]]:
    """The results of the parts; they are joined for the comparison only."""
    return lambda: list(function(*tensors))


def compared(results: list) -> list[Tensor]:
    return [torch.cat(r, 2) if isinstance(r, list) else r for r in results]


def cases(device: str) -> Iterator[Case]:
    torch.compiler.reset()
    compiled = torch.compile(field.motion_mask, dynamic=False)
    for name, (count, frames) in SHAPES.items():
        tensors = clips(count, frames, device)
        x, confidence, _, keys = tensors
        wide = x.double(), confidence.double(), *tensors[2:]
        yield Case(
            name=name,
            shapes={"x": x.shape},
            candidates={
                "slrfast": joined(ops.motion_mask, *tensors),
                "eager": joined(field.motion_mask, *tensors),
                "eager, clip by clip": joined(field.motion_mask_by_clip, *tensors),
                "torch.compile": joined(compiled, *tensors),
            },
            truth=lambda wide=wide: compared(list(field.motion_mask(*wide))),
            flops=3 * x.numel() + 3 * confidence.numel(),
            bytes=2 * (x.nbytes + confidence.nbytes) + keys.nbytes + keys.numel(),
            compared=compared,
            device=device,
        )


test_motion_mask = as_test("motion_mask", cases)

if __name__ == "__main__":
    main("motion_mask", cases)
