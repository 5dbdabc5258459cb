"""How much memory a call takes beyond its inputs."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

import torch


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """How far one call raises the memory of this process (or the GPU's allocated memory) above what it has."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed goes back to the system, or it would be used unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = _resident("VmHWM")
    call()
    return _resident("VmHWM") - before


def peaks(module: str, names: Iterable[str], device: str, *arguments: object) -> dict[str, int]:
    """:func:`peak_bytes` of every candidate; on a CPU each in a fresh process with as many threads as this one.

    ``module.prepared(name, device, *arguments)`` makes the call, after a small one that loads what is loaded once.
    """
    if device == "cuda":
        prepared = import_module(module).prepared
        return {name: peak_bytes(prepared(name, device, *arguments), device) for name in names}
    found = {}
    for name in names:
        code = (
            f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
            f"from benchmarks.memory import peak_bytes\nfrom {module} import prepared\n"
            f"print(peak_bytes(prepared({name!r}, {device!r}, *{arguments!r}), {device!r}))"
        )
        root = Path(__file__).resolve().parents[1]
        run = subprocess.run([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = int(run.stdout)
    return found


def _resident(key: str) -> int:
    """A size of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
