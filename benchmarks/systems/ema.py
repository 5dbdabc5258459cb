"""The momentum update of STC's key encoders, 97 million parameters, against MoCo's loop over them one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.baselines.bank import momentum_update
from benchmarks.harness import Case, as_test, main
from slrfast.nn import MomentumEncoder
from slrfast.systems import STCConfig
from slrfast.systems.stc import STCEncoder

OP, MOMENTUM = "ema", 0.99


def copies(encoder: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in encoder.parameters()]


def cases(device: str) -> Iterator[Case]:
    """Every call moves the candidate's own key parameters one step further; the first is the one that is checked."""
    torch.manual_seed(0)
    query = nn.ModuleDict({stream: STCEncoder(STCConfig.paper()) for stream in ("joint", "motion")}).to(device)
    key = MomentumEncoder(query, MOMENTUM)
    averaged = list(key.encoder.parameters())
    start, field, library = (copies(query) for _ in range(3))
    with torch.no_grad():
        for parameter in query.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    moved = [parameter.detach() for parameter in query.parameters()]
    average = get_ema_multi_avg_fn(MOMENTUM)

    def ours() -> list[Tensor]:
        key.update(query)
        return averaged

    def eager() -> list[Tensor]:
        momentum_update(field, moved, MOMENTUM)
        return field

    def swa_utils() -> list[Tensor]:
        average(library, moved, None)
        return library

    yield Case(
        name="STC's encoders",
        shapes={"parameters": (sum(parameter.numel() for parameter in moved),), "tensors": (len(moved),)},
        candidates={"slrfast": ours, "eager": eager, "torch.optim.swa_utils": swa_utils},
        truth=lambda: [k.double() * MOMENTUM + q.double() * (1 - MOMENTUM) for k, q in zip(start, moved, strict=True)],
        flops=3 * sum(parameter.numel() for parameter in moved),
        bytes=3 * sum(parameter.nbytes for parameter in moved),
        device=device,
    )


test_ema = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
