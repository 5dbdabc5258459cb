import math
import re

import pytest
import torch

from slrfast import ops
from slrfast.data import AugmentPlan
from slrfast.ops import AugmentTensors
from slrfast.reference import pose_views as reference

OP = "pose_views"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DIRECTIONS = {"backward": 0, "forward": 1, None: -1}


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def draw(randn):
    """Clips of 9, 1 and 14 frames with missing joints, two windows of each, and a plan that does a bit of all."""

    def make(dtype=torch.float32, device="cpu", joints=9, one_map=False):
        confidence = randn(24, joints, dtype=dtype, device=device).clamp_min(0)
        xy = randn(24, joints, 2, dtype=dtype, device=device) * (confidence > 0)[..., None]
        maps = randn(6, 1 if one_map else 3, 6, device=device).expand(6, 3, 6)
        plan = AugmentTensors(
            linear=maps[..., :4].unflatten(-1, (2, 2)),
            center=maps[..., 4:],
            part=torch.arange(joints, device=device) * 3 // joints,
            affected=randn(6, joints, device=device) > (-9.0 if one_map else -0.5),
            drop=(randn(6, joints, device=device) > 0.7) & (torch.arange(6, device=device) > 1)[:, None],
            swap=torch.arange(6, device=device) % 2 == 1,
            swap_index=torch.arange(joints, device=device).roll(2),
        )
        windows = ([0, 9, 10, 24], [[2, 0, 0], [0, 0, 13]], [[6, 1, 14], [9, 1, 1]])
        return xy, confidence, *(torch.tensor(window, device=device) for window in windows), plan

    return make


def one_after_the_other(xy, confidence, offsets, start, length, plan, out_frames, motion):
    """The ops it fuses; the motion clip by clip."""
    windows = offsets, start, length, out_frames

    def flat(x, mode="linear"):
        return ops.resample(x, *windows, mode=mode).flatten(0, start.dim() - 1)

    sure = flat(confidence[..., None])[..., 0]
    points, kept = ops.augment(flat(xy), sure, plan)
    shape = (*start.shape, out_frames)
    moves = None
    if motion is not None:
        clips = [ops.motion(clip, direction=motion) for clip in xy.split(offsets.diff().tolist())]
        about_zero = plan._replace(center=torch.zeros_like(plan.center))
        moves, _ = ops.augment(flat(torch.cat(clips)), torch.ones_like(sure), about_zero)
        moves = moves.view(*shape, *xy.shape[1:])
    seen = flat((confidence > 0)[..., None], "nearest")[..., 0]
    seen = torch.where(plan.swap[:, None, None], seen[..., plan.swap_index], seen)
    visible = torch.stack([seen[..., plan.part == p].any(-1) for p in range(plan.linear.shape[1])], -1)
    return points.view(*shape, *xy.shape[1:]), moves, kept.view(*shape, -1), visible.view(*shape, -1)


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    def tensor(*values):
        return torch.tensor(values, device=device)

    xy = tensor([[0.0, 0.0], [9.0, 9.0]], [[2.0, 4.0], [0.0, 0.0]], [[6.0, 4.0], [0.0, 0.0]])
    confidence = tensor([0.5, 0.25], [1.0, 0.0], [1.0, 0.0])
    plan = AugmentTensors(
        linear=tensor([[[0.0, -1.0], [1.0, 0.0]]] * 2),  # a quarter turn
        center=tensor([[1.0, 0.0]] * 2),
        part=tensor(0, 1),
        affected=tensor([True, True]),
        drop=tensor([False, False]),
        swap=tensor(False),
        swap_index=tensor(1, 0),
    )
    window = tensor(0, 3), tensor(1), tensor(2)
    view = ops.pose_views(xy, confidence, *window, plan, 4)
    # positions 0, 0.25, 0.75, 1 between the last two frames: x = 2, 3, 5, 6, y = 4; the second joint is missing there
    assert view.xy[0, :, 0].tolist() == [[-3.0, 1.0], [-3.0, 2.0], [-3.0, 4.0], [-3.0, 5.0]]
    assert not view.xy[0, :, 1].any()
    # motions (2, 4) and (4, 0) of the first joint, (-9, -9) and 0 of the second, turned although it is missing
    assert view.motion[0, :, 0].tolist() == [[-4.0, 2.0], [-3.0, 2.5], [-1.0, 3.5], [0.0, 4.0]]
    assert view.motion[0, :, 1].tolist() == [[9.0, -9.0], [6.75, -6.75], [2.25, -2.25], [0.0, 0.0]]
    assert view.confidence[0].tolist() == [[1.0, 0.0]] * 4
    assert view.visible[0].tolist() == [[True, False]] * 4
    whole = ops.pose_views(xy, confidence, tensor(0, 3), tensor(0), tensor(3), plan._replace(swap=tensor(True)), 3)
    assert whole.visible[0].tolist() == [[True, True], [False, True], [False, True]]
    assert whole.confidence[0].tolist() == [[0.25, 0.5], [0.0, 1.0], [0.0, 1.0]]
    dropped = ops.pose_views(xy, confidence, *window, plan._replace(drop=tensor([True, False])), 4)
    assert not dropped.xy[0, :, 0].any() and not dropped.motion[0, :, 0].any() and not dropped.confidence.any()
    assert dropped.visible.equal(view.visible)


