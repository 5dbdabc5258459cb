"""How much memory a call takes: beyond what is there before it, and all in all."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """How far one call raises the memory of this process (or the GPU's allocated memory) above what it has."""
    before = used(device)
    call()
    return used(device, peak=True) - before


def used(device: str, peak: bool = False) -> int:
    """What this process (or the GPU's allocator) holds now; or ``peak``, its most since the last call without."""
    if device == "cuda":
        torch.cuda.synchronize()
        if peak:
            return torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not peak:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed goes back to the system, or it would be used unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    return _resident("VmHWM")


def measured(module: ModuleType, name: str, device: str, *arguments: object) -> tuple[int, int]:
    """The peak of a prepared call beyond what it found, and beyond what was there before it was prepared."""
    gc.collect()
    empty = used(device)
    call = module.prepared(name, device, *arguments)
    ready = used(device)
    call()
    peak = used(device, peak=True)
    return peak - ready, peak - empty


def peaks(module: str, names: Iterable[str], device: str, *arguments: object) -> dict[str, dict[str, int]]:
    """The two peaks of every candidate; on a CPU each in a fresh process with as many threads as this one.

    "peak_bytes" is what a call takes for itself. "whole_peak_bytes" counts everything that is there while it runs:
    inputs, weights, momentum, gradients and banks as well, on a CPU also libraries that the first call loads.
    ``module.prepared(name, device, *arguments)`` makes the call, after a small one that loads what is loaded once.
    """
    found = {}
    for name in names:
        if device == "cuda":
            found[name] = measured(import_module(module), name, device, *arguments)
            continue
        code = (
            f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
            f"import {module} as module\nfrom benchmarks.memory import measured\n"
            f"print(*measured(module, {name!r}, {device!r}, *{arguments!r}))"
        )
        root = Path(__file__).resolve().parents[1]
        run = subprocess.run([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
        own, whole = map(int, run.stdout.split())
        found[name] = own, whole
    return {
        "peak_bytes": {name: own for name, (own, _) in found.items()},
        "whole_peak_bytes": {name: whole for name, (_, whole) in found.items()},
    }


def _resident(key: str) -> int:
    """A size of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
