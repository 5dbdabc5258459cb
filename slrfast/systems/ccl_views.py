"""The views that CCL-SLR trains on: one temporal crop for pictures and poses, and the changes drawn for either."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slrfast import graphs
from slrfast.ops import AugmentTensors

LAYOUT = graphs.layout(75)
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class View(NamedTuple):
    """One view of a batch.

    ``xy`` is [B, T, 75, 2], ``confidence`` [B, T, 75], ``visible`` [B, T, 5] tells whether the detector saw a joint of
    the part, and ``rgb`` [B, 3, T, S, S] are pictures of the same moments in [0, 1], None without pictures.
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
        zero = torch.zeros(size, device=device, dtype=dtype)
        one = torch.ones_like(zero)
        return cls(torch.stack((one, zero, zero), 1), no, no, torch.stack((one, one, one, zero), 1))

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
        strengths = (*jitter[:3], 2 * math.pi * jitter[3])
        changes = (2 * numbers[:, 3:7] - 1) * (numbers[:, 7:8] < chances[0])
        drawn = [float(j < 3) + strengths[j] * change for j, change in enumerate(changes.unbind(1))]
        own = flip if chances[2] is None else numbers[:, 9] < chances[2]
        return cls(box, own, numbers[:, 8] < chances[1], torch.stack(drawn, 1))


def mirrored(plan: AugmentTensors, flip: Tensor, mirror: Tensor, own_box: Tensor) -> AugmentTensors:
    """The plan in which the clips that it swaps are mirrored as a picture is: x becomes 1 - x, left becomes right.

    A hand is a fraction of its own box, and the left one is stored mirrored: swapping the hands mirrors them.

    Args:
        plan: of 75 joints, drawn with the swap for the flip.
        flip: [75] int64, the right-left permutation.
        mirror: [P, 2], -1 for the coordinates of a part that are mirrored about the middle, else 1.
        own_box: bool [75], the joints of the hands.
    """
    flipped = plan.swap[:, None]
    linear = torch.where(flipped[..., None, None], mirror.to(plan.linear)[..., None] * plan.linear, plan.linear)
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
    """The pictures at ``index``: cropped, resized, flipped, jittered, masked.

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
        [B, 3, T, S, S] in [0, 1], in the dtype of the changes.
    """
    with torch.autocast(rgb.device.type, enabled=False):
        return _pictures(rgb, mask, index, changes, size)


def _pictures(rgb: Tensor, mask: Tensor | None, index: Tensor, changes: PictureChanges, size: int) -> Tensor:
    dtype, clip = changes.box.dtype, torch.arange(len(rgb), device=rgb.device)[:, None]
    grid = _grid(changes, size)
    x = rgb[clip, :, index].to(dtype).flatten(1, 2)  # [B, T 3, H, W]
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False) / 255
    x = x.unflatten(1, (-1, 3)).transpose(1, 2)
    matrix, offset = _colours(changes.jitter, x.mean((2, 3, 4)))
    x = torch.baddbmm(offset[..., None], matrix, x.flatten(2)).view(x.shape).clamp(0, 1)
    if mask is not None:
        moving = F.grid_sample(mask[clip, index].to(dtype), grid, padding_mode="border", align_corners=False) > 0.5
        kept = moving | ~(changes.mask & moving.flatten(1).any(1))[:, None, None, None]
        x = x * kept[:, None]
    return x


def _grid(changes: PictureChanges, size: int) -> Tensor:
    """Where every pixel of the view is read, [B, S, S, 2] in [-1, 1]."""
    box = changes.box
    line = (2 * torch.arange(size, device=box.device, dtype=box.dtype) + 1) / size - 1
    x = torch.where(changes.flip[:, None], -line, line) * box[:, :1] + box[:, 1:2]
    y = line * box[:, :1] + box[:, 2:3]
    return torch.stack((x[:, None].expand(-1, size, -1), y[..., None].expand(-1, -1, size)), -1)


def _colours(jitter: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix [B, 3, 3] and offset [B, 3] that change the colours of clips with these mean colours [B, 3]."""
    grey, unit, axis, cos, sin = _constants(jitter.device, jitter.dtype)
    brightness, contrast, saturation, hue = jitter[:, :, None, None].unbind(1)
    turn = axis + hue.cos() * cos + hue.sin() * sin
    matrix = brightness * turn @ (saturation * unit + (1 - saturation) * grey)
    middle = (grey @ matrix @ mean[..., None]).squeeze(-1)  # three times the same
    return contrast * matrix, (1 - contrast[..., 0]) * middle


def _constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Made once for every device; a constant under ``torch.compile``."""
    return _cached(device, dtype)


_constants._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=16)
def _cached(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Colours to grey, the unit matrix, and a turn of the hue as axis + cos C + sin S, each [3, 3]."""
    yiq, grey = np.array(_YIQ), np.tile(_YIQ[0], (3, 1))
    turns = np.zeros((3, 3, 3))
    turns[0, 0, 0] = turns[1, 1, 1] = turns[1, 2, 2] = turns[2, 2, 1] = 1
    turns[2, 1, 2] = -1
    matrices = (grey, np.eye(3), *(np.linalg.inv(yiq) @ turn @ yiq for turn in turns))
    with torch.inference_mode(False):
        return tuple(torch.tensor(matrix, device=device, dtype=dtype) for matrix in matrices)
