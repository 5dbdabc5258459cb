"""What MASA predicts and where: motion residuals, their weights, and the frames to mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_clips
from slrfast.ops import _dispatch
from slrfast.reference import motion_mask as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "motion_mask(Tensor x, Tensor confidence, Tensor? lengths, Tensor random_keys, int interval, "
    "float confidence_threshold, float motion_threshold, float joint_fraction, float mask_ratio, bool norm) "
    "-> (Tensor residual, Tensor weight, Tensor mask)"
)


def _fake(x: Tensor, confidence: Tensor, *_) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), confidence.new_empty(x.shape[:3]), x.new_empty(x.shape[:2], dtype=torch.bool)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(x: Tensor, *args) -> tuple[Tensor, Tensor, Tensor]:
    from slrfast.kernels.triton import motion_mask as kernel

    run = kernel.motion_mask if kernel.fits(*x.shape[1:3]) else reference.motion_mask
    return run(x, *args)


_dispatch.register("motion_mask", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native_clips.motion_mask, "triton": _triton, "reference": reference.motion_mask}


def _forward(x: Tensor, *args) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return _FORWARD[_dispatch.choose("motion_mask", x.device.type)](x, *args)


_library.impl("motion_mask", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::motion_mask", _fake, lib=_library)


# ---- public ---------------------------------------------------------------------------------------------------------


class MotionMask(NamedTuple):
    """What :func:`motion_mask` returns.

    Attributes:
        residual: [B, T, V, 2], m_i in pixels, in the dtype of the coordinates.
        weight: [B, T, V], c_i c_{i+k}, in the dtype of the confidence.
        mask: [B, T] bool, True for a masked frame.
    """

    residual: Tensor
    weight: Tensor
    mask: Tensor


def motion_mask(
    x: Tensor,
    confidence: Tensor,
    lengths: Tensor | None,
    random_keys: Tensor,
    *,
    interval: int = 3,
    confidence_threshold: float = 0.4,
    motion_threshold: float = 5.0,
    joint_fraction: float = 0.5,
    mask_ratio: float = 0.9,
    norm: bool = False,
) -> MotionMask:
    """Choose frames with clear motion to mask, and give the motion that is to be predicted there.

    For the frames i < L - k of a clip of L frames: m_i = x_{i+k} - x_i, c_i = r_i where r_i >= confidence_threshold,
    else 0, w_i = c_i c_{i+k}; both are 0 for the others. A frame i < L - k is a candidate if the share of entries with
    |m_i| w_i >= motion_threshold is at least joint_fraction; the floor(mask_ratio |S|) candidates with the smallest
    random keys are masked, so that every backend makes the same choice. MASA Algorithm 1; an entry is a coordinate of
    a joint, as the authors count, or with ``norm`` a joint, whose |m_i| is then its length.

    Args:
        x: [B, T, V, 2] coordinates in pixels of the 256 box, any strides; float64, float32, bfloat16 or float16.
        confidence: [B, T, V], r; the dtype may differ.
        lengths: [B] int64, the frames L of every clip, in [0, T]; what follows is padding. None: all T.
        random_keys: [B, T], any floating dtype, for example torch.rand; among equal ones the first is chosen first,
            NaN counts as infinity.
        interval: k, in frames, >= 1.
        confidence_threshold: >= 0, in the unit of ``confidence``.
        motion_threshold: >= 0, in pixels.
        joint_fraction: in [0, 1].
        mask_ratio: in [0, 1].
        norm: test the displacement's length instead of every coordinate.
    Returns:
        MotionMask(residual [B, T, V, 2] in pixels, weight [B, T, V], mask [B, T]). No gradient flows.
    Raises:
        TypeError: a tensor or number of another type. ValueError: shapes or devices that do not fit, a number out of
            its range; on CPU, and on CUDA under SLRFAST_DEBUG=1, but not inside torch.compile: a length out of it.
    Numerics:
        m and w are formed in float32 (float64 if one of x and confidence is), the half types are rounded at the end;
        comparisons with ``motion_threshold`` are made in float64. Bitwise the same on every backend; the device is
        not synchronised.

    >>> x = torch.tensor([0.0, 9.0, 18.0, 18.0, 30.0]).reshape(1, 5, 1, 1).expand(1, 5, 1, 2)
    >>> keys = torch.tensor([[0.3, 0.1, 0.2, 0.0, 0.4]])
    >>> found = motion_mask(x, torch.ones(1, 5, 1), None, keys, interval=1)
    >>> found.residual[0, :, 0, 0]
    tensor([ 9.,  9.,  0., 12.,  0.])
    >>> found.mask  # floor(0.9 * 3) of the frames 0, 1 and 3
    tensor([[False,  True, False,  True, False]])
    """
    op = "motion_mask"
    tensors = {"x": x, "confidence": confidence, "random_keys": random_keys}
    patterns = {"x": "B T V 2", "confidence": "B T V", "random_keys": "B T", "lengths": "B"}
    given = tensors if lengths is None else {**tensors, "lengths": lengths}
    sizes = checks.shapes(op, **{name: (tensor, patterns[name]) for name, tensor in given.items()})
    checks.floating(op, **tensors)
    checks.same_device(op, **given)
    checks.integer_between(op, 1, 2**31 - 1, interval=interval)
    checks.number_between(
        op, 0, float("inf"), confidence_threshold=confidence_threshold, motion_threshold=motion_threshold
    )
    checks.number_between(op, 0, 1, joint_fraction=joint_fraction, mask_ratio=mask_ratio)
    if lengths is not None:
        checks.dtype(op, torch.int64, lengths=lengths)
        checks.lengths(op, sizes["T"], lengths)
    constants = interval, confidence_threshold, motion_threshold, joint_fraction, mask_ratio, norm
    return MotionMask(
        *torch.ops.slrfast.motion_mask(x.detach(), confidence.detach(), lengths, random_keys.detach(), *constants)
    )
