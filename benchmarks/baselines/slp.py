"""SLP's step without packing: clips padded to the longest through every layer, texts too, with masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from slrfast import ops
from slrfast.nn import Packing, sinusoidal_positions
from slrfast.systems.slp import SLP
from slrfast.systems.slp_masks import hierarchical_mask


def encoded(system: SLP, xy: Tensor, present: Tensor) -> Tensor:
    """F [B, T, D] of padded poses [B, T, 79, 2], in which no frame attends to padding."""
    features = []
    for vectors, branch in zip(system.encoder.embed(xy), system.encoder.branches.values(), strict=True):
        places = sinusoidal_positions(xy.shape[1], vectors.shape[2], device=xy.device, dtype=xy.dtype)
        features.append(branch.map(branch.transformer(vectors + places, keys=present)))
    return torch.cat(features, -1)


def windows(features: Tensor, present: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Averages [B, ceil(T / size), D] over the real frames of every window, and which windows have any."""
    rest = -features.shape[1] % size
    real = F.pad(present, (0, rest)).unflatten(1, (-1, size))
    frames = F.pad(features * present.unsqueeze(-1), (0, 0, 0, rest)).unflatten(1, (-1, size))
    return frames.sum(2) / real.sum(2).clamp(min=1).unsqueeze(-1), real.any(2)


def padded_step(
    system: SLP, xy: Tensor, confidence: Tensor, packing: Packing, words: Tensor, word_lengths: Tensor, keys: Tensor
) -> dict[str, Tensor]:
    """The losses of ``system.training_step`` in the paper's setting, of padded clips and words that all have a text."""
    config, present = system.config, packing.present
    mask = hierarchical_mask(
        packing.offsets.diff(), keys, ratio=config.mask_ratio, levels=config.mask_levels, span=config.mask_span
    )
    features = encoded(system, xy.masked_fill(mask.unsqueeze(-1), 0.0), present)
    predicted = system.decoder(features).unflatten(-1, (-1, 2))
    reconstruction = ops.masked_pose_loss(predicted, xy, mask, confidence)
    pooled, windows_present = windows(features, present, config.window)
    sign = F.normalize(system.sign_projection(pooled), dim=-1)
    text = F.normalize(system.text_projection(words), dim=-1)
    words_present = torch.arange(words.shape[1], device=words.device) < word_lengths[:, None]
    similarity = ops.sign_text_similarity(
        sign, text, windows_present, words_present, row_temperature=config.row_temperature
    )
    logits = system.log_scale.exp() * similarity
    target = torch.arange(len(logits), device=logits.device)
    contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2
    loss = reconstruction + config.contrast_weight * contrast
    return {"loss": loss, "reconstruction": reconstruction, "contrast": contrast}
