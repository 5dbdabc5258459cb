"""STC at the paper's widths, T = 64 frames: a training step and encode, slrfast against the field-style code.

Both train the same network on the same clips with the same number of views, in float32 and under bfloat16 autocast.
On a CPU (B = 8) a profile splits the step into graph networks, temporal blocks, transformers, heads, losses, EMA,
optimizer and loader. On a GPU (B = 64) CUDA graphs join, and torch.compile, which takes many minutes on a CPU; there
the field's views are drawn beforehand, as the workers of its loader would. The memory of a step is measured on both.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks import harness, machine, memory
from benchmarks.baselines.stc import FieldSTC, copy_system, load_batch, renamed
from benchmarks.capture import captured
from benchmarks.harness import OURS, is_ours
from benchmarks.ops._blocks import BF16, FIELD_BF16, FIELD_CLIPS, FIELD_CLIPS_BF16, normalizing, precision
from benchmarks.systems.profile import profiled_step
from slrfast.data import PoseBatch
from slrfast.systems import STC, STCConfig
from slrfast.systems.stc import View

OP = "stc_step"
MODULE = "benchmarks.systems.stc"
CLIPWISE = (FIELD_CLIPS, FIELD_CLIPS_BF16)
NAMES = (OURS, BF16, "eager", FIELD_BF16, *CLIPWISE)
BATCH, FRAMES_PER_CLIP, ROUNDS = {"cpu": 8, "cuda": 64}, 90, {"cpu": 3, "cuda": 15}
PASSES = 8  # two streams, each the query's forward and backward (3 forwards) and the key's forward
FLOPS = 203.8e6  # of a forward per frame, in the dense form
BYTES = 11.4e9 / 4096  # that a fully fused forward moves per frame
NO_DROPOUT = {"gcn_dropout": 0.0, "frame_dropout": 0.0, "transformer_dropout": 0.0}
KINKS = 2e-2  # float32 gradients through so many ReLUs and maxima differ by so much, depending on which ones flip
Clips = list[tuple[np.ndarray, np.ndarray]]
Step = Callable[[], dict[str, float]]


def settings(**changes) -> STCConfig:
    """The paper's."""
    return STCConfig.paper(**changes)


def clips_of(batch: PoseBatch) -> Clips:
    """The clips as the field's code takes them."""
    splits = (tensor.split(batch.lengths.tolist()) for tensor in (batch.xy, batch.confidence))
    return [(xy.numpy(), confidence.numpy()) for xy, confidence in zip(*splits, strict=True)]


