"""InfoNCE over growing batches and banks, forward and backward: the cost of each of the B N D products, and the memory
that a call takes beyond its inputs, against MoCo's code with its [B, N] logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.baselines.bank import info_nce as field_info_nce
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import unit_rows
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.reference import info_nce as reference

OP = "bank_memory"
MODULE = f"benchmarks.systems.{OP}"
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


def prepared(name: str, device: str, b: int, n: int, d: int) -> Callable[[], list[Tensor]]:
    """A call whose memory is to be measured, see :func:`benchmarks.memory.peaks`."""
    inputs = (torch.randn(b, d, device=device), torch.randn(b, d, device=device))
    bank = torch.empty((n, d) if name == "slrfast" else (d, n), device=device).normal_()
    tiny = bank[:16] if name == "slrfast" else bank[:, :16]
    _call(name, inputs[0][:2], inputs[1][:2], tiny)()
    return _call(name, *inputs, bank)


def _call(name: str, query: Tensor, positive: Tensor, bank: Tensor) -> Callable[[], list[Tensor]]:
    return with_gradients(lambda q: LOSSES[name](q, positive, bank), query)


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
            memory=lambda shape=(b, n, d): memory.peaks(MODULE, LOSSES, device, *shape),
            device=device,
        )


test_bank_memory = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
