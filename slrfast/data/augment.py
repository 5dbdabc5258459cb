"""Random spatial augmentation: ranges here, the arithmetic in ``ops.augment``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slrfast import checks, graphs
from slrfast.ops import AugmentTensors

_LAYOUT = graphs.layout(49)
_V, _P = len(_LAYOUT.names), len(_LAYOUT.parts)
_HAND = 21


@dataclass(frozen=True)
class AugmentPlan:
    """What one view of a clip is changed by. One draw per clip, the same for both hands and the trunk.

    The linear map is y = (x - center) M^T + center with M = rotation times scale times [[1, a], [b, 1]], in the
    coordinates of each part's own box. The papers do not state ranges; :meth:`paper` is ours, :meth:`legacy` is the
    authors' published code.

    Attributes:
        rotation: degrees, uniform.
        scale: factor, uniform.
        shear: a and b, uniform and independent.
        center: the fixed point, (0.5, 0.5) for the middle of the box.
        joint_probability: how often joints are corrupted.
        joint_fraction: share of the 49 joints, exactly round(49 * joint_fraction) of them, for the whole clip.
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
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> AugmentTensors:
        """Draw one change per clip, on the device.

        Args:
            batch_size: B.
            generator: source of randomness, on the same device; None takes torch's default.
            device: where the tensors live.
            dtype: of ``linear`` and ``center``.
        Returns:
            AugmentTensors for the 49-joint layout, with P = 3 parts: right hand, left hand, trunk.
        """
        checks.integer_between("AugmentPlan.draw", 0, 1 << 24, batch_size=batch_size)

        def uniform(low_high: tuple[float, float], *shape: int) -> Tensor:
            low, high = low_high
            return low + (high - low) * torch.rand(batch_size, *shape, generator=generator, device=device, dtype=dtype)

        def chance(probability: float) -> Tensor:
            return torch.rand(batch_size, generator=generator, device=device) < probability

        angle, scale, shear = uniform(self.rotation) * (math.pi / 180), uniform(self.scale), uniform(self.shear, 2)
        corrupted, multiplied, swap = map(
            chance, (self.joint_probability, self.matrix_probability, self.swap_probability)
        )
        matrix = uniform(self.matrix, 2, 2)
        order = torch.rand(batch_size, _V, generator=generator, device=device).argsort(1)
        joint = torch.zeros(batch_size, _V, dtype=torch.bool, device=device)
        joint.scatter_(1, order[:, : round(_V * self.joint_fraction)], True)

        cos, sin, one = torch.cos(angle), torch.sin(angle), torch.ones_like(angle)
        rotation = torch.stack((cos, -sin, sin, cos), -1).unflatten(-1, (2, 2))
        sheared = torch.stack((one, shear[:, 0], shear[:, 1], one), -1).unflatten(-1, (2, 2))
        linear = scale[:, None, None] * (rotation @ sheared)
        multiplied = corrupted & multiplied
        linear = torch.where(multiplied[:, None, None], matrix, linear)
        whole = ~corrupted if self.exclusive else torch.ones_like(corrupted)
        center = torch.stack([torch.full((batch_size, _P), at, dtype=dtype, device=device) for at in self.center], -1)

        rows = torch.arange(_V, device=device)
        other = torch.where(rows < _HAND, rows + _HAND, rows - _HAND)
        return AugmentTensors(
            linear=linear[:, None].expand(batch_size, _P, 2, 2),
            center=center,
            part=(rows >= _HAND).long() + (rows >= 2 * _HAND).long(),
            affected=torch.where(multiplied[:, None], joint, whole[:, None]),
            drop=joint & (corrupted & ~multiplied)[:, None],
            swap=swap,
            swap_index=torch.where(rows < 2 * _HAND, other, rows),
        )
