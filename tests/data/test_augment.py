import math

import pytest
import torch

from slrfast import graphs, ops
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


def uniform(values, low, high):
    """Kolmogorov and Smirnov's distance to the uniform distribution, at one in a million."""
    share = (values.double().sort().values - low) / (high - low)
    steps = torch.arange(len(share) + 1) / len(share)
    distance = max(float((steps[1:] - share).max()), float((share - steps[:-1]).max()))
    return distance < 2.7 / math.sqrt(len(share))


def angles(linear):
    return torch.atan2(linear[:, 1, 0], linear[:, 0, 0]) * 180 / math.pi


def independent(a, b):
    """No correlation beyond what chance gives, at four standard deviations."""
    return abs(float(torch.corrcoef(torch.stack((a.double(), b.double())))[0, 1])) < 4 / math.sqrt(len(a))


def test_paper_is_uniform_and_turns_to_both_sides_alike():
    got = draw(PLANS["paper"])
    angle, scale = angles(got.linear[:, 0]), torch.linalg.det(got.linear[:, 0]).sqrt()
    assert uniform(angle, -15, 15) and uniform(scale, 0.8, 1.2)
    assert half(angle > 0) and uniform(angle.abs(), 0, 15)
    chances = {"angle": angle, "scale": scale, "swap": got.swap, "drop": got.drop.any(1)}
    names = list(chances)
    assert all(independent(chances[a], chances[b]) for i, a in enumerate(names) for b in names[:i])


def test_legacy_shears_and_multiplies_uniformly():
    got = draw(PLANS["legacy"])
    touched = got.affected.sum(1)
    shear, matrix = got.linear[touched == 49, 0], got.linear[touched == 25, 0]
    for entries in (shear[:, 0, 1], shear[:, 1, 0], *matrix.flatten(1).T):
        assert uniform(entries, -1, 1) and half(entries > 0)


@pytest.mark.parametrize("name", ["paper", "legacy"])
def test_every_joint_and_every_pair_of_joints_is_as_likely(name):
    got = draw(PLANS[name], 8 * B)
    drop = got.drop[got.drop.any(1)].double()
    count = int(drop[0].sum())
    expected = count * (count - 1) / (49 * 48)
    together = drop.T @ drop / len(drop)
    assert (together.diagonal() - count / 49).abs().max() < 5 * math.sqrt(count / 49 * (1 - count / 49) / len(drop))
    together.fill_diagonal_(expected)
    assert (together - expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / len(drop))


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.011, 0.5, 1.0])
def test_the_number_of_dropped_joints_is_exact(fraction, monkeypatch):
    plan = AugmentPlan(joint_probability=1.0, joint_fraction=fraction)
    assert (draw(plan, 100).drop.sum(1) == round(49 * fraction)).all()
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None, **options: torch.zeros(shape, **options))
    assert (draw(plan, 3).drop.sum(1) == round(49 * fraction)).all()  # also when all keys are equal


def test_two_views_of_one_draw_are_independent():
    got = draw(PLANS["paper"], 2 * B)
    for values in (angles(got.linear[:, 0]), torch.linalg.det(got.linear[:, 0]), got.swap, got.drop.any(1)):
        assert independent(*values.view(2, B))
    both = got.drop.view(2, B, 49)
    both = both[:, both.any(2).all(0)].double()
    expected = 100 / 49
    assert abs(float((both[0] * both[1]).sum(1).mean()) - expected) < 4 * 1.3 / math.sqrt(both.shape[1])


def test_chances_are_those_of_the_plan():
    plan = AugmentPlan(joint_probability=0.3, joint_fraction=0.1, swap_probability=0.9)
    got = draw(plan, 4 * B)
    for chosen, probability in ((got.drop.any(1), 0.3), (got.swap, 0.9)):
        spread = math.sqrt(probability * (1 - probability) / len(chosen))
        assert abs(float(chosen.float().mean()) - probability) < 4 * spread
    always = draw(AugmentPlan(joint_probability=1.0, joint_fraction=0.1, swap_probability=1.0))
    assert always.swap.all() and always.drop.any(1).all()


def test_what_can_change_nothing_is_not_drawn():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    got = PLANS["none"].draw(5, generator=generator)
    assert torch.equal(generator.get_state(), before)
    assert not got.affected.any() and not got.drop.any() and not got.swap.any()
    assert not draw(PLANS["hand_swap"]).affected.any()


@pytest.mark.parametrize("keypoints", graphs.LAYOUTS)
def test_other_layouts(keypoints):
    plan, parts = PLANS["paper"], graphs.layout(keypoints).parts
    got = plan.draw(64, keypoints=keypoints, generator=torch.Generator().manual_seed(0))
    assert got.linear.shape == (64, len(parts), 2, 2) and got.center.shape == (64, len(parts), 2)
    for p, rows in enumerate(parts.values()):
        assert (got.part[rows] == p).all()
    assert set(got.drop.sum(1).tolist()) == {0, round(keypoints * 0.2)}
    right, left = parts["right_hand"], parts["left_hand"]
    joint = torch.arange(keypoints)
    assert got.swap_index[right].equal(joint[left]) and got.swap_index[left].equal(joint[right])
    assert int((got.swap_index != joint).sum()) == 42
    x = torch.rand(64, 2, keypoints, 2)
    assert ops.augment(x, torch.ones(64, 2, keypoints), got)[0].shape == x.shape


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
