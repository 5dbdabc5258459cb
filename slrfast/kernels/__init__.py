"""Fast implementations, and whether each can run on this machine."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache

import torch

from slrfast.kernels import native

MINIMUM_CAPABILITY = (8, 0)


def availability(name: str, device: str) -> str | None:
    """Why the backend ``name`` cannot run on tensors of this device type, or None when it can.

    Raises:
        ValueError, BackendUnavailable: SLRFAST_CPU_ISA names no instruction set, or one this processor lacks.
    """
    return {"native": _native, "triton": _triton, "cuda": _cuda, "reference": lambda _: None}[name](device)


def _native(device: str) -> str | None:
    if device != "cpu":
        return "the native kernels run on CPU tensors only"
    if native.LIBRARY is None:
        return f"the compiled module slrfast._C cannot be loaded: {native.LOAD_ERROR}"
    native.cpu_isa()
    return None


def _triton(device: str) -> str | None:
    if not triton_installed():
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device != "cuda":
        return "Triton compiles for GPUs only; TRITON_INTERPRET=1 runs its kernels on the CPU, for tests"
    return _gpu()


def _cuda(device: str) -> str | None:
    if device != "cuda":
        return "the CUDA kernels run on CUDA tensors only"
    if native.LIBRARY is None:
        return f"the compiled module slrfast._C cannot be loaded: {native.LOAD_ERROR}"
    reason = native.build_info()["cuda"]
    return _gpu() if reason.startswith("built") else f"slrfast was built without CUDA ({reason})"


@lru_cache
def triton_installed() -> bool:
    """Whether ``import triton`` would find the package; it is not imported here."""
    return importlib.util.find_spec("triton") is not None


@lru_cache
def _gpu() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < MINIMUM_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; 8.0 or newer is needed"
    return None
