"""Knowledge transfer over the nearest bank rows, forward and backward, against topk, gather and kl_div."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from benchmarks.baselines.stc import neighbor_kl as field_neighbor_kl
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.reference import neighbor_kl as reference

# B, N, D, k: STC's knowledge transfer, and the neighbour consistency of its authors' code
SHAPES = {"paper": (64, 16384, 128, 8192), "consistency": (64, 8192, 128, 1024)}


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(field_neighbor_kl)
    for name, (b, n, d, k) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        teacher, student, teacher_bank, student_bank = (
            F.normalize(torch.randn(rows, d, generator=generator), dim=1).to(device) for rows in (b, b, n, n)
        )
        queues = teacher_bank.T.contiguous(), student_bank.T.contiguous()
        implementations = {
            "slrfast": lambda s, t=teacher, tb=teacher_bank, sb=student_bank, k=k: ops.neighbor_kl(t, tb, s, sb, k),
            "eager": lambda s, t=teacher, q=queues, k=k: field_neighbor_kl(t, q[0], s, q[1], k, 0.05, 0.1),
            "torch.compile": lambda s, t=teacher, q=queues, k=k: compiled(t, q[0], s, q[1], k, 0.05, 0.1),
        }
        wide = teacher.double(), teacher_bank.double(), student_bank.double()
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"student": (b, d), "student_bank": (n, d), "k": (k,)},
            candidates={key: with_gradients(function, student) for key, function in implementations.items()},
            truth=with_gradients(
                lambda s, w=wide, k=k: reference.neighbor_kl(w[0], w[1], s, w[2], k, 0.05, 0.1).mean(), student.double()
            ),
            flops=6 * b * n * d,
            bytes=2 * student_bank.nbytes + 3 * student.nbytes,
            device=device,
            tolerance=1e-3,  # float32 may choose another row at the border than float64
        )


test_neighbor_kl = as_test("neighbor_kl", cases)

if __name__ == "__main__":
    main("neighbor_kl", cases)
