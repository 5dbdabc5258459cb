"""STC's whole training step: compiled, under autocast, and over the fused and the reference operations."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import slrfast
from benchmarks.capture import graphed
from slrfast.data import PoseBatch
from slrfast.systems.stc import STC, STCConfig


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = dict(frames=6, gcn_channels=(8, 8, 16, 16, 16), dim=16, embedding=8, heads=2, hand_ffn=16, trunk_ffn=16)
    return STC(STCConfig.small(**(sizes | dict(bank_size=16, neighbors=8, gcn_dropout=0.05) | changes)))


def batch(size=4, seed=0):
    torch.manual_seed(seed)
    return PoseBatch.random(size)


def step(system, clips, seed=0):
    torch.manual_seed(seed)
    losses = system.training_step(clips)
    losses["loss"].backward()
    return losses["loss"].detach(), {name: p.grad for name, p in system.query.named_parameters()}


JOINT = {"streams": ("joint",)}  # takes half as long to compile


@pytest.mark.parametrize(
    "precision, changes", [("float32", {}), pytest.param("bfloat16", JOINT, marks=pytest.mark.slow)]
)
def test_a_compiled_step_is_the_same_without_a_graph_break(precision, changes):
    """Dropout and views of one seed: loss, every gradient, banks and statistics."""
    eager, compiled = (tiny(layers=1, **changes) for _ in range(2))
    clips = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        losses, grads = step(eager, clips)
        training_step = torch.compile(compiled.training_step, backend="aot_eager", fullgraph=True)
        torch.manual_seed(0)
        found = training_step(clips)
    found["loss"].backward()
    assert_close(found["loss"].detach(), losses)
    for name, parameter in compiled.query.named_parameters():
        assert_close(parameter.grad, grads[name], rtol=1e-5, atol=1e-6, msg=name)
    for (name, mine), theirs in zip(compiled.named_buffers(), eager.buffers(), strict=True):
        assert_close(mine, theirs, msg=name)


def test_fused_and_reference_operations_take_the_same_step():
    """With dropout on: the masks are a function of the seed, on every backend."""
    fused, reference, clips = tiny().double(), tiny().double(), batch()
    clips = replace(clips, xy=clips.xy.double(), confidence=clips.confidence.double())
    loss, grads = step(fused, clips)
    with slrfast.backend("reference"):
        expected, expected_grads = step(reference, clips)
    assert_close(loss, expected)
    for name, grad in grads.items():
        assert_close(grad, expected_grads[name], rtol=1e-6, atol=1e-9, msg=name)
    for (name, mine), theirs in zip(fused.named_buffers(), reference.buffers(), strict=True):
        assert_close(mine, theirs, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_replayed_from_a_cuda_graph_is_the_same(precision):
    """Views and dropout of one seed: loss, every gradient, banks and statistics."""
    system, clips = tiny().cuda(), batch().to("cuda")
    start = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    parameters = list(system.query.parameters())

    def run():
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = system.training_step(clips)["loss"]
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    def from_start(call):
        system.load_state_dict(start)
        torch.manual_seed(0)
        return [tensor.clone() for tensor in (*call(), *system.buffers())]

    replay = graphed(run)
    for mine, theirs in zip(from_start(replay), from_start(run), strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bank_dtype", ["float32", "bfloat16"])
def test_autocast_keeps_banks_losses_and_statistics_wide(bank_dtype):
    system, clips = tiny(bank_dtype=bank_dtype), batch()
    exact, _ = step(tiny(bank_dtype=bank_dtype), clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        losses = system.training_step(clips)
    losses["loss"].backward()
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert abs(losses["loss"] - exact) < 0.05 * exact
    for name, buffer in system.named_buffers():
        if "running" in name:
            assert buffer.dtype == torch.float32, name
    assert all(p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in system.query.parameters())
    assert system.encode(clips).dtype == torch.float32
