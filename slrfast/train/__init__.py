"""Training: the loop, the command line and the evaluation of what was learned."""

from slrfast.train.config import RunError, TrainConfig
from slrfast.train.evaluate import evaluate_run
from slrfast.train.loop import PretrainResult, TrainingDiverged, pretrain

__all__ = ["PretrainResult", "RunError", "TrainConfig", "TrainingDiverged", "evaluate_run", "pretrain"]
