"""InfoNCE and mined BCE from one pass over a bank, as CCL-SLR's modalities share it, against the separate losses.

Queries of both modalities [f^R; f^P] meet one bank: each half has its InfoNCE term, the first half the mined term too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines import bank as field
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import BF16, BF16_TOLERANCE, unit_rows
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.reference import info_nce as reference_info_nce
from slrfast.reference import mined_bce as reference_mined_bce

B, N, D, MINED = 64, 16384, 128, 20
TEMPERATURE, MINED_TEMPERATURE = 0.07, 0.02


def cases(device: str) -> Iterator[Case]:
    own, cross, key, bank = unit_rows(device, (B, D), (B, D), (B, D), (N, D))
    positives = torch.randint(N, (B, MINED), generator=torch.Generator().manual_seed(0)).to(device)
    padded = F.pad(positives, (0, 0, 0, B), value=-1)
    queue, rounded = bank.T.contiguous(), bank.bfloat16()
    keys = torch.cat((key, key))

    def ours(own: Tensor, cross: Tensor, m: Tensor) -> Tensor:
        info_nce, mined = ops.bank_losses(
            torch.cat((own, cross)), keys, m, padded, temperature=TEMPERATURE, mined_temperature=MINED_TEMPERATURE
        )
        return info_nce[:B].mean() + info_nce[B:].mean() + mined[:B].mean()

    def theirs(own: Tensor, cross: Tensor) -> Tensor:
        contrast = sum(field.info_nce(q, key, queue, TEMPERATURE) for q in (own, cross))
        return contrast + field.dense_bce(own, queue, field.dense_labels(positives, N), MINED_TEMPERATURE)

    def truth(own: Tensor, cross: Tensor) -> Tensor:
        m = bank.double()
        contrast = sum(reference_info_nce.info_nce(q, key.double(), m, TEMPERATURE).mean() for q in (own, cross))
        return contrast + reference_mined_bce.mined_bce(own, m, positives, MINED_TEMPERATURE).mean()

    candidates = {
        "slrfast": lambda own, cross: ours(own, cross, bank),
        BF16: lambda own, cross: ours(own, cross, rounded),
        "eager": theirs,
        "torch.compile": torch.compile(theirs, dynamic=False),
    }
    yield Case(
        name="CCL-SLR, one bank, forward + backward",
        shapes={"query": (2 * B, D), "bank": (N, D), "positives": positives.shape},
        candidates={name: with_gradients(function, own, cross) for name, function in candidates.items()},
        truth=with_gradients(truth, own.double(), cross.double()),
        # scores once, then one product for the gradient of each loss
        flops=(4 + 4 + 2) * B * N * D,
        bytes=bank.nbytes + 6 * own.nbytes + positives.nbytes,
        tolerances=BF16_TOLERANCE,
        device=device,
    )


test_bank_losses = as_test("bank_losses", cases)

if __name__ == "__main__":
    main("bank_losses", cases)
