"""All ops of a training step in one function, lowered to machine code by torch.compile's default compiler."""

import pytest
import torch
from torch.testing import assert_close

from slrfast import graphs, ops


def step(frames, weight, bias, positive, bank, cursor, offsets, start, length, plan):
    x = ops.resample(frames, offsets, start, length, 6)
    x, confidence = ops.augment(x, torch.ones_like(x[..., 0]), plan)
    x = ops.motion(x)
    features = ops.graph_conv(x.flatten(0, 1), weight, bias, graphs.TRUNK7).unflatten(0, x.shape[:2]).mean((1, 2))
    loss, rank = ops.info_nce(features, positive, bank, return_rank=True)
    loss = loss + ops.neighbor_kl(positive, bank, features, bank, 5) + ops.feature_kl(positive, features)
    loss = loss + ops.topk_similarity(features, positive, 2)[0].mean() + confidence.mean()
    _, nearest = ops.topk_similarity(features.detach(), bank, 2)
    loss = loss + ops.mined_bce(features, bank, nearest)
    loss = loss + sum(rows.mean() for rows in ops.bank_losses(features, positive, bank, nearest))
    ops.enqueue_(bank, cursor, positive)
    return loss, rank


@pytest.mark.slow
def test_a_step_of_every_op(randn):
    torch._dynamo.reset()
    weight, bias = randn(4, 2, 8, requires_grad=True), randn(4, 8, requires_grad=True)
    frames, positive, bank, cursor = randn(20, 7, 2), randn(3, 8), randn(11, 8), torch.tensor(9)
    windows = [torch.tensor(x) for x in ([0, 8, 10, 20], [1, 0, 0], [5, 2, 10])]
    plan = ops.AugmentTensors(
        linear=randn(3, 1, 2, 2),
        center=randn(3, 1, 2),
        part=torch.zeros(7, dtype=torch.int64),
        affected=torch.ones(3, 7, dtype=torch.bool),
        drop=randn(3, 7) > 1,
        swap=randn(3) > 0,
        swap_index=torch.arange(7).roll(1),
    )
    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        state = bank.clone(), cursor.clone()
        loss, rank = function(frames, weight, bias, positive, *state, *windows, plan)
        results.append((loss, rank, *torch.autograd.grad(loss, (weight, bias)), *state))
    assert_close(*results, rtol=1e-4, atol=1e-5)
