"""InfoNCE over a memory bank, forward and backward, against MoCo's code: a cloned queue, cat, cross_entropy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baselines.bank import info_nce as field_info_nce
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import BF16, BF16_TOLERANCE, unit_rows
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.reference import info_nce as reference

# terms, B, N, D; STC has four terms, one for each part of each stream
SHAPES = {
    "one query": (1, 1, 16384, 128),
    "paper": (1, 64, 16384, 128),
    "four terms": (4, 64, 16384, 128),
    "long bank": (1, 64, 131072, 128),
}


def ours(queries: tuple[Tensor, ...], positives: list[Tensor], banks: list[Tensor]) -> Tensor:
    return sum(ops.info_nce(q, k, m) for q, k, m in zip(queries, positives, banks, strict=True))


def field(queries: tuple[Tensor, ...], positives: list[Tensor], queues: list[Tensor]) -> Tensor:
    return sum(field_info_nce(q, k, m, 0.07) for q, k, m in zip(queries, positives, queues, strict=True))


def truth(queries: tuple[Tensor, ...], positives: list[Tensor], banks: list[Tensor]) -> Tensor:
    terms = zip(queries, positives, banks, strict=True)
    return sum(reference.info_nce(q, k.double(), m.double(), 0.07).mean() for q, k, m in terms)


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(field, dynamic=False)
    for name, (terms, b, n, d) in SHAPES.items():
        rows = unit_rows(device, *[(b, d)] * 2 * terms, *[(n, d)] * terms)
        queries, positives, banks = rows[:terms], rows[terms : 2 * terms], rows[2 * terms :]
        queues = [bank.T.contiguous() for bank in banks]
        rounded = [bank.bfloat16() for bank in banks]
        implementations = {
            "slrfast": lambda *q, k=positives, m=banks: ours(q, k, m),
            "slrfast, queue.T": lambda *q, k=positives, m=queues: ours(q, k, [queue.T for queue in m]),
            BF16: lambda *q, k=positives, m=rounded: ours(q, k, m),
            "eager": lambda *q, k=positives, m=queues: field(q, k, m),
            "torch.compile": lambda *q, k=positives, m=queues: compiled(q, k, m),
        }
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"query": (b, d), "bank": (n, d)},
            candidates={key: with_gradients(function, *queries) for key, function in implementations.items()},
            truth=with_gradients(
                lambda *q, k=positives, m=banks: truth(q, k, m), *(query.double() for query in queries)
            ),
            flops=4 * terms * b * n * d,
            bytes=terms * (banks[0].nbytes + 3 * queries[0].nbytes),
            tolerances=BF16_TOLERANCE,
            device=device,
        )


test_info_nce = as_test("info_nce", cases)

if __name__ == "__main__":
    main("info_nce", cases)
