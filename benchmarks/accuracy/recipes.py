"""What the accuracy runs train: the networks, how long, and the rows of the table.

One recipe for all rows of a system, pre-trained or not: the small presets with as much changed as two CPU cores and
7,908 clips ask for. ``paper`` has the published sizes and schedules, for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slrfast.systems import MASA, SLP, STC
from slrfast.tasks.recognition import RecognizerConfig

AUGMENTATION = {"rotation": 15.0, "scale": (0.8, 1.2), "joint_probability": 0.5}
"""Of fine-tuning, for every row alike: as in STC's pre-training, since few clips are overfitted at once."""


@dataclass(frozen=True)
class Recipe:
    """How a system is pre-trained and fine-tuned in the small configuration, and how in the paper's."""

    system: type
    layout: int
    small: Mapping[str, Any]
    finetune: Mapping[str, Any]
    paper: Mapping[str, Any] = field(default_factory=dict)


_SHORT = {"epochs": 10, "batch_size": 64, "learning_rate": 1e-3, "hand_statistics": "both"}
_FINETUNE = {"learning_rate": 0.02, "batch_size": 32, **AUGMENTATION}
FINETUNE_EPOCHS = {"wlasl100": 40, "wlasl300": 16, "nepali": 20}
"""In the small configuration: as many steps for 300 glosses as for 100; the letters are learned five times over."""
_POSES_ALONE = {"tasks": ("reconstruction",), "branches": ("manual",)}
RECIPES = {
    "STC": Recipe(
        STC,
        49,
        {**_SHORT, "bank_size": 4096, "neighbors": 2048, "warmup": 0.5, "milestones": (7, 9)},
        _FINETUNE,
    ),
    "MASA": Recipe(MASA, 49, {**_SHORT, "bank_size": 4096, "warmup": 1.0, "semantic_ramp": 2.0}, _FINETUNE),
    "SLP": Recipe(SLP, 79, {**_SHORT, "warmup": 1.0, **_POSES_ALONE}, _FINETUNE, _POSES_ALONE),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A pre-training, or the same network without any.

    Attributes:
        recipe: a key of RECIPES.
        changes: of the system's config.
        pretrained: False starts from freshly drawn weights.
    """

    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = True


_JOINT, _MOTION = {"streams": ("joint",)}, {"streams": ("motion",)}
_NO_TRANSFER, _CONTRAST = {"transfer_weight": 0.0}, {"transfer_weight": 0.0, "consistency_weight": 0.0}
ROWS: dict[str, Row] = {
    "scratch": Row("STC", pretrained=False),
    "STC": Row("STC"),
    "MASA": Row("MASA"),
    "scratch, MASA's network": Row("MASA", pretrained=False),
    "STC, joint alone": Row("STC", _JOINT),
    "scratch, joint alone": Row("STC", _JOINT, pretrained=False),
    "STC without transfer": Row("STC", _NO_TRANSFER),
    "SLP, masked poses": Row("SLP"),
    "scratch, SLP's network": Row("SLP", pretrained=False),
    "STC, motion alone": Row("STC", _MOTION),
    "scratch, motion alone": Row("STC", _MOTION, pretrained=False),
    "STC, contrast alone": Row("STC", _CONTRAST),
}
"""In the order in which they are run."""


def system_config(row: Row, size: str) -> Any:
    """The config of a row's system: "small" or "paper"."""
    recipe = RECIPES[row.recipe]
    changes = {**(recipe.small if size == "small" else recipe.paper), **row.changes}
    return getattr(recipe.system.Config, size)(**changes)  # type: ignore[attr-defined]


def finetuning(row: Row, size: str, what: str) -> RecognizerConfig:
    """How a row is fine-tuned on a set of clips."""
    if size == "small":
        epochs = FINETUNE_EPOCHS[what]
        milestones = (epochs * 3 // 4, epochs * 9 // 10)
        return RecognizerConfig(epochs=epochs, milestones=milestones, **RECIPES[row.recipe].finetune)
    return getattr(RecognizerConfig, row.recipe.lower())()
