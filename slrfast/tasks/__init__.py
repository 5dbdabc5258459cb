"""Downstream tasks: what pre-trained features are good for, and how that is measured."""

from slrfast.tasks.metrics import mean_rank, per_class_accuracy, recognition_metrics, top_k_accuracy
from slrfast.tasks.probe import group_folds, knn_scores, linear_probe_scores

__all__ = [
    "group_folds",
    "knn_scores",
    "linear_probe_scores",
    "mean_rank",
    "per_class_accuracy",
    "recognition_metrics",
    "top_k_accuracy",
]
