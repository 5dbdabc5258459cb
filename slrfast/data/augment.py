"""Random spatial augmentation: ranges here, the arithmetic in ``ops.augment``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slrfast import checks, graphs
from slrfast.ops import AugmentTensors


@dataclass(frozen=True)
class AugmentPlan:
    """What one view of a clip is changed by. One draw per clip and view, the same for both hands and the trunk.

    The linear map is y = (x - center) M^T + center with M = rotation times scale times [[1, a], [b, 1]], in the
    coordinates of each part's own box. The papers do not state ranges; :meth:`paper` is ours, :meth:`legacy` is the
    authors' published code.

    Attributes:
        rotation: degrees, uniform.
        scale: factor, uniform.
        shear: a and b, uniform and independent.
        center: the fixed point, (0.5, 0.5) for the middle of the box.
        joint_probability: how often joints are corrupted.
        joint_fraction: share of the V joints, exactly round(V * joint_fraction) of them, for the whole clip.
        matrix_probability: how often the chosen joints are multiplied by a random matrix instead of dropped.
        matrix: range of that matrix's four entries.
        exclusive: a clip gets either corrupted joints or the linear map, never both.
        swap_probability: how often the two hands are swapped; the trunk stays.

    >>> AugmentPlan.paper().draw(4, generator=torch.Generator().manual_seed(0)).linear.shape
    torch.Size([4, 3, 2, 2])
    """

    rotation: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: tuple[float, float] = (0.0, 0.0)
    center: tuple[float, float] = (0.5, 0.5)
    joint_probability: float = 0.0
    joint_fraction: float = 0.0
    matrix_probability: float = 0.0
    matrix: tuple[float, float] = (-1.0, 1.0)
    exclusive: bool = False
    swap_probability: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rotation", "scale", "shear", "matrix"):
            low, high = getattr(self, name)
            finite = math.isfinite(low) and math.isfinite(high)
            checks.require(
                finite and low <= high, "AugmentPlan", name, "be (low, high), finite, low <= high", (low, high)
            )
        for name in ("joint_probability", "joint_fraction", "matrix_probability", "swap_probability"):
            value = getattr(self, name)
            checks.require(0 <= value <= 1, "AugmentPlan", name, "be in [0, 1]", value)
        apart = self.exclusive or self.matrix_probability == 0
        checks.require(apart, "AugmentPlan", "exclusive", "be True when matrix_probability > 0", self.exclusive)

    @classmethod
    def paper(
        cls,
        rotation: float = 15.0,
        scale: tuple[float, float] = (0.8, 1.2),
        joint_probability: float = 0.5,
        joint_fraction: float = 0.2,
        swap_probability: float = 0.5,
    ) -> AugmentPlan:
        """STC's list: rotation to either side, scale, joints dropped, hands swapped; the ranges are ours."""
        return cls(
            (-rotation, rotation),
            scale,
            joint_probability=joint_probability,
            joint_fraction=joint_fraction,
            swap_probability=swap_probability,
        )

    @classmethod
    def legacy(cls) -> AugmentPlan:
        """The STC authors' code: 25 joints dropped or multiplied by a random matrix, or all sheared, about (0, 0)."""
        return cls(
            shear=(-1.0, 1.0),
            center=(0.0, 0.0),
            joint_probability=0.5,
            joint_fraction=25 / 49,
            matrix_probability=0.5,
            exclusive=True,
            swap_probability=0.5,
        )

    @classmethod
    def hand_swap(cls) -> AugmentPlan:
        """Only the hands swapped half the time, as in the authors' fine-tuning."""
        return cls(swap_probability=0.5)

    @classmethod
    def none(cls) -> AugmentPlan:
        """Nothing changes."""
        return cls()

    def draw(
        self,
        batch_size: int,
        *,
        keypoints: int = 49,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> AugmentTensors:
        """Draw one change per clip, on the device. Several views of a batch are one draw of views times clips.

        One call of the random number generator gives everything; a plan that changes nothing makes none.

        Args:
            batch_size: B.
            keypoints: V, which names the layout: its hands are swapped, its parts have their own boxes.
            generator: source of randomness, on the same device; None takes torch's default.
            device: where the tensors live.
            dtype: of ``linear`` and ``center``.
        Returns:
            AugmentTensors for that layout; of the 49 joints P = 3 parts: right hand, left hand, trunk.
        """
        checks.integer_between("AugmentPlan.draw", 0, 1 << 24, batch_size=batch_size)
        fixed = _fixed(self, keypoints, torch.device(device), dtype)
        affected = drop = fixed.never.expand(batch_size, keypoints)
        linear, swap = fixed.unit.expand(batch_size, 2, 2), drop[:, 0]
        corrupts, maps = fixed.corrupted > 0, self._maps
        if corrupts or maps or self.swap_probability > 0:
            columns = 11 + keypoints * corrupts
            numbers = torch.rand(batch_size, columns, generator=generator, device=device, dtype=dtype)
            ranges = torch.addcmul(fixed.low, numbers[:, :8], fixed.span)
            corrupted, multiplied, swap = (numbers[:, 8:11] < fixed.chances).split(1, 1)
            swap = swap[:, 0]
            if maps:
                linear, affected = self._map(*ranges[:, :4].unbind(1)), drop.logical_not()
            if corrupts:
                keys = numbers[:, 11:].topk(fixed.corrupted, 1, largest=False, sorted=False).indices
                joint = torch.zeros_like(drop, memory_format=torch.contiguous_format)
                drop = joint = joint.scatter_(1, keys, corrupted.expand_as(keys))
                affected = affected & ~corrupted if self.exclusive else affected
                if self.matrix_probability > 0:
                    multiplied = multiplied & corrupted
                    linear = torch.where(multiplied[..., None], ranges[:, 4:].unflatten(1, (2, 2)), linear)
                    affected, drop = torch.where(multiplied, joint, affected), joint & ~multiplied
        return AugmentTensors(
            linear=linear[:, None].expand(-1, len(fixed.center), 2, 2),
            center=fixed.center.expand(batch_size, -1, 2),
            part=fixed.part,
            affected=affected,
            drop=drop,
            swap=swap,
            swap_index=fixed.swap_index,
        )

    @property
    def _maps(self) -> bool:
        """Whether the linear map can be another than the unit matrix."""
        return (self.rotation, self.scale, self.shear) != ((0.0, 0.0), (1.0, 1.0), (0.0, 0.0))

    def _map(self, angle: Tensor, scale: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """scale R(angle) [[1, a], [b, 1]], [B, 2, 2]; the angle in radians."""
        cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
        rows = (cos, -sin, sin, cos)
        if self.shear != (0.0, 0.0):
            rows = (cos - sin * b, cos * a - sin, sin + cos * b, sin * a + cos)
        return torch.stack(rows, 1).unflatten(1, (2, 2))


class _Fixed(NamedTuple):
    """What every draw of a plan has in common, on a device."""

    part: Tensor
    swap_index: Tensor
    center: Tensor  # [P, 2]
    never: Tensor  # False, [1, 1]
    unit: Tensor  # [2, 2]
    low: Tensor  # [8] of angle, scale, both shears, and the entries of the random matrix
    span: Tensor
    chances: Tensor  # [3] of corrupted joints, of the random matrix, of the swap
    corrupted: int


def _fixed(plan: AugmentPlan, keypoints: int, device: torch.device, dtype: torch.dtype) -> _Fixed:
    """Made once for every plan and device; a constant under ``torch.compile``."""
    return _cached(plan, keypoints, device, dtype)


_fixed._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=64)
def _cached(plan: AugmentPlan, keypoints: int, device: torch.device, dtype: torch.dtype) -> _Fixed:
    parts = graphs.layout(keypoints).parts
    parts_of, swaps = np.zeros(keypoints, np.int64), np.arange(keypoints)
    for p, rows in enumerate(parts.values()):
        parts_of[rows] = p
    right, left = parts["right_hand"], parts["left_hand"]
    swaps[right], swaps[left] = swaps[left].copy(), swaps[right].copy()
    radians = tuple(math.radians(angle) for angle in plan.rotation)
    ranges = np.array([radians, plan.scale, plan.shear, plan.shear, *[plan.matrix] * 4])
    probabilities = plan.joint_probability, plan.matrix_probability, plan.swap_probability
    with torch.inference_mode(False):
        low, span, chances, center, unit = (
            torch.tensor(np.asarray(numbers), dtype=dtype, device=device)
            for numbers in (
                ranges[:, 0], ranges[:, 1] - ranges[:, 0], probabilities, [plan.center] * len(parts), np.eye(2)
            )
        )  # fmt: skip
        part, swap_index = (torch.from_numpy(index).to(device) for index in (parts_of, swaps))
        never = torch.zeros(1, 1, dtype=torch.bool, device=device)
    corrupted = round(keypoints * plan.joint_fraction) if plan.joint_probability > 0 else 0
    return _Fixed(part, swap_index, center, never, unit, low, span, chances, corrupted)
