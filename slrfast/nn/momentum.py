"""The key encoder of momentum contrast."""

from __future__ import annotations

import copy

import torch
from torch import nn

from slrfast import checks


class MomentumEncoder(nn.Module):
    """A copy of an encoder whose parameters follow it as an exponential moving average.

    ``theta_k <- m theta_k + (1 - m) theta_q`` for every parameter; buffers (batch-norm statistics) are
    not averaged. The copy needs no gradient and runs in the mode it is put in, for STC, MASA and CCL the training mode.

    Args:
        encoder: the query encoder; it is copied.
        momentum: m, in [0, 1].

    >>> query = torch.nn.Linear(2, 2)
    >>> key = MomentumEncoder(query, 0.99)
    >>> key.update(query)
    """

    def __init__(self, encoder: nn.Module, momentum: float) -> None:
        super().__init__()
        checks.require(0 <= momentum <= 1, "MomentumEncoder", "momentum", "be in [0, 1]", momentum)
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """Move every parameter towards the query encoder's."""
        torch._foreach_lerp_(list(self.encoder.parameters()), list(encoder.parameters()), 1 - self.momentum)

    @torch.no_grad()
    def forward(self, *args: object, **kwargs: object) -> object:
        """The key forward pass, without gradient."""
        return self.encoder(*args, **kwargs)
