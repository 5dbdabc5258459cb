"""Which frames of a clip fine-tuning sees, and how they are changed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from slrfast import checks, ops
from slrfast.data import AugmentPlan, PoseBatch
from slrfast.nn import Packing


def cut(batch: PoseBatch, start: Tensor, length: Tensor) -> PoseBatch:
    """The frames ``start`` to ``start + length`` of every clip, both int64 [B]; pictures likewise.

    Of pictures, which are spread over a clip, there are as many as before, the nearest to where they should be.
    """
    offsets = torch.cat((length.new_zeros(1), length.cumsum(0)))
    packing = Packing.of(offsets)
    rows = (batch.offsets[:-1] + start)[packing.clip] + packing.number
    changes: dict[str, Tensor] = {"offsets": offsets}
    changes |= {name: getattr(batch, name).index_select(0, rows) for name in ("xy", "confidence")}
    if batch.rgb is not None:
        shown = batch.rgb.shape[2]
        middle = (torch.arange(shown, device=rows.device) + 0.5) / shown
        moment = start[:, None] + length[:, None] * middle
        index = (moment * shown / batch.lengths[:, None]).long().clamp_(max=shown - 1)
        clip = torch.arange(batch.size, device=rows.device)[:, None]
        changes["rgb"] = batch.rgb.transpose(1, 2)[clip, index].transpose(1, 2)
        if batch.rgb_mask is not None:
            changes["rgb_mask"] = batch.rgb_mask[clip, index]
    return replace(batch, **changes)


def window(batch: PoseBatch, frames: int | None, least: float, generator: torch.Generator | None = None) -> PoseBatch:
    """A random window of every clip: ``frames`` frames, or without that a share U[least, 1] of them.

    Args:
        frames: of clips that have more.
        least: in (0, 1]; 1 keeps whole clips.
        generator: on the batch's device.
    """
    lengths = batch.lengths
    share, place = torch.rand(2, batch.size, generator=generator, device=lengths.device)
    keep = lengths.clamp(max=frames) if frames else ((least + (1 - least) * share) * lengths).long().clamp_(min=1)
    return cut(batch, (place * (lengths - keep + 1)).long(), keep)


def centre(batch: PoseBatch, frames: int | None) -> PoseBatch:
    """The middle ``frames`` frames of every clip that has more; without that the batch itself."""
    if frames is None or not bool((batch.lengths > frames).any()):
        return batch
    lengths = batch.lengths
    keep = lengths.clamp(max=frames)
    return cut(batch, (lengths - keep) // 2, keep)


def augmented(batch: PoseBatch, plan: AugmentPlan, generator: torch.Generator | None = None) -> PoseBatch:
    """Every clip changed by one draw of the plan, pictures left as they are."""
    if plan == AugmentPlan.none():
        return batch
    checks.require(batch.size > 0, "augmented", "batch", "have at least one clip", batch.size)
    packing = Packing.of(batch.offsets)
    device, dtype = batch.xy.device, batch.xy.dtype
    drawn = plan.draw(batch.size, keypoints=batch.num_keypoints, generator=generator, device=device, dtype=dtype)
    xy, confidence = ops.augment(packing.pad(batch.xy), packing.pad(batch.confidence), drawn)
    return replace(batch, xy=packing.unpad(xy), confidence=packing.unpad(confidence))
