"""The whole loss of STC at the paper's sizes, forward and backward, from embeddings: slrfast against the field's code.

Four InfoNCE terms, four of feature consistency, and knowledge transfer both ways over the sums of two banks each; the
enqueue is in nobody's time. slrfast keeps the sums in step with its banks, the field's code forms them in every step.
On the CPU with two threads and with one; on a GPU also captured in a CUDA graph, each candidate alike.

    python -m benchmarks.systems.stc_loss                              # op "stc_loss"
    SLRFAST_CPU_ISA=avx2 python -m benchmarks.systems.stc_loss         # op "stc_loss_avx2": our kernels held to AVX2
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.baselines.stc import FieldSTC
from benchmarks.capture import captured
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._banks import BF16, BF16_QUERIES, unit_rows
from benchmarks.ops._gradients import with_gradients
from slrfast.systems import STC, STCConfig
from slrfast.systems.stc import Parts

FORCED_ISA = os.environ.get("SLRFAST_CPU_ISA")
OP = f"stc_loss_{FORCED_ISA}" if FORCED_ISA else "stc_loss"
THREADS = {"cpu": (2, 1), "cuda": (None,)}
# only the losses are run: the encoders are as small as they can be
ENCODERS = {"gcn_channels": (4,) * 5, "dim": 8, "heads": 1, "layers": 1, "hand_ffn": 8, "trunk_ffn": 8}


def config(bank_dtype: str = "float32") -> STCConfig:
    """The paper's losses and banks on encoders that are not run."""
    return STCConfig.paper(bank_dtype=bank_dtype, **ENCODERS)


def systems(device: str) -> tuple[STC, STC, FieldSTC]:
    """slrfast's system with float32 and with bfloat16 banks and the field's, all with the same random banks."""
    torch.manual_seed(0)
    ours = STC(config())
    rounded, field = STC(config("bfloat16")), FieldSTC(config())
    rounded.load_state_dict(ours.state_dict())  # copies into bfloat16 banks, and forms their sums again
    with torch.no_grad():
        for s in FieldSTC.STREAMS:
            for part in FieldSTC.PARTS:
                getattr(field, f"queue_{s}_{part}").copy_(ours.banks[s][part].features.T)
    return ours.to(device), rounded.to(device), field.to(device)


def our_loss(system: STC, keys: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    """The loss of query embeddings, cast to ``dtype``: hand and trunk of the joint stream, then of motion."""
    key = {"joint": Parts(*keys[:2]), "motion": Parts(*keys[2:])}

    def loss(*queries: Tensor) -> Tensor:
        queries = tuple(query.to(dtype) for query in queries)
        return system.losses({"joint": Parts(*queries[:2]), "motion": Parts(*queries[2:])}, key)["loss"]

    return loss


def field_loss(system: FieldSTC, keys: Sequence[Tensor]) -> Callable[..., Tensor]:
    """The same of the field's code."""
    key = {"joint": tuple(keys[:2]), "motion": tuple(keys[2:])}

    def loss(*queries: Tensor) -> Tensor:
        return system.losses({"joint": queries[:2], "motion": queries[2:]}, key)

    return loss


def cases(device: str) -> Iterator[Case]:
    settings = config()
    b, n, d = settings.batch_size, settings.bank_size, settings.embedding
    rows = unit_rows(device, *[(b, d)] * 8)
    queries, keys = rows[:4], rows[4:]
    ours, rounded, field = systems(device)
    wide = field_loss(copy.deepcopy(field).double(), [key.double() for key in keys])
    truth = [x.detach() for x in with_gradients(wide, *(query.double() for query in queries))()]
    for threads in THREADS[device]:
        torch.compiler.reset()  # compile for this number of threads
        implementations = {
            "slrfast": our_loss(ours, keys),
            BF16: our_loss(rounded, keys),
            BF16_QUERIES: our_loss(rounded, [key.bfloat16() for key in keys], torch.bfloat16),
            "eager": field_loss(field, keys),
            "torch.compile": torch.compile(field_loss(field, keys), dynamic=False),
        }
        candidates = {name: with_gradients(function, *queries) for name, function in implementations.items()}
        skipped: dict[str, str] = {}
        if device == "cuda":
            graphs, skipped = captured(candidates)
            candidates |= graphs
        yield Case(
            name=f"paper, {f'{threads} CPU threads, ' if threads else ''}forward + backward",
            shapes={"query": (4, b, d), "bank": (4, n, d), "k": (settings.neighbors,)},
            candidates=candidates,
            truth=lambda: truth,
            # scores: 4 InfoNCE, 2 teachers, 2 students; gradients: 4 InfoNCE and 2 students
            flops=(8 + 6) * 2 * b * n * d,
            bytes=4 * n * d * (4 + 2) + 4 * b * d * 12,  # four banks and two sums read once; keys, queries, gradients
            # as for neighbor_kl: other rows at the border of the nearest K, in float32 and still more in bfloat16
            tolerance=1e-3,
            tolerances={name: 0.1 for name in candidates if name.startswith(BF16)},
            threads=threads,
            skipped=skipped,
            device=device,
        )


test_stc_loss = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