def first_step(name: str, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Loss, gradients and bank rows of a first step without dropout, in the field's form.

    Every candidate has the same weights and sees the same views, made in float32.
    """
    torch.manual_seed(0)
    system = STC(settings(frames=16, bank_size=256, neighbors=128, **NO_DROPOUT))
    field = FieldSTC(system.config, clips=name in CLIPWISE)
    copy_system(system, field)
    views = system.to(device).views(PoseBatch.random(2).to(device), torch.Generator(device).manual_seed(0))
    query, key = (View(*(t.to(dtype) if t.is_floating_point() else t for t in view)) for view in views)
    model = system.to(dtype) if is_ours(name) else field.to(device, dtype)
    with precision(name, device):
        if is_ours(name):
            embeddings = system.embed(query, key)
            loss = system.losses(*embeddings)["loss"]
            system.enqueue(embeddings[1])
        else:
            views = ({"joint": v.xy, "motion": v.motion, "visible": v.visible} for v in (query, key))
            loss = model(*views)
    loss.backward()
    found = {"loss": loss.detach()}
    for s in FieldSTC.STREAMS:
        encoder = system.query[s] if is_ours(name) else field.encoder_q[s]
        grads = {parameter: p.grad for parameter, p in encoder.named_parameters()}
        found |= {f"{s} {key}": grad for key, grad in (renamed(grads) if is_ours(name) else grads).items()}
        for part in FieldSTC.PARTS:
            bank = system.banks[s][part].features.T if is_ours(name) else getattr(field, f"queue_{s}_{part}")
            found[f"{s} {part} bank"] = bank
    return found


def errors(device: str) -> dict[str, float]:
    """How far every candidate's loss and gradients are from the field's in float64; WrongAnswer where that is too far.

    slrfast has to agree with the field's code in float64 in every single tensor first.
    """
    truth, ours = (first_step(name, device, torch.float64) for name in ("eager", "slrfast"))
    # the gradient of a bias before a batch norm is zero up to rounding, so errors are relative to no less than 1e-3
    scales = {key: value.abs().max().clamp_min(1e-3) for key, value in truth.items()}
    exact = max(((ours[key] - value).abs().max() / scales[key]).item() for key, value in truth.items())
    if set(ours) != set(truth) or not exact <= 1e-6:
        raise harness.WrongAnswer(f"the training step differs from the field-style step by {exact:.3g} in float64")
    gradients = [key for key in truth if key != "loss" and not key.endswith(" bank")]

    def whole(results: Mapping[str, Tensor]) -> list[Tensor]:
        return [results["loss"].double(), torch.cat([results[key].double().flatten() for key in gradients])]

    case = harness.Case(
        name="STC training step",
        shapes={},
        candidates={name: lambda name=name: whole(first_step(name, device)) for name in NAMES},
        truth=lambda: whole(truth),
        error=harness.root_mean_square_error,
        exact=lambda: whole(ours),
        tolerance=KINKS,
        tolerances={OURS: KINKS, **dict.fromkeys((FIELD_BF16, FIELD_CLIPS_BF16), 0.7)},
        held_to={BF16: FIELD_BF16},
        flops=0,
        bytes=0,
    )
    return harness.errors(case)


def field_step(name: str, model: FieldSTC, optimizer: Optimizer, batch: PoseBatch) -> Step:
    """A profiled step of the field-style code, ready to call."""
    device, clips = batch.xy.device.type, clips_of(batch.to("cpu"))
    rng = np.random.default_rng(0)
    encoders = [*model.encoder_q.values(), *model.encoder_k.values()]
    phases = {
        "gcn": [m for e in encoders for m in (e.hand_gcn, e.trunk_gcn)],
        "temporal": [m for e in encoders for m in (e.hand_tcn, e.trunk_tcn)],
        "transformer": [m for e in encoders for m in (e.hand_transformer, e.trunk_transformer)],
        "heads": [m for e in encoders for m in (e.hand_fc, e.trunk_fc)],
    }
    if "compile" in name:
        for encoder in encoders:
            encoder.embed = torch.compile(encoder.embed, dynamic=False)

    def draw() -> list[dict[str, Tensor]]:
        views = load_batch(clips, model.config.frames, rng)
        return [{key: tensor.to(device) for key, tensor in view.items()} for view in views]

    drawn = draw() if device == "cuda" else None

    def load() -> list[dict[str, Tensor]]:
        views = drawn or draw()
        if device == "cpu":
            for s in FieldSTC.STREAMS:
                views[0][s].requires_grad_()
        return views

    @precision(name, device)
    def embed(views: list[dict[str, Tensor]]) -> tuple[dict, dict]:
        query, key = views
        q = {s: model.encoder_q[s].embed(query[s], query["visible"]) for s in FieldSTC.STREAMS}
        with torch.no_grad():
            k = {s: model.encoder_k[s].embed(key[s], key["visible"]) for s in FieldSTC.STREAMS}
        return q, k

    @precision(name, device)
    def losses(embeddings: tuple[dict, dict]) -> Tensor:
        loss = model.losses(*embeddings)
        model.dequeue_and_enqueue(embeddings[1])
        return loss

    phases = phases if device == "cpu" else {}
    return lambda: profiled_step(phases, load, embed, losses, optimizer, model.momentum_update)


def slrfast_step(name: str, system: STC, optimizer: Optimizer, batch: PoseBatch) -> Step:
    """A profiled step of slrfast's STC, ready to call."""
    device = batch.xy.device.type
    encoders = [*system.query.values(), *(key.encoder for key in system.key.values())]
    phases = {
        "gcn": [m for e in encoders for m in (e.hand_gcn, e.trunk_gcn)],
        "temporal": [block for e in encoders for block in (*e.hand_temporal, *e.trunk_temporal)],
        "transformer": [m for e in encoders for m in (e.hand_transformer, e.trunk_transformer)],
        "heads": [m for e in encoders for m in (e.hand_head, e.trunk_head)],
    }

    def load() -> tuple[View, View]:
        query, key = system.views(batch)
        if device == "cpu":
            query = query._replace(xy=query.xy.requires_grad_(), motion=query.motion.requires_grad_())
        return query, key

    @precision(name, device)
    def losses(embeddings: tuple[dict, dict]) -> Tensor:
        loss = system.losses(*embeddings)["loss"]
        system.enqueue(embeddings[1])
        return loss

    embed = precision(name, device)(lambda views: system.embed(*views))
    phases = phases if device == "cpu" else {}
    return lambda: profiled_step(phases, load, embed, losses, optimizer, system.update_after_step)


def step(name: str, model: STC | FieldSTC, optimizer: Optimizer, clips: PoseBatch) -> Step:
    """A candidate's training step."""
    return (slrfast_step if is_ours(name) else field_step)(name, model, optimizer, clips)


def new_model(name: str, device: str) -> tuple[STC | FieldSTC, Optimizer]:
    """A candidate with its own random weights, and its optimizer."""
    model = STC(settings()) if is_ours(name) else FieldSTC(settings(), clips=name in CLIPWISE)
    return model.to(device), model.optimizer()


def noise(size: int, device: str) -> PoseBatch:
    """Clips of one length."""
    return PoseBatch.random(size, min_frames=FRAMES_PER_CLIP, max_frames=FRAMES_PER_CLIP).to(device)


def prepared(name: str, device: str, size: int) -> Callable[[], object]:
    """A step whose memory is to be measured, see :func:`benchmarks.memory.peaks`: in the midst of training."""
    model, optimizer = new_model(name, device)
    small, large = (step(name, model, optimizer, noise(clips, device)) for clips in (2, size))
    small()  # leaves momentum and gradients, as the step before would
    return large


def training(device: str) -> dict:
    """The measured step: medians over interleaved rounds, after one warm-up of each.

    Compared with float64 are those that run everywhere; the others compile or replay what these run.
    """
    found = errors(device)
    size = BATCH[device]
    memories = memory.peaks(MODULE, NAMES, device, size)  # while no candidate's weights take room beside it
    names = NAMES if device == "cpu" else (*NAMES, "torch.compile, bf16")
    steps = {name: step(name, *new_model(name, device), noise(size, device)) for name in names}
    if device == "cuda":
        steps |= captured({name: steps[name] for name in (OURS, BF16)})[0]
    samples: dict[str, list[float]] = {name: [] for name in steps}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for turn in range(ROUNDS[device] + 1):
        for name, call in steps.items():
            profile = [{}]
            seconds = machine.timed(lambda call=call, profile=profile: profile.append(call()), 1, device)
            if turn:
                samples[name].append(seconds)
                phases[name].append(profile[-1])
    frames = settings().frames
    case = harness.Case(
        name=f"STC training step, B={size}, T={frames}",
        shapes={"views": [2, size, frames, 49, 2]},
        candidates={},
        truth=list,
        flops=PASSES * size * frames * FLOPS,
        bytes=PASSES * size * frames * BYTES,
        device=device,
        phases={
            name: {phase: statistics.median(run[phase] for run in runs) for phase in runs[0]}
            for name, runs in phases.items()
            if device == "cpu"
        },
    )
    result = harness.summary(case, found, samples)
    return result | memories


def encoding(device: str) -> harness.Case:
    """Features of whole clips, for downstream use."""
    torch.manual_seed(0)
    config, size = settings(), BATCH[device]
    system = normalizing(STC(config)).to(device)
    fields = [FieldSTC(config, clips).eval().to(device) for clips in (False, True, False)]
    for model in fields:
        copy_system(system, model)
    frames, whole, wide = *fields[:2], fields[2].double()
    batch = noise(size, device)
    clips = clips_of(batch.to("cpu"))

    def candidate(name: str) -> Callable[[], list[Tensor]]:
        model, given = (system, batch) if is_ours(name) else (whole if name in CLIPWISE else frames, clips)
        encode = precision(name, device)(model.encode)
        return lambda: [encode(given)]

    return harness.Case(
        name=f"encode, B={size}, T={config.frames}",
        shapes={"clips": [size, FRAMES_PER_CLIP, 49, 2]},
        candidates={name: candidate(name) for name in NAMES},
        truth=lambda: [wide.encode([(xy.astype(np.float64), confidence) for xy, confidence in clips])],
        error=harness.root_mean_square_error,
        flops=2 * size * config.frames * FLOPS,
        bytes=batch.xy.nbytes + sum(p.nbytes for encoder in system.query.values() for p in encoder.parameters()),
        tolerances=dict.fromkeys((FIELD_BF16, FIELD_CLIPS_BF16), 0.1),
        held_to={BF16: FIELD_BF16},
        device=device,
    )


def cases(device: str) -> Iterator[harness.Case | dict]:
    yield encoding(device)
    gc.collect()
    yield training(device)  # last, because the weights of its candidates take most of 16 GB


@pytest.mark.timeout(1800)
def test_stc_step(benchmark) -> None:
    results = harness.run_all(OP, cases)
    for result in results:
        benchmark.extra_info[f"{result['device']} {result['name']}"] = {"speedup": result["speedup"]}
        print(f"\n{table(OP, result)}")
    benchmark.pedantic(step(OURS, *new_model(OURS, "cpu"), noise(BATCH["cpu"], "cpu")), rounds=1)


def table(op: str, result: dict) -> str:
    """A result in one line, and its phases side by side, in seconds."""
    lines = [harness.line(op, result)]
    phases = result.get("phases", {})
    for phase in next(iter(phases.values()), {}):
        lines.append(f"  {phase:12s}" + "".join(f" {name} {runs[phase]:7.3f} s " for name, runs in phases.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    harness.main(OP, cases, table)
