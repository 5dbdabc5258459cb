"""MASA: motion-aware masked autoencoder with semantic alignment for sign language recognition.

Zhao et al., "MASA: Motion-aware Masked Autoencoder with Semantic Alignment for Sign Language Recognition". Frames with
much motion are masked (Algorithm 1); the encoder sees the others, the decoder predicts the motion residuals of the
masked ones (Eq. 2-4); the average of the encoder's frames is aligned with that of a random half of the frames, encoded
by a momentum encoder (Eq. 5-8).

``MASAConfig.paper()`` is the paper; ``MASAConfig.legacy()`` is what the authors' published code computes, which is in
``masa_legacy.py``.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from slrfast import checks, graphs, ops
from slrfast.data import PoseBatch
from slrfast.nn import (
    InfoNCE,
    MemoryBank,
    MomentumEncoder,
    Packing,
    PoseEmbedding,
    PoseTransformer,
    ProjectionHead,
    with_positions,
)
from slrfast.systems.masa_config import MASAConfig
from slrfast.systems.masa_legacy import PartAutoencoder, PartEncoder
from slrfast.systems.padded_clips import PaddedClips
from slrfast.systems.pretrained import Pretrained
from slrfast.systems.schedules import linear

BOX = 256
"""Pixels that a part's side counts as."""


class View(NamedTuple):
    """Clips as an encoder sees them: [B, T, 49, 2], and [B, T, 49] confidences, 0 where a frame is hidden from it."""

    xy: Tensor
    confidence: Tensor


class MASAEncoder(PoseEmbedding):
    """Frame-wise embedding, transformer over the frames that are given, and projection of their average."""

    def __init__(self, config: MASAConfig) -> None:
        super().__init__(
            config.dim, config.gcn_channels, graphs.TRUNK7_LEGACY if config.legacy_trunk_graph else graphs.TRUNK7,
            dropout=config.gcn_dropout, frame_dropout=config.frame_dropout, input_eps=config.input_eps,
            hand_statistics=config.hand_statistics, temporal=False,
        )  # fmt: skip
        width = 3 * config.dim
        self.view_ratio = config.view_ratio
        self.transformer = PoseTransformer(
            width, config.heads, config.ffn, config.encoder_layers, config.transformer_dropout
        )
        self.head = ProjectionHead(width, config.embedding)

    def forward(self, x: Tensor, number: Tensor, packing: Packing) -> Tensor:
        """Frames [S, 49, 2] with their numbers in their clips [S] -> F_enc [S, 3 dim]."""
        tokens = torch.cat(self.embed_parts(x), -1)
        return self.transformer(with_positions(tokens, number), packing)

    def project(self, encoded: Tensor, packing: Packing) -> Tensor:
        """Eq. 6: the embedding [B, D] of the average over a clip's frames."""
        return self.head(packing.mean(encoded))

    def embed(self, clips: PaddedClips, keys: Tensor) -> Tensor:
        """Eq. 5-6: the embedding of a random (1 - alpha_r) T of the frames; keys uniform [1, B, T]."""
        x, number, packing = clips.visible(clips.hide(self.view_ratio, keys[0]))
        return self.project(self(x, number, packing), packing)

    def features(self, clips: PaddedClips) -> Tensor:
        """The average [B, 3 dim] over all frames."""
        x, number, packing = clips.visible(torch.zeros_like(clips.packing.present))
        return packing.mean(self(x, number, packing))

    def hidden(self, clips: PaddedClips, keys: Tensor) -> Tensor:
        """Which joints of which frames :meth:`embed` leaves out, bool [B, T, 1]."""
        return clips.hide(self.view_ratio, keys[0]).unsqueeze(-1)


