"""What augmentation does to clips, as tensors, and their check."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slrfast import checks


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

    >>> from slrfast.data import AugmentPlan
    >>> tensors = AugmentPlan.paper().draw(4)
    >>> tensors.linear.shape, tensors.drop.shape
    (torch.Size([4, 3, 2, 2]), torch.Size([4, 49]))
    """

    linear: Tensor
    center: Tensor
    part: Tensor
    affected: Tensor
    drop: Tensor
    swap: Tensor
    swap_index: Tensor


def check(op: str, plan: AugmentTensors, **clips: tuple[Tensor, str]) -> None:
    """A plan against the clips it changes, which are given with their shapes: B clips or windows, V joints."""
    if not isinstance(plan, AugmentTensors):
        raise TypeError(checks.message(op, "plan", "be an AugmentTensors", type(plan).__name__))
    sizes = checks.shapes(
        op,
        **clips,
        linear=(plan.linear, "B P 2 2"),
        center=(plan.center, "B P 2"),
        part=(plan.part, "V"),
        affected=(plan.affected, "B V"),
        drop=(plan.drop, "B V"),
        swap=(plan.swap, "B"),
        swap_index=(plan.swap_index, "V"),
    )
    checks.floating(op, linear=plan.linear, center=plan.center)
    checks.dtype(op, torch.int64, part=plan.part, swap_index=plan.swap_index)
    checks.dtype(op, torch.bool, affected=plan.affected, drop=plan.drop, swap=plan.swap)
    checks.same_device(op, **{name: tensor for name, (tensor, _) in clips.items()}, **plan._asdict())
    if checks.may_read(plan.part):
        for name, index, count in (("part", plan.part, sizes["P"]), ("swap_index", plan.swap_index, sizes["V"])):
            numbers = index.cpu().numpy()
            inside = not numbers.size or (numbers.min() >= 0 and numbers.max() < count)
            checks.require(inside, op, name, f"be in [0, {count - 1}]", numbers.tolist() if not inside else "")
