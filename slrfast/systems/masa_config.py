"""The settings of MASA: the paper's, the authors' published code's, and a small one for CPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from slrfast import checks

_CHOICES = {
    "masking": ("frame", "part"),
    "mask_choice": ("motion", "random"),
    "target": ("motion", "joint"),
    "loss": ("l2", "l1"),
    "schedule": ("linear", "steps"),
    "bank_dtype": ("float32", "bfloat16"),
    "hand_statistics": ("each", "both"),
}


@dataclass(frozen=True)
class MASAConfig:
    """Everything that MASA can be asked to be; the defaults are the paper's setting.

    What the paper leaves open is taken from the authors' code: sizes of the networks, dropout, unit-length embeddings.
    Positions, which the paper implies, are sinusoidal. ``target_scale`` is in neither; it is ours.

    Args:
        masking: "frame" masks whole frames and encodes the visible ones alone, as the paper does; "part" is the
            authors' published code, which masks either hand and the trunk on its own and encodes every frame.
        gcn_channels: of the five blocks of each graph network.
        dim: size of a frame's vector per part; a frame has three.
        embedding: D, size of the embeddings in the bank.
        heads, ffn: of both transformers.
        encoder_layers, decoder_layers: blocks of each.
        head_hidden: width of the hidden layer that predicts motion.
        gcn_dropout, frame_dropout, transformer_dropout: probabilities.
        input_eps: epsilon of the input normalisation.
        hand_statistics: what the hands' normalisations see in training: "each" hand's own batch statistics, as in the
            authors' code, or those of "both" together, as evaluation does.
        legacy_trunk_graph: the authors' pooled trunk graph, in which the nose is isolated.
        interval: k, frames between the two positions of a motion residual.
        motion_threshold: eps_m, pixels of the 256 box.
        confidence_threshold: eps_c.
        joint_fraction: delta, share of a frame's coordinates that must move for it to be a candidate ("frame").
        joint_lengths: test the length of a joint's displacement instead of either coordinate ("frame").
        mask_ratio: alpha, share of the candidates that are masked.
        mask_choice: "motion", or "random": the share is of all frames (ablation, "frame").
        target: what is predicted of masked frames: their "motion", or the "joint" positions (ablation, "frame").
        view_ratio: alpha_r, share of the frames that the second view leaves out.
        loss: "l2" or "l1" of the masked residuals.
        motion_weight: of that loss; 0 trains by semantic alignment alone.
        target_scale: the residuals are predicted in units of 1 / target_scale pixels.
        temperature: tau of InfoNCE.
        bank_size: K.
        bank_dtype: "float32" or "bfloat16".
        semantic_weight: of InfoNCE, 0 for none, after ``semantic_ramp`` epochs of linear increase from 0.
        momentum: mu of the key encoder.
        learning_rate, betas, weight_decay: of AdamW.
        schedule: after ``warmup`` epochs of linear increase "linear" falls to zero at the end, "steps" halves at
            ``milestones`` epochs after the warm-up.
        epochs, batch_size: of a full run.
    """

    masking: str = "frame"
    gcn_channels: tuple[int, ...] = (128, 128, 256, 512, 512)
    dim: int = 512
    embedding: int = 128
    heads: int = 8
    ffn: int = 2048
    encoder_layers: int = 3
    decoder_layers: int = 2
    head_hidden: int = 256
    gcn_dropout: float = 0.05
    frame_dropout: float = 0.25
    transformer_dropout: float = 0.1
    input_eps: float = 1e-5
    hand_statistics: str = "each"
    legacy_trunk_graph: bool = False
    interval: int = 3
    motion_threshold: float = 5.0
    confidence_threshold: float = 0.4
    joint_fraction: float = 0.5
    joint_lengths: bool = False
    mask_choice: str = "motion"
    mask_ratio: float = 0.9
    target: str = "motion"
    view_ratio: float = 0.5
    loss: str = "l2"
    motion_weight: float = 1.0
    target_scale: float = 1 / 256
    temperature: float = 0.07
    bank_size: int = 6144
    bank_dtype: str = "float32"
    semantic_weight: float = 0.05
    semantic_ramp: float = 100.0
    momentum: float = 0.996
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    schedule: str = "linear"
    warmup: float = 20.0
    milestones: tuple[int, ...] = ()
    epochs: int = 400
    batch_size: int = 512

    def __post_init__(self) -> None:
        op = "MASAConfig"
        counts = ("dim", "embedding", "heads", "ffn", "encoder_layers", "decoder_layers", "head_hidden", "interval")
        for name in (*counts, "bank_size", "epochs", "batch_size"):
            checks.integer_between(op, 1, 1 << 31, **{name: getattr(self, name)})
        for name in ("temperature", "target_scale", "input_eps", "learning_rate"):
            checks.positive(op, **{name: getattr(self, name)})
        limits = (
            "motion_threshold",
            "confidence_threshold",
            "semantic_weight",
            "semantic_ramp",
            "weight_decay",
            "motion_weight",
        )
        for name in (*limits, "warmup"):
            value = getattr(self, name)
            checks.require(0 <= value < math.inf, op, name, "be finite and >= 0", value)
        shares = ("gcn_dropout", "frame_dropout", "transformer_dropout", "joint_fraction", "mask_ratio", "momentum")
        for name in shares:
            checks.require(0 <= getattr(self, name) <= 1, op, name, "be in [0, 1]", getattr(self, name))
        checks.require(0 <= self.view_ratio < 1, op, "view_ratio", "be in [0, 1)", self.view_ratio)
        for name, options in _CHOICES.items():
            checks.choice(op, options, **{name: getattr(self, name)})
        frames = self.masking == "frame" or (self.mask_choice, self.target) == ("motion", "motion")
        rule = "be 'frame' for random masks or joint targets"
        checks.require(frames, op, "masking", rule, repr(self.masking))
        checks.require(
            3 * self.dim % self.heads == 0, op, "dim", f"times 3 be a multiple of {self.heads} heads", self.dim
        )
        positions = self.masking == "frame"
        checks.require(not positions or self.dim % 2 == 0, op, "dim", "be even, for the positions", self.dim)

    @classmethod
    def paper(cls, **changes: Any) -> MASAConfig:
        """The paper's setting; keyword arguments change single fields."""
        return replace(cls(), **changes)

    @classmethod
    def legacy(cls, **changes: Any) -> MASAConfig:
        """The authors' published code: masks per part, an L1 loss of rising coordinates, halving learning rate."""
        return replace(
            cls(
                masking="part", input_eps=0.1, legacy_trunk_graph=True, motion_threshold=3.0, confidence_threshold=0.5,
                loss="l1", target_scale=1.0, momentum=0.999, betas=(0.9, 0.999), weight_decay=0.03, schedule="steps",
                milestones=(100, 200, 300, 350),
            ),
            **changes,
        )  # fmt: skip

    @classmethod
    def small(cls, **changes: Any) -> MASAConfig:
        """The paper's method in a size that two CPU cores train in minutes on a few hundred clips."""
        return replace(
            cls(
                gcn_channels=(16, 16, 32, 64, 64), dim=64, embedding=32, heads=4, ffn=192, encoder_layers=2,
                decoder_layers=1, head_hidden=64, gcn_dropout=0.0, frame_dropout=0.0, transformer_dropout=0.0,
                bank_size=256, semantic_ramp=10.0, learning_rate=1e-3, warmup=5.0, epochs=100, batch_size=32,
            ),
            **changes,
        )  # fmt: skip
