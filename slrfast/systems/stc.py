"""STC: self-supervised sign language representation with spatial-temporal consistency.

Zhao et al., "Self-Supervised Representation Learning with Spatial-Temporal Consistency for Sign Language
Recognition". Two streams (joints and their motion), each a query encoder and a momentum key encoder over hands and
trunk; four memory banks; InfoNCE (Eq. 2), feature consistency (Eq. 3) and bidirectional knowledge transfer (Eq. 4-7).

``STCConfig.paper()`` is the paper; ``STCConfig.legacy()`` is what the authors' published code computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from slrfast import checks, graphs, ops
from slrfast.data import AugmentPlan, PoseBatch
from slrfast.nn import (
    AttentionPool,
    MemoryBank,
    MomentumEncoder,
    PartGCN,
    PoseTransformer,
    ProjectionHead,
    TemporalBlock,
)
from slrfast.systems.pretrained import Pretrained

RIGHT, LEFT, TRUNK = (graphs.layout(49).parts[part] for part in ("right_hand", "left_hand", "trunk"))


@dataclass(frozen=True)
class STCConfig:
    """Everything that STC can be asked to be; the defaults are the paper's.

    Args:
        frames: T', frames per view after resampling.
        streams: "joint", "motion" or both; knowledge transfer needs both.
        gcn_channels: of the five blocks of each graph network.
        dim: size of a frame's vector per part, and of the hand and trunk vectors.
        embedding: D, size of the embeddings in the banks.
        heads, layers, hand_ffn, trunk_ffn: of the transformers.
        gcn_dropout, frame_dropout, transformer_dropout: probabilities.
        input_eps: epsilon of the input normalisation.
        legacy_trunk_graph: the authors' pooled trunk graph, in which the nose is isolated.
        total_head: a third head on hand + trunk with a bank of its own (legacy); knowledge transfer then uses it.
        normalize: scale embeddings to length one.
        temperature: tau_c of InfoNCE.
        consistency: "features" (Eq. 3) or "neighbors" (the authors' code).
        consistency_temperature: tau_1 of Eq. 3.
        teacher_temperature, student_temperature: tau_t and tau_s of Eq. 6.
        bank_size, neighbors: N and K.
        part_bank_size, part_neighbors: of the hand and trunk banks, where they differ; None takes N and K.
        bank_dtype: "float32" or "bfloat16".
        joint_weight, motion_weight, transfer_weight, consistency_weight: of the loss terms (Eq. 8).
        motion_direction: "backward" (Eq. 1) or "forward".
        motion_source: take the motion "before" the augmentation and resampling, or "after".
        augmentation: "paper", whose ranges the paper does not state and the next line sets, or "legacy".
        rotation, scale, drop_probability, drop_fraction, swap_probability: degrees to either side, factor, how often
            which share of the joints is masked, how often the hands are swapped.
        min_crop, min_frames: the temporal crop keeps a fraction U[min_crop, 1] of the frames, at least min_frames.
        momentum: m of the key encoders.
        learning_rate, sgd_momentum, weight_decay: of SGD.
        milestones: epochs at which the learning rate falls to a tenth.
        warmup: epochs of linear warm-up (none in the paper).
        epochs, batch_size: of a full run.
    """

    frames: int = 64
    streams: tuple[str, ...] = ("joint", "motion")
    gcn_channels: tuple[int, ...] = (128, 128, 256, 512, 512)
    dim: int = 512
    embedding: int = 128
    heads: int = 8
    layers: int = 3
    hand_ffn: int = 1536
    trunk_ffn: int = 1024
    gcn_dropout: float = 0.05
    frame_dropout: float = 0.25
    transformer_dropout: float = 0.1
    input_eps: float = 1e-5
    legacy_trunk_graph: bool = False
    total_head: bool = False
    normalize: bool = True
    temperature: float = 0.07
    consistency: str = "features"
    consistency_temperature: float = 0.1
    teacher_temperature: float = 0.05
    student_temperature: float = 0.1
    bank_size: int = 16384
    neighbors: int = 8192
    part_bank_size: int | None = None
    part_neighbors: int | None = None
    bank_dtype: str = "float32"
    joint_weight: float = 0.5
    motion_weight: float = 0.5
    transfer_weight: float = 1.0
    consistency_weight: float = 1.0
    motion_direction: str = "backward"
    motion_source: str = "before"
    augmentation: str = "paper"
    rotation: float = 15.0
    scale: tuple[float, float] = (0.8, 1.2)
    drop_probability: float = 0.5
    drop_fraction: float = 0.2
    swap_probability: float = 0.5
    min_crop: float = 0.1
    min_frames: int = 32
    momentum: float = 0.99
    learning_rate: float = 0.01
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (50, 100)
    warmup: float = 0.0
    epochs: int = 150
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("frames", "dim", "embedding", "bank_size", "min_frames", "batch_size"):
            checks.require(getattr(self, name) >= 1, "STCConfig", name, "be >= 1", getattr(self, name))
        known = self.streams in (("joint",), ("motion",), ("joint", "motion"))
        checks.require(known, "STCConfig", "streams", "be 'joint', 'motion' or both in this order", self.streams)
        checks.choice("STCConfig", ("features", "neighbors"), consistency=self.consistency)
        checks.choice("STCConfig", ("backward", "forward"), motion_direction=self.motion_direction)
        checks.choice("STCConfig", ("before", "after"), motion_source=self.motion_source)
        checks.choice("STCConfig", ("paper", "legacy"), augmentation=self.augmentation)
        checks.choice("STCConfig", ("float32", "bfloat16"), bank_dtype=self.bank_dtype)
        checks.require(0 < self.min_crop <= 1, "STCConfig", "min_crop", "be in (0, 1]", self.min_crop)
        checks.integer_between("STCConfig", 1, self.bank_size, neighbors=self.neighbors)
        if self.part_neighbors is not None:
            limit = self.part_bank_size or self.bank_size
            checks.integer_between("STCConfig", 1, limit, part_neighbors=self.part_neighbors)

    @classmethod
    def paper(cls, **changes: Any) -> STCConfig:
        """The paper's setting; keyword arguments change single fields."""
        return replace(cls(), **changes)

    @classmethod
    def legacy(cls, **changes: Any) -> STCConfig:
        """The authors' published code: total heads, neighbour consistency, forward motion, weights, graph defect."""
        return replace(
            cls(
                input_eps=0.1, legacy_trunk_graph=True, total_head=True, consistency="neighbors",
                part_bank_size=8192, part_neighbors=1024, joint_weight=1.0, motion_weight=1.0,
                motion_direction="forward", motion_source="after", augmentation="legacy",
                momentum=0.999, milestones=(100,),
            ),
            **changes,
        )  # fmt: skip

    @classmethod
    def small(cls, **changes: Any) -> STCConfig:
        """The paper's method in a size that two CPU cores train in minutes on a few hundred clips."""
        return replace(
            cls(
                frames=32, gcn_channels=(32, 32, 64, 128, 128), dim=128, embedding=64, heads=4, layers=2,
                hand_ffn=384, trunk_ffn=256, bank_size=512, neighbors=256, min_crop=0.5, min_frames=16,
                learning_rate=0.03, epochs=60, milestones=(45,), batch_size=32,
            ),
            **changes,
        )  # fmt: skip


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


class STCEncoder(nn.Module):
    """Graph networks, temporal blocks, transformers and attention pooling; the hands share one network."""

    def __init__(self, config: STCConfig) -> None:
        super().__init__()
        trunk_graph = graphs.TRUNK7_LEGACY if config.legacy_trunk_graph else graphs.TRUNK7

        def gcn(graph: graphs.SkeletonGraph) -> PartGCN:
            return PartGCN(
                graph, config.gcn_channels, config.dim,
                dropout=config.gcn_dropout, frame_dropout=config.frame_dropout, input_eps=config.input_eps,
            )  # fmt: skip

        self.hand_gcn, self.trunk_gcn = gcn(graphs.HAND21), gcn(trunk_graph)
        self.hand_temporal = nn.Sequential(TemporalBlock(config.dim), TemporalBlock(config.dim))
        self.trunk_temporal = nn.Sequential(TemporalBlock(config.dim), TemporalBlock(config.dim))
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
        right, left = (self.hand_temporal(self.hand_gcn(x[:, :, part]).mT).mT for part in (RIGHT, LEFT))
        trunk = self.trunk_temporal(self.trunk_gcn(x[:, :, TRUNK]).mT).mT
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
    # nn.ModuleDicts, typed by what they hold
    query: Mapping[str, STCEncoder]
    key: Mapping[str, KeyEncoder]
    banks: Mapping[str, Mapping[str, MemoryBank]]

    def __init__(self, config: STCConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or STCConfig()
        self.augment_plan = AugmentPlan.legacy()
        if config.augmentation == "paper":
            self.augment_plan = AugmentPlan(
                (-config.rotation, config.rotation),
                config.scale,
                joint_probability=config.drop_probability,
                joint_fraction=config.drop_fraction,
                swap_probability=config.swap_probability,
            )
        part_size = config.part_bank_size or config.bank_size
        sizes = {"hand": part_size, "trunk": part_size} | ({"total": config.bank_size} if config.total_head else {})
        dtype = getattr(torch, config.bank_dtype)

        def banks() -> nn.ModuleDict:
            shape = {"dim": config.embedding, "dtype": dtype, "normalize": config.normalize}
            return nn.ModuleDict({part: MemoryBank(size, **shape) for part, size in sizes.items()})

        query = {stream: STCEncoder(config) for stream in config.streams}
        self.query = nn.ModuleDict(query)  # type: ignore[assignment]
        self.key = nn.ModuleDict({s: KeyEncoder(encoder, config.momentum) for s, encoder in query.items()})  # type: ignore[assignment]
        self.banks = nn.ModuleDict({stream: banks() for stream in config.streams})  # type: ignore[assignment]

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The losses of one batch; the keys are enqueued before it returns, which is legal before ``backward``.

        Args:
            batch: clips on the system's device.
            generator: of the augmentation, on the batch's device; None is torch's default generator.
        Returns:
            Scalars: "loss" (Eq. 8) and, for stream s, "s/contrast" (Eq. 2), "s/consistency" (Eq. 3) and the two
            directions "joint_to_motion" and "motion_to_joint" of knowledge transfer (Eq. 6).
        """
        query, key = self.embed(*self.views(batch, generator))
        losses = self.losses(query, key)
        self.enqueue(key)
        return losses

    def embed(self, query_view: View, key_view: View) -> tuple[dict[str, Parts], dict[str, Parts]]:
        """The query and key embeddings of every stream; the keys carry no gradient."""
        query = {s: self.query[s].embed(_input(s, query_view), query_view.visible) for s in self.config.streams}
        key = {s: self.key[s].embed(_input(s, key_view), key_view.visible) for s in self.config.streams}
        return query, key

    def losses(self, query: dict[str, Parts], key: dict[str, Parts]) -> dict[str, Tensor]:
        """Eq. 8 and its terms, from the embeddings of the two views in every stream."""
        config = self.config
        weights = {"joint": config.joint_weight, "motion": config.motion_weight}
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=next(iter(query.values())).hand.device)
        for s in config.streams:
            terms[f"{s}/contrast"] = self._contrast(s, query[s], key[s])
            terms[f"{s}/consistency"] = self._consistency(s, query[s], key[s])
            single = terms[f"{s}/contrast"] + config.consistency_weight * terms[f"{s}/consistency"]
            loss = loss + weights[s] * single
        if len(config.streams) == 2 and config.transfer_weight:
            terms["joint_to_motion"] = self._transfer(key["joint"], query["motion"], "joint", "motion")
            terms["motion_to_joint"] = self._transfer(key["motion"], query["joint"], "motion", "joint")
            loss = loss + config.transfer_weight * (terms["joint_to_motion"] + terms["motion_to_joint"])
        return {"loss": loss, **terms}

    def enqueue(self, key: dict[str, Parts]) -> None:
        """Write the keys into the banks, row for row the same clips in all of them."""
        for s in self.config.streams:
            for part, bank in self.banks[s].items():
                bank.enqueue(getattr(key[s], part))

    def _contrast(self, stream: str, query: Parts, key: Parts) -> Tensor:
        """Eq. 2: InfoNCE of every head against its bank, summed over heads."""
        terms = [
            ops.info_nce(getattr(query, part), getattr(key, part), bank.features, temperature=self.config.temperature)
            for part, bank in self.banks[stream].items()
        ]
        return torch.stack(terms).sum()

    def _consistency(self, stream: str, query: Parts, key: Parts) -> Tensor:
        """Eq. 3: the keys' hand distribution teaches the trunk and the trunk's teaches the hand."""
        config = self.config
        if config.consistency == "features":
            temperature = config.consistency_temperature
            return ops.feature_kl(key.hand, query.trunk, temperature=temperature) + ops.feature_kl(
                key.trunk, query.hand, temperature=temperature
            )
        hand, trunk = self.banks[stream]["hand"].features, self.banks[stream]["trunk"].features
        return self._neighbor_kl(key.hand, hand, query.trunk, trunk, config.part_neighbors) + self._neighbor_kl(
            key.trunk, trunk, query.hand, hand, config.part_neighbors
        )

    def _transfer(self, teacher: Parts, student: Parts, source: str, target: str) -> Tensor:
        """Eq. 6: the student's similarities follow the teacher's over the teacher's K nearest anchors."""
        if self.config.total_head:
            assert teacher.total is not None and student.total is not None
            banks = (self.banks[source]["total"].features, self.banks[target]["total"].features)
            return self._neighbor_kl(teacher.total, banks[0], student.total, banks[1])
        return self._neighbor_kl(
            teacher.hand + teacher.trunk, self._anchors(source), student.hand + student.trunk, self._anchors(target)
        )

    def _anchors(self, stream: str) -> Tensor:
        """Eq. 4: anchor i is the sum of the hand and trunk rows i, which are the same clip."""
        return self.banks[stream]["hand"].features + self.banks[stream]["trunk"].features

    def _neighbor_kl(
        self, teacher: Tensor, teacher_bank: Tensor, student: Tensor, student_bank: Tensor, k: int | None = None
    ) -> Tensor:
        return ops.neighbor_kl(
            teacher, teacher_bank, student, student_bank, k or self.config.neighbors,
            teacher_temperature=self.config.teacher_temperature, student_temperature=self.config.student_temperature,
        )  # fmt: skip

    @torch.no_grad()
    def update_after_step(self) -> None:
        """Move the key encoders towards the query encoders: call once after every optimizer step."""
        for stream, key in self.key.items():
            key.update(self.query[stream])

    @torch.no_grad()
    def views(self, batch: PoseBatch, generator: torch.Generator | None = None) -> tuple[View, View]:
        """Two independently cropped, resampled and augmented views of every clip."""
        return self._view(batch, generator), self._view(batch, generator)

    def _view(self, batch: PoseBatch, generator: torch.Generator | None) -> View:
        config, device = self.config, batch.xy.device
        lengths = batch.offsets.diff()
        fraction, position = torch.rand((2, len(lengths)), generator=generator, device=device)
        keep = (config.min_crop + (1 - config.min_crop) * fraction) * lengths
        keep = keep.long().clamp(min=config.min_frames).minimum(lengths)
        start = (position * (lengths - keep + 1)).long()
        plan = self.augment_plan.draw(len(lengths), generator=generator, device=device)
        return self._resampled(batch, start, keep, plan)

    def _resampled(self, batch: PoseBatch, start: Tensor, length: Tensor, plan: ops.AugmentTensors | None) -> View:
        config = self.config
        seen = torch.stack([batch.confidence[:, part].amax(1) for part in (RIGHT, LEFT)], -1).unsqueeze(-1)
        source = [batch.xy, batch.confidence.unsqueeze(-1)]
        if config.motion_source == "before":
            source.append(self._source_motion(batch))
        frames = ops.resample(torch.cat(source, -1), batch.offsets, start, length, config.frames)
        visible = ops.resample(seen, batch.offsets, start, length, config.frames, mode="nearest").squeeze(-1) > 0
        xy, confidence = frames[..., :2], frames[..., 2]
        motion = frames[..., 3:]
        if plan is not None:
            if config.motion_source == "before":
                still = plan._replace(center=torch.zeros_like(plan.center))
                motion, _ = ops.augment(motion, confidence, still)
            xy, confidence = ops.augment(xy, confidence, plan)
            visible = torch.where(plan.swap[:, None, None], visible.flip(-1), visible)
        if config.motion_source == "after":
            motion = ops.motion(xy, direction=config.motion_direction)
        return View(xy, motion, confidence, visible)

    def _source_motion(self, batch: PoseBatch) -> Tensor:
        """Eq. 1 over the clips as they were filmed; no difference is taken across two clips."""
        motion = ops.motion(batch.xy, direction=self.config.motion_direction)
        edge = batch.offsets[:-1] if self.config.motion_direction == "backward" else batch.offsets[1:] - 1
        return motion.index_fill(0, edge, 0.0)

    @torch.no_grad()
    def encode(self, batch: PoseBatch) -> Tensor:
        """Features of whole clips for downstream use, [B, dim] per stream, concatenated: hand vector + trunk vector.

        The middle 95 % of every clip is resampled to ``frames``, without augmentation, in evaluation mode.
        """
        lengths = batch.offsets.diff()
        skip = (lengths * 0.025).long()
        view = self._resampled(batch, skip, lengths - 2 * skip, None)
        was_training = self.training
        self.eval()
        try:
            parts = [self.query[s](_input(s, view), view.visible) for s in self.config.streams]
        finally:
            self.train(was_training)
        return torch.cat([hand + trunk for hand, trunk, _ in parts], -1).float()

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD over the query encoders, as in the paper."""
        config = self.config
        parameters = [p for encoder in self.query.values() for p in encoder.parameters()]
        return torch.optim.SGD(parameters, config.learning_rate, config.sgd_momentum, weight_decay=config.weight_decay)

    def learning_rate(self, epoch: float) -> float:
        """The learning rate at a (fractional) epoch: a tenth after every milestone, after a linear warm-up if any."""
        config = self.config
        decay = math.prod(0.1 for milestone in config.milestones if epoch >= milestone)
        return config.learning_rate * decay * (min(1.0, epoch / config.warmup) if config.warmup else 1.0)


def _input(stream: str, view: View) -> Tensor:
    return view.xy if stream == "joint" else view.motion