class MotionAutoencoder(nn.Module):
    """The motion-aware masked autoencoder (MA)."""

    def __init__(self, config: MASAConfig) -> None:
        super().__init__()
        self.config = config
        width = 3 * config.dim
        self.encoder = MASAEncoder(config)
        self.token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.decoder = PoseTransformer(
            width, config.heads, config.ffn, config.decoder_layers, config.transformer_dropout
        )
        joints = len(graphs.layout(49).names)
        self.motion = nn.Sequential(
            nn.Linear(width, config.head_hidden), nn.ReLU(), nn.Linear(config.head_hidden, 2 * joints)
        )

    def forward(self, clips: PaddedClips, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of Eq. 4 and the query embedding [B, D]; keys uniform [1, B, T]."""
        config = self.config
        target = self.masked(clips, keys)
        x, number, visible = clips.visible(target.mask)
        encoded = self.encoder(x, number, visible)
        # as one sequence of all clips' frames, so that no padding goes through the decoder
        ends = torch.tensor([0, len(encoded)], device=encoded.device)
        hidden = clips.packing.unpad(target.mask).unsqueeze(0)
        tokens = ops.scatter_tokens(encoded, ends, self.token.to(encoded.dtype), hidden).squeeze(0)
        decoded = self.decoder(with_positions(tokens, clips.packing.number), clips.packing)  # Eq. 2
        predicted = clips.packing.pad(self.motion(decoded)).unflatten(-1, clips.xy.shape[2:])  # Eq. 3
        loss = ops.masked_motion_loss(
            predicted, target.residual, target.weight, target.mask, kind=config.loss, scale=config.target_scale
        )
        return loss, self.encoder.project(encoded, visible)

    def masked(self, clips: PaddedClips, keys: Tensor) -> ops.MotionMask:
        """Algorithm 1: what is masked, and what is predicted of it; or the choices that it is compared with."""
        config = self.config
        found = ops.motion_mask(
            BOX * clips.xy, clips.confidence, clips.lengths, keys[0],
            interval=config.interval, confidence_threshold=config.confidence_threshold,
            motion_threshold=config.motion_threshold, joint_fraction=config.joint_fraction,
            mask_ratio=config.mask_ratio, norm=config.joint_lengths,
        )  # fmt: skip
        if config.mask_choice == "random":
            found = found._replace(mask=clips.hide(config.mask_ratio, keys[0]))
        if config.target == "joint":
            trusted = clips.confidence >= config.confidence_threshold
            found = found._replace(residual=BOX * clips.xy, weight=clips.confidence * trusted)
        return found

    def hidden(self, clips: PaddedClips, keys: Tensor) -> Tensor:
        """Which joints of which frames the encoder does not see, bool [B, T, 1]."""
        return self.masked(clips, keys).mask.unsqueeze(-1)


class KeyEncoder(MomentumEncoder):
    """The momentum encoder of semantic alignment (SA)."""

    @torch.no_grad()
    def embed(self, clips: PaddedClips, keys: Tensor) -> Tensor:
        """The key embeddings [B, D], without gradient."""
        encoder: MASAEncoder | PartEncoder = self.encoder  # type: ignore[assignment]
        return encoder.embed(clips, keys)


class MASA(Pretrained):
    """MASA pre-training: ``training_step``, the optimizer, ``update_after_step``; ``encode`` for downstream use.

    >>> system = MASA(MASAConfig.small(bank_size=16))
    >>> losses = system.training_step(PoseBatch.random(2))
    >>> losses["loss"].backward()
    """

    Config: ClassVar[type[MASAConfig]] = MASAConfig

    def __init__(self, config: MASAConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MASAConfig()
        legacy = config.masking == "part"
        self.autoencoder = PartAutoencoder(config) if legacy else MotionAutoencoder(config)
        self.key = KeyEncoder(self.autoencoder.encoder, config.momentum)
        bank = MemoryBank(config.bank_size, config.embedding, dtype=getattr(torch, config.bank_dtype))
        self.contrast = InfoNCE(bank, temperature=config.temperature)

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The losses of one batch; the keys are enqueued before it returns, which is legal before ``backward``.

        Args:
            batch: clips on the system's device.
            generator: of the masks and the second view, on the batch's device; None is torch's default generator.
        Returns:
            Scalars: "loss" (Eq. 9, whose weight of the second term follows ``self.epoch``) and its unweighted terms
            "motion" (Eq. 4) and "contrast" (Eq. 8), with gradient to the autoencoder.
        Raises:
            TypeError, ValueError: the batch has another dtype or device than the system, offsets that do not rise from
                0 to its frames, or a clip without frames; in training mode, an encoder is left with a single frame of
                all clips, which its batch normalisation cannot take.
        """
        clips = self._padded(batch)
        first, second = self._keys(clips, generator)
        key = self.key.embed(clips, second)
        motion, query = self.autoencoder(clips, first)
        contrast = self.contrast(query, key)
        self.contrast.enqueue(key)
        loss = self.config.motion_weight * motion + self.semantic_weight(self.epoch) * contrast
        return {"loss": loss, "motion": motion, "contrast": contrast}

    @torch.no_grad()
    def update_after_step(self) -> None:
        """Move the key encoder towards the query encoder: call once after every optimizer step."""
        self.key.update(self.autoencoder.encoder)

    @property
    def widths(self) -> dict[str, int]:
        return {"pose": self.config.dim if self.config.masking == "part" else self.frame_dim}

    def features(self, batch: PoseBatch) -> dict[str, Tensor]:
        """The encoder's average over all frames, [B, 3 dim] (legacy: pooled, [B, dim]); nothing is masked.

        In the mode that the modules are in, with gradient.

        Raises:
            TypeError, ValueError: as for :meth:`training_step`.
        """
        return {"pose": self.autoencoder.encoder.features(self._padded(batch))}

    @property
    def frame_dim(self) -> int:
        """Width of :meth:`frame_features`."""
        return 3 * self.config.dim

    def frame_features(self, batch: PoseBatch) -> tuple[Tensor, Packing]:
        """F_enc of every frame, [S, 3 dim], and which clip each belongs to; otherwise as :meth:`features`.

        Raises:
            ValueError: also in legacy mode, whose encoder has no frames of their own.
        """
        mode = self.config.masking
        checks.require(mode == "frame", "MASA", "config.masking", "be 'frame' for features of frames", mode)
        clips = self._padded(batch)
        x, number, packing = clips.visible(torch.zeros_like(clips.packing.present))
        return self.autoencoder.encoder(x, number, packing), packing

    @torch.no_grad()
    def views(self, batch: PoseBatch, generator: torch.Generator | None = None) -> tuple[View, View]:
        """What the encoder and the momentum encoder see of every clip."""
        clips = self._padded(batch)
        first, second = self._keys(clips, generator)
        hidden = self.autoencoder.hidden(clips, first), self.key.encoder.hidden(clips, second)  # type: ignore[operator]
        seen, sampled = (View(clips.xy, clips.confidence.masked_fill(h, 0.0)) for h in hidden)
        return seen, sampled

    def _padded(self, batch: PoseBatch) -> PaddedClips:
        self.require(batch)
        clips = PaddedClips.of(batch)
        shortest = min(clips.packing.lengths, default=1)
        checks.require(shortest > 0, "MASA", "batch", "have at least one frame in every clip", shortest)
        return clips

    def _keys(self, clips: PaddedClips, generator: torch.Generator | None) -> Tensor:
        """What the frames are chosen by, for both views and every mask, uniform in [0, 1)."""
        masks = 3 if self.config.masking == "part" else 1
        shape = (2, masks, *clips.xy.shape[:2])
        return torch.rand(shape, generator=generator, device=clips.xy.device)

    def semantic_weight(self, epoch: float) -> float:
        """lambda_s at a (fractional) epoch."""
        config = self.config
        return config.semantic_weight * (min(1.0, epoch / config.semantic_ramp) if config.semantic_ramp else 1.0)

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the autoencoder."""
        config = self.config
        return torch.optim.AdamW(
            self.autoencoder.parameters(), config.learning_rate, config.betas, weight_decay=config.weight_decay,
            fused=True,
        )  # fmt: skip

    def learning_rate(self, epoch: float) -> float:
        """The learning rate at a (fractional) epoch: linear warm-up, then linear to zero, or halved at milestones."""
        config = self.config
        after = epoch - config.warmup
        if config.schedule == "steps" and after >= 0:
            return config.learning_rate * 0.5 ** sum(after >= milestone for milestone in config.milestones)
        return linear(config.learning_rate, epoch, config.warmup, config.epochs)
