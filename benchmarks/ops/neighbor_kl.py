"""Knowledge transfer over the nearest bank rows, forward and backward, against topk, gather and kl_div."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baselines.bank import neighbor_kl as field_neighbor_kl
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import BF16, unit_rows
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.reference import neighbor_kl as reference

# B, N, D, k and directions: STC's knowledge transfer, one and both ways, and the neighbour consistency of its authors'
SHAPES = {
    "paper": (64, 16384, 128, 8192, 1),
    "both directions": (64, 16384, 128, 8192, 2),
    "consistency": (64, 8192, 128, 1024, 1),
}


def ours(students: tuple[Tensor, ...], teachers: list[Tensor], banks: list[Tensor], k: int) -> Tensor:
    terms = _terms(students, teachers, banks)
    return sum(ops.neighbor_kl(t, t_bank, s, s_bank, k) for t, t_bank, s, s_bank in terms)


def field(students: tuple[Tensor, ...], teachers: list[Tensor], queues: list[Tensor], k: int) -> Tensor:
    terms = _terms(students, teachers, queues)
    return sum(field_neighbor_kl(t, t_queue, s, s_queue, k, 0.05, 0.1) for t, t_queue, s, s_queue in terms)


def truth(students: tuple[Tensor, ...], teachers: list[Tensor], banks: list[Tensor], k: int) -> Tensor:
    terms = _terms(students, [x.double() for x in teachers], [x.double() for x in banks])
    return sum(reference.neighbor_kl(t, t_bank, s, s_bank, k, 0.05, 0.1).mean() for t, t_bank, s, s_bank in terms)


def _terms(
    students: tuple[Tensor, ...], teachers: list[Tensor], banks: list[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Teacher i of bank i teaches the student of the other bank."""
    return [(t, banks[i], students[i], banks[1 - i]) for i, t in enumerate(teachers)]


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(field, dynamic=False)
    for name, (b, n, d, k, directions) in SHAPES.items():
        *rows, first, second = unit_rows(device, *[(b, d)] * 2 * directions, (n, d), (n, d))
        teachers, students, banks = rows[:directions], rows[directions:], [first, second]
        queues, rounded = [bank.T.contiguous() for bank in banks], [bank.bfloat16() for bank in banks]
        implementations = {
            "slrfast": lambda *s, t=teachers, m=banks, k=k: ours(s, t, m, k),
            BF16: lambda *s, t=teachers, m=rounded, k=k: ours(s, t, m, k),
            "eager": lambda *s, t=teachers, m=queues, k=k: field(s, t, m, k),
            "torch.compile": lambda *s, t=teachers, m=queues, k=k: compiled(s, t, m, k),
        }
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"student": (b, d), "student_bank": (n, d), "k": (k,)},
            candidates={key: with_gradients(function, *students) for key, function in implementations.items()},
            truth=with_gradients(
                lambda *s, t=teachers, m=banks, k=k: truth(s, t, m, k), *(student.double() for student in students)
            ),
            flops=6 * directions * b * n * d,
            bytes=directions * (2 * first.nbytes + 4 * students[0].nbytes),
            # float32 may choose another row at the border than float64, and rounded banks choose many another; what
            # the gradient is compared with is small, because teacher and student are random and mostly agree
            tolerance=1e-3,
            tolerances={BF16: 0.1},
            device=device,
        )


test_neighbor_kl = as_test("neighbor_kl", cases)

if __name__ == "__main__":
    main("neighbor_kl", cases)
