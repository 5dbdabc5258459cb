"""What CCL-SLR's Motion-Preserving Masking keeps of the latents of a clip: channels that vary over time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_masks
from slrfast.ops import _dispatch
from slrfast.reference import channel_mask as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define("channel_mask(Tensor z, float threshold, bool quantile) -> (Tensor masked, Tensor keep)")


def _fake(z: Tensor, threshold: float, quantile: bool) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), z.new_empty((z.shape[0], z.shape[2]), dtype=torch.bool)


# ---- backends -------------------------------------------------------------------------------------------------------


def _native(z: Tensor, threshold: float, quantile: bool) -> tuple[Tensor, Tensor]:
    return _kernel(native_masks, z, threshold, quantile)


def _triton(z: Tensor, threshold: float, quantile: bool) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import channel_mask as kernel

    return _kernel(kernel, z, threshold, quantile)


def _kernel(kernel: Any, z: Tensor, threshold: float, quantile: bool) -> tuple[Tensor, Tensor]:
    # an absolute threshold needs no variances of other channels: z is read once
    variance = kernel.channel_variance(z) if quantile else z.new_empty(len(z), z.shape[2], dtype=accumulation_dtype(z))
    return kernel.channel_mask(z, reference.least_variance(variance, threshold, quantile))


_dispatch.register("channel_mask", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": _native, "triton": _triton, "reference": reference.channel_mask}


def _forward(z: Tensor, threshold: float, quantile: bool) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return _FORWARD[_dispatch.choose("channel_mask", z.device.type)](z, threshold, quantile)


_library.impl("channel_mask", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::channel_mask", _fake, lib=_library)


# ---- public ---------------------------------------------------------------------------------------------------------


class ChannelMask(NamedTuple):
    """What :func:`channel_mask` returns.

    Attributes:
        z: [B, T, D], zero in the channels that are not kept.
        keep: [B, D] bool, True for a channel that varies.
    """

    z: Tensor
    keep: Tensor


def channel_mask(z: Tensor, threshold: float = 0.5, *, quantile: bool = False) -> ChannelMask:
    """Set the channels of a clip's latents that hardly vary over time to zero.

    sigma_bd^2 = sum_t (z_btd - mean_t z_btd)^2 / (T - 1), keep = sigma >= p, z_btd 1[keep_bd]. CCL-SLR Eq. 5; as
    printed it keeps sigma < p, but the text and Fig. 3 remove channels of low deviation.

    Args:
        z: [B, T, D] latents of T frames, any strides; float64, float32, bfloat16 or float16. No gradient.
        threshold: p >= 0, in the unit of z.
        quantile: p in [0, 1] is the share of the D channels of each clip to remove: the floor(p D) of the smallest
            deviation, less those that are as large as the first one kept.
    Returns:
        ChannelMask(z [B, T, D], keep [B, D]). A clip of one frame has sigma = 0. A channel with an inf or NaN is not
        kept.
    Raises:
        TypeError: z is no floating tensor. ValueError: another shape, or a threshold out of its range.
    Numerics:
        Deviations in float32 (float64 for float64), from the mean; deterministic, the device is not synchronised.

    >>> z = torch.tensor([[[0.0, 1.0], [2.0, 1.1]]])
    >>> channel_mask(z)
    ChannelMask(z=tensor([[[0., 0.],
             [2., 0.]]]), keep=tensor([[ True, False]]))
    """
    op = "channel_mask"
    checks.shapes(op, z=(z, "B T D"))
    checks.floating(op, z=z)
    checks.number_between(op, 0, 1 if quantile else float("inf"), threshold=threshold)
    return ChannelMask(*torch.ops.slrfast.channel_mask(z.detach(), threshold, quantile))
