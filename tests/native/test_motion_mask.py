import math

import numpy as np
import pytest
from buffers import BF16, F16, F32, F64, STORED, bad_buffers, call, decode, empty, encode, filled, refused
from buffers import same_for_any_threads as same

FUNCTION = "motion_mask_cpu"

# clips, frames, joints
SIZES = [(1, 1, 1), (3, 20, 7), (2, 9, 49), (1, 300, 1), (2, 12, 133), (0, 5, 3), (2, 0, 3), (2, 5, 0)]


def build(dtype=F32, clips=3, frames=20, joints=7, key_dtype=F32, *, norm=0, padded=True, ratio=0.9, keys=None):
    random = np.random.default_rng([clips, frames, joints])
    speed = 16 * random.random((clips, frames, 1, 1))
    x = 128 + speed * random.normal(size=(clips, frames, joints, 2))
    keys = random.integers(0, 2 * frames + 1, (clips, frames)) if keys is None else keys
    stored = STORED[dtype]
    return {
        "dtype": dtype,
        "x": filled(encode(x, dtype)),
        "confidence": filled(encode(random.random((clips, frames, joints)) ** 0.3, dtype)),
        "lengths": filled(random.integers(0, frames + 1, clips).astype(np.int64)) if padded else None,
        "key_dtype": key_dtype,
        "keys": filled(keys.astype(STORED[key_dtype])),
        "clips": clips,
        "frames": frames,
        "joints": joints,
        "interval": 3,
        "confidence_threshold": 0.4,
        "motion_threshold": 5.0,
        "joint_fraction": 0.5,
        "mask_ratio": ratio,
        "norm": norm,
        "residual": empty((clips, frames, joints, 2), stored),
        "weight": empty((clips, frames, joints), stored),
        "mask": empty((clips, frames), np.uint8),
        "threads": 1,
    }


def check(done):
    """Frame by frame, in the compute type; comparisons in float64. Returns the candidates of every clip."""
    dtype, k = done["dtype"], done["interval"]
    x, r = (decode(np.array(done[name]), dtype) for name in ("x", "confidence"))
    r = np.where(r >= r.dtype.type(done["confidence_threshold"]), r, 0).astype(r.dtype)
    residual, weight = np.zeros_like(x), np.zeros_like(r)
    mask, found = np.zeros(x.shape[:2], np.uint8), []
    for b in range(len(x)):
        length = x.shape[1] if done["lengths"] is None else int(done["lengths"][b])
        found.append([])
        for i in range(length - k):
            residual[b, i], weight[b, i] = x[b, i + k] - x[b, i], r[b, i] * r[b, i + k]
            m, w = residual[b, i].astype(np.float64), weight[b, i].astype(np.float64)
            size = np.sqrt(m[:, 0] * m[:, 0] + m[:, 1] * m[:, 1]) * w if done["norm"] else np.abs(m) * w[:, None]
            if size.size and (size >= done["motion_threshold"]).sum() / size.size >= done["joint_fraction"]:
                found[b].append(i)
        keys = [math.inf if math.isnan(key) else float(key) for key in done["keys"][b]]
        ranked = sorted(found[b], key=lambda i, keys=keys: (keys[i], i))
        mask[b, ranked[: math.floor(done["mask_ratio"] * len(ranked))]] = 1
    np.testing.assert_array_equal(decode(np.array(done["residual"]), dtype), decode(encode(residual, dtype), dtype))
    np.testing.assert_array_equal(decode(np.array(done["weight"]), dtype), decode(encode(weight, dtype), dtype))
    np.testing.assert_array_equal(done["mask"], mask)
    return found


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_loops(library, dtype, sizes):
    for norm in (0, 1):
        for key_dtype, padded in ((F32, True), (F64, False)):
            check(call(library, FUNCTION, build(dtype, *sizes, key_dtype, norm=norm, padded=padded)))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("interval", interval) for interval in (1, 19, 20, 2**63 - 1)),
        *(("confidence_threshold", threshold) for threshold in (0.0, 0.9, 2.0)),
        *(("motion_threshold", threshold) for threshold in (0.0, 30.0)),
        *(("joint_fraction", fraction) for fraction in (0.0, 3 / 7, 1.0)),
        *(("mask_ratio", ratio) for ratio in (0.0, 0.01, 1 / 3, 1.0)),
    ],
)
def test_every_number_counts(library, name, number):
    check(call(library, FUNCTION, {**build(), name: number}))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_the_smallest_keys_in_any_order(library, ratio):
    """Orders that are bad for one way of sorting or another; ties, NaN and infinities."""
    frames, random = 1000, np.random.default_rng(0)
    ramp = np.arange(frames, dtype=np.float64)
    special = random.choice([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0], frames)
    for keys in (
        ramp,
        -ramp,
        ramp % 7,
        -(ramp % 31),
        np.zeros(frames),
        special,
        np.full(frames, np.nan),
        np.abs(500 - ramp),
    ):
        for key_dtype in (F32, F64):
            arguments = build(F32, 1, frames, 1, key_dtype, padded=False, ratio=ratio, keys=keys[None])
            assert len(check(call(library, FUNCTION, {**arguments, "joint_fraction": 0.0}))[0]) == frames - 3


