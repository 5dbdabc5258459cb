"""STC as the field writes it: channels-first 1x1 convolutions to 4C, einsum with the dense adjacency, attention with an
explicit score matrix, the losses of ``bank`` over [D, N] queues, one loop over parameters for the momentum update, and
one clip after the other in the loader."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines import bank, gcn
from benchmarks.baselines.gcn import PartGCN, TemporalBlock
from slrfast import graphs
from slrfast.systems.stc import STC, STCConfig, STCEncoder

NAMES = {  # of slrfast -> here, beyond those of the graph networks and temporal blocks
    r"_temporal\.": "_tcn.", r"_pool\.score\.": "_score.", r"_head\.hidden\.": "_fc.0.", r"_head\.output\.": "_fc.2.",
    r"_transformer\.blocks\.": "_transformer.layers.", r"\.out\.": ".o.", "ffn_in": "fc1", "ffn_out": "fc2",
    "norm_attention": "norm1", "norm_ffn": "norm2",
}  # fmt: skip


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-12), nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(b, t, self.heads, d // self.heads).permute(0, 2, 1, 3)

        scores = torch.matmul(split(self.q(x)), split(self.k(x)).transpose(-1, -2)) / math.sqrt(d // self.heads)
        context = torch.matmul(self.dropout(torch.softmax(scores, -1)), split(self.v(x)))
        context = context.permute(0, 2, 1, 3).contiguous().view(b, t, d)
        x = self.norm1(x + self.dropout(self.o(context)))
        return self.norm2(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class Transformer(nn.Module):
    def __init__(self, dim: int, ffn: int, config: STCConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.layers = nn.Sequential(
            *[Attention(dim, config.heads, ffn, config.transformer_dropout) for _ in range(config.layers)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.norm(x))


class FieldEncoder(nn.Module):
    """The encoder of one stream; :meth:`embed` gives (hand, trunk) embeddings."""

    def __init__(self, config: STCConfig, clips: bool = False) -> None:
        super().__init__()
        dim = config.dim
        trunk = graphs.TRUNK7_LEGACY if config.legacy_trunk_graph else graphs.TRUNK7
        self.hand_gcn, self.trunk_gcn = PartGCN(graphs.HAND21, config, clips), PartGCN(trunk, config, clips)
        self.hand_tcn = nn.Sequential(TemporalBlock(dim), TemporalBlock(dim))
        self.trunk_tcn = nn.Sequential(TemporalBlock(dim), TemporalBlock(dim))
        self.hand_transformer = Transformer(2 * dim, config.hand_ffn, config)
        self.trunk_transformer = Transformer(dim, config.trunk_ffn, config)
        self.hand_score, self.trunk_score = nn.Linear(dim, 1), nn.Linear(dim, 1)
        self.hand_fc = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, config.embedding))
        self.trunk_fc = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, config.embedding))

    def frames(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Graph networks and temporal blocks: hand sequence [B, T, 2 dim] and trunk sequence [B, T, dim]."""
        right = self.hand_tcn(self.hand_gcn(x[:, :, 0:21]))
        left = self.hand_tcn(self.hand_gcn(x[:, :, 21:42]))
        trunk = self.trunk_tcn(self.trunk_gcn(x[:, :, 42:49]))
        return torch.cat([right, left], 1).permute(0, 2, 1), trunk.permute(0, 2, 1)

    def forward(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        hand, trunk = self.frames(x)
        hand, trunk = self.hand_transformer(hand), self.trunk_transformer(trunk)
        hands = torch.cat(hand.chunk(2, -1), 1)
        score = self.hand_score(hands).masked_fill(~visible.permute(0, 2, 1).flatten(1).unsqueeze(-1), -1e9)
        hand = torch.matmul(torch.softmax(score, 1).permute(0, 2, 1), hands).squeeze(1)
        trunk = torch.matmul(torch.softmax(self.trunk_score(trunk), 1).permute(0, 2, 1), trunk).squeeze(1)
        return hand, trunk

    def embed(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        hand, trunk = self(x, visible)
        return F.normalize(self.hand_fc(hand), dim=1), F.normalize(self.trunk_fc(trunk), dim=1)


class FieldSTC(nn.Module):
    """The training step in paper mode, for the same ``STCConfig`` as slrfast's; ``clips`` as in :mod:`.gcn`."""

    STREAMS = ("joint", "motion")
    PARTS = ("hand", "trunk")

    def __init__(self, config: STCConfig, clips: bool = False) -> None:
        super().__init__()
        self.config = config
        self.encoder_q = nn.ModuleDict({s: FieldEncoder(config, clips) for s in self.STREAMS})
        self.encoder_k = copy.deepcopy(self.encoder_q)
        for parameter in self.encoder_k.parameters():
            parameter.requires_grad = False
        for s in self.STREAMS:
            for part in self.PARTS:
                queue = F.normalize(torch.randn(config.embedding, config.bank_size), dim=0)
                self.register_buffer(f"queue_{s}_{part}", queue)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.encoder_q.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    @torch.no_grad()
    def momentum_update(self) -> None:
        bank.momentum_update(self.encoder_k.parameters(), self.encoder_q.parameters(), self.config.momentum)

    @torch.no_grad()
    def dequeue_and_enqueue(self, keys: dict[str, tuple[Tensor, Tensor]]) -> None:
        ptr, size = int(self.queue_ptr), keys["joint"][0].shape[0]
        for s in self.STREAMS:
            for part, key in zip(self.PARTS, keys[s], strict=True):
                getattr(self, f"queue_{s}_{part}")[:, ptr : ptr + size] = key.T
        self.queue_ptr[0] = (ptr + size) % self.config.bank_size

    def losses(self, q: dict[str, tuple[Tensor, Tensor]], k: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Eq. 8 of the paper over embeddings (hand, trunk) per stream."""
        c = self.config
        total = torch.zeros((), device=q["joint"][0].device)
        for s, weight in zip(self.STREAMS, (c.joint_weight, c.motion_weight), strict=True):
            con = bank.feature_kl(k[s][0], q[s][1], c.consistency_temperature)
            con = con + bank.feature_kl(k[s][1], q[s][0], c.consistency_temperature)
            cl = sum(
                bank.info_nce(q[s][i], k[s][i], getattr(self, f"queue_{s}_{p}"), c.temperature)
                for i, p in enumerate(self.PARTS)
            )
            total = total + weight * (cl + con)
        anchors = {s: getattr(self, f"queue_{s}_hand") + getattr(self, f"queue_{s}_trunk") for s in self.STREAMS}
        for a, b in (("joint", "motion"), ("motion", "joint")):
            total = total + bank.neighbor_kl(
                sum(k[a]), anchors[a], sum(q[b]), anchors[b], c.neighbors, c.teacher_temperature, c.student_temperature
            )  # fmt: skip
        return total

    def forward(self, query: dict[str, Tensor], key: dict[str, Tensor], enqueue: bool = True) -> Tensor:
        """``query`` and ``key``: a view's "joint" and "motion" [B, T, 49, 2] and "visible" [B, T, 2]."""
        q = {s: self.encoder_q[s].embed(query[s], query["visible"]) for s in self.STREAMS}
        with torch.no_grad():
            k = {s: self.encoder_k[s].embed(key[s], key["visible"]) for s in self.STREAMS}
        loss = self.losses(q, k)
        if enqueue:
            self.dequeue_and_enqueue(k)
        return loss

    @torch.no_grad()
    def encode(self, clips: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
        """Features of whole clips, hand + trunk per stream, [B, 2 dim]; the module is in evaluation mode already."""
        views = [_whole_clip(xy, confidence, self.config.frames) for xy, confidence in clips]
        view = {key: torch.stack([clip[key] for clip in views]).to(self.queue_ptr.device) for key in views[0]}
        return torch.cat([sum(self.encoder_q[s](view[s], view["visible"])) for s in self.STREAMS], -1).float()


def load_batch(
    clips: list[tuple[np.ndarray, np.ndarray]], frames: int, rng: np.random.Generator
) -> list[dict[str, Tensor]]:
    """Two views of every clip (xy [F, 49, 2], confidence [F, 49]), made one after the other and stacked."""
    views: list[list[dict[str, Tensor]]] = [[], []]
    for xy, confidence in clips:
        for view in views:
            view.append(_augment_clip(xy.copy(), confidence.copy(), frames, rng))
    return [{key: torch.stack([clip[key] for clip in view]) for key in view[0]} for view in views]


def _augment_clip(xy: np.ndarray, confidence: np.ndarray, frames: int, rng: np.random.Generator) -> dict[str, Tensor]:
    length = len(xy)
    keep = min(length, max(32, int(rng.uniform(0.1, 1.0) * length)))
    start = rng.integers(0, length - keep + 1)
    xy, motion, visible = _crop(xy, confidence, start, keep)
    angle, scale = rng.uniform(-15, 15) * np.pi / 180, rng.uniform(0.8, 1.2)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    xy, motion = (xy - 0.5) @ matrix.T + 0.5, motion @ matrix.T
    if rng.random() < 0.5:
        dropped = rng.choice(49, 10, replace=False)
        xy[:, dropped], motion[:, dropped] = 0, 0
    if rng.random() < 0.5:
        order = np.r_[21:42, 0:21, 42:49]
        xy, motion, visible = xy[:, order], motion[:, order], visible[:, ::-1]
    return _resize(xy, motion, visible, frames)


def _whole_clip(xy: np.ndarray, confidence: np.ndarray, frames: int) -> dict[str, Tensor]:
    """The middle 95 % of a clip."""
    skip = int(0.025 * len(xy))
    return _resize(*_crop(xy, confidence, skip, len(xy) - 2 * skip), frames)


def _crop(xy: np.ndarray, confidence: np.ndarray, start: int, keep: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, motion and visibility of the hands."""
    motion = np.zeros_like(xy)
    motion[1:] = xy[1:] - xy[:-1]
    visible = np.stack([confidence[:, :21].max(1) > 0, confidence[:, 21:42].max(1) > 0], 1)
    return xy[start : start + keep], motion[start : start + keep], visible[start : start + keep]


def _resize(xy: np.ndarray, motion: np.ndarray, visible: np.ndarray, frames: int) -> dict[str, Tensor]:
    def resize(x: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(x)).flatten(1).T.unsqueeze(0)
        return F.interpolate(x, frames, mode="linear", align_corners=False)[0].T.reshape(frames, 49, 2)

    index = np.arange(frames) * len(xy) // frames
    return {"joint": resize(xy), "motion": resize(motion), "visible": torch.from_numpy(visible[index].copy())}


def copy_encoder(source: STCEncoder, target: FieldEncoder) -> None:
    """Give the field-style encoder the parameters and running statistics of slrfast's."""
    gcn.load(renamed(source.state_dict()), target)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """slrfast's parameters, statistics or gradients of an encoder, in the form that they have here.

    The legacy total head has no counterpart.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in gcn.renamed(tensors).items():
        if name.startswith("total_head."):
            continue
        for ours, theirs in NAMES.items():
            name = re.sub(ours, theirs, name)
        if ".qkv." in name:
            out |= {name.replace("qkv", letter): part for letter, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            out[name] = tensor
    return out


@torch.no_grad()
def copy_system(source: STC, target: FieldSTC) -> None:
    """Give the field-style system the encoders and banks of slrfast's (paper mode)."""
    for s in FieldSTC.STREAMS:
        copy_encoder(source.query[s], target.encoder_q[s])
        copy_encoder(source.key[s].encoder, target.encoder_k[s])
        for part in FieldSTC.PARTS:
            getattr(target, f"queue_{s}_{part}").copy_(source.banks[s][part].features.T)
