"""Motion, forward and backward, against the code the field uses: zeros, then one slice copy per body part."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import Case, as_test, main
from slrfast import ops
from slrfast.reference import motion as reference

PARTS = (slice(0, 21), slice(21, 42), slice(42, 49))
SHAPES = {"one clip": (1, 64, 49, 2), "paper": (64, 64, 49, 2), "large": (512, 256, 49, 2)}


def field_motion(x: Tensor) -> Tensor:
    """As published training code writes it."""
    parts = []
    for part in PARTS:
        motion = torch.zeros_like(x[:, :, part])
        motion[:, 1:] = x[:, 1:, part] - x[:, :-1, part]
        parts.append(motion)
    return torch.cat(parts, dim=2)


def cases(device: str) -> Iterator[Case]:
    for name, shape in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(shape, generator=generator).to(device)
        grad = torch.randn(shape, generator=generator).to(device)
        implementations = {"slrfast": ops.motion, "eager": field_motion, "torch.compile": torch.compile(field_motion)}
        yield Case(
            name=f"{name}, forward",
            shapes={"x": shape},
            candidates={key: _forward(function, x) for key, function in implementations.items()},
            truth=lambda x=x: [reference.motion(x.double(), 1, True)],
            flops=x.numel(),
            bytes=2 * x.nbytes,
            device=device,
        )
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"x": shape},
            candidates={key: _both(function, x, grad) for key, function in implementations.items()},
            truth=lambda x=x, g=grad: [
                reference.motion(x.double(), 1, True),
                reference.motion_grad(g.double(), 1, True),
            ],
            flops=2 * x.numel(),
            bytes=4 * x.nbytes,
            device=device,
        )


def _forward(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], list[Tensor]]:
    return lambda: [function(x)]


def _both(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], list[Tensor]]:
    x = x.clone().requires_grad_()

    def run() -> list[Tensor]:
        y = function(x)
        return [y, *torch.autograd.grad(y, x, grad)]

    return run


test_motion = as_test("motion", cases)

if __name__ == "__main__":
    main("motion", cases)
