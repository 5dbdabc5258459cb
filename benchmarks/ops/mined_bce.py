"""CCL-SLR's mined binary cross entropy, forward and backward, against dense labels and BCEWithLogits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.baselines import bank as field
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import BF16, BF16_TOLERANCE, unit_rows
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.reference import mined_bce as reference

B, N, D, MINED, TEMPERATURE = 64, 16384, 128, 10, 0.02


def ours(
    queries: tuple[Tensor, ...], banks: list[Tensor], embeddings: list[Tensor], label_banks: list[Tensor]
) -> Tensor:
    """Both modalities, with their mining: top-10 in two label banks, whose union both losses take."""
    mined = [ops.topk_similarity(g, m, MINED)[1] for g, m in zip(embeddings, label_banks, strict=True)]
    positives = torch.cat(mined, 1)
    return sum(ops.mined_bce(q, m, positives, temperature=TEMPERATURE) for q, m in zip(queries, banks, strict=True))


def cases(device: str) -> Iterator[Case]:
    rows = unit_rows(device, *[(B, D)] * 4, *[(N, D)] * 4)
    queries, embeddings, banks, label_banks = rows[:2], rows[2:4], rows[4:6], rows[6:]
    positives = torch.cat([field.topk(g, m, MINED)[1] for g, m in zip(embeddings, label_banks, strict=True)], 1)
    wide = [(m.double(), positives) for m in banks]
    queues, label_queues = ([m.T.contiguous() for m in group] for group in (banks, label_banks))
    rounded, compiled = [m.bfloat16() for m in banks], torch.compile(field.mined_bce, dynamic=False)

    def theirs(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *q: function(q, queues, embeddings, label_queues, MINED, TEMPERATURE)

    both = {
        "slrfast": lambda *q: ours(q, banks, embeddings, label_banks),
        # the label banks stay float32, so that both mine the same rows
        BF16: lambda *q: ours(q, rounded, embeddings, label_banks),
        "eager": theirs(field.mined_bce),
        "torch.compile": theirs(compiled),
    }
    yield Case(
        name="two modalities with mining, forward + backward",
        shapes={"query": (B, D), "bank": (N, D), "mined": (MINED,)},
        candidates={key: with_gradients(function, *queries) for key, function in both.items()},
        truth=with_gradients(
            lambda *q: sum(reference.mined_bce(x, *m, TEMPERATURE).mean() for x, m in zip(q, wide, strict=True)),
            *(query.double() for query in queries),
        ),
        flops=2 * (2 + 4) * B * N * D,
        bytes=4 * banks[0].nbytes + 8 * queries[0].nbytes,
        tolerances=BF16_TOLERANCE,
        device=device,
    )

    def dense(query: Tensor) -> Tensor:
        return field.dense_bce(query, queues[0], field.dense_labels(positives, N), TEMPERATURE)

    dense_compiled = torch.compile(dense, dynamic=False)
    alone = {
        "slrfast": lambda q: ops.mined_bce(q, banks[0], positives, temperature=TEMPERATURE),
        BF16: lambda q: ops.mined_bce(q, rounded[0], positives, temperature=TEMPERATURE),
        "eager": dense,
        "torch.compile": dense_compiled,
    }
    yield Case(
        name="one modality, mined already, forward + backward",
        shapes={"query": (B, D), "bank": (N, D), "positives": positives.shape},
        candidates={key: with_gradients(function, queries[0]) for key, function in alone.items()},
        truth=with_gradients(lambda q: reference.mined_bce(q, *wide[0], TEMPERATURE).mean(), queries[0].double()),
        flops=4 * B * N * D,
        bytes=banks[0].nbytes + 2 * queries[0].nbytes + positives.nbytes,
        tolerances=BF16_TOLERANCE,
        device=device,
    )


test_mined_bce = as_test("mined_bce", cases)

if __name__ == "__main__":
    main("mined_bce", cases)
