"""CCL-SLR: cross-modal consistency learning of sign language from pictures and poses.

Wu et al., "Cross-Modal Consistency Learning for Sign Language Recognition". Two branches (RGB and pose), each a query
encoder, a momentum key encoder and two memory banks in step; contrast within a modality (Eq. 9) and across (Eq. 11-12),
and rows of the banks that are near in either modality as positives of both (Semantic Positive Mining, Eq. 6-8). In
some views only what moves is left of the pictures (Motion-Preserving Masking, Eq. 5); the masks come with the batch.

Decisions where the paper leaves room:

* g, what an encoder gives, and f, its projection, have different sizes (R^d both); f has unit length, queries and keys.
* Three transformed hand and body vectors per frame (two of face and mouth) become one of 512 by attention pooling over
  frames and groups, as in STC; g of the pose is the manual and the non-manual one.
* One temporal crop holds for the pictures and the pose of a view. So does the flip: a mirrored picture beside a pose
  that is not mirrored would disagree about which hand signs. The pose is mirrored like the picture, all of it. Query
  and key draw everything on their own. ``flip="independent"`` is the other reading.
* A view of a clip in which nothing moves is not masked.

``CCLConfig.paper()`` is the paper; no code was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks, ops
from slrfast.data import AugmentPlan, PoseBatch
from slrfast.nn import AttentionPool, HolisticEmbedding, MemoryBank, MomentumEncoder, PoseTransformer, ProjectionHead
from slrfast.nn.bank import write_in_step
from slrfast.nn.r3d import R3D
from slrfast.systems.ccl_config import CCLConfig
from slrfast.systems.ccl_views import LAYOUT, PictureChanges, View, mirrored, moments, pictures
from slrfast.systems.pretrained import Pretrained
from slrfast.systems.schedules import stepwise, two_windows

MANUAL, NON_MANUAL = ("left_hand", "right_hand", "trunk"), ("face", "mouth")
_PARTS = list(LAYOUT.parts)


class Features(NamedTuple):
    """g [B, d_g], what an encoder makes of a view, and f [B, d], its projection of length one."""

    g: Tensor
    f: Tensor


class RGBEncoder(nn.Module):
    """R3D-50 over the pictures of a view, pooled over space and time."""

    def __init__(self, config: CCLConfig) -> None:
        super().__init__()
        self.backbone = R3D(layers=config.rgb_layers, width=config.rgb_width)
        self.head = ProjectionHead(config.features["rgb"], config.embedding)

    def forward(self, view: View) -> Tensor:
        """g [B, 2048]."""
        return self.backbone(view.rgb)

    def embed(self, view: View) -> Features:
        """g and f."""
        g = self(view)
        return Features(g, self.head(g))


class PoseEncoder(nn.Module):
    """Graph networks per frame, transformers over manual and non-manual vectors (Eq. 15-17), attention pooling."""

    def __init__(self, config: CCLConfig) -> None:
        super().__init__()
        self.embedding = HolisticEmbedding(
            75, config.dim, config.gcn_channels, in_channels=3,
            dropout=config.gcn_dropout, frame_dropout=config.frame_dropout, input_eps=config.input_eps,
            hand_statistics=config.hand_statistics,
        )  # fmt: skip

        def transformer(groups: int, ffn: int) -> PoseTransformer:
            return PoseTransformer(groups * config.dim, config.heads, ffn, config.layers, config.transformer_dropout)

        self.manual_transformer = transformer(3, config.manual_ffn)
        self.non_manual_transformer = transformer(2, config.non_manual_ffn)
        self.manual_pool, self.non_manual_pool = AttentionPool(config.dim), AttentionPool(config.dim)
        self.head = ProjectionHead(config.features["pose"], config.embedding)

    def forward(self, view: View) -> Tensor:
        """g [B, 1024]: the manual vector, then the non-manual one."""
        manual, non_manual = self.embedding(torch.cat((view.xy, view.confidence[..., None]), -1))
        return torch.cat(
            (
                self._pool(self.manual_pool, self.manual_transformer(manual), view.visible, MANUAL),
                self._pool(self.non_manual_pool, self.non_manual_transformer(non_manual), view.visible, NON_MANUAL),
            ),
            -1,
        )

    @staticmethod
    def _pool(pool: nn.Module, x: Tensor, visible: Tensor, parts: tuple[str, ...]) -> Tensor:
        """The frames [B, T, G dim] of G parts, those where the part was seen -> [B, dim]."""
        seen = [visible[..., _PARTS.index(part)] for part in parts]
        return pool(torch.cat(x.chunk(len(parts), -1), 1), torch.cat(seen, 1))

    def embed(self, view: View) -> Features:
        """g and f."""
        g = self(view)
        return Features(g, self.head(g))


_ENCODERS: dict[str, type[RGBEncoder] | type[PoseEncoder]] = {"rgb": RGBEncoder, "pose": PoseEncoder}


class KeyEncoder(MomentumEncoder):
    """The momentum encoder of one modality; its forward pass embeds."""

    @torch.no_grad()
    def embed(self, view: View) -> Features:
        """The key's g and f, without gradient."""
        encoder: RGBEncoder | PoseEncoder = self.encoder  # type: ignore[assignment]
        return encoder.embed(view)


