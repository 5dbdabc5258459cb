"""What the accuracy runs train: the networks, how long, and the rows of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slrfast.systems import MASA, SLP, STC
from slrfast.tasks.recognition import RecognizerConfig


@dataclass(frozen=True)
class Row:
    """A pre-training, or the same network without any.

    Attributes:
        system: which network.
        changes: of the recipe's config.
        weights: of whose pre-training: the row's own name; None trains from scratch.
    """

    system: type
    changes: Mapping[str, Any]
    pretrained: bool = True


JOINT, MOTION = {"streams": ("joint",)}, {"streams": ("motion",)}
ROWS: dict[str, Row] = {
    "STC, untrained": Row(STC, {}, pretrained=False),
    "STC, joint, untrained": Row(STC, JOINT, pretrained=False),
    "STC, motion, untrained": Row(STC, MOTION, pretrained=False),
    "STC, joint": Row(STC, JOINT),
    "STC, motion": Row(STC, MOTION),
    "STC without transfer": Row(STC, {"transfer_weight": 0.0}),
    "STC": Row(STC, {}),
    "MASA, untrained": Row(MASA, {}, pretrained=False),
    "MASA": Row(MASA, {}),
    "SLP, untrained": Row(SLP, {}, pretrained=False),
    "SLP, masked poses": Row(SLP, {}),
}
