"""The compiled module slrfast._C, fed with tensors. The only file that takes a tensor's address."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import torch  # before _C, so that both share the OpenMP runtime torch has loaded
from torch import Tensor

from slrfast.errors import BackendUnavailable

LIBRARY: Any = None
LOAD_ERROR = ""
try:
    LIBRARY = importlib.import_module("slrfast._C")
except ImportError as error:
    LOAD_ERROR = str(error)

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


@lru_cache
def build_info() -> dict[str, str]:
    """What the module was built with: compiler, threads, isas, cuda (``built ...`` or the reason why not)."""
    return dict(line.split("=", 1) for line in LIBRARY.build_info().splitlines())


@lru_cache
def cpu_isa() -> str:
    """The instruction set whose kernels run: SLRFAST_CPU_ISA, or the widest this processor has."""
    try:
        return LIBRARY.cpu_isa()
    except NotImplementedError as error:
        raise BackendUnavailable(str(error)) from None


def motion(x: Tensor, interval: int, backward: bool) -> Tensor:
    """Run the CPU or the CUDA kernel of ``slrfast::motion``, by the device of ``x``."""
    return _motion("motion", x, interval, backward)


def motion_grad(grad: Tensor, interval: int, backward: bool) -> Tensor:
    """Run the CPU or the CUDA kernel of ``slrfast::motion_grad``, by the device of ``grad``."""
    return _motion("motion_grad", grad, interval, backward)


def _motion(name: str, x: Tensor, interval: int, backward: bool) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    frames, row = x.shape[-3], x.shape[-2] * x.shape[-1]
    outer = x.numel() // max(frames * row, 1)
    arguments = (_DTYPES[x.dtype], x.data_ptr(), y.data_ptr(), outer, frames, row, interval, not backward)
    if x.is_cuda:
        with torch.cuda.device(x.device):
            getattr(LIBRARY, f"{name}_cuda")(*arguments, torch.cuda.current_stream().cuda_stream)
    else:
        getattr(LIBRARY, f"{name}_cpu")(*arguments, torch.get_num_threads())
    return y
