"""STC as the field writes it: channels-first 1x1 convolutions to 4C, einsum with the dense adjacency, attention with an
explicit score matrix, the losses of ``bank`` over [D, N] queues, one loop over parameters for the momentum update, and
one clip after the other in the loader."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines import bank
from slrfast import graphs
from slrfast.systems.stc import STC, STCConfig, STCEncoder


class GraphConvolution(nn.Module):
    def __init__(self, cin: int, cout: int, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("A", adjacency)
        self.conv = nn.Conv2d(cin, cout * adjacency.size(0), kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, kc, t, v = x.shape
        x = x.view(n, self.A.size(0), kc // self.A.size(0), t, v)
        return torch.einsum("nkctv,kvw->nctw", x, self.A).contiguous()


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, adjacency: Tensor, residual: bool, dropout: float) -> None:
        super().__init__()
        self.gcn = GraphConvolution(cin, cout, adjacency)
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(cout), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Conv2d(cout, cout, 1), nn.BatchNorm2d(cout), nn.Dropout(dropout),
        )  # fmt: skip
        if not residual:
            self.residual = None
        elif cin == cout:
            self.residual = nn.Identity()
        else:
            self.residual = nn.Sequential(nn.Conv2d(cin, cout, 1), nn.BatchNorm2d(cout))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = 0 if self.residual is None else self.residual(x)
        return self.relu(self.tcn(self.gcn(x)) + residual)


class PartGCN(nn.Module):
    def __init__(self, graph: graphs.SkeletonGraph, config: STCConfig) -> None:
        super().__init__()
        adjacency, pooled = torch.tensor(graph.dense()), torch.tensor(graph.pooled.dense())
        self.data_bn = nn.BatchNorm1d(2 * graph.num_nodes, eps=config.input_eps)
        sizes = (2, *config.gcn_channels)
        self.blocks = nn.ModuleList(
            Block(sizes[i], sizes[i + 1], adjacency if i < 3 else pooled, i > 0, config.gcn_dropout) for i in range(5)
        )
        self.parts = [list(part) for part in graph.parts]
        self.fc = nn.Sequential(
            nn.Conv1d(sizes[-1], config.dim, 1), nn.BatchNorm1d(config.dim), nn.ReLU(inplace=True),
            nn.Dropout(config.frame_dropout),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        b, t, v, c = x.shape
        x = self.data_bn(x.reshape(b * t, v * c)).view(b * t, v, c).permute(0, 2, 1).contiguous().unsqueeze(2)
        for block in self.blocks[:3]:
            x = block(x)
        x = torch.cat([F.max_pool2d(x[..., part], (1, len(part))) for part in self.parts], -1)
        for block in self.blocks[3:]:
            x = block(x)
        x = F.max_pool2d(x, (1, x.size(-1))).squeeze(-1).squeeze(-1)
        return self.fc(x.view(b, t, -1).permute(0, 2, 1).contiguous())


class TemporalBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv1d(dim, dim, 5, padding=2), nn.ReLU(inplace=True))
        self.b = nn.Sequential(
            nn.Conv1d(dim, dim, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv1d(dim, dim, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.join = nn.Sequential(nn.Conv1d(2 * dim, dim, 1), nn.BatchNorm1d(dim), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.a(x), self.b(x)], 1))


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

    def __init__(self, config: STCConfig) -> None:
        super().__init__()
        dim = config.dim
        trunk = graphs.TRUNK7_LEGACY if config.legacy_trunk_graph else graphs.TRUNK7
        self.hand_gcn, self.trunk_gcn = PartGCN(graphs.HAND21, config), PartGCN(trunk, config)
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
    """The training step in paper mode, for the same ``STCConfig`` as slrfast's."""

    STREAMS = ("joint", "motion")
    PARTS = ("hand", "trunk")

    def __init__(self, config: STCConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_q = nn.ModuleDict({s: FieldEncoder(config) for s in self.STREAMS})
        self.encoder_k = copy.deepcopy(self.encoder_q)
        for parameter in self.encoder_k.parameters():
            parameter.requires_grad = False
        for s in self.STREAMS:
            for part in self.PARTS:
                queue = F.normalize(torch.randn(config.embedding, config.bank_size), dim=0)
                self.register_buffer(f"queue_{s}_{part}", queue)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

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
    motion = np.zeros_like(xy)
    motion[1:] = xy[1:] - xy[:-1]
    xy, motion = xy[start : start + keep], motion[start : start + keep]
    visible = np.stack([confidence[:, :21].max(1) > 0, confidence[:, 21:42].max(1) > 0], 1)[start : start + keep]
    angle, scale = rng.uniform(-15, 15) * np.pi / 180, rng.uniform(0.8, 1.2)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    xy, motion = (xy - 0.5) @ matrix.T + 0.5, motion @ matrix.T
    if rng.random() < 0.5:
        dropped = rng.choice(49, 10, replace=False)
        xy[:, dropped], motion[:, dropped] = 0, 0
    if rng.random() < 0.5:
        order = np.r_[21:42, 0:21, 42:49]
        xy, motion, visible = xy[:, order], motion[:, order], visible[:, ::-1]

    def resize(x: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(x, np.float32)).flatten(1).T.unsqueeze(0)
        return F.interpolate(x, frames, mode="linear", align_corners=False)[0].T.reshape(frames, 49, 2)

    index = np.arange(frames) * keep // frames
    return {"joint": resize(xy), "motion": resize(motion), "visible": torch.from_numpy(visible[index].copy())}


def copy_encoder(source: STCEncoder, target: FieldEncoder) -> None:
    """Give the field-style encoder the parameters and running statistics of slrfast's."""
    target.load_state_dict(dict(_renamed(source)) | {k: v for k, v in target.state_dict().items() if k.endswith(".A")})


def _renamed(source: STCEncoder) -> list[tuple[str, Tensor]]:
    out: list[tuple[str, Tensor]] = []

    def same(name: str, module: nn.Module) -> None:
        out.extend((f"{name}.{key}", value) for key, value in module.state_dict().items())

    def dense(name: str, module: nn.Module, dims: int = 2) -> None:
        out.append((f"{name}.weight", module.weight.reshape(*module.weight.shape, *[1] * (dims - 2))))
        out.append((f"{name}.bias", module.bias))

    for part in ("hand", "trunk"):
        gcn = getattr(source, f"{part}_gcn")
        same(f"{part}_gcn.data_bn", gcn.input_norm)
        for i, block in enumerate(gcn.blocks):
            name, conv = f"{part}_gcn.blocks.{i}", block.spatial[0]
            weight = conv.weight.transpose(1, 2).flatten(0, 1)
            out += [
                (f"{name}.gcn.conv.weight", weight[..., None, None]),
                (f"{name}.gcn.conv.bias", conv.bias.flatten()),
            ]
            same(f"{name}.tcn.0", block.spatial[1])
            dense(f"{name}.tcn.3", block.pointwise[0], 4)
            same(f"{name}.tcn.4", block.pointwise[1])
            if isinstance(block.residual, nn.Sequential):
                dense(f"{name}.residual.0", block.residual[0], 4)
                same(f"{name}.residual.1", block.residual[1])
        dense(f"{part}_gcn.fc.0", gcn.output[0], 3)
        same(f"{part}_gcn.fc.1", gcn.output[1])
        for i, block in enumerate(getattr(source, f"{part}_temporal")):
            name = f"{part}_tcn.{i}"
            for theirs, ours in (
                ("a.0", block.wide),
                ("b.0", block.narrow1),
                ("b.2", block.narrow2),
                ("join.0", block.join[0]),
            ):
                same(f"{name}.{theirs}", ours)
            same(f"{name}.join.1", block.join[1])
        transformer = getattr(source, f"{part}_transformer")
        same(f"{part}_transformer.norm", transformer.norm)
        for i, block in enumerate(transformer.blocks):
            name = f"{part}_transformer.layers.{i}"
            for letter, weight, bias in zip("qkv", block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True):
                out += [(f"{name}.{letter}.weight", weight), (f"{name}.{letter}.bias", bias)]
            for theirs, ours in (("o", block.out), ("fc1", block.ffn_in), ("fc2", block.ffn_out)):
                same(f"{name}.{theirs}", ours)
            same(f"{name}.norm1", block.norm_attention)
            same(f"{name}.norm2", block.norm_ffn)
        same(f"{part}_score", getattr(source, f"{part}_pool").score)
        head = getattr(source, f"{part}_head")
        same(f"{part}_fc.0", head.hidden)
        same(f"{part}_fc.2", head.output)
    return out


@torch.no_grad()
def copy_system(source: STC, target: FieldSTC) -> None:
    """Give the field-style system the encoders and banks of slrfast's (paper mode)."""
    for s in FieldSTC.STREAMS:
        copy_encoder(source.query[s], target.encoder_q[s])
        copy_encoder(source.key[s].encoder, target.encoder_k[s])
        for part in FieldSTC.PARTS:
            getattr(target, f"queue_{s}_{part}").copy_(source.banks[s][part].features.T)
