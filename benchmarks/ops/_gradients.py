"""A timed call that runs a function forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def with_gradients(
    function: Callable[..., Tensor], *inputs: Tensor, grad: Tensor | None = None
) -> Callable[[], list[Tensor]]:
    """A call that returns the function's value and its gradient for every input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]

    def run() -> list[Tensor]:
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    return run
