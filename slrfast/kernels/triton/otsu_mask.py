"""Grey levels of clips and their histograms; the threshold of 256 counts and the comparison with it are torch's."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._gcn import on

LEVELS = 256
PIXELS = 1024  # of one program


@triton.jit
def channel(frames, still, at, pixel, inside, compute: tl.constexpr):
    """One colour of the pixels, or how far it is from the background."""
    x = tl.load(frames + at, mask=inside, other=0.0).to(compute)
    if still is not None:
        x = tl.abs(x - tl.load(still + pixel, mask=inside, other=0.0).to(compute))
    return x


@triton.jit
def grey_histogram(
    frames,  # [B T, 3, P], contiguous
    still,  # [3, P], contiguous, or None
    levels,  # [B T, P] uint8 out
    histogram,  # [B, LEVELS] int64, added to
    T,
    P,
    blocks,
    DOUBLE: tl.constexpr,
    LEVELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """level = floor(255 min(max(grey, 0), 1) + 1/2) of a block of pixels of one frame, and how often each is there."""
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    pixel = program % blocks * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < P
    at = row * 3 * P + pixel
    red = channel(frames, still, at, pixel, inside, compute) * tl.full([], 0.299, compute)
    green = channel(frames, still, at + P, pixel + P, inside, compute) * tl.full([], 0.587, compute)
    blue = channel(frames, still, at + 2 * P, pixel + 2 * P, inside, compute) * tl.full([], 0.114, compute)
    grey = (red + green) + blue
    grey = tl.where(grey > 0, grey, 0.0)
    grey = tl.where(grey < 1, grey, 1.0)
    level = (grey * (LEVELS - 1) + 0.5).to(tl.int32)
    tl.store(levels + row * P + pixel, level.to(tl.uint8), mask=inside)
    bins = tl.arange(0, LEVELS)
    outside = PIXELS - tl.sum(inside.to(tl.int32))  # of level 0
    counts = tl.histogram(level, LEVELS) - tl.where(bins == 0, outside, 0)
    tl.atomic_add(histogram + row // T * LEVELS + bins, counts.to(tl.int64), mask=counts > 0)


def grey_levels(frames: Tensor, still: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the kernel for ``slrfast::otsu_mask``: levels [B, T, H, W] uint8 and histograms [B, 256] int64."""
    frames = frames.contiguous()
    still = None if still is None else still.contiguous()
    clips, count, _, height, width = frames.shape
    levels = torch.zeros((clips, count, height, width), dtype=torch.uint8, device=frames.device)
    histogram = torch.zeros((clips, LEVELS), dtype=torch.int64, device=frames.device)
    pixels = height * width
    double = torch.float64 in (frames.dtype, frames.dtype if still is None else still.dtype)
    blocks = triton.cdiv(pixels, PIXELS)
    if frames.numel():
        with on(frames):
            grey_histogram[(clips * count * blocks,)](
                frames, still, levels, histogram, count, pixels, blocks, double, LEVELS, PIXELS, num_warps=4,
                enable_fp_fusion=False,
            )  # fmt: skip
    return levels, histogram
