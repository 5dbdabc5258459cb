"""The settings of STC: the paper's, the authors' published code's, and a small one for CPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from slrfast import checks

_CHOICES = {
    "consistency": ("features", "neighbors"),
    "motion_direction": ("backward", "forward"),
    "motion_source": ("before", "after"),
    "augmentation": ("paper", "legacy"),
    "bank_dtype": ("float32", "bfloat16"),
    "hand_statistics": ("each", "both"),
    "optimizer": ("sgd", "adamw"),
}


@dataclass(frozen=True)
class STCConfig:
    """Everything that STC can be asked to be; the defaults are the paper's setting.

    What the paper leaves open is taken from the authors' code: sizes of the networks, dropout, unit-length embeddings,
    weight decay, min_crop and min_frames. The ranges of the spatial augmentation are in neither; they are ours.

    Args:
        frames: T', frames per view after resampling.
        streams: "joint", "motion" or both; knowledge transfer needs both.
        gcn_channels: of the five blocks of each graph network.
        dim: size of a frame's vector per part, and of the hand and trunk vectors.
        embedding: D, size of the embeddings in the banks.
        heads, layers, hand_ffn, trunk_ffn: of the transformers.
        gcn_dropout, frame_dropout, transformer_dropout: probabilities.
        input_eps: epsilon of the input normalisation.
        hand_statistics: what the hands' normalisations see in training: "each" hand's own batch statistics, as in the
            authors' code, or those of "both" together, as evaluation does.
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
        rotation, scale, joint_probability, joint_fraction, swap_probability: degrees to either side, factor, how often
            which share of the joints is masked, how often the hands are swapped.
        min_crop, min_frames: the temporal crop keeps a fraction U[min_crop, 1] of the frames, at least min_frames.
        momentum: m of the key encoders.
        optimizer: "sgd", the papers', or "adamw" (ours), which gets further in the few epochs that a CPU allows.
        learning_rate, sgd_momentum, weight_decay: of the optimizer.
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
    hand_statistics: str = "each"
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
    joint_probability: float = 0.5
    joint_fraction: float = 0.2
    swap_probability: float = 0.5
    min_crop: float = 0.1
    min_frames: int = 32
    momentum: float = 0.99
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (50, 100)
    warmup: float = 0.0
    epochs: int = 150
    batch_size: int = 64

    def __post_init__(self) -> None:
        counts = ("frames", "dim", "embedding", "heads", "layers", "hand_ffn", "trunk_ffn", "bank_size", "min_frames")
        for name in (*counts, "batch_size", "epochs"):
            checks.integer_between("STCConfig", 1, 1 << 31, **{name: getattr(self, name)})
        temperatures = ("temperature", "consistency_temperature", "teacher_temperature", "student_temperature")
        for name in (*temperatures, "input_eps", "learning_rate"):
            checks.positive("STCConfig", **{name: getattr(self, name)})
        weights = ("joint_weight", "motion_weight", "transfer_weight", "consistency_weight")
        for name in (*weights, "weight_decay", "warmup", "rotation"):
            value = getattr(self, name)
            checks.require(0 <= value < math.inf, "STCConfig", name, "be finite and >= 0", value)
        for name in ("gcn_dropout", "frame_dropout", "transformer_dropout", "sgd_momentum", "momentum"):
            checks.require(0 <= getattr(self, name) <= 1, "STCConfig", name, "be in [0, 1]", getattr(self, name))
        checks.require(0 < self.min_crop <= 1, "STCConfig", "min_crop", "be in (0, 1]", self.min_crop)
        known = self.streams in (("joint",), ("motion",), ("joint", "motion"))
        checks.require(known, "STCConfig", "streams", "be 'joint', 'motion' or both in this order", self.streams)
        for name, options in _CHOICES.items():
            checks.choice("STCConfig", options, **{name: getattr(self, name)})
        checks.integer_between("STCConfig", 1, 1 << 31, part_bank_size=self.part_rows)
        checks.integer_between(
            "STCConfig", 1, self.bank_size if self.total_head else self.part_rows, neighbors=self.neighbors
        )
        if self.consistency == "neighbors":
            checks.integer_between("STCConfig", 1, self.part_rows, part_neighbors=self.part_nearest)

    @property
    def part_rows(self) -> int:
        """Rows of the hand and trunk banks."""
        return self.bank_size if self.part_bank_size is None else self.part_bank_size

    @property
    def part_nearest(self) -> int:
        """Neighbours of the legacy consistency."""
        return self.neighbors if self.part_neighbors is None else self.part_neighbors

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
        """The paper's method in a size that two CPU cores train in minutes on a few hundred clips.

        So few steps ask for more than a smaller network: milder views, AdamW and one set of statistics for both hands.
        """
        return replace(
            cls(
                frames=16, gcn_channels=(16, 16, 32, 64, 64), dim=128, heads=4, layers=1, hand_ffn=256, trunk_ffn=256,
                gcn_dropout=0.0, frame_dropout=0.0, transformer_dropout=0.0, hand_statistics="both",
                bank_size=256, neighbors=128, min_crop=0.8, min_frames=8,
                rotation=8.0, scale=(0.9, 1.1), joint_probability=0.25, swap_probability=0.0,
                optimizer="adamw", learning_rate=1e-3, warmup=1.0, epochs=80, milestones=(64,), batch_size=32,
            ),
            **changes,
        )  # fmt: skip
