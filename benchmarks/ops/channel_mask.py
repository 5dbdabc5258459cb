"""The channel mask of Motion-Preserving Masking against standard deviation, comparison and product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baselines import motion_preserving as field
from benchmarks.harness import Case, as_test, main
from slrfast import ops

# clips, frames, height, width: latents have three numbers for each pixel
SHAPES = {"small": (1, 16, 64, 64), "one clip": (1, 32, 224, 224), "four clips": (4, 32, 112, 112)}


def latents(clips: int, frames: int, height: int, width: int, device: str) -> Tensor:
    """[B, T, D] where half of the deviations are below 0.2 and half above 0.8."""
    generator = torch.Generator().manual_seed(0)
    size = 3 * height * width
    deviation = 0.2 * torch.rand(clips, 1, size, generator=generator)
    deviation += 0.8 * (torch.rand(clips, 1, size, generator=generator).argsort(2) < size - size // 2)
    z = torch.randn(clips, frames, size, generator=generator)
    z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) * deviation
    return (z + torch.randn(clips, 1, size, generator=generator)).to(device)


def cases(device: str) -> Iterator[Case]:
    torch.compiler.reset()
    for name, shape in SHAPES.items():
        for share in (None, 0.5) if name == "one clip" else (None,):
            z = latents(*shape, device)
            quantile, p = share is not None, 0.5
            eager = field.channel_mask_quantile if quantile else field.channel_mask
            compiled = torch.compile(eager, dynamic=False)
            yield Case(
                name=f"{name}, quantile" if quantile else name,
                shapes={"z": z.shape},
                candidates={
                    "slrfast": lambda z=z, p=p, quantile=quantile: [ops.channel_mask(z, p, quantile=quantile).z],
                    "eager": lambda z=z, p=p, eager=eager: [eager(z, p)],
                    "torch.compile": lambda z=z, p=p, compiled=compiled: [compiled(z, p)],
                },
                truth=lambda z=z, p=p, eager=eager: [eager(z.double(), p)],
                flops=6 * z.numel(),
                bytes=2 * z.nbytes,
                device=device,
            )


test_channel_mask = as_test("channel_mask", cases)

if __name__ == "__main__":
    main("channel_mask", cases)
