"""InfoNCE over growing batches and banks, forward and backward: the cost of each of the B N D products, and the memory
that a call takes beyond its inputs, against MoCo's code with its [B, N] logits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.baselines.bank import info_nce as field_info_nce
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import unit_rows
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.reference import info_nce as reference

OP = "bank_memory"
# B, N, D
SHAPES = [
    (64, 16384, 128),
    (64, 65536, 128),
    (64, 16384, 512),
    (1024, 16384, 128),
    (256, 65536, 128),
    (1024, 65536, 128),
]
LOSSES = {
    "slrfast": lambda q, k, bank: ops.info_nce(q, k, bank),
    "eager": lambda q, k, queue: field_info_nce(q, k, queue, 0.07),
}


def peak_bytes(name: str, b: int, n: int, d: int, device: str) -> int:
    """How far one call raises the memory of this process (or the GPU's allocated memory) above its inputs."""
    inputs = (torch.randn(b, d, device=device), torch.randn(b, d, device=device))
    bank = torch.empty((n, d) if name == "slrfast" else (d, n), device=device).normal_()
    tiny = bank[:16] if name == "slrfast" else bank[:, :16]
    _call(name, inputs[0][:2], inputs[1][:2], tiny)()  # loads what is loaded at a first call
    call = _call(name, *inputs, bank)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = _resident("VmHWM")
    call()
    return _resident("VmHWM") - before


def _call(name: str, query: Tensor, positive: Tensor, bank: Tensor) -> Callable[[], list[Tensor]]:
    return with_gradients(lambda q: LOSSES[name](q, positive, bank), query)


def _resident(key: str) -> int:
    """A size of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peaks(b: int, n: int, d: int, device: str) -> dict[str, int]:
    """:func:`peak_bytes` of every candidate; on a CPU each in a fresh process with as many threads as this one."""
    if device == "cuda":
        return {name: peak_bytes(name, b, n, d, device) for name in LOSSES}
    found = {}
    for name in LOSSES:
        code = (
            f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
            f"from benchmarks.systems.bank_memory import peak_bytes\n"
            f"print(peak_bytes({name!r}, {b}, {n}, {d}, {device!r}))"
        )
        root = Path(__file__).resolve().parents[2]
        run = subprocess.run([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = int(run.stdout)
    return found


def truth(query: Tensor, positive: Tensor, bank: Tensor) -> list[Tensor]:
    """Loss and gradient in float64, a few rows at a time."""
    wide, rows = bank.double(), zip(query.double().split(64), positive.double().split(64), strict=True)
    parts = [reference.info_nce_grad(q, k, wide, 0.07, True, False) for q, k in rows]
    return [torch.cat([part[0] for part in parts]).mean(), torch.cat([part[2] for part in parts]) / len(query)]


def cases(device: str) -> Iterator[Case]:
    for b, n, d in SHAPES:
        query, positive, bank = unit_rows(device, (b, d), (b, d), (n, d))
        banks = {"slrfast": bank, "eager": bank.T.contiguous()}
        yield Case(
            name="forward + backward",
            shapes={"query": (b, d), "bank": (n, d)},
            candidates={name: _call(name, query, positive, banks[name]) for name in LOSSES},
            truth=lambda q=query, k=positive, m=bank: truth(q, k, m),
            flops=4 * b * n * d,
            bytes=bank.nbytes + 3 * query.nbytes,
            peak_bytes=lambda shape=(b, n, d): peaks(*shape, device),
            device=device,
        )


test_bank_memory = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
