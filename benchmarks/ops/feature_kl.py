"""Feature consistency, forward and backward, against softmax, log_softmax and kl_div."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.baselines.bank import feature_kl as field_feature_kl
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import unit_rows
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.reference import feature_kl as reference

SHAPES = {"paper": (64, 128), "large": (4096, 512)}


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(field_feature_kl, dynamic=False)
    for name, (b, d) in SHAPES.items():
        teacher, student = unit_rows(device, (b, d), (b, d))
        implementations = {
            "slrfast": lambda s, t=teacher: ops.feature_kl(t, s),
            "eager": lambda s, t=teacher: field_feature_kl(t, s, 0.1),
            "torch.compile": lambda s, t=teacher: compiled(t, s, 0.1),
        }
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"student": (b, d)},
            candidates={key: with_gradients(function, student) for key, function in implementations.items()},
            truth=with_gradients(
                lambda s, t=teacher: reference.feature_kl(t.double(), s, 0.1).mean(), student.double()
            ),
            flops=10 * b * d,
            bytes=3 * student.nbytes,
            device=device,
        )


test_feature_kl = as_test("feature_kl", cases)

if __name__ == "__main__":
    main("feature_kl", cases)
