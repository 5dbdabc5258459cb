"""SLP: multimodal pre-training for sign language understanding (SL-1.5M).

Zhou et al., "Scaling up Multimodal Pre-training for Sign Language Understanding". Joints, frames and clips of the pose
sequence are masked; two branch encoders, of manual and of non-manual features, see the rest (Eq. 1), and a decoder
reconstructs what was masked (Eq. 3). A frozen text encoder reads the sentence (Eq. 2); windows of frames and words are
projected into one space (Eq. 4), and the fine-grained similarity of clip and sentence is contrasted over the batch
(Eq. 5). Clips without a text are only reconstructed. All clips and texts are packed: no network sees padding.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks, graphs, ops
from slrfast.data import PoseBatch
from slrfast.nn import HolisticEmbedding, Packing, PoseTransformer, with_positions
from slrfast.nn.gather import num_processes
from slrfast.systems.pretrained import Pretrained
from slrfast.systems.schedules import linear
from slrfast.systems.slp_config import SLPConfig, parts_of
from slrfast.systems.slp_masks import hierarchical_mask
from slrfast.systems.slp_sequences import Sequences, average_windows, gathered_contrast, shorten, unit_rows

KEYPOINTS = 79
PARTS = {"manual": ("body", "left_hand", "right_hand"), "non_manual": ("face", "mouth")}
MAX_SCALE = 100.0
"""1 / sigma stays at most this, as in CLIP."""


class TextEncoder(Protocol):
    """What ``SLP.text`` must be, such as ``data.TextEncoder``: a frozen encoder of tokens."""

    dim: int

    def __call__(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Tokens [B, L] and their numbers [B] -> features [B, L, dim]."""

    def to(self, device: torch.device) -> Any:
        """Move to a device."""


class View(NamedTuple):
    """Clips [B, T, 79, 2] and confidences [B, T, 79], 0 where a joint is masked."""

    xy: Tensor
    confidence: Tensor


class Frames(NamedTuple):
    """The frames that are used, all clips behind each other: [S, 79, 2] and [S, 79]."""

    packing: Packing
    xy: Tensor
    confidence: Tensor


class Branch(nn.Module):
    """E_m or E_n of Eq. 1: the transformer over one kind of features, and a linear map to ``branch_dim``."""

    def __init__(self, config: SLPConfig, name: str) -> None:
        super().__init__()
        self.narrow = config.narrow
        ffn = config.manual_ffn if name == "manual" else config.non_manual_ffn
        self.map = nn.Linear(parts_of(name) * config.dim, config.branch_dim)
        self.transformer = PoseTransformer(
            config.width(name), config.heads, ffn, config.layers, config.transformer_dropout
        )

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Frames [S, parts * dim] -> [S, branch_dim]."""
        if self.narrow:
            return self.transformer(with_positions(self.map(x), packing.number), packing)
        return self.map(self.transformer(with_positions(x, packing.number), packing))


class SLPEncoder(nn.Module):
    """The sign pose encoder: frame-wise embedding, then one encoder for each branch, side by side."""

    def __init__(self, config: SLPConfig) -> None:
        super().__init__()
        self.embed = HolisticEmbedding(
            KEYPOINTS, config.dim, config.gcn_channels,
            dropout=config.gcn_dropout, frame_dropout=config.frame_dropout, input_eps=config.input_eps,
            hand_statistics=config.hand_statistics,
        )  # fmt: skip
        unused = {"manual": ("hand_gcn", "body_gcn"), "non_manual": ("face_gcn", "mouth_gcn")}
        for branch in unused.keys() - set(config.branches):
            for network in unused[branch]:
                setattr(self.embed, network, None)
        self.branches = nn.ModuleDict({name: Branch(config, name) for name in config.branches})

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Eq. 1: packed poses [S, 79, 2] -> F [S, branches * branch_dim]."""
        return torch.cat([branch(getattr(self.embed, name)(x), packing) for name, branch in self.branches.items()], -1)


