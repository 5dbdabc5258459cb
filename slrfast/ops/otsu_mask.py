"""The binary mask of CCL-SLR's Motion-Preserving Masking: grey levels and Otsu's threshold of a clip."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_masks
from slrfast.ops import _dispatch
from slrfast.reference import otsu_mask as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define("otsu_mask(Tensor frames, Tensor? still) -> Tensor")


def _fake(frames: Tensor, still: Tensor | None) -> Tensor:
    b, t, _, h, w = frames.shape
    return frames.new_empty((b, t, h, w), dtype=torch.bool)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(frames: Tensor, still: Tensor | None) -> Tensor:
    from slrfast.kernels.triton import otsu_mask as kernel

    levels, histogram = kernel.grey_levels(frames, still)
    return levels > reference.otsu_threshold(histogram).view(-1, 1, 1, 1)


_dispatch.register("otsu_mask", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native_masks.otsu_mask, "triton": _triton, "reference": reference.otsu_mask}


def _forward(frames: Tensor, still: Tensor | None) -> Tensor:
    with torch.no_grad():
        return _FORWARD[_dispatch.choose("otsu_mask", frames.device.type)](frames, still)


_library.impl("otsu_mask", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::otsu_mask", _fake, lib=_library)


# ---- public ---------------------------------------------------------------------------------------------------------


def otsu_mask(frames: Tensor, still: Tensor | None = None) -> Tensor:
    """Part the pixels of each clip into front and background by their grey, with Otsu's threshold.

    g = 0.299 R + 0.587 G + 0.114 B of x, or of |x - still|; level = floor(255 min(max(g, 0), 1) + 1/2); the threshold
    is the first of 0..254 with the largest variance between the two sides (Otsu 1979) of the histogram of all frames
    of a clip; the mask is level > threshold. CCL-SLR 3.2 has "gray-scaling and binarization" without a method.

    Args:
        frames: [B, T, 3, H, W], R, G and B in [0, 1], what is beyond is clamped, NaN counts as black; any strides;
            float64, float32, bfloat16 or float16. No gradient.
        still: [3, H, W], a background to be subtracted, of any floating dtype.
    Returns:
        bool [B, T, H, W]. All True for a clip of one grey level, which has no two sides.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit.
    Numerics:
        Grey in float32 (float64 if an input is), every product and sum rounded; the histogram is exact and the
        threshold found in float64: bitwise the same on every backend. The device is not synchronised.

    >>> frames = torch.tensor([0.1, 0.2, 0.8, 0.1]).view(1, 2, 1, 1, 2).expand(1, 2, 3, 1, 2)
    >>> otsu_mask(frames)
    tensor([[[[False, False]],
    <BLANKLINE>
             [[ True, False]]]])
    """
    op = "otsu_mask"
    checks.shapes(op, frames=(frames, "B T 3 H W"))
    tensors = {"frames": frames}
    if still is not None:
        checks.shapes(op, frames=(frames, "B T 3 H W"), still=(still, "3 H W"))
        tensors["still"] = still
    checks.floating(op, **tensors)
    checks.same_device(op, **tensors)
    return torch.ops.slrfast.otsu_mask(frames.detach(), None if still is None else still.detach())
