"""Pose files, videos and texts, pre-processing, data sets, packed batches, augmentation plans, a synthetic signer."""

from slrfast.data.augment import AugmentPlan
from slrfast.data.batch import Clip, PoseBatch
from slrfast.data.continuous_lists import Sentence, SentenceList, read_sentences
from slrfast.data.dataset import ClipDataset, PoseDataset
from slrfast.data.fingerspelling import Fingerspelling
from slrfast.data.formats import FORMATS, load_pose
from slrfast.data.formats.npz import save_npz
from slrfast.data.glosses import GlossedDataset, GlossVocabulary
from slrfast.data.isolated_lists import read_lists, read_msasl, read_wlasl
from slrfast.data.isolated_presets import open_preset
from slrfast.data.isolated_split import split_dataset
from slrfast.data.motion_masks import MotionMasks
from slrfast.data.packing import pack
from slrfast.data.pose import Pose
from slrfast.data.preprocess import PreprocessOptions, preprocess
from slrfast.data.render import RenderedDataset
from slrfast.data.rgb import RGBDataset, clip_frames
from slrfast.data.store import PoseStore, looks_packed
from slrfast.data.subwords import Subwords, TranslationDataset
from slrfast.data.synthetic import SyntheticSigns
from slrfast.data.synthetic_sentences import SyntheticSentences
from slrfast.data.text import CaptionedDataset, TextEncoder, gloss_captions, read_captions, tiny_text_encoder
from slrfast.data.video import VideoReader

__all__ = [
    "FORMATS",
    "AugmentPlan",
    "CaptionedDataset",
    "Clip",
    "ClipDataset",
    "Fingerspelling",
    "GlossVocabulary",
    "GlossedDataset",
    "MotionMasks",
    "Pose",
    "PoseBatch",
    "PoseDataset",
    "PoseStore",
    "PreprocessOptions",
    "RGBDataset",
    "RenderedDataset",
    "Sentence",
    "SentenceList",
    "Subwords",
    "SyntheticSentences",
    "SyntheticSigns",
    "TextEncoder",
    "TranslationDataset",
    "VideoReader",
    "clip_frames",
    "gloss_captions",
    "load_pose",
    "looks_packed",
    "open_preset",
    "pack",
    "preprocess",
    "read_captions",
    "read_lists",
    "read_msasl",
    "read_sentences",
    "read_wlasl",
    "save_npz",
    "split_dataset",
    "tiny_text_encoder",
]
