"""The views that CCL-SLR trains on: one temporal crop for pictures and poses, and the changes drawn for either."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slrfast import graphs
from slrfast.ops import AugmentTensors

LAYOUT = graphs.layout(75)
_GREY = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_MEAN, _STD = (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)  # Kinetics, as the published 3D ResNets are trained on


class View(NamedTuple):
    """One view of a batch.

    ``xy`` is [B, T, 75, 2], ``confidence`` [B, T, 75], ``visible`` [B, T, 5] tells whether the detector saw a joint of
    the part, and ``rgb`` [B, 3, T, S, S] are normalised pictures of the same moments, None without pictures.
    """

    xy: Tensor
    confidence: Tensor
    visible: Tensor
    rgb: Tensor | None


class PictureChanges(NamedTuple):
    """What one view does to the pictures of N clips.

    Attributes:
        box: [N, 3], the share of either side that is kept, and its middle in [-1, 1] along x and y.
        flip: bool [N], mirror them.
        mask: bool [N], keep only what moves.
        jitter: [N, 4], factors of brightness, contrast and saturation, and the turn of the hue in radians.
    """

    box: Tensor
    flip: Tensor
    mask: Tensor
    jitter: Tensor

    @classmethod
    def none(cls, size: int, device: torch.device, dtype: torch.dtype) -> PictureChanges:
        """Whole pictures as they are."""
        no = torch.zeros(size, dtype=torch.bool, device=device)
        box, jitter = (torch.tensor(row, device=device, dtype=dtype).expand(size, -1) for row in (_WHOLE, _AS_IS))
        return cls(box, no, no, jitter)

    @classmethod
    def draw(
        cls,
        flip: Tensor,
        crop: tuple[float, float],
        jitter: tuple[float, ...],
        chances: tuple[float, float, float | None],
        generator: torch.Generator | None,
        dtype: torch.dtype,
    ) -> PictureChanges:
        """One change per clip, from one call of the random number generator.

        Args:
            flip: bool [N], who is mirrored, unless the third chance is given.
            crop: range of the share of either side.
            jitter: strengths of brightness, contrast, saturation and hue (of which 1 is a full turn).
            chances: of the colour jitter, of the mask, and of an own flip or None.
            generator: on the device of ``flip``.
            dtype: of what is drawn.
        """
        numbers = torch.rand(len(flip), 10, generator=generator, device=flip.device, dtype=dtype)
        share = crop[0] + (crop[1] - crop[0]) * numbers[:, :1]
        box = torch.cat((share, (2 * numbers[:, 1:3] - 1) * (1 - share)), 1)
        strength = torch.tensor((*jitter[:3], 2 * math.pi * jitter[3]), device=flip.device, dtype=dtype)
        as_is = torch.tensor(_AS_IS, device=flip.device, dtype=dtype)
        drawn = as_is + strength * (2 * numbers[:, 3:7] - 1)
        changed = torch.where(numbers[:, 7:8] < chances[0], drawn, as_is)
        return cls(box, flip if chances[2] is None else numbers[:, 9] < chances[2], numbers[:, 8] < chances[1], changed)


_WHOLE, _AS_IS = (1.0, 0.0, 0.0), (1.0, 1.0, 1.0, 0.0)


def mirrored(plan: AugmentTensors, flip: Tensor, mirror: Tensor, own_box: Tensor) -> AugmentTensors:
    """The plan in which the clips that it swaps are mirrored as a picture is: x becomes 1 - x, left becomes right.

    A hand is a fraction of its own box, and the left one is stored mirrored: swapping the hands mirrors them.

    Args:
        plan: of 75 joints, drawn with the swap for the flip.
        flip: [75] int64, the right-left permutation.
        mirror: [P, 2, 2], what mirrors the coordinates of every part about the middle.
        own_box: bool [75], the joints of the hands.
    """
    flipped = plan.swap[:, None]
    linear = torch.where(flipped[..., None, None], mirror.to(plan.linear) @ plan.linear, plan.linear)
    return plan._replace(linear=linear, affected=plan.affected | (flipped & ~own_box), swap_index=flip)


def moments(lengths: Tensor, start: Tensor, length: Tensor, frames: int, pictures: int) -> Tensor:
    """The picture at the moment of every frame of a view, int64 [..., B, T].

    Frame i of a window is at start + (i + 1/2) length / T of the clip's F frames; picture r of R shows the moments from
    r F / R to (r + 1) F / R.
    """
    i = torch.arange(frames, device=start.device)
    place = 2 * frames * start[..., None] + (2 * i + 1) * length[..., None]  # in units of half a frame over T
    return place * pictures // (2 * frames * lengths[:, None])


def pictures(rgb: Tensor, mask: Tensor | None, index: Tensor, changes: PictureChanges, size: int) -> Tensor:
    """The pictures at ``index``: cropped, resized, flipped, jittered, masked, normalised.

    One change holds for all frames of a clip. Colours change by one affine map per clip (hue as a turn in YIQ, contrast
    about the grey mean of the clip), cut to [0, 1] at the end; then what does not move becomes black, unless nothing
    moves in the whole view.

    Args:
        rgb: uint8 [B, 3, R, H, W].
        mask: bool [B, R, H, W], where something moves, or None.
        index: int64 [B, T] in [0, R).
        changes: for B clips.
        size: S.
    Returns:
        [B, 3, T, S, S] in the dtype of the changes.
    """
    dtype, clip = changes.box.dtype, torch.arange(len(rgb), device=rgb.device)[:, None]
    grid = _grid(changes, size)
    x = rgb[clip, :, index].to(dtype).flatten(1, 2) / 255  # [B, T 3, H, W]
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False).unflatten(1, (-1, 3)).transpose(1, 2)
    matrix, offset = _colours(changes.jitter, x.mean((2, 3, 4)))
    x = torch.baddbmm(offset[..., None], matrix, x.flatten(2)).view(x.shape).clamp(0, 1)
    if mask is not None:
        moving = F.grid_sample(mask[clip, index].to(dtype), grid, padding_mode="border", align_corners=False) > 0.5
        kept = moving | ~(changes.mask & moving.flatten(1).any(1))[:, None, None, None]
        x = x * kept[:, None]
    mean, std = (torch.tensor(numbers, device=x.device, dtype=dtype).view(3, 1, 1, 1) for numbers in (_MEAN, _STD))
    return (x - mean) / std


def _grid(changes: PictureChanges, size: int) -> Tensor:
    """Where every pixel of the view is read, [B, S, S, 2] in [-1, 1]."""
    box = changes.box
    line = (2 * torch.arange(size, device=box.device, dtype=box.dtype) + 1) / size - 1
    x = torch.where(changes.flip[:, None], -line, line) * box[:, :1] + box[:, 1:2]
    y = line * box[:, :1] + box[:, 2:3]
    return torch.stack((x[:, None].expand(-1, size, -1), y[..., None].expand(-1, -1, size)), -1)


def _colours(jitter: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix [B, 3, 3] and offset [B, 3] that change the colours of clips with these mean colours [B, 3]."""
    brightness, contrast, saturation, hue = jitter[:, :, None, None].unbind(1)
    grey = jitter.new_tensor(_GREY)
    yiq = jitter.new_tensor(_YIQ)
    unit, zero = torch.ones_like(hue), torch.zeros_like(hue)
    turn = torch.cat((hue.cos(), -hue.sin(), hue.sin(), hue.cos()), 1).view(-1, 2, 2)
    turn = torch.cat((torch.cat((unit, zero, zero), 2), torch.cat((zero.expand(-1, 2, 1), turn), 2)), 1)
    turn = torch.linalg.inv(yiq) @ turn @ yiq
    matrix = brightness * turn @ (saturation * torch.eye(3).to(jitter) + (1 - saturation) * grey.expand(3, 3))
    middle = (matrix @ mean[..., None] * grey[:, None]).sum(1)
    return contrast * matrix, (1 - contrast[..., 0]) * middle.expand(-1, 3)
