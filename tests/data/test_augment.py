import math

import pytest
import torch

from slrfast import ops
from slrfast.data import AugmentPlan

B = 4000
PLANS = {name: getattr(AugmentPlan, name)() for name in ("paper", "legacy", "hand_swap", "none")}


def draw(plan, size=B, seed=0, **kwargs):
    return plan.draw(size, generator=torch.Generator().manual_seed(seed), **kwargs)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_shapes_dtypes_and_layout(plan):
    got = draw(plan, 5)
    assert got.linear.shape == (5, 3, 2, 2) and got.center.shape == (5, 3, 2)
    assert got.linear.dtype == got.center.dtype == torch.float32
    assert got.part.tolist() == [0] * 21 + [1] * 21 + [2] * 7
    assert got.swap_index.tolist() == [*range(21, 42), *range(21), *range(42, 49)]
    assert got.affected.shape == got.drop.shape == (5, 49) and got.swap.shape == (5,)
    assert got.affected.dtype == got.drop.dtype == got.swap.dtype == torch.bool
    assert got.part.dtype == got.swap_index.dtype == torch.int64
    assert draw(plan, 2, dtype=torch.float64).linear.dtype == torch.float64
    assert draw(plan, 0).linear.shape == (0, 3, 2, 2)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_same_generator_gives_the_same_draw(plan):
    assert all(torch.equal(a, b) for a, b in zip(draw(plan, seed=3), draw(plan, seed=3), strict=True))
    assert (draw(plan, seed=3).linear != draw(plan, seed=4).linear).any() == (plan in (PLANS["paper"], PLANS["legacy"]))


def test_paper_rotates_and_scales_within_symmetric_ranges():
    got = draw(PLANS["paper"])
    linear = got.linear[:, 0].double()
    assert (got.linear == got.linear[:, :1]).all() and (got.center == 0.5).all() and got.affected.all()
    scale = torch.linalg.det(linear).sqrt()
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]) * 180 / math.pi
    rotation = linear / scale[:, None, None]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(2).double().expand(B, 2, 2), atol=1e-6, rtol=0)
    assert -15 <= angle.min() < -14.5 and 14.5 < angle.max() <= 15
    assert abs(float(angle.mean())) < 4 * 15 / math.sqrt(3 * B)
    assert 0.8 - 1e-6 <= scale.min() < 0.81 and 1.19 < scale.max() <= 1.2 + 1e-6
    assert abs(float(scale.mean()) - 1) < 4 * 0.2 / math.sqrt(3 * B)
    assert abs(float(torch.corrcoef(torch.stack((angle, scale)))[0, 1])) < 4 / math.sqrt(B)


def half(chosen):
    return abs(float(chosen.float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(chosen.numel())


def test_paper_drops_exactly_ten_joints_of_half_the_clips():
    got = draw(PLANS["paper"])
    count = got.drop.sum(1)
    assert set(count.tolist()) == {0, 10}
    assert half(count > 0) and half(got.swap)
    share = got.drop[count > 0].float().mean(0)
    assert (share - 10 / 49).abs().max() < 5 * math.sqrt(0.2 * 0.8 / (B / 2))


def test_legacy_is_exactly_one_of_dropping_multiplying_and_shearing():
    got = draw(PLANS["legacy"])
    dropped, touched = got.drop.sum(1), got.affected.sum(1)
    drops, multiplies, shears = dropped > 0, touched == 25, touched == 49
    assert (drops.long() + multiplies + shears == 1).all()
    assert set(dropped[drops].tolist()) == {25} and (touched[drops] == 0).all()
    assert half(shears) and half(drops[~shears]) and half(got.swap)
    assert (got.center == 0).all() and (got.linear == got.linear[:, :1]).all()
    shear = got.linear[shears, 0]
    assert (shear[:, 0, 0] == 1).all() and (shear[:, 1, 1] == 1).all()
    free = {"a": shear[:, 0, 1], "b": shear[:, 1, 0]} | {
        i: got.linear[multiplies, 0].flatten(1)[:, i] for i in range(4)
    }
    for values in free.values():
        assert -1 <= values.min() < -0.95 and 0.95 < values.max() <= 1
        assert abs(float(values.mean())) < 4 / math.sqrt(3 * len(values))
    assert abs(float(torch.corrcoef(torch.stack((free["a"], free["b"])))[0, 1])) < 4 / math.sqrt(B / 2)


def test_hand_swap_changes_only_hands_and_none_nothing():
    for name in ("hand_swap", "none"):
        got = draw(PLANS[name])
        assert (got.linear == torch.eye(2)).all() and not got.drop.any()
        assert half(got.swap) if name == "hand_swap" else not got.swap.any()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_draws_apply_to_clips(plan):
    size, frames = 64, 3
    x = torch.rand(size, frames, 49, 2) * 0.5 + 0.25
    confidence = torch.rand(size, frames, 49) + 0.1
    confidence[:, :, 5], x[:, :, 5] = 0, 0
    drawn = draw(plan, size)
    y, after = ops.augment(x, confidence, drawn)
    where = torch.where(drawn.swap, 26, 5)
    rows = torch.arange(size)
    assert (y[rows, :, where] == 0).all() and (after[rows, :, where] == 0).all()  # a missing joint stays missing
    changed = (y != x).any((1, 2, 3))
    if plan == PLANS["none"]:
        assert not changed.any() and torch.equal(after, confidence)
    if plan == PLANS["hand_swap"]:
        assert torch.equal(changed, drawn.swap)
        assert torch.equal(y[drawn.swap][:, :, :21], x[drawn.swap][:, :, 21:42])
        assert torch.equal(y[:, :, 42:], x[:, :, 42:])
    if plan == PLANS["paper"]:
        lost = (after == 0).all(1).sum(1) - 1
        assert set(lost.tolist()) <= {0, 9, 10} and lost.max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rotation=(3.0, -3.0)), r"AugmentPlan: rotation must be \(low, high\), finite, low <= high, got"),
        (dict(scale=(0.5, math.inf)), "AugmentPlan: scale must be"),
        (dict(joint_fraction=1.5), r"AugmentPlan: joint_fraction must be in \[0, 1\], got 1.5"),
        (dict(swap_probability=-0.1), r"AugmentPlan: swap_probability must be in \[0, 1\], got -0.1"),
        (dict(matrix_probability=0.5), "AugmentPlan: exclusive must be True when matrix_probability > 0, got False"),
    ],
)
def test_ranges_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        AugmentPlan(**change)
    with pytest.raises(ValueError, match="AugmentPlan.draw: batch_size must be in"):
        AugmentPlan.none().draw(-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_draws_on_the_device_without_a_sync():
    generator = torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = AugmentPlan.paper().draw(8, generator=generator, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(tensor.is_cuda for tensor in got)
