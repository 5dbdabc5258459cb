"""Modules with state: memory banks, momentum encoders, graph networks and transformers. The maths is in slrfast.ops."""

from slrfast.nn.attention import AttentionPool, PoseTransformer
from slrfast.nn.bank import MemoryBank
from slrfast.nn.gcn import GCNBlock, GraphConv, PartGCN
from slrfast.nn.head import ProjectionHead
from slrfast.nn.momentum import MomentumEncoder
from slrfast.nn.temporal import TemporalBlock

__all__ = [
    "AttentionPool",
    "GCNBlock",
    "GraphConv",
    "MemoryBank",
    "MomentumEncoder",
    "PartGCN",
    "PoseTransformer",
    "ProjectionHead",
    "TemporalBlock",
]
