"""InfoNCE over a memory bank, forward and backward, against MoCo's code: a cloned queue, cat, cross_entropy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from benchmarks.baselines.stc import info_nce as field_info_nce
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.reference import info_nce as reference

SHAPES = {"one query": (1, 16384, 128), "paper": (64, 16384, 128), "long bank": (64, 131072, 128)}


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(field_info_nce)
    for name, (b, n, d) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        query, positive, bank = (
            F.normalize(torch.randn(rows, d, generator=generator), dim=1).to(device) for rows in (b, b, n)
        )
        queue = bank.T.contiguous()
        implementations = {
            "slrfast": lambda q, k=positive, m=bank: ops.info_nce(q, k, m),
            "eager": lambda q, k=positive, m=queue: field_info_nce(q, k, m, 0.07),
            "torch.compile": lambda q, k=positive, m=queue: compiled(q, k, m, 0.07),
        }
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"query": (b, d), "bank": (n, d)},
            candidates={key: with_gradients(function, query) for key, function in implementations.items()},
            truth=with_gradients(
                lambda q, k=positive, m=bank: reference.info_nce(q, k.double(), m.double(), 0.07).mean(), query.double()
            ),
            flops=4 * b * n * d,
            bytes=bank.nbytes + 3 * query.nbytes,
            device=device,
        )


test_info_nce = as_test("info_nce", cases)

if __name__ == "__main__":
    main("info_nce", cases)
