"""The whole loss of CCL-SLR at the paper's sizes, forward and backward, from features: ours against the field's code.

Mining in two g banks (2048 and 1024 wide), then contrast within and across modalities and the mined terms against two f
banks (128 wide): six terms. The enqueue is in nobody's time. The mining products dominate. "eager" clones its queues
as MoCo's code does and forms every product anew; "eager, shared" does neither. On the CPU with two threads and with
one; on a GPU also captured in a CUDA graph, each candidate alike.

    python -m benchmarks.systems.ccl_loss
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.baselines.ccl import MODALITIES, FieldCCL
from benchmarks.capture import captured
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import BF16, BF16_QUERIES, unit_rows
from benchmarks.ops._gradients import with_gradients
from slrfast.systems.ccl import CCL, Features
from slrfast.systems.ccl_config import CCLConfig

OP = "ccl_loss"
THREADS = {"cpu": (2, 1), "cuda": (None,)}
SHARED = "eager, shared"
# only the losses are run: the encoders are as small as they can be with features of the paper's size
ENCODERS = {"rgb_layers": (1,) * 4, "gcn_channels": (4,) * 5, "heads": 1, "layers": 1, "manual_ffn": 8}


def config(bank_dtype: str = "float32") -> CCLConfig:
    """The paper's losses and banks on encoders that are not run."""
    return CCLConfig.paper(bank_dtype=bank_dtype, **ENCODERS, non_manual_ffn=8)


def systems(device: str) -> tuple[CCL, CCL, FieldCCL]:
    """slrfast's system with float32 and with bfloat16 banks and the field's, all with the same random banks."""
    torch.manual_seed(0)
    ours = CCL(config())
    rounded, field = CCL(config("bfloat16")), FieldCCL(config())
    rounded.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for m in MODALITIES:
            for name in ("g", "f"):
                field.queue(m, name).copy_(ours.banks[m][name].features.T)
    return ours.to(device), rounded.to(device), field.to(device)


def our_loss(
    system: CCL, labels: Sequence[Tensor], keys: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> Callable[..., Tensor]:
    """The loss of f of the query in RGB and pose, cast to ``dtype``, beside g of the query and f of the key."""
    key = {m: Features(g, f) for m, g, f in zip(MODALITIES, labels, keys, strict=True)}

    def loss(*queries: Tensor) -> Tensor:
        query = {m: Features(g, f.to(dtype)) for m, g, f in zip(MODALITIES, labels, queries, strict=True)}
        return system.losses(query, key)["loss"]

    return loss


def field_loss(losses: Callable, labels: Sequence[Tensor], keys: Sequence[Tensor]) -> Callable[..., Tensor]:
    """The same of the field's code."""
    key = {m: (g, f) for m, g, f in zip(MODALITIES, labels, keys, strict=True)}

    def loss(*queries: Tensor) -> Tensor:
        return losses({m: (g, f) for m, g, f in zip(MODALITIES, labels, queries, strict=True)}, key)

    return loss


def cases(device: str) -> Iterator[Case]:
    settings = config()
    b, n, d = settings.batch_size, settings.bank_size, settings.embedding
    sizes = [settings.features[m] for m in MODALITIES]
    rows = unit_rows(device, *[(b, d)] * 4, *[(b, size) for size in sizes])
    queries, keys, labels = rows[:2], rows[2:4], rows[4:]
    ours, rounded, field = systems(device)

    def double(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.double() for tensor in tensors]

    wide = field_loss(copy.deepcopy(field).double().losses, double(labels), double(keys))
    truth = [x.detach() for x in with_gradients(wide, *double(queries))()]
    half = [x.bfloat16() for x in labels], [x.bfloat16() for x in keys]
    for threads in THREADS[device]:
        torch.compiler.reset()  # compile for this number of threads
        implementations = {
            "slrfast": our_loss(ours, labels, keys),
            BF16: our_loss(rounded, labels, keys),
            BF16_QUERIES: our_loss(rounded, *half, torch.bfloat16),
            "eager": field_loss(field.losses, labels, keys),
            SHARED: field_loss(field.shared_losses, labels, keys),
            "torch.compile": torch.compile(field_loss(field.losses, labels, keys), dynamic=False),
            f"torch.compile, {SHARED}": torch.compile(field_loss(field.shared_losses, labels, keys), dynamic=False),
        }
        candidates = {name: with_gradients(function, *queries) for name, function in implementations.items()}
        skipped: dict[str, str] = {}
        if device == "cuda":
            graphs, skipped = captured(candidates)
            candidates |= graphs
        yield Case(
            name=f"paper, {f'{threads} CPU threads, ' if threads else ''}forward + backward",
            shapes={"query": (2, b, d), "bank": (2, n, d), "label banks": (n, *sizes), "k": (settings.positives,)},
            candidates=candidates,
            truth=lambda: truth,
            # mining; per f bank scores and gradients of 2 B rows, and the gradient of B mined ones
            flops=2 * b * n * sum(sizes) + 2 * (2 + 2 + 1) * 2 * b * n * d,
            bytes=4 * n * (sum(sizes) + 2 * d) + 4 * b * (sum(sizes) + 6 * d),  # every bank read once
            tolerances={name: 2e-2 for name in candidates if name.startswith(BF16)},
            threads=threads,
            skipped=skipped,
            device=device,
        )


test_ccl_loss = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
