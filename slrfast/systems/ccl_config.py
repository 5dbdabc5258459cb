"""The settings of CCL-SLR: the paper's, and a small one for CPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from slrfast import checks

_CHOICES = {
    "label_bank": ("g", "f"),
    "flip": ("shared", "independent"),
    "bank_dtype": ("float32", "bfloat16"),
    "hand_statistics": ("each", "both"),
}


@dataclass(frozen=True)
class CCLConfig:
    """Everything that CCL-SLR can be asked to be; the defaults are the paper's setting.

    No code was published. What the paper leaves open is decided here: the sizes of the pose branch's transformers,
    dropout, N, the momentum, weight decay, and every range of the augmentations. See also :mod:`slrfast.systems.ccl`.

    Args:
        modalities: "rgb", "pose" or both; the losses across modalities and shared positives need both.
        frames: T of a view, in pictures and poses alike.
        image_size: side of a view's pictures in pixels.
        rgb_layers, rgb_width: blocks of the four stages of the 3D ResNet, and its first width; 64 gives 2048 features.
        gcn_channels: of the five blocks of each graph network.
        dim: size of a frame's vector per group of joints, and of the manual and the non-manual vector.
        heads, layers, manual_ffn, non_manual_ffn: of the transformers.
        gcn_dropout, frame_dropout, transformer_dropout: probabilities.
        input_eps: epsilon of the input normalisation.
        hand_statistics: what the hands' normalisations see in training: "each" hand's own batch statistics, as in the
            code of STC and MASA, or those of "both" together, as evaluation does.
        embedding: size of f.
        temperature: tau of InfoNCE.
        mining_temperature: tau_spm of Eq. 7.
        positives: k, neighbours that each modality finds.
        mining_weight: of semantic positive mining; 0 leaves it out.
        cross_weight: of the contrast across modalities; 0 leaves it out.
        label_bank: "g" mines in banks of what the encoders give; "f" in those of the contrast, with no others.
        bank_size: N.
        bank_dtype: "float32" or "bfloat16"; in bfloat16, what is searched for in a g bank is rounded too.
        mask_probability: alpha, how often Motion-Preserving Masking is applied to the pictures of a view; 0 leaves it
            out, otherwise every batch has to come with ``rgb_mask``.
        crop: the pictures are cropped to this share of either side, uniform.
        jitter, jitter_probability: strengths of brightness, contrast, saturation and hue, and how often they change.
        rotation, scale, joint_probability, joint_fraction: of the poses: degrees to either side, factor, how often
            which share of the joints is masked.
        flip_probability: how often a view is mirrored.
        flip: "shared" mirrors the pictures and the pose of a view together, "independent" each on its own.
        min_crop, min_frames: the temporal crop keeps a fraction U[min_crop, 1] of the frames, at least min_frames.
        momentum: gamma of the key encoders.
        learning_rate, sgd_momentum, weight_decay: of SGD.
        milestones: epochs at which the learning rate falls to a tenth.
        warmup: epochs of linear warm-up (none in the paper).
        epochs, batch_size: of a full run.
    """

    modalities: tuple[str, ...] = ("rgb", "pose")
    frames: int = 32
    image_size: int = 224
    rgb_layers: tuple[int, ...] = (3, 4, 6, 3)
    rgb_width: int = 64
    gcn_channels: tuple[int, ...] = (128, 128, 256, 512, 512)
    dim: int = 512
    heads: int = 8
    layers: int = 3
    manual_ffn: int = 2048
    non_manual_ffn: int = 1536
    gcn_dropout: float = 0.05
    frame_dropout: float = 0.25
    transformer_dropout: float = 0.1
    input_eps: float = 1e-5
    hand_statistics: str = "each"
    embedding: int = 128
    temperature: float = 0.07
    mining_temperature: float = 0.02
    positives: int = 10
    mining_weight: float = 1.0
    cross_weight: float = 1.0
    label_bank: str = "g"
    bank_size: int = 16384
    bank_dtype: str = "float32"
    mask_probability: float = 0.2
    crop: tuple[float, float] = (0.7, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    rotation: float = 15.0
    scale: tuple[float, float] = (0.8, 1.2)
    joint_probability: float = 0.5
    joint_fraction: float = 0.2
    flip_probability: float = 0.5
    flip: str = "shared"
    min_crop: float = 0.1
    min_frames: int = 1
    momentum: float = 0.999
    learning_rate: float = 0.01
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (100,)
    warmup: float = 0.0
    epochs: int = 140
    batch_size: int = 64

    def __post_init__(self) -> None:
        op = "CCLConfig"
        counts = ("frames", "image_size", "rgb_width", "dim", "heads", "layers", "manual_ffn", "non_manual_ffn")
        for name in (*counts, "embedding", "bank_size", "min_frames", "epochs", "batch_size"):
            checks.integer_between(op, 1, 1 << 31, **{name: getattr(self, name)})
        checks.integer_between(op, 1, self.bank_size, positives=self.positives)
        layers = self.rgb_layers
        stages = checks.are_numbers(layers, 4) and all(isinstance(blocks, int) and blocks >= 1 for blocks in layers)
        checks.require(stages, op, "rgb_layers", "be four integers >= 1", layers)
        for name in ("temperature", "mining_temperature", "input_eps", "learning_rate"):
            checks.positive(op, **{name: getattr(self, name)})
        for name in ("mining_weight", "cross_weight", "weight_decay", "warmup", "rotation"):
            checks.number_between(op, 0, math.inf, **{name: getattr(self, name)})
        shares = ("gcn_dropout", "frame_dropout", "transformer_dropout", "sgd_momentum", "momentum", "flip_probability")
        for name in (*shares, "mask_probability", "jitter_probability", "joint_probability", "joint_fraction"):
            checks.number_between(op, 0, 1, **{name: getattr(self, name)})
        checks.number_between(op, 0, 1, min_crop=self.min_crop)
        checks.require(self.min_crop > 0, op, "min_crop", "be in (0, 1]", self.min_crop)
        inside = checks.are_numbers(self.crop, 2) and 0 < self.crop[0] <= self.crop[1] <= 1
        checks.require(inside, op, "crop", "be (low, high) with 0 < low <= high <= 1", self.crop)
        rising = checks.are_numbers(self.scale, 2) and -math.inf < self.scale[0] <= self.scale[1] < math.inf
        checks.require(rising, op, "scale", "be (low, high), finite, low <= high", self.scale)
        gentle = checks.are_numbers(self.jitter, 4) and all(
            0 <= strength <= most for strength, most in zip(self.jitter, (1, 1, 1, 0.5), strict=True)
        )
        checks.require(gentle, op, "jitter", "be three strengths in [0, 1] and a hue in [0, 0.5]", self.jitter)
        epochs = checks.are_numbers(self.milestones, None)
        checks.require(epochs, op, "milestones", "be a sequence of numbers", self.milestones)
        known = self.modalities in (("rgb",), ("pose",), ("rgb", "pose"))
        checks.require(known, op, "modalities", "be 'rgb', 'pose' or both in this order", self.modalities)
        for name, options in _CHOICES.items():
            checks.choice(op, options, **{name: getattr(self, name)})
        for width in (2 * self.dim, 3 * self.dim):
            divides = width % self.heads == 0
            checks.require(divides, op, "dim", f"times 2 and 3 be a multiple of {self.heads} heads", self.dim)

    @property
    def features(self) -> dict[str, int]:
        """Size of g in every modality."""
        sizes = {"rgb": 32 * self.rgb_width, "pose": 2 * self.dim}
        return {modality: sizes[modality] for modality in self.modalities}

    @classmethod
    def paper(cls, **changes: Any) -> CCLConfig:
        """The paper's setting; keyword arguments change single fields."""
        return replace(cls(), **changes)

    @classmethod
    def small(cls, **changes: Any) -> CCLConfig:
        """The paper's method in a size that two CPU cores train in minutes on a few hundred clips."""
        return replace(
            cls(
                frames=16, image_size=48, rgb_layers=(1, 1, 1, 1), rgb_width=8, gcn_channels=(16, 16, 32, 64, 64),
                dim=64, heads=4, layers=1, manual_ffn=256, non_manual_ffn=192, gcn_dropout=0.0, frame_dropout=0.0,
                transformer_dropout=0.0, embedding=32, bank_size=256, jitter=(0.2, 0.2, 0.2, 0.0), min_crop=0.5,
                min_frames=8, epochs=100, milestones=(80,), batch_size=32,
            ),
            **changes,
        )  # fmt: skip
