"""What a benchmark ran on: a generic label, versions, and the rates it could reach at best."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

import slrfast
from slrfast.kernels import native

# (vendor, family) -> [(highest model, microarchitecture)]
MICROARCHITECTURES = {
    ("AuthenticAMD", 23): [(0x2F, "zen"), (0xFF, "zen2")],
    ("AuthenticAMD", 25): [(0x0F, "zen3"), (0x1F, "zen4"), (0x5F, "zen3"), (0xFF, "zen4")],
    ("AuthenticAMD", 26): [(0xFF, "zen5")],
    ("GenuineIntel", 6): [
        (0x4F, "intel"), (0x55, "skylake-sp"), (0x69, "intel"), (0x6C, "icelake"), (0x8E, "intel"),
        (0x8F, "sapphire-rapids"), (0xCE, "intel"), (0xCF, "emerald-rapids"), (0xFF, "intel"),
    ],
}  # fmt: skip


@lru_cache
def label(device: str) -> str:
    """For example cpu-2core-avx512-zen4 or gpu-nvidia-h200: no host name, no path.

    The instruction set is the processor's, also where SLRFAST_CPU_ISA forces our kernels to another: see :func:`isa`.
    """
    if device == "cuda":
        return "gpu-" + re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    capability = torch.backends.cpu.get_cpu_capability().lower() if native.LIBRARY is not None else "reference"
    return f"cpu-{len(os.sched_getaffinity(0))}core-{capability}-{_microarchitecture()}"


def isa() -> str:
    """The instruction set of our kernels in this process; "reference" where they are not built."""
    return native.cpu_isa() if native.LIBRARY is not None else "reference"


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run a block with as many CPU threads in torch and in our kernels; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_float32() -> Iterator[None]:
    """Run a block without TensorFloat-32 in convolutions; products have none by torch's default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _microarchitecture() -> str:
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.is_file() else ""
    facts = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (\S+)", text, re.MULTILINE))
    if len(facts) < 3:
        return platform.machine()
    family, model = int(facts["cpu family"]), int(facts["model"])
    known = MICROARCHITECTURES.get((facts["vendor_id"], family), [])
    return next((name for highest, name in known if model <= highest), f"{facts['vendor_id']}-{family}-{model}".lower())


def versions() -> dict[str, str]:
    """Versions of everything that shapes a measurement."""
    found = {"slrfast": slrfast.__version__, "python": platform.python_version()}
    for package in ("torch", "triton", "numpy", "faiss-cpu", "torch_geometric"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | (native.build_info() if native.LIBRARY is not None else {"native": native.LOAD_ERROR})


def flop_rate(device: str) -> float:
    """FLOP/s of a large float32 matrix product on torch's present threads, measured once per run."""
    return _flop_rate(device, torch.get_num_threads())


@lru_cache
def _flop_rate(device: str, _threads: int) -> float:
    size = 8192 if device == "cuda" else 1536
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    return 2 * size**3 / _fastest(lambda: torch.mm(a, b), 1, device)


_BEYOND_CACHES = 1 << 30


def copy_rate(device: str, traffic: int) -> float:
    """Bytes/s, read plus written, of a copy that moves ``traffic`` bytes: what the caches give at that size."""
    return _copy_rate(device, min(traffic, _BEYOND_CACHES), torch.get_num_threads())


@lru_cache
def _copy_rate(device: str, traffic: int, _threads: int) -> float:
    source = torch.zeros(max(traffic // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), max(1, 2**22 // traffic), device)


def _fastest(call: Callable[[], object], repeats: int, device: str) -> float:
    best = float("inf")
    for _ in range(12):
        best = min(best, timed(call, repeats, device))
    return best


def timed(call: Callable[[], object], repeats: int, device: str) -> float:
    """Seconds per call, mean of ``repeats`` in a row; on a GPU between two CUDA events."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