class SLP(Pretrained):
    """SLP pre-training: ``training_step``, the optimizer, ``update_after_step``; ``encode`` for downstream use.

    Attributes:
        text: the frozen text encoder, which batches with texts need unless only poses are reconstructed; it is neither
            saved nor trained with the system, and moved to the device of the tokens.

    >>> system = SLP(SLPConfig.small())
    >>> losses = system.training_step(PoseBatch.random(2, keypoints=79))  # without texts: reconstruction alone
    >>> losses["loss"].backward()
    >>> losses["contrast"].item()
    0.0
    """

    Config: ClassVar[type[SLPConfig]] = SLPConfig
    keypoints = 79
    text: TextEncoder | None
    joints: Tensor

    def __init__(self, config: SLPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SLPConfig()
        self.text = None
        parts = graphs.layout(KEYPOINTS).parts
        slices = [parts[part] for branch in config.branches for part in PARTS[branch]]
        joints = np.sort(np.r_[tuple(slices)])
        self.register_buffer("joints", torch.from_numpy(joints), persistent=False)
        width = self.frame_dim
        self.encoder = SLPEncoder(config)
        if "reconstruction" in config.tasks:
            self.decoder = nn.Sequential(
                nn.Linear(width, config.decoder_hidden), nn.ReLU(), nn.Linear(config.decoder_hidden, 2 * len(joints))
            )
        if "contrast" in config.tasks:
            self.sign_projection = nn.Linear(width, config.embedding)
            self.text_projection = nn.Linear(config.text_dim, config.embedding)
            self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "text":
            return super().__setattr__(name, value)
        width = self.config.text_dim
        dim = getattr(value, "dim", None)
        fits = value is None or (isinstance(dim, int) and dim == width)
        got = dim if isinstance(dim, int) else f"{type(value).__name__} without a dim"
        checks.require(fits, "SLP", "text", f"have dim {width} (config.text_dim)", got)
        return object.__setattr__(self, name, value)  # not a submodule, whatever it is

    # ---- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The losses of one batch.

        Args:
            batch: clips of 79 joints on the system's device, some, all or none of them with a text. Clips of more than
                ``max_frames`` frames and texts of more than ``max_tokens`` tokens are thinned as the config says.
            generator: of the masks, on the batch's device; None is torch's default generator.
        Returns:
            Scalars: "loss" (Eq. 6), with gradient to all parameters, and its unweighted terms: "reconstruction"
            (Eq. 3) of all clips, "contrast" (Eq. 5) of those with a text, 0 if there are none; and "temperature",
            sigma, without gradient.
        Raises:
            TypeError, ValueError: the batch has another layout, dtype or device than the system, a clip without frames,
                or texts that there is no text encoder for.
        """
        config = self.config
        frames = self._frames(batch, generator)
        mask = self._mask(frames.packing, generator)
        features = self._features(frames, mask)
        terms: dict[str, Tensor] = {}
        loss = features.new_zeros((), dtype=torch.promote_types(features.dtype, torch.float32))
        if mask is not None:
            terms["reconstruction"] = self._reconstruction(features, frames, mask)
            loss = loss + terms["reconstruction"]
        if "contrast" in config.tasks:
            terms["contrast"] = self._contrast(features, frames.packing, batch)
            terms["temperature"] = (-self.log_scale.detach()).exp()
            loss = loss + config.contrast_weight * terms["contrast"]
        return {"loss": loss, **terms}

    def _features(self, frames: Frames, mask: Tensor | None = None) -> Tensor:
        """F of the frames [S, D], whose masked joints [S, joints in use] are zero."""
        xy = frames.xy if mask is None else frames.xy.masked_fill(self._everywhere(mask).unsqueeze(-1), 0.0)
        return self.encoder(xy, frames.packing)

    def _reconstruction(self, features: Tensor, frames: Frames, mask: Tensor) -> Tensor:
        """Eq. 3: the squared distances of masked joints, weighted by confidence."""
        predicted = self.decoder(features).unflatten(-1, (-1, 2))
        target, confidence = (x.index_select(1, self.joints) for x in (frames.xy, frames.confidence))
        sequence = (x.unsqueeze(0) for x in (predicted, target, mask, confidence))
        return ops.masked_pose_loss(*sequence)

    def _contrast(self, features: Tensor, packing: Packing, batch: PoseBatch) -> Tensor:
        """Eq. 5 over the clips of the batch that have a text."""
        sign, text = self._pairs(features, packing, batch)
        scale = self.log_scale.exp()
        if self.config.gather and num_processes() > 1:
            return gathered_contrast(self.similarity, sign, text, scale)
        if len(sign.rows) == 0:
            return sign.rows.sum() + text.rows.sum() + 0 * scale  # sums of nothing
        logits = scale * self.similarity(sign, text)
        target = torch.arange(len(sign.rows), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2

    def _pairs(self, features: Tensor, packing: Packing, batch: PoseBatch) -> tuple[Sequences, Sequences]:
        """P_s and P_w of the clips that have a text."""
        paired, words, words_packing = self._words(batch)
        sign = self._project_sign(features, packing)
        text = self._project_text(words, words_packing)
        if len(paired) < batch.size:
            sign = Sequences(*(x.index_select(0, paired) for x in sign))
        return sign, text

    @torch.no_grad()
    def update_after_step(self) -> None:
        """Keep 1 / sigma at most 100: call once after every optimizer step."""
        if "contrast" in self.config.tasks:
            self.log_scale.clamp_(max=math.log(MAX_SCALE))

    # ---- signs and texts in one space --------------------------------------------------------------------------------

    def similarity(self, sign: Sequences, text: Sequences) -> Tensor:
        """The similarity of every one of B clips to every one of M texts, [B, M], with gradient to both.

        Fine: Z = a b^T for a clip's windows a and a text's words b, S = mean over rows of the sum over words of
        softmax(Z / tau) Z. Coarse: the cosine of the averages.
        """
        if self.config.similarity == "coarse":
            with torch.autocast(sign.rows.device.type, enabled=False):  # 1 / sigma would blow up what is rounded away
                return sign.rows[:, 0] @ text.rows[:, 0].mT
        return ops.sign_text_similarity(
            sign.rows, text.rows, sign.present, text.present, row_temperature=self.config.row_temperature
        )

    def pairs(self, batch: PoseBatch, generator: torch.Generator | None = None) -> tuple[Sequences, Sequences]:
        """P_s and P_w of the clips that have a text, for :meth:`similarity`: with gradient, and nothing is masked.

        Args:
            batch, generator: as for :meth:`training_step`.
        Raises:
            TypeError, ValueError: as for :meth:`training_step`.
        """
        self._require_contrast()
        frames = self._frames(batch, generator)
        return self._pairs(self._features(frames), frames.packing, batch)

    def _project_sign(self, features: Tensor, packing: Packing) -> Sequences:
        """Eq. 4: averaged over windows, projected and scaled to length one; the map is linear, so averages go first."""
        window = self.config.window if self.config.similarity == "fine" else max(1, packing.longest)
        return unit_rows(self.sign_projection, *average_windows(features, packing, window))

    def _project_text(self, words: Tensor, packing: Packing) -> Sequences:
        """Eq. 4: the words [W, text_dim] projected and scaled to length one."""
        if self.config.similarity == "coarse":
            words, packing = average_windows(words, packing, max(1, packing.longest))
        return unit_rows(self.text_projection, words, packing)

    def _words(self, batch: PoseBatch) -> tuple[Tensor, Tensor, Packing]:
        """Which clips have a text, int64 [P], and Eq. 2: the features of these texts' tokens, packed [W, text_dim]."""
        like = self.text_projection.weight
        if batch.tokens is None or batch.token_lengths is None or not bool((batch.token_lengths > 0).any()):
            none = torch.zeros(0, dtype=torch.int64, device=like.device)
            return none, like.new_zeros(0, self.config.text_dim), Packing.of(none.new_zeros(1))
        paired = (batch.token_lengths > 0).nonzero()[:, 0]
        tokens, lengths = (x.index_select(0, paired) for x in (batch.tokens, batch.token_lengths))
        return paired, *self._encode_text(tokens, lengths)

    @torch.no_grad()
    def _encode_text(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Packing]:
        hint = "set system.text = TextEncoder(path), or train with tasks=('reconstruction',)"
        checks.require(self.text is not None, "SLP", "text", "be a text encoder for a batch with texts", None, hint)
        longest = int(lengths.max()) if len(lengths) else 0
        checks.require(longest <= tokens.shape[1], "SLP", "token_lengths", f"be <= {tokens.shape[1]}", longest)
        tokens, lengths = shorten(tokens, lengths, self.config.max_tokens)
        self.text.to(tokens.device)  # type: ignore[union-attr]
        features: Tensor = self.text(tokens, lengths)  # type: ignore[misc]
        checks.shapes("SLP", **{"text(tokens)": (features, f"{len(tokens)} {tokens.shape[1]} {self.config.text_dim}")})
        packing = Packing.of(F.pad(lengths.cumsum(0), (1, 0)))
        return packing.unpad(features[:, : packing.longest].to(self.text_projection.weight)), packing

    # ---- downstream use ----------------------------------------------------------------------------------------------

    @property
    def widths(self) -> dict[str, int]:
        return {"pose": self.frame_dim}

    def features(self, batch: PoseBatch) -> dict[str, Tensor]:
        """The average of F over the frames, [B, branches * branch_dim]; nothing is masked, texts are not read.

        In the mode that the modules are in, with gradient.

        Raises:
            TypeError, ValueError: as for :meth:`training_step`.
        """
        features, packing = self.frame_features(batch)
        return {"pose": packing.mean(features)}

    @property
    def frame_dim(self) -> int:
        """Width of :meth:`frame_features`."""
        return len(self.config.branches) * self.config.branch_dim

    def frame_features(self, batch: PoseBatch) -> tuple[Tensor, Packing]:
        """F of every frame in use, [S, branches * branch_dim], and their packing; otherwise as :meth:`features`."""
        frames = self._frames(batch, middle=True)
        return self._features(frames), frames.packing

    @torch.no_grad()
    def encode_frames(self, batch: PoseBatch) -> tuple[Tensor, Packing]:
        """:meth:`frame_features` in evaluation mode, float32, without gradient."""
        with self.evaluating():
            features, packing = self.frame_features(batch)
            return features.float(), packing

    @torch.no_grad()
    def encode_signs(self, batch: PoseBatch) -> Sequences:
        """P_s of the clips, for :meth:`similarity`: their windows in the space shared with texts."""
        self._require_contrast()
        frames = self._frames(batch, middle=True)
        with self.evaluating():
            return self._project_sign(self._features(frames), frames.packing)

    @torch.no_grad()
    def encode_text(self, tokens: Tensor, token_lengths: Tensor) -> Sequences:
        """P_w of texts, for :meth:`similarity`: their words in the space shared with signs.

        Args:
            tokens: int64 [M, L], zeros behind every text.
            token_lengths: int64 [M], >= 1.
        Raises:
            TypeError, ValueError: shapes that do not fit, an empty text, or no text encoder.
        """
        self._require_contrast()
        checks.shapes("SLP", tokens=(tokens, "M L"), token_lengths=(token_lengths, "M"))
        checks.dtype("SLP", torch.int64, tokens=tokens, token_lengths=token_lengths)
        shortest = min(token_lengths.tolist(), default=1)
        checks.require(shortest > 0, "SLP", "token_lengths", "be >= 1", shortest)
        return self._project_text(*self._encode_text(tokens, token_lengths))

    @torch.no_grad()
    def views(self, batch: PoseBatch, generator: torch.Generator | None = None) -> tuple[View, View]:
        """Every clip as the encoder sees it, masked joints at confidence 0, and with what is reconstructed for them.

        Without reconstruction nothing is masked and both are the clip.
        """
        frames = self._frames(batch, generator)
        mask = self._mask(frames.packing, generator)
        pad = frames.packing.pad
        if mask is None:
            seen = View(pad(frames.xy), pad(frames.confidence))
            return seen, seen
        with self.evaluating():
            predicted = self.decoder(self._features(frames, mask)).unflatten(-1, (-1, 2)).to(frames.xy.dtype)
        hidden = self._everywhere(mask)
        rebuilt = frames.xy.index_copy(1, self.joints, predicted)
        rebuilt = torch.where(hidden.unsqueeze(-1), rebuilt, frames.xy)
        return (
            View(pad(frames.xy), pad(frames.confidence.masked_fill(hidden, 0.0))),
            View(pad(rebuilt), pad(frames.confidence)),
        )

    # ---- what goes in ------------------------------------------------------------------------------------------------

    def _frames(self, batch: PoseBatch, generator: torch.Generator | None = None, middle: bool = False) -> Frames:
        """The clips, of the longer ones ``max_frames`` frames spread evenly, from a random (or the middle) shift on."""
        self.require(batch)
        packing = Packing.of(batch.offsets)
        shortest = min(packing.lengths, default=1)
        checks.require(shortest > 0, "SLP", "batch", "have at least one frame in every clip", shortest)
        limit = self.config.max_frames
        if packing.longest <= limit:
            return Frames(packing, batch.xy, batch.confidence)
        lengths = batch.lengths
        kept = Packing(F.pad(lengths.clamp(max=limit).cumsum(0), (1, 0)), tuple(min(n, limit) for n in packing.lengths))
        draw = torch.rand(batch.size, generator=generator, device=batch.xy.device) if not middle else 0.5
        shift = (draw * lengths.double()).long().minimum(lengths - 1)
        numbers = (kept.number * lengths[kept.clip] + shift[kept.clip]) // lengths.clamp(max=limit)[kept.clip]
        rows = batch.offsets[kept.clip] + numbers
        return Frames(kept, batch.xy.index_select(0, rows), batch.confidence.index_select(0, rows))

    def _mask(self, packing: Packing, generator: torch.Generator | None) -> Tensor | None:
        """Which of the joints in use are masked, bool [S, joints in use]; None without reconstruction."""
        config = self.config
        if "reconstruction" not in config.tasks:
            return None
        shape = (packing.num_clips, packing.longest, len(self.joints) + 2)
        keys = torch.rand(shape, generator=generator, device=packing.offsets.device)
        return packing.unpad(
            hierarchical_mask(
                packing.offsets.diff(), keys,
                ratio=config.mask_ratio, levels=config.mask_levels, span=config.mask_span,
            )
        )  # fmt: skip

    def _everywhere(self, mask: Tensor) -> Tensor:
        """A mask of the joints in use [S, joints in use] as one of all: [S, 79]."""
        return mask.new_zeros(len(mask), KEYPOINTS).index_copy(1, self.joints, mask)

    def _require_contrast(self) -> None:
        tasks = self.config.tasks
        rule = "have 'contrast' for what signs and texts share"
        checks.require("contrast" in tasks, "SLP", "config.tasks", rule, tasks)

    # ---- optimization ------------------------------------------------------------------------------------------------

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over everything but the frozen text encoder; the temperature does not decay."""
        config = self.config
        named = dict(self.named_parameters())
        alone = [named.pop(name) for name in ("log_scale",) if name in named]
        groups: list[dict[str, Any]] = [{"params": list(named.values())}]
        groups += [{"params": alone, "weight_decay": 0.0}] if alone else []
        rate, decay = config.learning_rate, config.weight_decay
        return torch.optim.AdamW(groups, rate, config.betas, weight_decay=decay, fused=True)

    def learning_rate(self, epoch: float) -> float:
        """The learning rate at a (fractional) epoch: linear from zero during the warm-up, then linear to zero."""
        config = self.config
        return linear(config.learning_rate, epoch, config.warmup, config.epochs)
