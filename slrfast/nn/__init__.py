"""Modules with state: memory banks and losses, momentum encoders, graph networks, transformers; maths is in ops."""

from slrfast.nn import convert
from slrfast.nn.attention import AttentionPool, PoseTransformer
from slrfast.nn.bank import FactoredBank, MemoryBank
from slrfast.nn.convert import ChannelsFirst
from slrfast.nn.embedding import PoseEmbedding
from slrfast.nn.gcn import GCNBlock, GraphConv, PartGCN
from slrfast.nn.head import ProjectionHead
from slrfast.nn.holistic import HolisticEmbedding
from slrfast.nn.losses import FeatureConsistency, InfoNCE, KnowledgeTransfer, SemanticPositives
from slrfast.nn.momentum import MomentumEncoder
from slrfast.nn.packed import Packing
from slrfast.nn.positions import sinusoidal_positions
from slrfast.nn.temporal import TemporalBlock

__all__ = [
    "AttentionPool",
    "ChannelsFirst",
    "FactoredBank",
    "FeatureConsistency",
    "GCNBlock",
    "GraphConv",
    "HolisticEmbedding",
    "InfoNCE",
    "KnowledgeTransfer",
    "MemoryBank",
    "MomentumEncoder",
    "Packing",
    "PartGCN",
    "PoseEmbedding",
    "PoseTransformer",
    "ProjectionHead",
    "SemanticPositives",
    "TemporalBlock",
    "convert",
    "sinusoidal_positions",
]
