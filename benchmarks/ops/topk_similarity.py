"""The nearest bank rows, against a matrix product and torch.topk (which promises no order among equal values), and
faiss-cpu's exact index over a bank that it has already copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.baselines.bank import topk as field_topk
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import BF16, BF16_TOLERANCE, faiss_search, unit_rows
from slrfast import ops

# B, N, D, k
SHAPES = {
    "10 of a bank": (64, 16384, 128, 10),
    "half a bank": (64, 16384, 128, 8192),
    "10 of many": (64, 400_000, 128, 10),
}


def compared(query: Tensor, bank: Tensor) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """The values in falling order, as returned and as the indices reproduce them."""

    def made(results: Sequence[Tensor]) -> list[Tensor]:
        values, indices = results
        again = torch.stack([bank[chosen] @ row for chosen, row in zip(indices, query, strict=True)])
        return [x.sort(1, descending=True).values for x in (values, again)]

    return made


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(field_topk, dynamic=False)
    for name, (b, n, d, k) in SHAPES.items():
        query, bank = unit_rows(device, (b, d), (n, d))
        rounded, reduce = bank.bfloat16(), compared(query, bank)
        candidates = {
            "slrfast": lambda q=query, m=bank, k=k: ops.topk_similarity(q, m, k),
            "slrfast, unsorted": lambda q=query, m=bank, k=k: ops.topk_similarity(q, m, k, sorted=False),
            BF16: lambda q=query, m=rounded, k=k: ops.topk_similarity(q, m, k),
            "eager": lambda q=query, m=bank, k=k: field_topk(q, m, k),
            "eager, unsorted": lambda q=query, m=bank, k=k: field_topk(q, m, k, sorted=False),
            "torch.compile": lambda q=query, m=bank, k=k: compiled(q, m, k),
        }
        skipped = {}
        search, reason = faiss_search(query, bank, k)
        if search is None:
            skipped["faiss"] = reason
        else:
            candidates["faiss"] = search
        yield Case(
            name=name,
            shapes={"query": (b, d), "bank": (n, d), "k": (k,)},
            candidates=candidates,
            truth=lambda q=query, m=bank, k=k: [field_topk(q.double(), m.double(), k)[0]] * 2,
            flops=2 * b * n * d,
            bytes=bank.nbytes + query.nbytes + 12 * b * k,
            tolerances=BF16_TOLERANCE,
            compared=reduce,
            skipped=skipped,
            device=device,
        )


test_topk_similarity = as_test("topk_similarity", cases)

if __name__ == "__main__":
    main("topk_similarity", cases)
