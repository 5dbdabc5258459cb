"""Spatial augmentation of clips: linear maps per body part, joint dropping and hand swapping."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slrfast import checks
from slrfast.ops import _dispatch
from slrfast.reference import augment as reference

_dispatch.register("augment", cpu=("reference",), cuda=("reference",))
_FORWARD = {"reference": reference.augment}


class AugmentTensors(NamedTuple):
    """What one augmentation does to a batch of B clips with V joints in P parts; all on the clips' device.

    Attributes:
        linear: [B, P, 2, 2] float, the matrix M of each clip and part.
        center: [B, P, 2] float, the point that M leaves in place, in the unit of the coordinates.
        part: [V] int64 in [0, P), the part of each joint.
        affected: [B, V] bool, the joints that M applies to.
        drop: [B, V] bool, the joints that become missing: at (0, 0) with confidence 0 in every frame.
        swap: [B] bool, the clips whose joints are permuted.
        swap_index: [V] int64, the permutation: joint v of a swapped clip is joint ``swap_index[v]`` before.
    """

    linear: Tensor
    center: Tensor
    part: Tensor
    affected: Tensor
    drop: Tensor
    swap: Tensor
    swap_index: Tensor


def augment(x: Tensor, confidence: Tensor, plan: AugmentTensors) -> tuple[Tensor, Tensor]:
    """Transform, drop and swap the joints of every clip as a plan says.

    For an affected joint that is visible (confidence > 0) y = M (x - c) + c, with the M and c of its part; a missing
    joint stays where it is. Then dropped joints go to (0, 0) with confidence 0, then swapped clips are read through
    the permutation, confidence alike. STC's spatial augmentations (rotation, scale, shear, joint mask, flip).

    Args:
        x: [B, T, V, 2] coordinates in any unit, any strides; float64, float32, bfloat16 or float16. Gradient flows.
        confidence: [B, T, V] floating, > 0 where a joint was seen.
        plan: drawn by ``data.AugmentPlan`` or made by hand.
    Returns:
        Both tensors after augmentation, new, in their own dtypes.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit; on CPU, and on CUDA under
            SLRFAST_DEBUG=1, but not inside torch.compile: ``part`` or ``swap_index`` out of range.
    Numerics:
        Accumulates in float32 (float64 if an input is) and rounds once to the dtype of ``x``; deterministic.

    >>> quarter_turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> no, zero = torch.tensor([[False]]), torch.tensor([0])
    >>> plan = AugmentTensors(quarter_turn[None, None], torch.zeros(1, 1, 2), zero, ~no, no, no[0], zero)
    >>> augment(torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2), torch.ones(1, 1, 1), plan)
    (tensor([[[[0., 1.]]]]), tensor([[[1.]]]))
    """
    op = "augment"
    if not isinstance(plan, AugmentTensors):
        raise TypeError(checks.message(op, "plan", "be an AugmentTensors", type(plan).__name__))
    sizes = checks.shapes(
        op,
        x=(x, "B T V 2"),
        confidence=(confidence, "B T V"),
        linear=(plan.linear, "B P 2 2"),
        center=(plan.center, "B P 2"),
        part=(plan.part, "V"),
        affected=(plan.affected, "B V"),
        drop=(plan.drop, "B V"),
        swap=(plan.swap, "B"),
        swap_index=(plan.swap_index, "V"),
    )
    checks.floating(op, x=x, confidence=confidence, linear=plan.linear, center=plan.center)
    checks.dtype(op, torch.int64, part=plan.part, swap_index=plan.swap_index)
    checks.dtype(op, torch.bool, affected=plan.affected, drop=plan.drop, swap=plan.swap)
    checks.same_device(op, x=x, confidence=confidence, **plan._asdict())
    if checks.may_read(plan.part):
        for name, index, count in (("part", plan.part, sizes["P"]), ("swap_index", plan.swap_index, sizes["V"])):
            inside = bool(((index >= 0) & (index < count)).all())
            checks.require(inside, op, name, f"be in [0, {count - 1}]", index.tolist())
    return _FORWARD[_dispatch.choose(op, x.device.type)](x, confidence, *plan)
