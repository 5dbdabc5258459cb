"""STC's whole training step: compiled, under autocast, and over the fused and the reference operations."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import slrfast
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


def test_compiles_without_a_graph_break():
    system, clips = tiny(streams=("joint",)), batch()
    torch.compile(lambda: system.training_step(clips)["loss"], backend="aot_eager", fullgraph=True)().backward()
    grads = [p.grad for p in system.query.parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


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