class CCL(Pretrained):
    """CCL-SLR pre-training: ``training_step``, the optimizer, ``update_after_step``; ``encode`` for downstream use.

    >>> system = CCL(CCLConfig.small(frames=4, bank_size=16, modalities=("pose",)))
    >>> losses = system.training_step(PoseBatch.random(2, keypoints=75))
    >>> losses["loss"].backward()
    """

    Config: ClassVar[type[CCLConfig]] = CCLConfig
    keypoints = 75
    # nn.ModuleDicts, typed by what they hold
    query: Mapping[str, RGBEncoder | PoseEncoder]
    key: Mapping[str, KeyEncoder]
    banks: Mapping[str, Mapping[str, MemoryBank]]
    flip: Tensor
    mirror: Tensor
    own_box: Tensor

    def __init__(self, config: CCLConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CCLConfig()
        self.augment_plan = AugmentPlan.paper(
            rotation=config.rotation,
            scale=config.scale,
            joint_probability=config.joint_probability,
            joint_fraction=config.joint_fraction,
            swap_probability=config.flip_probability,
        )
        query = {m: _ENCODERS[m](config) for m in config.modalities}
        self.query = nn.ModuleDict(query)  # type: ignore[assignment]
        self.key = nn.ModuleDict({m: KeyEncoder(encoder, config.momentum) for m, encoder in query.items()})  # type: ignore[assignment]
        self.banks = nn.ModuleDict({m: self._new_banks(m) for m in config.modalities})  # type: ignore[assignment]
        hands = torch.zeros(75, dtype=torch.bool)
        for part in MANUAL[:2]:
            hands[LAYOUT.parts[part]] = True
        x_is_mirrored = torch.tensor([-1.0 if part not in MANUAL[:2] else 1.0 for part in _PARTS])
        self.register_buffer("own_box", hands, persistent=False)
        self.register_buffer("flip", torch.from_numpy(LAYOUT.flip.copy()), persistent=False)
        self.register_buffer("mirror", torch.stack((x_is_mirrored, torch.ones(len(_PARTS))), 1), persistent=False)

    def _new_banks(self, modality: str) -> nn.ModuleDict:
        """M_f of what the contrast is against, and M_g of what positives are mined in, unless that is M_f too."""
        config = self.config
        sizes = {"f": config.embedding}
        if config.mining_weight and config.label_bank == "g":
            sizes["g"] = config.features[modality]
        dtype = getattr(torch, config.bank_dtype)
        return nn.ModuleDict({name: MemoryBank(config.bank_size, size, dtype=dtype) for name, size in sizes.items()})

    def training_step(self, batch: PoseBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The losses of one batch; the keys are enqueued before it returns, which is legal before ``backward``.

        Args:
            batch: clips of 75 keypoints with ``rgb`` (and ``rgb_mask``), on the system's device.
            generator: of the augmentation, on the batch's device; None is torch's default generator.
        Returns:
            Scalars, with gradient to the query encoders: "loss" (Eq. 14) and its unweighted terms: for modality m
            "m/contrast" (Eq. 9) and "m/mining" (Eq. 8), and "rgb_to_pose" (Eq. 11) and "pose_to_rgb" (Eq. 12).
        Raises:
            TypeError, ValueError: the batch has another layout, dtype or device than the system, no pictures or masks
                where the system needs them, or a clip without frames.
        """
        self._check(batch, pictures="rgb" in self.config.modalities)
        query, key = self.embed(*self.views(batch, generator))
        losses = self.losses(query, key)
        self.enqueue(key)
        return losses

    def embed(self, query_view: View, key_view: View) -> tuple[dict[str, Features], dict[str, Features]]:
        """The query and key features of every modality; the keys carry no gradient."""
        # keys first: what they take in between is free again before the queries keep theirs for the backward pass
        key = {m: self.key[m].embed(key_view) for m in self.config.modalities}
        query = {m: self.query[m].embed(query_view) for m in self.config.modalities}
        return query, key

    def losses(self, query: dict[str, Features], key: dict[str, Features]) -> dict[str, Tensor]:
        """Eq. 14 and its terms, from the features of the two views: every f bank is read once."""
        config = self.config
        mined = self.positives(query) if config.mining_weight else None
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=query[config.modalities[0]].f.device)
        for m in config.modalities:
            others = [other for other in config.modalities if other != m and config.cross_weight]
            f = torch.cat([query[modality].f for modality in (m, *others)])
            batch = len(f) // (1 + len(others))
            contrast, mining = ops.bank_losses(
                f,
                key[m].f.repeat(1 + len(others), 1),
                self.banks[m]["f"].features,
                mined,
                temperature=config.temperature,
                mined_temperature=config.mining_temperature,
            )
            terms[f"{m}/contrast"] = contrast[:batch].mean()  # Eq. 9
            loss = loss + terms[f"{m}/contrast"]
            if mined is not None:
                terms[f"{m}/mining"] = mining.mean()  # Eq. 8
                loss = loss + config.mining_weight * terms[f"{m}/mining"]
            for other in others:
                terms[f"{m}_to_{other}"] = contrast[batch:].mean()  # Eq. 11, 12
                loss = loss + config.cross_weight * terms[f"{m}_to_{other}"]
        return {"loss": loss, **terms}

    @torch.no_grad()
    def positives(self, query: Mapping[str, Features]) -> Tensor:
        """Eq. 6: the bank rows [B, M k] that are nearest in one of M modalities; a row may be there twice."""
        name = self.config.label_bank
        found = []
        for m in self.config.modalities:
            bank = self.banks[m][name].features
            labels = getattr(query[m], name)
            labels = labels.to(bank.dtype) if name == "g" else labels
            found.append(ops.topk_similarity(labels, bank, self.config.positives, sorted=False)[1])
        return torch.cat(found, 1)

    def enqueue(self, key: Mapping[str, Features]) -> None:
        """Eq. 4: write the keys into all banks, row for row the same clips, or into none if one does not fit."""
        pairs = {
            f"key[{m!r}].{name}": (bank, getattr(key[m], name))
            for m, banks in self.banks.items()
            for name, bank in banks.items()
        }
        write_in_step("CCL", pairs)

    @torch.no_grad()
    def update_after_step(self) -> None:
        """Move the key encoders towards the query encoders: call once after every optimizer step."""
        for m, key in self.key.items():
            key.update(self.query[m])

    @torch.no_grad()
    def views(self, batch: PoseBatch, generator: torch.Generator | None = None) -> tuple[View, View]:
        """Two independently cropped, resampled and augmented views of every clip.

        A generator in the same state gives the same two views.
        """
        config, device = self.config, batch.xy.device
        start, keep = two_windows(batch.lengths, config.min_crop, config.min_frames, generator)
        plan = self.augment_plan.draw(2 * batch.size, keypoints=75, generator=generator, device=device)
        changes = None
        if batch.rgb is not None and "rgb" in config.modalities:
            own = config.flip_probability if config.flip == "independent" else None
            chances = (config.jitter_probability, config.mask_probability, own)
            dtype = batch.xy.dtype
            changes = PictureChanges.draw(plan.swap, config.crop, config.jitter, chances, generator, dtype)
        first, second = self._views(batch, start, keep, mirrored(plan, self.flip, self.mirror, self.own_box), changes)
        return first, second

    def _views(
        self, batch: PoseBatch, start: Tensor, length: Tensor, plan: ops.AugmentTensors, changes: PictureChanges | None
    ) -> list[View]:
        """The windows [A, B] of the clips as A views, changed by as many plans; changes None leaves pictures out."""
        config, size = self.config, batch.size
        poses = ops.pose_views(
            batch.xy, batch.confidence, batch.offsets, start, length, plan, config.frames, motion=None
        )
        views = []
        for i in range(len(start)):
            rgb = None
            if changes is not None and batch.rgb is not None:
                index = moments(batch.lengths, start[i], length[i], config.frames, batch.rgb.shape[2])
                own = PictureChanges(*(drawn[i * size : (i + 1) * size] for drawn in changes))
                mask = batch.rgb_mask if config.mask_probability else None
                rgb = pictures(batch.rgb, mask, index, own, config.image_size)
            views.append(View(poses.xy[i], poses.confidence[i], poses.visible[i], rgb))
        return views

    @property
    def widths(self) -> dict[str, int]:
        return {m: self.config.features[m] for m in self.config.modalities}

    def features(self, batch: PoseBatch) -> dict[str, Tensor]:
        """g of either branch, scaled to length one, so that both count alike: "rgb" (2048), then "pose" (1024).

        Of clips without pictures "pose" alone. Whole clips are resampled to ``frames``, without augmentation. In the
        mode that the modules are in, with gradient.

        Raises:
            TypeError, ValueError: as for :meth:`training_step`, but pictures are needed only by a system without a
                pose branch, and masks never.
        """
        modalities = [m for m in self.config.modalities if m == "pose" or batch.rgb is not None]
        self._check(batch, pictures=modalities != ["pose"], masks=False)
        device, dtype, size = batch.xy.device, batch.xy.dtype, batch.size
        unchanged = AugmentPlan.none().draw(size, keypoints=75, device=device)
        as_they_are = PictureChanges.none(size, device, dtype) if "rgb" in modalities else None
        start = torch.zeros_like(batch.lengths)
        whole = replace(batch, rgb_mask=None)
        (view,) = self._views(whole, start[None], batch.lengths[None], unchanged, as_they_are)
        return {m: F.normalize(self.query[m](view), dim=-1) for m in modalities}

    def _check(self, batch: PoseBatch, *, pictures: bool, masks: bool = True) -> None:
        self.require(batch)
        if not pictures:
            return
        hint = "train with modalities=('pose',), or give every clip its pictures"
        checks.require(batch.rgb is not None, "CCL", "batch", "have rgb", "poses alone", hint)
        assert batch.rgb is not None
        shown = list(batch.rgb.shape)
        checks.require(min(shown[2:]) > 0, "CCL", "batch.rgb", "have at least one frame and one pixel", shown)
        hint = "give every clip its mask, or set mask_probability=0"
        needed = masks and self.config.mask_probability > 0
        rule = f"have rgb_mask for a mask_probability of {self.config.mask_probability}"
        checks.require(not needed or batch.rgb_mask is not None, "CCL", "batch", rule, "none", hint)

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum over the query encoders, as in the paper; the weight decay is ours."""
        config = self.config
        parameters = [p for encoder in self.query.values() for p in encoder.parameters()]
        return torch.optim.SGD(
            parameters, config.learning_rate, config.sgd_momentum, weight_decay=config.weight_decay, fused=True
        )

    def learning_rate(self, epoch: float) -> float:
        """The learning rate at a (fractional) epoch: a tenth after every milestone, after a linear warm-up if any."""
        config = self.config
        return stepwise(config.learning_rate, epoch, config.milestones, config.warmup)
