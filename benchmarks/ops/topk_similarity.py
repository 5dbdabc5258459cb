"""The nearest bank rows, against a matrix product and torch.topk (which promises no order among equal values)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, as_test, main
from slrfast import ops

# B, N, D, k
SHAPES = {
    "10 of a bank": (64, 16384, 128, 10),
    "half a bank": (64, 16384, 128, 8192),
    "10 of many": (64, 400_000, 128, 10),
}


def field_topk(query: Tensor, bank: Tensor, k: int) -> Tensor:
    return torch.topk(torch.mm(query, bank.t()), k, dim=1, largest=True, sorted=True)[0]


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(field_topk)
    for name, (b, n, d, k) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        query, bank = (F.normalize(torch.randn(rows, d, generator=generator), dim=1).to(device) for rows in (b, n))
        yield Case(
            name=name,
            shapes={"query": (b, d), "bank": (n, d), "k": (k,)},
            candidates={
                "slrfast": lambda q=query, m=bank, k=k: [ops.topk_similarity(q, m, k)[0]],
                "eager": lambda q=query, m=bank, k=k: [field_topk(q, m, k)],
                "torch.compile": lambda q=query, m=bank, k=k: [compiled(q, m, k)],
            },
            truth=lambda q=query, m=bank, k=k: [field_topk(q.double(), m.double(), k)],
            flops=2 * b * n * d,
            bytes=bank.nbytes + query.nbytes + 12 * b * k,
            device=device,
        )


test_topk_similarity = as_test("topk_similarity", cases)

if __name__ == "__main__":
    main("topk_similarity", cases)
