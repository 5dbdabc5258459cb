"""The compiled module's kernels of Motion-Preserving Masking, fed with tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.kernels import native
from slrfast.kernels.native import DTYPES, LIBRARY


def channel_variance(z: Tensor) -> Tensor:
    """Variance [B, D] over time of z [B, T, D], as the CPU kernel of ``slrfast::channel_mask`` forms it."""
    z = z.contiguous()
    variance = z.new_empty(z.shape[0], z.shape[2], dtype=native.sum_dtype(z))
    least = torch.zeros(len(z), dtype=torch.float64)
    LIBRARY.channel_mask_cpu(
        DTYPES[z.dtype], z.data_ptr(), *z.shape, least.data_ptr(), 0, 0, variance.data_ptr(), torch.get_num_threads()
    )
    return variance


def channel_mask(z: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::channel_mask``; the variances of clip b are compared with least [b]."""
    z, least = z.contiguous(), least.double().contiguous()
    masked, keep = torch.empty_like(z), torch.empty((z.shape[0], z.shape[2]), dtype=torch.bool)
    LIBRARY.channel_mask_cpu(
        DTYPES[z.dtype], z.data_ptr(), *z.shape, least.data_ptr(), masked.data_ptr(), keep.data_ptr(), 0,
        torch.get_num_threads(),
    )  # fmt: skip
    return masked, keep


def otsu_mask(frames: Tensor, still: Tensor | None) -> Tensor:
    """Run the CPU kernel of ``slrfast::otsu_mask``."""
    wide = native.sum_dtype(frames)
    wide = wide if still is None else torch.promote_types(wide, still.dtype)
    frames = frames.to(wide if wide == torch.float64 else frames.dtype).contiguous()
    still = None if still is None else still.to(wide).contiguous()
    clips, count, _, height, width = frames.shape
    mask = torch.empty((clips, count, height, width), dtype=torch.bool)
    LIBRARY.otsu_mask_cpu(
        DTYPES[frames.dtype], frames.data_ptr(), native.address(still), clips, count, height * width, mask.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return mask
