"""MASA's step as one writes it without packing: every frame of padded clips goes through every layer, with masks."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import ops
from slrfast.nn import sinusoidal_positions
from slrfast.systems import MASA
from slrfast.systems.masa import BOX, MASAEncoder
from slrfast.systems.padded_clips import PaddedClips


def encoded(encoder: MASAEncoder, clips: PaddedClips, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's frames [B, T, 3 dim], in which no frame attends to a hidden one, and the embedding [B, D]."""
    seen = clips.packing.present & ~hidden
    frames = encoder.transformer(torch.cat(encoder.embed_parts(clips.xy), -1) + positions, keys=seen)
    pooled = (frames * seen.unsqueeze(-1)).sum(1) / seen.sum(1, keepdim=True)
    return frames, encoder.head(pooled)


def padded_step(system: MASA, clips: PaddedClips, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """The losses of ``system.training_step``; keys as it draws them. The bank is left alone."""
    network, config = system.autoencoder, system.config
    positions = sinusoidal_positions(clips.xy.shape[1], 3 * config.dim, device=clips.xy.device, dtype=clips.xy.dtype)
    target = ops.motion_mask(
        BOX * clips.xy, clips.confidence, clips.lengths, first[0],
        interval=config.interval, confidence_threshold=config.confidence_threshold,
        motion_threshold=config.motion_threshold, joint_fraction=config.joint_fraction, mask_ratio=config.mask_ratio,
    )  # fmt: skip
    with torch.no_grad():
        _, key = encoded(system.key.encoder, clips, clips.hide(config.view_ratio, second[0]), positions)
    frames, query = encoded(network.encoder, clips, target.mask, positions)
    tokens = torch.where(target.mask.unsqueeze(-1), network.token.to(frames.dtype), frames) + positions
    predicted = network.motion(network.decoder(tokens, keys=clips.packing.present)).unflatten(-1, (49, 2))
    motion = ops.masked_motion_loss(
        predicted, target.residual, target.weight, target.mask, kind=config.loss, scale=config.target_scale
    )
    contrast = system.contrast(query, key)
    return {"loss": motion + system.semantic_weight(system.epoch) * contrast, "motion": motion, "contrast": contrast}