@pytest.mark.parametrize("motion", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("one_map", [False, True])
def test_equals_the_ops_one_after_the_other(device, draw, dtype, motion, one_map):
    arguments = draw(dtype, device, joints=21, one_map=one_map)
    got = ops.pose_views(*arguments, 11, motion=motion)
    plan = arguments[-1]._replace(linear=arguments[-1].linear.to(dtype), center=arguments[-1].center.to(dtype))
    expected = one_after_the_other(*arguments[:-1], plan, 11, motion)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and a.is_contiguous() and torch.equal(a, b))


@pytest.mark.parametrize("motion", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("joints", "frames"), [(3, (1,)), (16, (6,)), (49, (13,)), (75, (1, 6, 13))])
def test_every_backend_has_the_bits_of_the_reference(device, draw, dtype, motion, joints, frames):
    for one_map in (False, True):
        *tensors, plan = draw(dtype, device, joints, one_map)
        for out_frames in frames:
            got = ops.pose_views(*tensors, plan, out_frames, motion=motion)
            numbers, visible = reference.pose_views(*tensors, *plan, out_frames, DIRECTIONS[motion])
            mine = torch.cat([x.flatten() for x in (got.xy, got.motion, got.confidence) if x is not None])
            assert mine.dtype == dtype and torch.equal(mine, numbers) and torch.equal(got.visible, visible)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_and_plans_that_are_drawn(randn, threads):
    lengths = torch.arange(25, 65)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    xy, confidence = randn(int(offsets[-1]), 49, 2), randn(int(offsets[-1]), 49).clamp_min(0)
    length = torch.stack((lengths, lengths // 2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for plan in (AugmentPlan.paper(), AugmentPlan.legacy(), AugmentPlan.hand_swap(), AugmentPlan.none()):
            drawn = plan.draw(80, generator=torch.Generator().manual_seed(0))
            windows = offsets, lengths - length, length
            got = ops.pose_views(xy, confidence, *windows, drawn, 64)
            expected = one_after_the_other(xy, confidence, *windows, drawn, 64, "backward")
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_no_gradient_flows(draw):
    xy, *others = draw()
    with pytest.warns(UserWarning, match="pose_views: xy requires grad, but no gradient flows to it"):
        views = ops.pose_views(xy.requires_grad_(), *others, 4)
    assert not any(x.requires_grad for x in views)


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [-1, 0, 1])
def test_opcheck(device, draw, direction):
    xy, *others, plan = draw(device=device)
    for one in (xy, xy.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        torch.library.opcheck(torch.ops.slrfast.pose_views.default, (one, *others, *plan, 5, direction))


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_compiles_whole_and_under_autocast(device, draw, compiled, motion):
    arguments = draw(device=device)
    expected = ops.pose_views(*arguments, 7, motion=motion)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = compiled(ops.pose_views)(*arguments, 7, motion=motion)
    for a, b in zip(got, expected, strict=True):
        assert a is b is None or torch.equal(a, b)


# ---- edges ----------------------------------------------------------------------------------------------------------


def test_no_clips_no_views_no_joints(device, draw):
    xy, confidence, offsets, start, length, plan = draw(device=device)
    none = plan._replace(**{name: getattr(plan, name)[:0] for name in ("linear", "center", "affected", "drop", "swap")})
    views = ops.pose_views(xy, confidence, offsets, start[:0], length[:0], none, 4)
    assert views.xy.shape == views.motion.shape == (0, 3, 4, 9, 2) and views.visible.shape == (0, 3, 4, 3)
    views = ops.pose_views(xy[:0], confidence[:0], offsets[:1], start[:, :0], length[:, :0], none, 4)
    assert views.xy.shape == (2, 0, 4, 9, 2) and views.confidence.shape == (2, 0, 4, 9)
    fields = ("part", "swap_index", "affected", "drop")
    bare = plan._replace(**{name: getattr(plan, name)[..., :0] for name in fields})
    views = ops.pose_views(xy[:, :0], confidence[:, :0], offsets, start, length, bare, 4)
    assert views.motion.shape == (2, 3, 4, 0, 2) and not views.visible.any()


def test_clips_of_no_frames_have_no_windows_but_may_be_packed(device, draw):
    xy, confidence, _, _, _, plan = draw(device=device)
    offsets = torch.tensor([0, 0, 24, 24], device=device)
    none = torch.zeros(0, 3, dtype=torch.int64, device=device)
    plan = plan._replace(**{name: getattr(plan, name)[:0] for name in ("linear", "center", "affected", "drop", "swap")})
    assert ops.pose_views(xy, confidence, offsets, none, none, plan, 4).xy.shape == (0, 3, 4, 9, 2)


def test_any_strides(device, draw):
    xy, confidence, offsets, start, length, plan = draw(device=device)
    expected = ops.pose_views(xy, confidence, offsets, start, length, plan, 5)
    strided = AugmentTensors(*(torch.stack((t, t), -1)[..., 0] for t in plan))
    views = xy.mT.contiguous().mT, confidence.mT.contiguous().mT, offsets, start.T.contiguous().T, length
    for a, b in zip(ops.pose_views(*views, strided, 5), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_number_stays_in_its_neighbourhood(device, draw, value):
    xy, confidence, offsets, start, length, plan = draw(device=device, one_map=True)
    plan = plan._replace(drop=torch.zeros_like(plan.drop), swap=torch.zeros_like(plan.swap))
    xy[4, 2], confidence[4, 2] = value, 1.0
    views = ops.pose_views(xy, confidence, offsets, start, length, plan, 9)
    broken = [~x.isfinite() for x in (views.xy, views.motion)]
    assert all(
        bad[1, 0].any() and not bad[:, 1:].any() for bad in broken
    )  # the second view of clip 0 is all its frames
    assert [bad[1, 0, :, 2, 0].nonzero().flatten().tolist() for bad in broken] == [[4], [4, 5]]
    assert not any(bad[1, 0][:, [0, 1, *range(3, 9)]].any() for bad in broken)


def test_arguments_stay_as_they_are(draw):
    *tensors, plan = draw()
    before = [tensor.clone() for tensor in (*tensors, *plan)]
    for tensor in ops.pose_views(*tensors, plan, 5):
        tensor.zero_()
    assert all(a.equal(b) for a, b in zip(before, (*tensors, *plan), strict=True))


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "change", "error", "message"),
    [
        (0, lambda t: t[0], ValueError, "xy must have shape [F, V, 2], got [9, 2]"),
        (0, lambda t: t.long(), TypeError, "xy must be float64, float32, bfloat16 or float16, got torch.int64"),
        (1, lambda t: t[:3], ValueError, "confidence must have shape [F, V] with F = 24, got [3, 9]"),
        (1, lambda t: t.double(), TypeError, "confidence must be torch.float32, got torch.float64"),
        (2, lambda t: t[1:], ValueError, "offsets must have 4 entries, got 3"),
        (3, lambda t: t - 1, ValueError, "start and length must name at least one frame inside the clip, got start -1"),
        (4, lambda t: t[0], ValueError, "length must have start's shape [2, 3], got [3]"),
        (5, tuple, TypeError, "plan must be an AugmentTensors, got tuple"),
        (5, lambda p: p._replace(swap=p.swap[:3]), ValueError, "swap must have shape [B] with B = 6, got [3]"),
        (5, lambda p: p._replace(part=p.part + 9), ValueError, "part must be in [0, 2], got"),
        (6, lambda _: 0, ValueError, "out_frames must be in [1, 2147483647], got 0"),
    ],
)
def test_errors(draw, position, change, error, message):
    arguments = [*draw(), 4]
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=re.escape(f"pose_views: {message}")):
        ops.pose_views(*arguments)


def test_unknown_motion(draw):
    with pytest.raises(ValueError, match="pose_views: motion must be 'backward', 'forward' or None, got 'up'"):
        ops.pose_views(*draw(), 4, motion="up")
