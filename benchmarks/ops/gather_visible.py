"""Packing visible frames, forward and backward, against boolean indexing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baselines import motion_mask as field
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._gradients import with_gradients
from slrfast import ops

SHAPES = {"small": (8, 64, 256), "paper": (64, 64, 1536)}


def masks(clips: int, frames: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """A mask of half of the frames, lengths from two thirds on, and what is visible."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(frames * 2 // 3, frames + 1, (clips,), generator=generator)
    inside = torch.arange(frames) < lengths[:, None]
    mask = inside & (torch.rand(clips, frames, generator=generator) < 0.5)
    return tuple(tensor.to(device) for tensor in (mask, lengths, inside & ~mask))


def cases(device: str) -> Iterator[Case]:
    torch.compiler.reset()
    compiled = torch.compile(field.gather_visible, dynamic=False)
    for name, (clips, frames, d) in SHAPES.items():
        mask, lengths, visible = masks(clips, frames, device)
        x = torch.randn(clips, frames, d, generator=torch.Generator().manual_seed(1)).to(device)
        rows = int(visible.sum())
        grad = torch.randn(rows, d, generator=torch.Generator().manual_seed(2)).to(device)
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"x": x.shape, "packed": grad.shape},
            candidates={
                "slrfast": with_gradients(lambda x, m=mask, n=lengths: ops.gather_visible(x, m, n)[0], x, grad=grad),
                "eager": with_gradients(lambda x, m=mask, n=lengths: field.gather_visible(x, m, n)[0], x, grad=grad),
                "torch.compile": with_gradients(lambda x, m=mask, n=lengths: compiled(x, m, n)[0], x, grad=grad),
            },
            truth=with_gradients(lambda x, v=visible: x[v], x.double(), grad=grad.double()),
            flops=0,
            bytes=3 * grad.nbytes + x.nbytes,
            device=device,
        )


test_gather_visible = as_test("gather_visible", cases)

if __name__ == "__main__":
    main("gather_visible", cases)
