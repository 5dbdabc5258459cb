"""MASA as the authors' published code computes it (``MASAConfig.legacy()``); ``masa.py`` is the paper.

Either hand and the trunk are masked on their own: a token takes the place of a masked part's vector, no frame is
dropped, and no frame attends to one with a masked part. Clips are padded with zeros, which the graph networks and the
encoder treat as frames and the decoder does not attend to. The residuals are signed, and only coordinates that rise by
more than the threshold count, in the choice of frames and in the loss; the decoder's heads predict no negative motion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slrfast import graphs, ops
from slrfast.nn import AttentionPool, PoseEmbedding, PoseTransformer, ProjectionHead
from slrfast.systems.masa_config import MASAConfig
from slrfast.systems.padded_clips import PaddedClips, smallest

PARTS = tuple(graphs.layout(49).parts[part] for part in ("right_hand", "left_hand", "trunk"))
BOX, LOSS_WEIGHT = 256, 10.0


class PartEncoder(PoseEmbedding):
    """Embedding with temporal blocks, tokens for masked parts, transformer, attention pooling."""

    def __init__(self, config: MASAConfig) -> None:
        super().__init__(
            config.dim, config.gcn_channels, graphs.TRUNK7_LEGACY if config.legacy_trunk_graph else graphs.TRUNK7,
            dropout=config.gcn_dropout, frame_dropout=config.frame_dropout, input_eps=config.input_eps,
            hand_statistics=config.hand_statistics,
        )  # fmt: skip
        self.view_ratio = config.view_ratio
        self.token = nn.Parameter(torch.randn(config.dim))
        self.transformer = PoseTransformer(
            3 * config.dim, config.heads, config.ffn, config.encoder_layers, config.transformer_dropout
        )
        self.hand_pool, self.trunk_pool = AttentionPool(config.dim), AttentionPool(config.dim)
        self.head = ProjectionHead(config.dim, config.embedding)

    def forward(self, clips: PaddedClips, masks: Tensor) -> Tensor:
        """Clips of T frames with the masks [3, B, T] of right hand, left hand and trunk -> [B, T, 3 dim]."""
        parts = self.embed_parts(clips.xy)
        tokens = [torch.where(mask[..., None], self.token.to(x.dtype), x) for mask, x in zip(masks, parts, strict=True)]
        return self.transformer(torch.cat(tokens, -1), keys=~masks.any(0))

    def pool(self, encoded: Tensor, clips: PaddedClips, masks: Tensor) -> Tensor:
        """The sum [B, dim] of the hands' and the trunk's pooled vectors."""
        right, left, trunk = encoded.chunk(3, -1)
        seen = [clips.confidence[..., hand].amax(-1) > 0 for hand in PARTS[:2]]
        attended = ~masks.any(0)
        hand = self.hand_pool(torch.cat((right, left), 1), torch.cat([s & attended for s in seen], 1))
        return hand + self.trunk_pool(trunk)

    def project(self, encoded: Tensor, clips: PaddedClips, masks: Tensor) -> Tensor:
        """The embedding [B, D]."""
        return self.head(self.pool(encoded, clips, masks))

    def embed(self, clips: PaddedClips, keys: Tensor) -> Tensor:
        """The embedding of a view in which a random half of every part's frames is masked; keys uniform [3, B, T]."""
        masks = clips.hide(self.view_ratio, keys)
        return self.project(self(clips, masks), clips, masks)

    def features(self, clips: PaddedClips) -> Tensor:
        """The pooled vector [B, dim] with nothing masked."""
        none = torch.zeros((3, *clips.xy.shape[:2]), dtype=torch.bool, device=clips.xy.device)
        return self.pool(self(clips, none), clips, none)

    def hidden(self, clips: PaddedClips, keys: Tensor) -> Tensor:
        """Which joints of which frames :meth:`embed` masks, bool [B, T, 49]."""
        return per_joint(clips.hide(self.view_ratio, keys))


class PartAutoencoder(nn.Module):
    """The masked autoencoder with a mask per part."""

    def __init__(self, config: MASAConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PartEncoder(config)
        self.decoder = PoseTransformer(
            3 * config.dim, config.heads, config.ffn, config.decoder_layers, config.transformer_dropout
        )

        def head(part: slice) -> nn.Sequential:
            last = nn.Linear(config.head_hidden, 2 * (part.stop - part.start))
            return nn.Sequential(nn.Linear(config.dim, config.head_hidden), nn.ReLU(), last, nn.ReLU())

        self.hand_motion, self.trunk_motion = head(PARTS[0]), head(PARTS[2])

    def forward(self, clips: PaddedClips, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The motion loss of all parts and the query embedding [B, D]; keys uniform [3, B, T]."""
        config = self.config
        residual, weight, masks = self.masked(clips, keys)
        encoded = self.encoder(clips, masks)
        decoded = self.decoder(encoded, keys=clips.packing.present).chunk(3, -1)
        loss = torch.zeros((), device=encoded.device)
        for i, (part, head) in enumerate(
            zip(PARTS, (self.hand_motion, self.hand_motion, self.trunk_motion), strict=True)
        ):
            total = ops.masked_motion_loss(
                head(decoded[i]).unflatten(-1, (-1, 2)), residual[:, :, part], weight[:, :, part], masks[i],
                kind=config.loss, scale=config.target_scale, reduction="sum",
            )  # fmt: skip
            loss = loss + LOSS_WEIGHT * total / (masks[i].sum() * (part.stop - part.start) + 1)
        return loss, self.encoder.project(encoded, clips, masks)

    def masked(self, clips: PaddedClips, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals and weights of all coordinates, both [B, T, 49, 2], and the masks [3, B, T]."""
        config, k = self.config, self.config.interval
        residual = ops.motion(BOX * clips.xy, interval=k, direction="forward")
        defined = torch.arange(residual.shape[1], device=residual.device) < clips.lengths[:, None] - k
        residual = residual.masked_fill(~defined[..., None, None], 0.0)  # nothing moves into the padding
        rising = residual > config.motion_threshold
        confidence = clips.confidence.clone()
        hands = confidence[..., : PARTS[2].start]
        hands.masked_fill_(hands < config.confidence_threshold, 0.0)
        later = torch.zeros_like(confidence)
        later[:, :-k] = confidence[:, k:]
        candidates = torch.stack([rising[:, :, part].sum((2, 3)) > 1 for part in PARTS])
        masks = smallest(keys, candidates, config.mask_ratio)
        return residual, (confidence * later)[..., None] * rising, masks

    def hidden(self, clips: PaddedClips, keys: Tensor) -> Tensor:
        """Which joints of which frames are masked, bool [B, T, 49]."""
        return per_joint(self.masked(clips, keys)[2])


def per_joint(masks: Tensor) -> Tensor:
    """Masks [3, B, T] of the parts as one of their joints [B, T, 49]."""
    sizes = torch.tensor([part.stop - part.start for part in PARTS], device=masks.device)
    return masks.permute(1, 2, 0).repeat_interleave(sizes, -1)
