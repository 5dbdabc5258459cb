"""Writing keys into a memory bank, against MoCo's code: normalise, then fill columns of a [D, N] queue at int(ptr)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines.bank import enqueue as field_enqueue
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import BF16
from slrfast import ops

SHAPES = {"paper": (64, 16384, 128), "large batch": (4096, 65536, 256)}


def cases(device: str) -> Iterator[Case]:
    for name, (b, n, d) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        bank, keys = (torch.randn(rows, d, generator=generator).to(device) for rows in (n, b))
        yield Case(
            name=name,
            shapes={"keys": (b, d), "bank": (n, d)},
            candidates={
                "slrfast": _ours(bank.clone(), keys),
                "slrfast, queue.T": _ours(bank.T.contiguous().T, keys),
                BF16: _ours(bank.bfloat16(), keys),
                "eager": _field(bank.T.contiguous(), keys),
            },
            truth=lambda m=bank, k=keys: [torch.cat((F.normalize(k.double(), dim=1), m[len(k) :].double()))],
            flops=3 * b * d,
            bytes=2 * keys.nbytes,
            tolerances={BF16: 2**-8},  # the rounding of the largest entry
            device=device,
        )


def _ours(bank: Tensor, keys: Tensor) -> Callable[[], list[Tensor]]:
    cursor = torch.zeros((), dtype=torch.int64, device=bank.device)

    def run() -> list[Tensor]:
        cursor.zero_()
        ops.enqueue_(bank, cursor, keys)
        return [bank]

    return run


def _field(queue: Tensor, keys: Tensor) -> Callable[[], list[Tensor]]:
    queue_ptr = torch.zeros(1, dtype=torch.int64, device=queue.device)

    def run() -> list[Tensor]:
        queue_ptr.zero_()
        field_enqueue(queue, queue_ptr, keys)
        return [queue.T]

    return run


test_enqueue = as_test("enqueue", cases)

if __name__ == "__main__":
    main("enqueue", cases)
