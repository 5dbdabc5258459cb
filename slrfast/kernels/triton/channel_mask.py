"""The channels of clips that vary over time: one program for a tile of channels, read again from the cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton._gcn import on
from slrfast.kernels.triton._rounding import rounded
from slrfast.kernels.triton._select import bound

CHANNELS = 256  # of one program


@triton.jit
def mask_tile(
    z,  # [B, T, D], contiguous
    least,  # [B] of the compute type, or None: the variance is wanted only
    masked,  # [B, T, D] out, or None
    keep,  # [B, D] uint8 out, or None
    variance,  # [B, D] of the compute type out, or None
    T,
    D,
    tiles,
    CHANNELS: tl.constexpr,
):
    """Variance of a tile of channels over time, which are kept, and z without the others: CCL-SLR Eq. 5."""
    compute: tl.constexpr = tl.float64 if z.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    clip = program // tiles
    channel = program % tiles * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < D
    start = clip * T * D + channel
    total = tl.zeros([CHANNELS], compute)
    for t in range(0, bound(T)):
        total += tl.load(z + start + tl.cast(t, tl.int64) * D, mask=inside, other=0.0).to(compute)
    frames = tl.full([CHANNELS], T, compute)
    fewer = tl.full([CHANNELS], T - 1, compute)
    mean = total / frames if compute == tl.float64 else tl.div_rn(total, frames)
    squares = tl.zeros([CHANNELS], compute)
    for t in range(0, bound(T)):
        distance = tl.load(z + start + tl.cast(t, tl.int64) * D, mask=inside, other=0.0).to(compute) - mean
        squares += distance * distance
    varies = tl.zeros([CHANNELS], compute)
    if T > 1:
        varies = squares / fewer if compute == tl.float64 else tl.div_rn(squares, fewer)
    if variance is not None:
        tl.store(variance + clip * D + channel, varies, mask=inside)
    if least is not None:
        kept = varies >= tl.load(least + clip)
        tl.store(keep + clip * D + channel, kept.to(tl.uint8), mask=inside)
        for t in range(0, bound(T)):
            at = start + tl.cast(t, tl.int64) * D
            value = tl.load(z + at, mask=inside & kept, other=0.0).to(compute)
            tl.store(masked + at, rounded(value, masked.dtype.element_ty), mask=inside)


def channel_variance(z: Tensor) -> Tensor:
    """Variance [B, D] over time of z [B, T, D], as :func:`channel_mask` forms it."""
    z = z.contiguous()
    variance = torch.zeros(z.shape[0], z.shape[2], dtype=_compute(z), device=z.device)
    _launch(z, None, None, None, variance)
    return variance


def channel_mask(z: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernel for ``slrfast::channel_mask``; the variances of clip b are compared with least [b]."""
    z = z.contiguous()
    masked = torch.empty_like(z)
    keep = torch.zeros(z.shape[0], z.shape[2], dtype=torch.uint8, device=z.device)
    _launch(z, least.to(_compute(z)), masked, keep, None)
    return masked, keep.bool()


def _compute(z: Tensor) -> torch.dtype:
    return torch.promote_types(z.dtype, torch.float32)


def _launch(
    z: Tensor, least: Tensor | None, masked: Tensor | None, keep: Tensor | None, variance: Tensor | None
) -> None:
    clips, frames, channels = z.shape
    tiles = triton.cdiv(channels, CHANNELS)
    if clips * tiles:
        with on(z):
            mask_tile[(clips * tiles,)](
                z, least, masked, keep, variance, frames, channels, tiles, CHANNELS, num_warps=4, maxnreg=255,
                enable_fp_fusion=False,
            )  # fmt: skip
