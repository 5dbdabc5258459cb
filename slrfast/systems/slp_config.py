"""The settings of SLP: the paper's, and a small one for CPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from slrfast import checks
from slrfast.systems.slp_masks import check_levels

BRANCHES = ("manual", "non_manual")
TASKS = ("reconstruction", "contrast")


@dataclass(frozen=True)
class SLPConfig:
    """Everything that SLP can be asked to be; the defaults are the paper's setting.

    The paper names embedding 512, window 4, 8 blocks and 512 features of either branch; it leaves open the widths
    inside the branches, dropout, positions, how masking is divided between its levels, and the decoder's width, which
    are ours, following STC's code and CCL-SLR's description of the same encoder.

    Args:
        tasks: "reconstruction", "contrast" or both; without reconstruction nothing is masked.
        branches: "manual" (hands and body), "non_manual" (face and mouth) or both; the joints of a branch left out are
            neither seen nor reconstructed.
        gcn_channels: of the five blocks of each graph network.
        dim: size of a frame's vector per part; manual has three parts, non-manual two.
        branch_dim: what each branch gives for a frame; the features F are both side by side.
        narrow: bring the parts' vectors to ``branch_dim`` before a branch's transformer instead of after it.
        heads, layers, manual_ffn, non_manual_ffn: of the branches' transformers.
        decoder_hidden: width of the hidden layer that reconstructs poses.
        embedding: e, size of the space that signs and texts share.
        text_dim: width of the text encoder's features.
        window: s, frames that are averaged before the projection.
        gcn_dropout, frame_dropout, transformer_dropout: probabilities.
        input_eps: epsilon of the input normalisation.
        hand_statistics: what the hands' normalisations see in training: "each" hand's own batch statistics, as in the
            code of STC and MASA, or those of "both" together, as evaluation does.
        mask_ratio: share of the joints that are masked.
        mask_levels: how that is divided between single joints, whole frames and clips of frames.
        mask_span: frames of a masked clip.
        similarity: "fine" (of windows and words) or "coarse" (cosine of the averages over frames and over words; the
            paper's coarse-grained baseline takes a class token instead of the frames' average).
        row_temperature: of the softmax over words in the fine similarity.
        temperature: sigma at the start; 1 / sigma is learned and stays <= 100.
        contrast_weight: lambda.
        gather: take the clips and texts of all processes of the default torch.distributed group as negatives.
        max_frames: of longer clips so many frames are used, spread evenly.
        max_tokens: of longer texts the first tokens and the last two, <eos> and the language, so many in all.
        learning_rate, betas, weight_decay: of AdamW.
        warmup: epochs in which the learning rate rises from zero; it then falls linearly to zero.
        epochs, batch_size: of a full run.
    """

    tasks: tuple[str, ...] = TASKS
    branches: tuple[str, ...] = BRANCHES
    gcn_channels: tuple[int, ...] = (128, 128, 256, 512, 512)
    dim: int = 512
    branch_dim: int = 512
    narrow: bool = False
    heads: int = 8
    layers: int = 8
    manual_ffn: int = 2048
    non_manual_ffn: int = 1536
    decoder_hidden: int = 1024
    embedding: int = 512
    text_dim: int = 1024
    window: int = 4
    gcn_dropout: float = 0.05
    frame_dropout: float = 0.25
    transformer_dropout: float = 0.1
    input_eps: float = 1e-5
    hand_statistics: str = "each"
    mask_ratio: float = 0.4
    mask_levels: tuple[float, ...] = (1.0, 1.0, 1.0)
    mask_span: int = 8
    similarity: str = "fine"
    row_temperature: float = 1.0
    temperature: float = 0.07
    contrast_weight: float = 1.0
    gather: bool = False
    max_frames: int = 256
    max_tokens: int = 128
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    warmup: float = 10.0
    epochs: int = 100
    batch_size: int = 512

    def __post_init__(self) -> None:
        op = "SLPConfig"
        sizes = ("dim", "branch_dim", "heads", "layers", "manual_ffn", "non_manual_ffn", "decoder_hidden", "embedding")
        for name in (*sizes, "text_dim", "window", "mask_span", "max_frames", "epochs", "batch_size"):
            checks.integer_between(op, 1, 1 << 31, **{name: getattr(self, name)})
        checks.integer_between(op, 3, 1 << 31, max_tokens=self.max_tokens)
        for name in ("temperature", "row_temperature", "input_eps", "learning_rate"):
            checks.positive(op, **{name: getattr(self, name)})
        checks.require(self.temperature >= 0.01, op, "temperature", "be >= 0.01", self.temperature)
        for name in ("contrast_weight", "weight_decay", "warmup"):
            checks.number_between(op, 0, math.inf, **{name: getattr(self, name)})
        for name in ("gcn_dropout", "frame_dropout", "transformer_dropout", "mask_ratio"):
            checks.number_between(op, 0, 1, **{name: getattr(self, name)})
        check_levels(op, self.mask_levels)
        rates = checks.are_numbers(self.betas, 2) and all(0 <= rate < 1 for rate in self.betas)
        checks.require(rates, op, "betas", "be two numbers in [0, 1)", self.betas)
        checks.choice(op, ("fine", "coarse"), similarity=self.similarity)
        checks.choice(op, ("each", "both"), hand_statistics=self.hand_statistics)
        for name, all_of in (("tasks", TASKS), ("branches", BRANCHES)):
            chosen = getattr(self, name)
            rule = f"be {all_of[0]!r}, {all_of[1]!r} or both in this order"
            checks.require(chosen in ((all_of[0],), (all_of[1],), all_of), op, name, rule, chosen)
        for name in self.branches:
            width = self.width(name)
            rule = f"give a branch an even width and a multiple of {self.heads} heads"
            argument = "branch_dim" if self.narrow else "dim"
            checks.require(width % self.heads == width % 2 == 0, op, argument, rule, f"{width} ({name})")

    def width(self, branch: str) -> int:
        """The width of a branch's transformer."""
        return self.branch_dim if self.narrow else parts_of(branch) * self.dim

    @classmethod
    def paper(cls, **changes: Any) -> SLPConfig:
        """The paper's setting; keyword arguments change single fields."""
        return replace(cls(), **changes)

    @classmethod
    def small(cls, **changes: Any) -> SLPConfig:
        """The paper's method in a size that two CPU cores train in minutes on a few hundred clips."""
        return replace(
            cls(
                gcn_channels=(16, 16, 32, 64, 64), dim=64, branch_dim=64, narrow=True, heads=4, layers=2,
                manual_ffn=192, non_manual_ffn=192, decoder_hidden=128, embedding=64, text_dim=32,
                gcn_dropout=0.0, frame_dropout=0.0, transformer_dropout=0.0,
                learning_rate=1e-3, weight_decay=0.01, epochs=100, batch_size=32,
            ),
            **changes,
        )  # fmt: skip


def parts_of(branch: str) -> int:
    """Vectors of a frame that a branch reads: of both hands and the body, or of face and mouth."""
    return 3 if branch == "manual" else 2
