import numpy as np
import pytest
from buffers import BF16, F32, F64, STORED, bad_buffers, call, decode, empty, encode, refused, untouched
from buffers import same_for_any_threads as same
from clip_oracles import (
    BAD_CHANGES,
    BAD_WINDOWS,
    OFFSETS,
    changed,
    changes,
    numbers,
    plain,
    pose,
    resampled,
    spoiled_changes,
    spoiled_windows,
    windows,
)

BACKWARD, FORWARD = range(2)
OUTPUTS = ["xy_out", "motion_out", "confidence_out", "visible"]


def build(dtype=F32, joints=9, parts=3, out_frames=7, direction=BACKWARD, one_map=False):
    random = np.random.default_rng([joints, parts])
    xy, confidence = pose(dtype, 24, joints, random)
    return {
        "dtype": dtype,
        "xy": xy,
        "confidence": confidence,
        "total": 24,
        "joints": joints,
        **windows(out_frames),
        **changes(dtype, 6, joints, parts, random, one_map),
        "direction": direction,
        "xy_out": empty((2, 3, out_frames, joints, 2), STORED[dtype]),
        "motion_out": empty((2, 3, out_frames, joints, 2), STORED[dtype]),
        "confidence_out": empty((2, 3, out_frames, joints), STORED[dtype]),
        "visible": empty((2, 3, out_frames, parts), np.uint8),
        "threads": 1,
    }


def expected(done):
    """Resampled, then changed; the motion of every clip on its own."""
    xy, confidence, plan = numbers(done, "xy"), numbers(done, "confidence"), plain(done)
    motion = np.zeros_like(xy)
    for first, last in zip(OFFSETS, OFFSETS[1:], strict=False):
        late = slice(first + 1, last) if done["direction"] == BACKWARD else slice(first, last - 1)
        motion[late] = xy[first + 1 : last] - xy[first : last - 1]
    points, moves, sure = (
        resampled(x, done).reshape(6, done["out_frames"], *x.shape[1:]) for x in (xy, motion, confidence)
    )
    seen = resampled((confidence > 0).astype(np.float32), done, "nearest").reshape(sure.shape) > 0
    seen = np.where(plan["swap"].astype(bool)[:, None, None], seen[..., plan["swap_index"]], seen)
    moves, _ = changed(moves, sure, plan, about_zero=True, seen=np.ones_like(sure, bool))
    visible = [seen[..., plan["part"] == p].any(-1) for p in range(plan["parts"])]
    return *changed(points, sure, plan), moves, np.stack(visible, -1)


def check(done):
    points, sure, moves, visible = expected(done)
    wanted = {"xy_out": points, "confidence_out": sure}
    if done["motion_out"] is not None:
        wanted["motion_out"] = moves
    for name, value in wanted.items():
        value = decode(encode(np.ascontiguousarray(value), done["dtype"]), done["dtype"])
        np.testing.assert_array_equal(numbers(done, name), value.reshape(done[name].shape), err_msg=name)
    np.testing.assert_array_equal(done["visible"], visible.reshape(done["visible"].shape))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("direction", [BACKWARD, FORWARD])
@pytest.mark.parametrize("one_map", [False, True])
@pytest.mark.parametrize("joints", [1, 7, 21, 48, 49, 133])
def test_equals_the_equations_bit_by_bit(library, dtype, direction, one_map, joints):
    for out_frames in (1, 6, 29):
        check(call(library, "pose_views_cpu", build(dtype, joints, 1 + joints % 3, out_frames, direction, one_map)))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("one_map", [False, True])
def test_without_motion(library, dtype, one_map):
    check(call(library, "pose_views_cpu", {**build(dtype, 49, 3, 29, one_map=one_map), "motion_out": None}))


def test_nothing(library):
    check(call(library, "pose_views_cpu", build(F32, 0, 2)))
    arguments = build(F32, 9, 3)
    arguments |= {"views": 0}
    assert all(map(untouched, (call(library, "pose_views_cpu", arguments)[name] for name in OUTPUTS)))


@pytest.mark.parametrize("index", [np.arange(49)[::-1], np.roll(np.arange(49), 3), np.arange(49) // 2], ids=str)
def test_any_order_of_joints(library, index):
    arguments = build(F32, 49, 3, 29, one_map=True)
    arguments["swap_index"][...] = index
    check(call(library, "pose_views_cpu", arguments))


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_threads(library, dtype):
    same(library, "pose_views_cpu", lambda: build(dtype, 49, 3, 1000), OUTPUTS)


def test_bad_arguments(library):
    for wrong, word in [*BAD_WINDOWS, *BAD_CHANGES, *bad_buffers("xy", "confidence", "xy_out", "confidence_out")]:
        refused(library, "pose_views_cpu", build(), wrong, word)
    for wrong, word in (({"motion_out": "misaligned"}, "align"), ({"visible": 0}, "null")):
        refused(library, "pose_views_cpu", build(), wrong, word)
    for wrong in (4, -1):
        refused(library, "pose_views_cpu", build(), {"dtype": wrong}, f"unknown dtype {wrong}")
    for wrong in (2, -1):
        refused(library, "pose_views_cpu", build(), {"direction": wrong}, f"unknown direction {wrong}")


def test_windows_outside_their_clips_and_joints_that_do_not_exist(library):
    good = build()
    for word in spoiled_windows(good):
        refused(library, "pose_views_cpu", good, {}, word)
    for word in spoiled_changes(good):
        refused(library, "pose_views_cpu", good, {}, word)
