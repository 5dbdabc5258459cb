"""One STC training step at the paper's widths, B = 8 clips of T = 64 frames: slrfast against the field-style code.

Both train the same network on the same clips with the same number of views, in float32 eager mode; the profile splits
the step into graph networks, temporal blocks, transformers, heads, losses, EMA, optimizer and loader.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.baselines.stc import FieldEncoder, FieldSTC, copy_encoder, copy_system, load_batch
from benchmarks.systems.profile import profiled_step
from slrfast.data import PoseBatch
from slrfast.systems import STC, STCConfig
from slrfast.systems.stc import View

BATCH, FRAMES_PER_CLIP, ROUNDS = 8, 90, 3
PASSES = 8  # two streams, each the query's forward and backward (3 forwards) and the key's forward
STEP_FLOPS = PASSES * BATCH * 64 * 203.8e6  # per frame, in the dense form
STEP_BYTES = PASSES * BATCH * 64 * 11.4e9 / 4096  # a fully fused forward moves 11.4 GB for 4096 frames


def _field_inputs(view: View) -> dict[str, Tensor]:
    return {"joint": view.xy.detach(), "motion": view.motion.detach(), "visible": view.visible}


def correctness() -> float:
    """Largest relative difference of loss, gradients and bank rows, with the same weights and views and no dropout."""
    config = STCConfig.paper(
        frames=16, gcn_dropout=0.0, frame_dropout=0.0, transformer_dropout=0.0, bank_size=256, neighbors=128
    )
    system, field = STC(config).double(), FieldSTC(config).double()
    copy_system(system, field)
    batch = PoseBatch.random(2)
    batch = dataclasses.replace(batch, xy=batch.xy.double(), confidence=batch.confidence.double())
    query, key = system.views(batch, torch.Generator().manual_seed(0))
    expected = field(_field_inputs(query), _field_inputs(key))
    loss = system.training_step(batch, torch.Generator().manual_seed(0))["loss"]
    expected.backward()
    loss.backward()
    pairs = [(loss.detach(), expected.detach())]
    for s in FieldSTC.STREAMS:
        gradients = FieldEncoder(config).double()
        with torch.no_grad():
            for parameter in system.query[s].parameters():
                parameter.copy_(parameter.grad)
        copy_encoder(system.query[s], gradients)
        theirs = field.encoder_q[s].parameters()
        pairs += [(ours.detach(), p.grad) for ours, p in zip(gradients.parameters(), theirs, strict=True)]
        for part, bank in system.banks[s].items():
            pairs.append((bank.features.T, getattr(field, f"queue_{s}_{part}")))
    # the gradient of a bias before a batch norm is zero up to rounding, so errors are relative to no less than 1e-3
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-3)).item() for a, b in pairs)


def field_step(model: FieldSTC, clips: list[tuple[np.ndarray, np.ndarray]]) -> Callable[[], dict[str, float]]:
    """A profiled step of the field-style code, ready to call."""
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    rng = np.random.default_rng(0)
    encoders = [*model.encoder_q.values(), *model.encoder_k.values()]
    phases = {
        "gcn": [m for e in encoders for m in (e.hand_gcn, e.trunk_gcn)],
        "temporal": [m for e in encoders for m in (e.hand_tcn, e.trunk_tcn)],
        "transformer": [m for e in encoders for m in (e.hand_transformer, e.trunk_transformer)],
        "heads": [m for e in encoders for m in (e.hand_fc, e.trunk_fc)],
    }

    def load() -> list[dict[str, Tensor]]:
        views = load_batch(clips, model.config.frames, rng)
        for s in FieldSTC.STREAMS:
            views[0][s].requires_grad_()
        return views

    def embed(views: list[dict[str, Tensor]]) -> tuple[dict, dict]:
        query, key = views
        q = {s: model.encoder_q[s].embed(query[s], query["visible"]) for s in FieldSTC.STREAMS}
        with torch.no_grad():
            k = {s: model.encoder_k[s].embed(key[s], key["visible"]) for s in FieldSTC.STREAMS}
        return q, k

    def losses(embeddings: tuple[dict, dict]) -> Tensor:
        loss = model.losses(*embeddings)
        model.dequeue_and_enqueue(embeddings[1])
        return loss

    return lambda: profiled_step(phases, load, embed, losses, optimizer, model.momentum_update)


def slrfast_step(system: STC, batch: PoseBatch) -> Callable[[], dict[str, float]]:
    """A profiled step of slrfast's STC, ready to call."""
    optimizer = system.optimizer()
    encoders = [*system.query.values(), *(key.encoder for key in system.key.values())]
    phases = {
        "gcn": [m for e in encoders for m in (e.hand_gcn, e.trunk_gcn)],
        "temporal": [m for e in encoders for m in (e.hand_temporal, e.trunk_temporal)],
        "transformer": [m for e in encoders for m in (e.hand_transformer, e.trunk_transformer)],
        "heads": [m for e in encoders for m in (e.hand_head, e.trunk_head)],
    }

    def load() -> tuple[View, View]:
        query, key = system.views(batch)
        return query._replace(xy=query.xy.requires_grad_(), motion=query.motion.requires_grad_()), key

    def losses(embeddings: tuple[dict, dict]) -> Tensor:
        loss = system.losses(*embeddings)["loss"]
        system.enqueue(embeddings[1])
        return loss

    return lambda: profiled_step(
        phases, load, lambda views: system.embed(*views), losses, optimizer, system.update_after_step
    )


