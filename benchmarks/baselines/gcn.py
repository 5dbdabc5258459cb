"""The skeleton GCN and the temporal blocks as the field writes them: channels first [N, C, T, V], 1x1 convolutions to
P * Cout, an einsum with the dense adjacency, dropout masks from torch, part pooling by indexing and concatenation.

STC's authors fold the frames into the batch, [B T, C, 1, V]; with ``clips`` they stay, [B, C, T, V], as in ST-GCN's own
code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import graphs
from slrfast.systems.stc import STCConfig

NAMES = {  # of slrfast -> here
    r"\binput_norm\.": "data_bn.", r"\bspatial\.0\.": "gcn.conv.", r"\bspatial\.1\.": "tcn.0.",
    r"\bpointwise\.0\.": "tcn.3.", r"\bpointwise\.1\.": "tcn.4.", r"(^|_gcn\.)output\.": r"\1fc.",
    r"\bwide\.": "a.0.", r"\bnarrow1\.": "b.0.", r"\bnarrow2\.": "b.2.",
}  # fmt: skip
# convolutions with kernels of size 1 over so many axes
CONVOLUTIONS = {r"\b(tcn\.3|residual\.0)\.weight$": 2, r"(^|_gcn\.)fc\.0\.weight$": 1}


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
    def __init__(self, graph: graphs.SkeletonGraph, config: STCConfig, clips: bool = False) -> None:
        super().__init__()
        self.clips = clips
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
        if self.clips:
            x = self.data_bn(x.permute(0, 2, 3, 1).reshape(b, v * c, t)).view(b, v, c, t)
            return self.fc(self.vectors(x.permute(0, 2, 3, 1).contiguous()))
        x = self.data_bn(x.reshape(b * t, v * c)).view(b * t, v, c).permute(0, 2, 1).contiguous().unsqueeze(2)
        return self.fc(self.vectors(x).view(b, t, -1).permute(0, 2, 1).contiguous())

    def vectors(self, x: Tensor) -> Tensor:
        """Frames [N, C, 1, V] to vectors [N, C'], clips [N, C, T, V] to [N, C', T]."""
        for block in self.blocks[:3]:
            x = block(x)
        x = torch.cat([F.max_pool2d(x[..., part], (1, len(part))) for part in self.parts], -1)
        for block in self.blocks[3:]:
            x = block(x)
        x = F.max_pool2d(x, (1, x.size(-1))).squeeze(-1)
        return x if self.clips else x.squeeze(-1)


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


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """slrfast's parameters, statistics or gradients of graph networks and temporal blocks, in their form here."""
    out = {}
    for name, tensor in tensors.items():
        for ours, theirs in NAMES.items():
            name = re.sub(ours, theirs, name)
        if name.endswith("gcn.conv.weight"):  # [P, Cin, Cout]
            tensor = tensor.mT.flatten(0, 1)[..., None, None]
        elif name.endswith("gcn.conv.bias"):
            tensor = tensor.flatten()
        for pattern, axes in CONVOLUTIONS.items():
            if re.search(pattern, name):
                tensor = tensor.reshape(*tensor.shape, *[1] * axes)
        out[name] = tensor
    return out


def load(tensors: Mapping[str, Tensor], target: nn.Module) -> None:
    """Load renamed parameters and running statistics; the adjacencies stay."""
    fixed = {name: value for name, value in target.state_dict().items() if name.endswith("A")}
    target.load_state_dict({**fixed, **tensors})
