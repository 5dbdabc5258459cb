"""Grey, Otsu's threshold and mask of a clip, alone and with the channel mask before it, against eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.baselines import motion_preserving as field
from benchmarks.harness import Case, as_test, main
from benchmarks.ops.channel_mask import SHAPES, latents
from slrfast import ops


def clip_frames(clips: int, frames: int, height: int, width: int, device: str) -> Tensor:
    """[B, T, 3, H, W]: noise with a bright square that moves."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.rand(clips, frames, 3, height, width, generator=generator)
    side = height // 4
    for t in range(frames):
        left = (width - side) * t // frames
        x[:, t, :, side : 2 * side, left : left + side] += 0.6
    # the middle of a grey level, so that rounding decides nothing
    levels = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(2, keepdim=True).mul(255).round() / 255
    return levels.expand_as(x).contiguous().to(device)


def both(channels: Callable, otsu: Callable, z: Tensor, frames: Tensor) -> Callable[[], list[Tensor]]:
    """All of the mask but the flow: latents with static channels removed, and the mask of the frames they give."""
    return lambda: [(channels(z, 0.5), otsu(frames))[1]]


def cases(device: str) -> Iterator[Case]:
    torch.compiler.reset()
    for name, shape in SHAPES.items():
        frames = clip_frames(*shape, device)
        yield Case(
            name=name,
            shapes={"frames": frames.shape},
            candidates={
                "slrfast": lambda frames=frames: [ops.otsu_mask(frames)],
                "eager": lambda frames=frames: [field.otsu_mask(frames)],
            },
            truth=lambda frames=frames: [field.otsu_mask(frames.double())],
            flops=8 * frames.numel() // 3,
            bytes=frames.nbytes + frames.numel() // 3,
            device=device,
        )
        z = latents(*shape, device)
        yield Case(
            name=f"{name}, with the channel mask",
            shapes={"z": z.shape, "frames": frames.shape},
            candidates={
                "slrfast": both(ops.channel_mask, ops.otsu_mask, z, frames),
                "eager": both(field.channel_mask, field.otsu_mask, z, frames),
            },
            truth=lambda frames=frames: [field.otsu_mask(frames.double())],
            flops=6 * z.numel() + 8 * frames.numel() // 3,
            bytes=2 * z.nbytes + frames.nbytes + frames.numel() // 3,
            device=device,
        )


test_otsu_mask = as_test("otsu_mask", cases)

if __name__ == "__main__":
    main("otsu_mask", cases)
