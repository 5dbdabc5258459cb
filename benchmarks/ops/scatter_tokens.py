"""Putting packed frames back among mask tokens, forward and backward, against cloned tokens and boolean indexing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from benchmarks.baselines import motion_mask as field
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._gradients import with_gradients
from benchmarks.ops.gather_visible import SHAPES, masks
from slrfast import ops


def cases(device: str) -> Iterator[Case]:
    torch.compiler.reset()
    compiled = torch.compile(field.scatter_tokens, dynamic=False)
    for name, (clips, frames, d) in SHAPES.items():
        mask, _, visible = masks(clips, frames, device)
        offsets = F.pad(visible.sum(1).cumsum(0), (1, 0))
        generator = torch.Generator().manual_seed(1)
        shapes = (int(offsets[-1]), d), (d,), (clips, frames, d)
        packed, token, grad = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"packed": packed.shape, "out": grad.shape},
            candidates={
                "slrfast": with_gradients(
                    lambda p, t, o=offsets, m=mask: ops.scatter_tokens(p, o, t, m), packed, token, grad=grad
                ),
                "eager": with_gradients(
                    lambda p, t, m=mask, v=visible: field.scatter_tokens(p, t, m, v), packed, token, grad=grad
                ),
                "torch.compile": with_gradients(
                    lambda p, t, m=mask, v=visible: compiled(p, t, m, v), packed, token, grad=grad
                ),
            },
            truth=with_gradients(
                lambda p, t, m=mask, v=visible: field.scatter_tokens(p, t, m, v),
                packed.double(),
                token.double(),
                grad=grad.double(),
            ),
            flops=int(mask.sum()) * d,
            bytes=2 * packed.nbytes + grad.nbytes + int((mask | visible).sum()) * grad[0, 0].nbytes,
            device=device,
        )


test_scatter_tokens = as_test("scatter_tokens", cases)

if __name__ == "__main__":
    main("scatter_tokens", cases)
