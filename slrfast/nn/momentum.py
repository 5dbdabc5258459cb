"""The key encoder of momentum contrast."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from slrfast import checks


class MomentumEncoder(nn.Module):
    """A copy of an encoder whose parameters follow it as an exponential moving average.

    ``theta_k <- m theta_k + (1 - m) theta_q`` for every parameter, in one fused pass (MoCo Eq. 2). The copy needs no
    gradient and runs in the mode it is put in, for MoCo, STC, MASA and CCL the training mode.

    Args:
        encoder: the query encoder; it is copied.
        momentum: m, in [0, 1].
        buffers: average floating-point buffers (batch-norm statistics) too and copy integer ones; otherwise, as in
            MoCo and STC, the copy keeps its own.

    >>> query = torch.nn.Linear(2, 2)
    >>> key = MomentumEncoder(query, 0.99)
    >>> key.update(query)
    """

    def __init__(self, encoder: nn.Module, momentum: float, *, buffers: bool = False) -> None:
        super().__init__()
        checks.require(0 <= momentum <= 1, "MomentumEncoder", "momentum", "be in [0, 1]", momentum)
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum = momentum
        self.average_buffers = buffers

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """Move every parameter (and buffer) towards the query encoder's."""
        own: list[Tensor] = list(self.encoder.parameters())
        target: list[Tensor] = list(encoder.parameters())
        if self.average_buffers:
            for mine, theirs in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
                if mine.is_floating_point():
                    own.append(mine)
                    target.append(theirs)
                else:
                    mine.copy_(theirs)
        torch._foreach_lerp_(own, target, 1 - self.momentum)

    @torch.no_grad()
    def forward(self, *args: object, **kwargs: object) -> object:
        """The key forward pass, without gradient."""
        return self.encoder(*args, **kwargs)
