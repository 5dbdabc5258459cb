"""The hand's graph network with its two temporal blocks as STC and MASA run it, for one hand, against the field's code.

Training: forward and backward with the batch's statistics, timed with dropout as published and compared with float64
without it, and the memory that they take. Evaluation: forward alone, the folding of the normalisations included.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.baselines.gcn import load
from benchmarks.baselines.stc import FieldEncoder, renamed
from benchmarks.harness import OURS, Case, as_test, is_ours, main, root_mean_square_error
from benchmarks.ops._blocks import (
    BF16,
    CLIPS,
    FIELD_BF16,
    FIELD_CLIPS,
    FIELD_CLIPS_BF16,
    FRAMES,
    Call,
    evaluation,
    named,
    normalizing,
    random,
    training,
)
from slrfast.systems import STCConfig
from slrfast.systems.stc import STCEncoder

OP = "hand_gcn"
MODULE = f"benchmarks.systems.{OP}"
CLIPWISE = (FIELD_CLIPS, FIELD_CLIPS_BF16)
NAMES = (OURS, BF16, "eager", FIELD_BF16, *CLIPWISE)
JOINTS = 21
FLOPS = 56.80e6 - 2.10e6  # forward per frame, without the products of the dense adjacency
ELEMENTS = {"training": 104.5e3, "evaluation": 2 * JOINTS + 512}  # that a fused forward moves per frame
KINKS = 2e-2


class Ours(nn.Module):
    """Coordinates [B, T, V, 2] -> [B, dim, T]."""

    def __init__(self, encoder: STCEncoder) -> None:
        super().__init__()
        self.hand_gcn, self.hand_temporal = encoder.hand_gcn, encoder.hand_temporal

    def forward(self, x: Tensor) -> Tensor:
        return self.hand_temporal(self.hand_gcn(x).mT)


class Field(nn.Module):
    """The same of the field's code."""

    def __init__(self, encoder: FieldEncoder) -> None:
        super().__init__()
        self.hand_gcn, self.hand_tcn = encoder.hand_gcn, encoder.hand_tcn

    def forward(self, x: Tensor) -> Tensor:
        return self.hand_tcn(self.hand_gcn(x))


def networks(device: str, dropout: bool = True) -> tuple[Ours, Field, Field]:
    """slrfast's network and the field's in both layouts, with the same parameters and running statistics."""
    torch.manual_seed(0)
    config = STCConfig.paper() if dropout else STCConfig.paper(gcn_dropout=0.0, frame_dropout=0.0)
    ours = Ours(STCEncoder(config))
    fields = [Field(FieldEncoder(config, clips)) for clips in (False, True)]
    for field in fields:
        load(renamed(normalizing(ours).state_dict()), field)
    return ours.to(device), fields[0].to(device), fields[1].to(device)


def of(name: str, modules: tuple[Ours, Field, Field]) -> nn.Module:
    """A candidate's network."""
    return modules[0 if is_ours(name) else 2 if name in CLIPWISE else 1]


def inputs(device: str, clips: int, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    """Coordinates, and the gradient of the result."""
    return random((clips, frames, JOINTS, 2), device), random((clips, STCConfig.dim, frames), device, 1)


def prepared(name: str, device: str) -> Call:
    """A training step whose memory is to be measured, see :func:`benchmarks.memory.peaks`."""
    module = of(name, networks(device))
    training(module, *inputs(device, 2, 4), name)()
    return training(module, *inputs(device, CLIPS[device]), name)


def candidates(modules: tuple[Ours, Field, Field], device: str) -> dict[str, nn.Module]:
    """Every candidate's network; compiled bfloat16 convolutions take ten times the eager ones on a CPU."""
    torch.compiler.reset()
    names = ("torch.compile", "torch.compile, bf16") if device == "cuda" else ("torch.compile",)
    field = torch.compile(modules[1], dynamic=False)
    return {name: of(name, modules) for name in NAMES} | dict.fromkeys(names, field)


def training_case(device: str) -> Case:
    x, grad = inputs(device, CLIPS[device])
    modules, smooth = (candidates(networks(device, dropout), device) for dropout in (True, False))
    wide = [network.double() for network in networks(device, dropout=False)[:2]]

    def shared(module: nn.Module, name: str, dtype: torch.dtype = torch.float32) -> Call:
        call = training(module, x.to(dtype), grad.to(dtype), name)
        return named(module, call, renamed if isinstance(module, Ours) else dict)

    ours, truth = (shared(module, "", torch.float64) for module in wide)
    return Case(
        name=f"training, forward + backward, {CLIPS[device]} clips",
        shapes={"x": x.shape},
        candidates={name: training(module, x, grad, name) for name, module in modules.items()},
        checked={name: shared(module, name) for name, module in smooth.items()},
        truth=truth,
        error=root_mean_square_error,
        flops=3 * FLOPS * x.shape[:2].numel(),
        bytes=3 * 4 * ELEMENTS["training"] * x.shape[:2].numel(),
        # Gradients through so many ReLUs and maxima that rounding moves some across their kinks, in bfloat16 very many:
        # in float32 which ones decides about the error, so ours has to be right in float64; its float32 kernels are
        # compared block by block, without kinks, in ops/gcn_block.py.
        exact=ours,
        tolerance=KINKS,
        tolerances={OURS: KINKS, **dict.fromkeys((FIELD_BF16, FIELD_CLIPS_BF16, "torch.compile, bf16"), 0.7)},
        held_to={BF16: FIELD_BF16},
        memory=lambda: memory.peaks(MODULE, NAMES, device),
        device=device,
    )


def evaluation_case(device: str) -> Case:
    x, _ = inputs(device, CLIPS[device])
    modules, wide = networks(device), networks(device)[1].double()
    for module in (*modules, wide):
        module.eval()
    return Case(
        name=f"evaluation, forward, {CLIPS[device]} clips",
        shapes={"x": x.shape},
        candidates={name: evaluation(module, x, name) for name, module in candidates(modules, device).items()},
        truth=evaluation(wide, x.double()),
        flops=FLOPS * x.shape[:2].numel(),
        bytes=4 * ELEMENTS["evaluation"] * x.shape[:2].numel() + sum(p.nbytes for p in modules[0].parameters()),
        tolerances=dict.fromkeys((FIELD_BF16, FIELD_CLIPS_BF16, "torch.compile, bf16"), 0.05),
        held_to={BF16: FIELD_BF16},
        device=device,
    )


def cases(device: str) -> Iterator[Case]:
    yield training_case(device)
    yield evaluation_case(device)


test_hand_gcn = pytest.mark.timeout(900)(as_test(OP, cases))

if __name__ == "__main__":
    main(OP, cases)