def cases(device: str) -> list[dict]:
    """The measured step as a list of one result: medians over interleaved rounds, after one warm-up of each."""
    torch.manual_seed(0)
    error = correctness()
    if not error <= 1e-6:
        raise harness.WrongAnswer(f"the training step differs from the field-style step by {error:.3g}")
    config = STCConfig.paper(batch_size=BATCH)
    batch = PoseBatch.random(BATCH, min_frames=FRAMES_PER_CLIP, max_frames=FRAMES_PER_CLIP)
    clips = [
        (xy.numpy(), confidence.numpy())
        for xy, confidence in zip(batch.xy.split(FRAMES_PER_CLIP), batch.confidence.split(FRAMES_PER_CLIP), strict=True)
    ]
    steps = {"slrfast": slrfast_step(STC(config), batch), "eager": field_step(FieldSTC(config), clips)}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            seconds = step()
            if turn:
                samples[name].append(seconds)
    case = harness.Case(
        name=f"STC training step, B={BATCH}, T={config.frames}",
        shapes={"views": [2, BATCH, config.frames, 49, 2]},
        candidates={},
        truth=list,
        flops=STEP_FLOPS,
        bytes=STEP_BYTES,
        device=device,
        phases={
            name: {phase: statistics.median(run[phase] for run in runs) for phase in runs[0]}
            for name, runs in samples.items()
        },
    )
    totals = {name: [run["total"] for run in runs] for name, runs in samples.items()}
    return [harness.summary(case, {"slrfast": error, "eager": 0.0}, totals)]


def test_stc_step(benchmark) -> None:
    results = cases("cpu")
    harness.save("stc_step", results)
    print("\n" + table(results[0]))
    for name, seconds in results[0]["seconds"].items():
        benchmark.extra_info[name] = seconds
    clips = PoseBatch.random(BATCH, min_frames=FRAMES_PER_CLIP, max_frames=FRAMES_PER_CLIP)
    benchmark.pedantic(slrfast_step(STC(STCConfig.paper(batch_size=BATCH)), clips), rounds=1)


def table(result: dict) -> str:
    """The phases of both implementations side by side, in seconds."""
    lines = [harness.line("stc_step", result)]
    ours, field = result["phases"]["slrfast"], result["phases"]["eager"]
    lines += [f"  {phase:12s} slrfast {ours[phase]:7.3f} s   eager {field[phase]:7.3f} s" for phase in ours]
    return "\n".join(lines)


if __name__ == "__main__":
    measured = cases("cpu")
    harness.save("stc_step", measured)
    print(table(measured[0]))
