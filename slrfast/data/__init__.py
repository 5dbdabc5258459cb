"""Pose files, pre-processing, data sets, packed batches, augmentation plans and a synthetic signer."""

from slrfast.data.augment import AugmentPlan
from slrfast.data.batch import Clip, PoseBatch
from slrfast.data.dataset import ClipDataset, PoseDataset
from slrfast.data.fingerspelling import Fingerspelling
from slrfast.data.formats import FORMATS, load_pose
from slrfast.data.formats.npz import save_npz
from slrfast.data.packing import pack
from slrfast.data.pose import Pose
from slrfast.data.preprocess import PreprocessOptions, preprocess
from slrfast.data.store import PoseStore, looks_packed
from slrfast.data.synthetic import SyntheticSigns

__all__ = [
    "FORMATS",
    "AugmentPlan",
    "Clip",
    "ClipDataset",
    "Fingerspelling",
    "Pose",
    "PoseBatch",
    "PoseDataset",
    "PoseStore",
    "PreprocessOptions",
    "SyntheticSigns",
    "load_pose",
    "looks_packed",
    "pack",
    "preprocess",
    "save_npz",
]
