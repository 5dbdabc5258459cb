"""The hand's graph network with its two temporal blocks as STC and MASA run it, for one hand, against the field's code.

Training: forward and backward with the batch's statistics, timed with dropout as published and compared with float64
without it, and the memory that they take. Evaluation: forward alone, the folding of the normalisations included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.baselines.gcn import load
from benchmarks.baselines.stc import FieldEncoder, renamed
from benchmarks.harness import Case, as_test, is_ours, main, root_mean_square_error
from benchmarks.ops._blocks import BF16, CLIPS, FIELD_BF16, FRAMES, random
from slrfast.systems import STCConfig
from slrfast.systems.stc import STCEncoder

OP = "hand_gcn"
MODULE = f"benchmarks.systems.{OP}"
NAMES = ("slrfast", BF16, "eager", FIELD_BF16)
JOINTS = 21
FLOPS = 56.80e6 - 2.10e6  # forward per frame, without the products of the dense adjacency
ELEMENTS = {"training": 104.5e3, "evaluation": 2 * JOINTS + 512}  # that a fused forward moves per frame
EXACTLY_ZERO = ("tcn.3.bias", "residual.0.bias", "fc.0.bias", "join.0.bias")  # gradients before a batch normalisation


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


def networks(device: str, dropout: bool = True) -> tuple[Ours, Field]:
    """slrfast's network and the field's with the same parameters, and running statistics that normalise something."""
    generator = torch.manual_seed(0)
    config = STCConfig.paper() if dropout else STCConfig.paper(gcn_dropout=0.0, frame_dropout=0.0)
    ours, field = Ours(STCEncoder(config)), Field(FieldEncoder(config))
    for module in ours.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    load(renamed(ours.state_dict()), field)
    return ours.to(device), field.to(device)


def step(module: nn.Module, x: Tensor, grad: Tensor, name: str) -> Callable[[], list[Tensor]]:
    """Forward and backward: the result and the gradients of the parameters, in their order."""
    parameters = list(module.parameters())

    def run() -> list[Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled="bf16" in name):
            y = module(x)
        return [y.detach(), *torch.autograd.grad(y, parameters, grad.to(y.dtype))]

    return run


def forward(module: nn.Module, x: Tensor, name: str) -> Callable[[], list[Tensor]]:
    """Forward without gradient."""

    def run() -> list[Tensor]:
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled="bf16" in name):
            return [module(x)]

    return run


def named(module: nn.Module, call: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    """The results of a step in one order and layout for both implementations."""

    def run() -> list[Tensor]:
        y, *grads = call()
        found = dict(zip((name for name, _ in module.named_parameters()), grads, strict=True))
        found = renamed(found) if isinstance(module, Ours) else found
        return [y, *(found[name] for name in sorted(found) if not name.endswith(EXACTLY_ZERO))]

    return run


def inputs(device: str, clips: int, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    """Coordinates, and the gradient of the result."""
    return random((clips, frames, JOINTS, 2), device), random((clips, STCConfig.dim, frames), device, 1)


def prepared(name: str, device: str) -> Callable[[], list[Tensor]]:
    """A training step whose memory is to be measured, see :func:`benchmarks.memory.peaks`."""
    ours, field = networks(device)
    module = ours if is_ours(name) else field
    step(module, *inputs(device, 2, 4), name)()
    return step(module, *inputs(device, CLIPS[device]), name)


def compiled(modules: tuple[Ours, Field], device: str) -> dict[str, nn.Module]:
    """Every candidate's network; compiled bfloat16 convolutions take ten times the eager ones on a CPU."""
    torch.compiler.reset()
    names = ("torch.compile", "torch.compile, bf16") if device == "cuda" else ("torch.compile",)
    field = torch.compile(modules[1], dynamic=False)
    return {name: modules[not is_ours(name)] for name in NAMES} | dict.fromkeys(names, field)


def training(device: str) -> Case:
    x, grad = inputs(device, CLIPS[device])
    modules = compiled(networks(device), device), compiled(networks(device, dropout=False), device)
    timed, checked = ({name: step(m, x, grad, name) for name, m in candidates.items()} for candidates in modules)
    wide = networks(device, dropout=False)[1].double()
    return Case(
        name=f"training, forward + backward, {CLIPS[device]} clips",
        shapes={"x": x.shape},
        candidates=timed,
        checked={name: named(modules[1][name], call) for name, call in checked.items()},
        truth=named(wide, step(wide, x.double(), grad.double(), "truth")),
        error=root_mean_square_error,
        flops=3 * FLOPS * x.shape[:2].numel(),
        bytes=3 * 4 * ELEMENTS["training"] * x.shape[:2].numel(),
        # gradients through so many ReLUs and maxima that rounding moves some across their kinks, in bfloat16 very many
        tolerance=2e-2,
        tolerances={"slrfast": 2e-2, FIELD_BF16: 0.7, "torch.compile, bf16": 0.7},
        held_to={BF16: FIELD_BF16},
        peak_bytes=lambda: memory.peaks(MODULE, NAMES, device),
        device=device,
    )


def evaluation(device: str) -> Case:
    x, _ = inputs(device, CLIPS[device])
    modules, wide = networks(device), networks(device)[1].double()
    for module in (*modules, wide):
        module.eval()
    return Case(
        name=f"evaluation, forward, {CLIPS[device]} clips",
        shapes={"x": x.shape},
        candidates={name: forward(module, x, name) for name, module in compiled(modules, device).items()},
        truth=forward(wide, x.double(), "truth"),
        flops=FLOPS * x.shape[:2].numel(),
        bytes=4 * ELEMENTS["evaluation"] * x.shape[:2].numel() + sum(p.nbytes for p in modules[0].parameters()),
        tolerances={FIELD_BF16: 0.05, "torch.compile, bf16": 0.05},
        held_to={BF16: FIELD_BF16},
        device=device,
    )


def cases(device: str) -> Iterator[Case]:
    yield training(device)
    yield evaluation(device)


test_hand_gcn = pytest.mark.timeout(900)(as_test(OP, cases))

if __name__ == "__main__":
    main(OP, cases)