def test_a_key_differs_in_its_last_bit(library):
    keys = np.array([[1 + 2e-16, 1.0, 1 + 4e-16, 2.0]])
    arguments = {**build(F32, 1, 4, 1, F64, padded=False, ratio=0.4, keys=keys), "interval": 1, "joint_fraction": 0.0}
    assert call(library, FUNCTION, arguments)["mask"][0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("dtype", STORED)
def test_numbers_that_are_not_finite(library, dtype):
    arguments = build(dtype, 4, 12, 17, padded=False)
    arguments["x"][0, 5, 3], arguments["x"][1, 2, 16, 1] = encode(np.array([np.nan, np.inf]), dtype)
    arguments["confidence"][2, 4, 1], arguments["confidence"][3, 4, 16] = encode(np.array([np.nan, np.inf]), dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        check(call(library, FUNCTION, arguments))


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_threads(library, dtype):
    same(library, FUNCTION, lambda: build(dtype, 101, 150, 49), ["residual", "weight", "mask"])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        *(({"dtype": wrong}, f"unknown dtype {wrong}") for wrong in (4, -1)),
        *(({"key_dtype": wrong}, f"dtype must be SLR_F32 or SLR_F64, got {wrong}") for wrong in (BF16, F16, 4, -1)),
        *(({name: wrong}, "impossible size") for name in ("clips", "frames", "joints") for wrong in (-1, 2**62, 2**61)),
        ({"clips": 2**40, "frames": 2**40}, "impossible size"),
        ({"interval": 0}, "interval must be >= 1, got 0"),
        ({"interval": -(2**63)}, "interval must be >= 1"),
        *(({name: math.nan}, f"{name} must be in") for name in ("mask_ratio", "joint_fraction")),
        *(({name: 1.5}, f"{name} must be in \\[0, 1\\], got 1.5") for name in ("mask_ratio", "joint_fraction")),
        *(
            ({name: wrong}, f"{name} must be in")
            for name in ("confidence_threshold", "motion_threshold")
            for wrong in (-0.1, math.nan, math.inf)
        ),
        *bad_buffers("x", "confidence", "keys", "residual", "weight"),
        ({"mask": 0}, "mask is null"),
        ({"lengths": "misaligned"}, "align"),
    ],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)


@pytest.mark.parametrize("wrong", [-1, 21, 2**63 - 1, -(2**63)])
def test_lengths_that_no_clip_has(library, wrong):
    arguments = build()
    arguments["lengths"][1] = wrong
    refused(library, FUNCTION, arguments, {}, f"lengths must be in \\[0, 20\\], got {wrong} for clip 1")
