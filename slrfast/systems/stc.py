"""STC: self-supervised sign language representation with spatial-temporal consistency.

Zhao et al., "Self-Supervised Representation Learning with Spatial-Temporal Consistency for Sign Language
Recognition". Two streams (joints and their motion), each a query encoder and a momentum key encoder over hands and
trunk; four memory banks; InfoNCE (Eq. 2), feature consistency (Eq. 3) and bidirectional knowledge transfer (Eq. 4-7).

``STCConfig.paper()`` is the paper; ``STCConfig.legacy()`` is what the authors' published code computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from slrfast import graphs, ops
from slrfast.data import AugmentPlan, PoseBatch
from slrfast.nn import (
    AttentionPool,
    FactoredBank,
    FeatureConsistency,
    InfoNCE,
    KnowledgeTransfer,
    MemoryBank,
    MomentumEncoder,
    PoseEmbedding,
    PoseTransformer,
    ProjectionHead,
)
from slrfast.systems.pretrained import Pretrained
from slrfast.systems.schedules import stepwise, two_windows
from slrfast.systems.stc_config import STCConfig

RIGHT, LEFT = (graphs.layout(49).parts[part] for part in ("right_hand", "left_hand"))


class View(NamedTuple):
    """One augmented view of a batch.

    ``xy`` and ``motion`` are [B, T, 49, 2], ``confidence`` is [B, T, 49], and ``visible`` [B, T, 2] tells whether the
    right and left hand have a joint that the detector saw.
    """

    xy: Tensor
    motion: Tensor
    confidence: Tensor
    visible: Tensor


class Parts(NamedTuple):
    """Something that exists for the hands and for the trunk (and, in legacy mode, for their sum)."""

    hand: Tensor
    trunk: Tensor
    total: Tensor | None = None

    @property
    def anchor(self) -> Tensor:
        """Eq. 4: the sum of hand and trunk (legacy: what the total head makes of it)."""
        return self.hand + self.trunk if self.total is None else self.total


class STCEncoder(PoseEmbedding):
    """Graph networks, temporal blocks, transformers and attention pooling; the hands share one network."""

    def __init__(self, config: STCConfig) -> None:
        super().__init__(
            config.dim, config.gcn_channels, graphs.TRUNK7_LEGACY if config.legacy_trunk_graph else graphs.TRUNK7,
            dropout=config.gcn_dropout, frame_dropout=config.frame_dropout, input_eps=config.input_eps,
            hand_statistics=config.hand_statistics,
        )  # fmt: skip
        self.hand_pool, self.trunk_pool = AttentionPool(config.dim), AttentionPool(config.dim)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                nn.init.xavier_uniform_(module.weight)
        shape = (config.heads, config.hand_ffn, config.layers, config.transformer_dropout)
        self.hand_transformer = PoseTransformer(2 * config.dim, *shape)
        self.trunk_transformer = PoseTransformer(config.dim, config.heads, config.trunk_ffn, *shape[2:])

        def head() -> ProjectionHead:
            module = ProjectionHead(config.dim, config.embedding, normalize=config.normalize)
            nn.init.xavier_uniform_(module.output.weight)
            return module

        self.hand_head, self.trunk_head = head(), head()
        self.total_head: ProjectionHead | None = head() if config.total_head else None

    def forward(self, x: Tensor, visible: Tensor) -> Parts:
        """Coordinates (or motion) [B, T, 49, 2] and hand visibility [B, T, 2] -> hand and trunk vectors [B, dim]."""
        right, left, trunk = self.embed_parts(x)
        hands = self.hand_transformer(torch.cat((right, left), -1)).chunk(2, -1)
        hand = self.hand_pool(torch.cat(hands, 1), visible.mT.flatten(1))
        return Parts(hand, self.trunk_pool(self.trunk_transformer(trunk)))

    def embed(self, x: Tensor, visible: Tensor) -> Parts:
        """The embeddings [B, D] of hand and trunk, and of their sum where there is a total head."""
        hand, trunk, _ = self(x, visible)
        total = None if self.total_head is None else self.total_head(hand + trunk)
        return Parts(self.hand_head(hand), self.trunk_head(trunk), total)


class KeyEncoder(MomentumEncoder):
    """The momentum encoder of one stream; its forward pass embeds."""

    @torch.no_grad()
    def embed(self, x: Tensor, visible: Tensor) -> Parts:
        """The key embeddings, without gradient."""
        encoder: STCEncoder = self.encoder  # type: ignore[assignment]
        return encoder.embed(x, visible)


class STC(Pretrained):
    """STC pre-training: ``training_step``, the optimizer, ``update_after_step``; ``encode`` for downstream use.

    >>> system = STC(STCConfig.small(frames=8, bank_size=16, neighbors=8))
    >>> losses = system.training_step(PoseBatch.random(2))
    >>> losses["loss"].backward()
    """

    Config: ClassVar[type[STCConfig]] = STCConfig
    parts = ("hand", "trunk")
    # nn.ModuleDicts, typed by what they hold
    query: Mapping[str, STCEncoder]
    key: Mapping[str, KeyEncoder]
    banks: Mapping[str, Mapping[str, MemoryBank]]

    def __init__(self, config: STCConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or STCConfig()
        self.augment_plan = AugmentPlan.legacy()
        if config.augmentation == "paper":
            self.augment_plan = AugmentPlan.paper(
                rotation=config.rotation,
                scale=config.scale,
                joint_probability=config.joint_probability,
                joint_fraction=config.joint_fraction,
                swap_probability=config.swap_probability,
            )
        query = {stream: STCEncoder(config) for stream in config.streams}
        self.query = nn.ModuleDict(query)  # type: ignore[assignment]
        self.key = nn.ModuleDict({s: KeyEncoder(encoder, config.momentum) for s, encoder in query.items()})  # type: ignore[assignment]
        self.banks = nn.ModuleDict({stream: self._new_banks() for stream in config.streams})  # type: ignore[assignment]
        # plain dicts, because the banks are registered above and the losses have no other state
        self.contrast = {
            s: {part: InfoNCE(bank, temperature=config.temperature) for part, bank in banks.items()}
            for s, banks in self.banks.items()
        }
        self.consistency = {s: self._new_consistency(banks) for s, banks in self.banks.items()}
        anchors: dict[str, Any] = {s: banks["total"] if config.total_head else banks for s, banks in self.banks.items()}
        self.transfer = {
            (a, b): self._neighbors(anchors[a], anchors[b], config.neighbors)
            for a, b in permutations(config.streams, 2)
        }

    def _new_banks(self) -> nn.ModuleDict:
        """Banks of hand and trunk whose sum are the anchors (legacy: three banks on their own)."""
        config = self.config
        options = {"dtype": getattr(torch, config.bank_dtype), "normalize": config.normalize}
        if not config.total_head:
            return FactoredBank(config.part_rows, config.embedding, ("hand", "trunk"), **options)
        rows = {"hand": config.part_rows, "trunk": config.part_rows, "total": config.bank_size}
        return nn.ModuleDict({part: MemoryBank(size, config.embedding, **options) for part, size in rows.items()})

    def _new_consistency(self, banks: Mapping[str, MemoryBank]) -> tuple[nn.Module, nn.Module]:
        """The losses with which the hand teaches the trunk and the trunk the hand."""
        config = self.config
        if config.consistency == "features":
            return (FeatureConsistency(temperature=config.consistency_temperature),) * 2
        hand, trunk = banks["hand"], banks["trunk"]
        k = config.part_nearest
        return self._neighbors(hand, trunk, k), self._neighbors(trunk, hand, k)

    def _neighbors(
        self, teacher: MemoryBank | FactoredBank, student: MemoryBank | FactoredBank, k: int
    ) -> KnowledgeTransfer:
        return KnowledgeTransfer(
            teacher, student, k,
            teacher_temperature=self.config.teacher_temperature, student_temperature=self.config.student_temperature,
        )  # fmt: skip

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The losses of one batch; the keys are enqueued before it returns, which is legal before ``backward``.

        Args:
            batch: clips on the system's device.
            generator: of the augmentation, on the batch's device; None is torch's default generator.
        Returns:
            Scalars, with gradient to the query encoders: "loss" (Eq. 8) and its unweighted terms: for stream s
            "s/contrast" (Eq. 2, over all heads) and "s/consistency" (Eq. 3, or the neighbour form), and the two
            directions "joint_to_motion" and "motion_to_joint" of knowledge transfer (Eq. 6).
        Raises:
            TypeError, ValueError: the batch has another dtype or device than the system, or a clip without frames.
        """
        self.require(batch)
        query, key = self.embed(*self.views(batch, generator))
        losses = self.losses(query, key)
        self.enqueue(key)
        return losses

    def embed(self, query_view: View, key_view: View) -> tuple[dict[str, Parts], dict[str, Parts]]:
        """The query and key embeddings of every stream; the keys carry no gradient."""
        # keys first: what they take in between is free again before the queries keep theirs for the backward pass
        key = {s: self.key[s].embed(_input(s, key_view), key_view.visible) for s in self.config.streams}
        query = {s: self.query[s].embed(_input(s, query_view), query_view.visible) for s in self.config.streams}
        return query, key

    def losses(self, query: dict[str, Parts], key: dict[str, Parts]) -> dict[str, Tensor]:
        """Eq. 8 and its terms, from the embeddings of the two views in every stream."""
        config = self.config
        weights = {"joint": config.joint_weight, "motion": config.motion_weight}
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=next(iter(query.values())).hand.device)
        for s in config.streams:
            q, k = query[s], key[s]
            contrast = [nce(getattr(q, part), getattr(k, part)) for part, nce in self.contrast[s].items()]
            single = terms[f"{s}/contrast"] = torch.stack(contrast).sum()  # Eq. 2
            if config.consistency_weight:
                hand_teaches, trunk_teaches = self.consistency[s]  # Eq. 3
                terms[f"{s}/consistency"] = hand_teaches(k.hand, q.trunk) + trunk_teaches(k.trunk, q.hand)
                single = single + config.consistency_weight * terms[f"{s}/consistency"]
            loss = loss + weights[s] * single
        if config.transfer_weight:
            for (a, b), transfer in self.transfer.items():  # Eq. 6
                terms[f"{a}_to_{b}"] = transfer(key[a].anchor, query[b].anchor)
                loss = loss + config.transfer_weight * terms[f"{a}_to_{b}"]
        return {"loss": loss, **terms}

    def enqueue(self, key: dict[str, Parts]) -> None:
        """Write the keys into the banks, row for row the same clips in all of them."""
        for s, banks in self.banks.items():
            if isinstance(banks, FactoredBank):
                banks.enqueue(key[s].hand, key[s].trunk)
            else:
                for part, bank in banks.items():
                    bank.enqueue(getattr(key[s], part))

    @torch.no_grad()
    def update_after_step(self) -> None:
        """Move the key encoders towards the query encoders: call once after every optimizer step."""
        for stream, key in self.key.items():
            key.update(self.query[stream])

    @torch.no_grad()
    def views(self, batch: PoseBatch, generator: torch.Generator | None = None) -> tuple[View, View]:
        """Two independently cropped, resampled and augmented views of every clip.

        Both come from one draw: a generator in the same state gives the same two views.
        """
        config, device = self.config, batch.xy.device
        start, keep = two_windows(batch.lengths, config.min_crop, config.min_frames, generator)
        plan = self.augment_plan.draw(2 * batch.size, generator=generator, device=device)
        both = self._view(batch, start, keep, plan)
        return View(*(x[0] for x in both)), View(*(x[1] for x in both))

    def _view(self, batch: PoseBatch, start: Tensor, length: Tensor, plan: ops.AugmentTensors) -> View:
        """The windows [..., B] of the clips as views [..., B, T, 49, 2], changed by as many plans."""
        config = self.config
        direction = config.motion_direction
        xy, motion, confidence, visible = ops.pose_views(
            batch.xy, batch.confidence, batch.offsets, start, length, plan, config.frames,
            motion=direction if config.motion_source == "before" else None,
        )  # fmt: skip
        if motion is None:
            motion = ops.motion(xy, direction=direction)
        return View(xy, motion, confidence, visible[..., :2])

    @property
    def widths(self) -> dict[str, int]:
        return dict.fromkeys(self.config.streams, self.config.dim)

    def features(self, batch: PoseBatch, parts: tuple[str, ...] = ("hand", "trunk")) -> dict[str, Tensor]:
        """The hand vector plus the trunk vector (or one of them) of every clip in every stream, [B, dim] each.

        The middle 95 % of every clip is resampled to ``frames``, without augmentation. In the mode that the modules
        are in, with gradient.

        Raises:
            TypeError, ValueError: as for :meth:`training_step`.
        """
        self.require(batch)
        lengths = batch.lengths
        skip = (lengths * 0.025).long()
        unchanged = AugmentPlan.none().draw(batch.size, device=batch.xy.device)
        view = self._view(batch, skip, lengths - 2 * skip, unchanged)
        vectors = {s: self.query[s](_input(s, view), view.visible)._asdict() for s in self.config.streams}
        return {s: torch.stack([both[part] for part in parts]).sum(0) for s, both in vectors.items()}

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum, as in the paper, or AdamW, over the query encoders; the code's weight decay."""
        config = self.config
        parameters = [p for encoder in self.query.values() for p in encoder.parameters()]
        if config.optimizer == "adamw":
            return torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
        return torch.optim.SGD(
            parameters, config.learning_rate, config.sgd_momentum, weight_decay=config.weight_decay, fused=True
        )

    def learning_rate(self, epoch: float) -> float:
        """The learning rate at a (fractional) epoch: a tenth after every milestone, after a linear warm-up if any."""
        config = self.config
        return stepwise(config.learning_rate, epoch, config.milestones, config.warmup)


def _input(stream: str, view: View) -> Tensor:
    return view.xy if stream == "joint" else view.motion
