"""Downstream tasks: what pre-trained features are good for, and how that is measured."""

from slrfast.tasks.beam_search import beam_search
from slrfast.tasks.confusion import class_table, confusing_metrics, confusion_matrix
from slrfast.tasks.continuous import ContinuousConfig, ContinuousRecognizer, greedy
from slrfast.tasks.finetuned import FinetuneConfig, Finetuned
from slrfast.tasks.fusion import EarlyFusion, late_fusion
from slrfast.tasks.metrics import mean_rank, per_class_accuracy, recognition_metrics, top_k_accuracy
from slrfast.tasks.probe import group_folds, knn_scores, linear_probe_scores
from slrfast.tasks.recognition import Recognizer, RecognizerConfig
from slrfast.tasks.retrieval import retrieval_metrics, retrieval_ranks
from slrfast.tasks.retrieval_index import SignTextIndex
from slrfast.tasks.retriever import Retriever, RetrieverConfig
from slrfast.tasks.row_sets import RowSets, nearest, similarity_matrix
from slrfast.tasks.score_files import Scores, read_scores, write_scores
from slrfast.tasks.translation import Translator, TranslatorConfig
from slrfast.tasks.translation_metrics import rouge_l, translation_metrics
from slrfast.tasks.word_errors import WordErrors, word_errors

__all__ = [
    "ContinuousConfig",
    "ContinuousRecognizer",
    "EarlyFusion",
    "FinetuneConfig",
    "Finetuned",
    "Recognizer",
    "RecognizerConfig",
    "Retriever",
    "RetrieverConfig",
    "RowSets",
    "Scores",
    "SignTextIndex",
    "Translator",
    "TranslatorConfig",
    "WordErrors",
    "beam_search",
    "class_table",
    "confusing_metrics",
    "confusion_matrix",
    "greedy",
    "group_folds",
    "knn_scores",
    "late_fusion",
    "linear_probe_scores",
    "mean_rank",
    "nearest",
    "per_class_accuracy",
    "read_scores",
    "recognition_metrics",
    "retrieval_metrics",
    "retrieval_ranks",
    "rouge_l",
    "similarity_matrix",
    "top_k_accuracy",
    "translation_metrics",
    "word_errors",
    "write_scores",
]
