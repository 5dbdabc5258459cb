"""What the systems share: how they are saved and loaded, what they check, how they evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from slrfast import checks
from slrfast.data import PoseBatch
from slrfast.nn import Saved


class Pretrained(Saved):
    """A system that pre-trains.

    Attributes:
        keypoints: of the clips that it takes.
        epoch: the (fractional) epoch that training has come to, which the training loop keeps up; weights of losses
            that change during training follow it.
    """

    keypoints: ClassVar[int] = 49
    epoch: float = 0.0

    def require(self, batch: PoseBatch) -> None:
        """TypeError or ValueError unless the batch has the system's device, keypoints and dtype."""
        own, op = next(self.parameters()), type(self).__name__
        same = batch.xy.device == own.device
        rule = f"be on the system's device ({own.device})"
        checks.require(same, op, "batch", rule, batch.xy.device, "use batch.to(device)")
        batch.require_layout(op, self.keypoints)
        checks.dtype(op, own.dtype, **{"batch.xy": batch.xy, "batch.confidence": batch.confidence})

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """All modules in evaluation mode, and afterwards each as it was."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
