"""What the systems share: how they are saved and loaded, what they check, how they evaluate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor

from slrfast import checks
from slrfast.data import PoseBatch
from slrfast.nn import Saved
from slrfast.nn.modes import evaluating


class Pretrained(Saved):
    """A system that pre-trains, and afterwards is the encoder of a task.

    Attributes:
        keypoints: of the clips that it takes.
        parts: what :meth:`features` can be made of alone, if anything.
        epoch: the (fractional) epoch that training has come to, which the training loop keeps up; weights of losses
            that change during training follow it.
    """

    keypoints: ClassVar[int] = 49
    parts: ClassVar[tuple[str, ...]] = ()
    epoch: float = 0.0

    @property
    def widths(self) -> dict[str, int]:
        """The streams of :meth:`features` and the size of each."""
        raise NotImplementedError

    def features(self, batch: PoseBatch) -> dict[str, Tensor]:
        """What tasks build on: a vector of every clip for every stream, [B, width].

        Nothing is drawn but dropout. In the mode that the modules are in, with gradient.

        Raises:
            TypeError, ValueError: as for ``training_step``.
        """
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, batch: PoseBatch) -> Tensor:
        """:meth:`features` of whole clips, of all streams, [B, D]: in evaluation mode, float32, without gradient.

        Raises:
            TypeError, ValueError: as for ``training_step``.
        """
        with self.evaluating():
            return torch.cat(list(self.features(batch).values()), -1).float()

    def require(self, batch: PoseBatch) -> None:
        """TypeError or ValueError unless the batch has the system's device, keypoints and dtype."""
        own, op = next(self.parameters()), type(self).__name__
        same = batch.xy.device == own.device
        rule = f"be on the system's device ({own.device})"
        checks.require(same, op, "batch", rule, batch.xy.device, "use batch.to(device)")
        batch.require_layout(op, self.keypoints)
        checks.dtype(op, own.dtype, **{"batch.xy": batch.xy, "batch.confidence": batch.confidence})

    def evaluating(self) -> AbstractContextManager[None]:
        """All modules in evaluation mode, and afterwards each as it was."""
        return evaluating(self)
