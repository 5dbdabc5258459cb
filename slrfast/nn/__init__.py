"""Modules with state: memory banks and losses, momentum encoders, graph networks, transformers; maths is in ops."""

from slrfast.nn import convert
from slrfast.nn.attention import AttentionPool, PoseTransformer
from slrfast.nn.bank import FactoredBank, MemoryBank
from slrfast.nn.convert import ChannelsFirst
from slrfast.nn.decoder import DecoderCache, TokenDecoder
from slrfast.nn.embedding import PoseEmbedding
from slrfast.nn.flow import Flow, FlowConfig, IdentityFlow
from slrfast.nn.gcn import GCNBlock, GraphConv, PartGCN
from slrfast.nn.head import ProjectionHead
from slrfast.nn.holistic import HolisticEmbedding
from slrfast.nn.losses import FeatureConsistency, InfoNCE, KnowledgeTransfer, SemanticPositives
from slrfast.nn.momentum import MomentumEncoder
from slrfast.nn.moving import MotionPreservingMask
from slrfast.nn.packed import Packing
from slrfast.nn.positions import sinusoidal_positions, with_positions
from slrfast.nn.r3d import R3D, load_r3d
from slrfast.nn.saved import Saved
from slrfast.nn.temporal import TemporalBlock

__all__ = [
    "R3D",
    "AttentionPool",
    "ChannelsFirst",
    "DecoderCache",
    "FactoredBank",
    "FeatureConsistency",
    "Flow",
    "FlowConfig",
    "GCNBlock",
    "GraphConv",
    "HolisticEmbedding",
    "IdentityFlow",
    "InfoNCE",
    "KnowledgeTransfer",
    "MemoryBank",
    "MomentumEncoder",
    "MotionPreservingMask",
    "Packing",
    "PartGCN",
    "PoseEmbedding",
    "PoseTransformer",
    "ProjectionHead",
    "Saved",
    "SemanticPositives",
    "TemporalBlock",
    "TokenDecoder",
    "convert",
    "load_r3d",
    "sinusoidal_positions",
    "with_positions",
]
