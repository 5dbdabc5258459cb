"""What this installation can do on this machine: versions, instruction set, threads, CUDA, the backend of every op."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch

import slrfast
from slrfast import checks, kernels
from slrfast.errors import SlrfastError
from slrfast.kernels import native
from slrfast.ops import _dispatch

PACKAGES = ("torch", "triton", "numpy", "safetensors", "jsonargparse", "pose-format", "spoken-to-signed")


def collect() -> dict:
    """Everything that ``slrfast info`` prints, as plain data."""
    return {
        "slrfast": slrfast.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "native": _native(),
        "threads": {"torch": torch.get_num_threads(), "cores": os.cpu_count(), "openmp_runtimes": _openmp_runtimes()},
        "gpu": _gpus(),
        "forced": {key: os.environ[key] for key in ("SLRFAST_BACKEND", "SLRFAST_CPU_ISA") if os.environ.get(key)},
        "ops": {
            op: {device: _backend(op, device) for device in _dispatch.TABLES[op]} for op in sorted(_dispatch.TABLES)
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print what :func:`collect` finds, for people or as JSON."""
    parser = argparse.ArgumentParser(
        prog="slrfast info",
        description=__doc__.splitlines()[0],
        epilog="examples:\n  slrfast info\n  slrfast info --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    found = collect()
    if parser.parse_args(argv).json:
        print(json.dumps(found, indent=2))
        return 0
    rows = [
        ("slrfast", found["slrfast"]),
        ("python", f"{found['python']} on {found['system']}"),
        *((name, version or "not installed") for name, version in found["packages"].items()),
        *((f"native {key}", value) for key, value in found["native"].items() if key != "cuda"),
        ("CUDA kernels", found["native"].get("cuda", "not built: there is no compiled module")),
        ("threads", f"{found['threads']['torch']} of {found['threads']['cores']} cores"),
        ("OpenMP", ", ".join(found["threads"]["openmp_runtimes"]) or "none loaded"),
        ("GPU", "; ".join(found["gpu"]) or "none that torch sees"),
        *found["forced"].items(),
    ]
    width = max(len(name) for name, _ in rows)
    print(*(f"{name:<{width}}  {value}" for name, value in rows), sep="\n")
    print("\nbackend of every op:")
    for op, places in found["ops"].items():
        for device, place in places.items():
            skipped = "".join(f"; not {name}: {reason}" for name, reason in place["skipped"].items())
            print(f"  {op:<16} {device:<5} {place['runs'] or 'none'}{skipped}")
    return 0


def wrong_setting() -> str | None:
    """What is wrong with the variables that choose kernels, if anything: a sentence."""
    try:
        if os.environ.get("SLRFAST_BACKEND"):
            checks.choice("SLRFAST_BACKEND", _dispatch.NAMES, value=os.environ["SLRFAST_BACKEND"])
        if native.LIBRARY is not None:
            native.cpu_isa()
    except (ValueError, SlrfastError) as error:
        return str(error)
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _native() -> dict[str, str]:
    if native.LIBRARY is None:
        return {"module": f"not loaded: {native.LOAD_ERROR}"}
    try:
        chosen = native.cpu_isa()
    except (ValueError, SlrfastError) as error:
        chosen = f"none: {error}"
    return {"module": "loaded", **native.build_info(), "isa": chosen}


def _openmp_runtimes() -> list[str]:
    """File names of the OpenMP runtimes in this process; more than one costs speed."""
    maps = Path("/proc/self/maps")
    text = maps.read_text() if maps.is_file() else ""
    return sorted(set(re.findall(r"/(lib(?:gomp|omp|iomp)[^/\s]*\.so[^/\s]*)", text)))


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [f"{device.name} (sm_{device.major}{device.minor}, {device.total_memory >> 20} MiB)" for device in devices]


def _backend(op: str, device: str) -> dict:
    """The backend that runs an op on this device type, and why those before it in the table do not."""
    skipped: dict[str, str] = {}
    for name in _dispatch.TABLES[op][device]:
        try:
            reason = kernels.availability(name, device)
        except (ValueError, SlrfastError) as error:
            reason = str(error)
        if reason is None:
            return {"runs": name, "skipped": skipped}
        skipped[name] = reason
    return {"runs": None, "skipped": skipped}
