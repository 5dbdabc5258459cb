"""The accumulation type of the reference ops: float32, or float64 as soon as one tensor is float64."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """The type that sums over these tensors are formed in."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their accumulation type; one that has it already is passed through."""
    dtype = accumulation_dtype(*tensors)
    return tuple(tensor.to(dtype) for tensor in tensors)
