import numpy as np
import pytest
from buffers import BF16, F32, F64, STORED, bad_buffers, call, decode, empty, encode, refused
from buffers import same_for_any_threads as same
from clip_oracles import BAD_CHANGES, changed, changes, numbers, plain, pose, spoiled_changes


def build(dtype=F32, clips=5, frames=6, joints=9, parts=3, one_map=False):
    random = np.random.default_rng([clips, frames, joints])
    x, confidence = pose(dtype, clips * frames, joints, random)
    return {
        "dtype": dtype,
        "x": x,
        "confidence": confidence,
        "clips": clips,
        "frames": frames,
        "joints": joints,
        **changes(dtype, clips, joints, parts, random, one_map),
        "x_out": empty((clips, frames, joints, 2), STORED[dtype]),
        "confidence_out": empty((clips, frames, joints), STORED[dtype]),
        "threads": 1,
    }


def check(done):
    shape = done["x_out"].shape
    x, confidence = numbers(done, "x").reshape(shape), numbers(done, "confidence").reshape(shape[:-1])
    for name, expected in zip(("x_out", "confidence_out"), changed(x, confidence, plain(done)), strict=True):
        np.testing.assert_array_equal(
            numbers(done, name), decode(encode(np.ascontiguousarray(expected), done["dtype"]), done["dtype"])
        )


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("one_map", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (4, 3, 7, 2), (5, 6, 49, 3), (3, 2, 16, 4), (2, 2, 133, 5)], ids=str)
def test_equals_the_equations_bit_by_bit(library, dtype, one_map, sizes):
    check(call(library, "augment_cpu", build(dtype, *sizes, one_map)))


@pytest.mark.parametrize("sizes", [(0, 3, 4, 2), (3, 0, 4, 2), (3, 4, 0, 2), (3, 4, 0, 0)], ids=str)
def test_nothing(library, sizes):
    check(call(library, "augment_cpu", build(F32, *sizes)))


def test_a_joint_may_be_read_twice(library):
    arguments = build(F32, 4, 2, 33, 2)
    arguments["swap_index"][...] = np.arange(33)[::-1] // 2
    check(call(library, "augment_cpu", arguments))


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_threads(library, dtype):
    same(library, "augment_cpu", lambda: build(dtype, 40, 64, 49, 3), ["x_out", "confidence_out"])


def test_bad_arguments(library):
    sizes = [({name: wrong}, "impossible") for name in ("clips", "frames") for wrong in (-1, 2**61, 2**62)]
    for wrong, word in [*BAD_CHANGES, *sizes, *bad_buffers("x", "confidence", "x_out", "confidence_out")]:
        refused(library, "augment_cpu", build(), wrong, word)
    for wrong in (4, -1):
        refused(library, "augment_cpu", build(), {"dtype": wrong}, f"unknown dtype {wrong}")


def test_parts_and_joints_that_do_not_exist(library):
    good = build()
    for word in spoiled_changes(good):
        refused(library, "augment_cpu", good, {}, word)
