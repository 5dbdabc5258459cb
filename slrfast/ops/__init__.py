"""Every operation as a function of tensors; each lives in the file of its name."""

from slrfast.ops._changes import AugmentTensors
from slrfast.ops.augment import augment
from slrfast.ops.bank_losses import bank_losses
from slrfast.ops.channel_mask import ChannelMask, channel_mask
from slrfast.ops.ctc_beam_search import ctc_beam_search
from slrfast.ops.enqueue import enqueue_
from slrfast.ops.feature_kl import feature_kl
from slrfast.ops.gather_visible import gather_visible
from slrfast.ops.gcn_block import GCNParameters, gcn_block
from slrfast.ops.graph_conv import graph_conv
from slrfast.ops.info_nce import info_nce
from slrfast.ops.masked_motion_loss import masked_motion_loss
from slrfast.ops.masked_pose_loss import masked_pose_loss
from slrfast.ops.mined_bce import mined_bce
from slrfast.ops.motion import motion
from slrfast.ops.motion_mask import MotionMask, motion_mask
from slrfast.ops.neighbor_kl import neighbor_kl
from slrfast.ops.otsu_mask import otsu_mask
from slrfast.ops.part_gcn import FoldedBlock, part_gcn
from slrfast.ops.part_max import part_max
from slrfast.ops.pose_views import PoseViews, pose_views
from slrfast.ops.resample import resample
from slrfast.ops.scatter_tokens import scatter_tokens
from slrfast.ops.sign_text_similarity import sign_text_similarity
from slrfast.ops.topk_similarity import topk_similarity

__all__ = [
    "AugmentTensors",
    "ChannelMask",
    "FoldedBlock",
    "GCNParameters",
    "MotionMask",
    "PoseViews",
    "augment",
    "bank_losses",
    "channel_mask",
    "ctc_beam_search",
    "enqueue_",
    "feature_kl",
    "gather_visible",
    "gcn_block",
    "graph_conv",
    "info_nce",
    "masked_motion_loss",
    "masked_pose_loss",
    "mined_bce",
    "motion",
    "motion_mask",
    "neighbor_kl",
    "otsu_mask",
    "part_gcn",
    "part_max",
    "pose_views",
    "resample",
    "scatter_tokens",
    "sign_text_similarity",
    "topk_similarity",
]
