import math

import numpy as np
import pytest
from buffers import BF16, COMPUTED, F16, F32, F64, STORED, bad_buffers, call, empty, filled, refused
from buffers import same_for_any_threads as same

FUNCTION = "masked_motion_loss_cpu"

# clips, frames, joints
SIZES = [(1, 1, 1), (5, 20, 7), (3, 9, 49), (2, 300, 1), (2, 5, 133), (0, 5, 3), (2, 0, 3), (2, 5, 0)]


def build(dtype=F32, clips=5, frames=20, joints=7, *, per_coordinate=0, squared=1, average=1, seed=0):
    random = np.random.default_rng([clips, frames, joints, seed])
    stored, shape = STORED[dtype], (clips, frames, joints, 2)
    mask = random.random((clips, frames)) < 0.5
    mask[1:2] = False
    return {
        "dtype": dtype,
        "prediction": filled(random.normal(size=shape).astype(stored)),
        "residual": filled((30 * random.normal(size=shape)).astype(stored)),
        "weight": filled(random.random(shape if per_coordinate else shape[:3]).astype(stored)),
        "per_coordinate": per_coordinate,
        "mask": filled(mask.astype(np.uint8)),
        "clips": clips,
        "frames": frames,
        "joints": joints,
        "scale": 0.1,
        "squared": squared,
        "average": average,
        "loss": empty((clips,), stored),
        "grad": empty(shape, stored),
        "threads": 1,
    }


def check(done, clips=None):
    """Against longdouble, with the roundings of the entries and of their sum."""
    unit = np.finfo(STORED[done["dtype"]]).eps
    y, m, w = (np.array(done[name], np.longdouble) for name in ("prediction", "residual", "weight"))
    w = w if done["per_coordinate"] else w[..., None]
    scale = np.longdouble(STORED[done["dtype"]](done["scale"]))
    for b in range(len(y)) if clips is None else clips:
        masked = np.array(done["mask"][b], bool)
        distance = ((y[b] - scale * m[b]) * w[b])[masked]
        off = ((np.abs(y[b]) + 2 * np.abs(scale * m[b])) * w[b])[masked] * 2 * unit
        share = np.longdouble(1) / max(masked.sum(), 1) if done["average"] else np.longdouble(1)
        each = distance**2 if done["squared"] else np.abs(distance)
        slack = 2 * np.abs(distance) * off + off**2 if done["squared"] else off
        assert abs(done["loss"][b] - each.sum() * share) <= (slack.sum() + 32 * unit * each.sum()) * share
        slope = (2 * distance if done["squared"] else np.sign(distance)) * np.broadcast_to(w[b], y[b].shape)[masked]
        slack = (2 * off * np.broadcast_to(w[b], y[b].shape)[masked] if done["squared"] else 0) + 4 * unit * np.abs(
            slope
        )
        sure = np.full(distance.shape, True) if done["squared"] else np.abs(distance) > off  # of its sign
        assert (np.abs(done["grad"][b][masked] - slope * share) <= slack * share)[sure].all()
        assert not done["grad"][b][~masked].any()


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients(library, dtype, sizes):
    for squared in (0, 1):
        for per_coordinate, average in ((0, 1), (1, 1), (1, 0), (0, 0)):
            arguments = build(dtype, *sizes, per_coordinate=per_coordinate, squared=squared, average=average)
            check(call(library, FUNCTION, arguments))


@pytest.mark.parametrize("dtype", COMPUTED)
def test_nothing_masked_is_no_loss(library, dtype):
    arguments = build(dtype)
    arguments["mask"][...] = 0
    for name in ("prediction", "residual", "weight"):
        arguments[name][...] = np.nan
    done = call(library, FUNCTION, arguments)
    assert not done["loss"].any() and not done["grad"].any()


@pytest.mark.parametrize("squared", [0, 1])
def test_a_distance_of_zero_has_no_gradient(library, squared):
    arguments = {**build(squared=squared), "scale": 0.5}
    arguments["prediction"][...] = 0.5 * arguments["residual"]
    done = call(library, FUNCTION, arguments)
    assert not done["loss"].any() and not done["grad"].any()


def test_every_byte_but_zero_masks(library):
    arguments, plain = build(), build()
    arguments["mask"][arguments["mask"] == 1] = 255
    done, expected = call(library, FUNCTION, arguments), call(library, FUNCTION, plain)
    np.testing.assert_array_equal(done["loss"], expected["loss"])


@pytest.mark.parametrize("dtype", COMPUTED)
def test_unwanted_gradient(library, dtype):
    whole, part = call(library, FUNCTION, build(dtype)), call(library, FUNCTION, {**build(dtype), "grad": None})
    np.testing.assert_array_equal(part["loss"], whole["loss"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["prediction", "residual", "weight"])
def test_a_number_that_is_not_finite_spoils_only_its_clip(library, wrong, name):
    for squared in (0, 1):
        arguments = build(squared=squared)
        arguments["mask"][2, 3] = 1
        arguments[name][2, 3, 6] = wrong
        done = call(library, FUNCTION, arguments)
        assert not np.isfinite(done["loss"][2])
        check(done, [0, 1, 3, 4])


@pytest.mark.parametrize("dtype", COMPUTED)
def test_threads(library, dtype):
    same(library, FUNCTION, lambda: build(dtype, 101, 150, 49), ["loss", "grad"])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        *(({"dtype": wrong}, f"dtype must be SLR_F32 or SLR_F64, got {wrong}") for wrong in (BF16, F16, 4, -1)),
        *(({name: wrong}, "impossible size") for name in ("clips", "frames", "joints") for wrong in (-1, 2**62, 2**61)),
        ({"clips": 2**40, "frames": 2**40}, "impossible size"),
        *(({"scale": wrong}, "scale must be finite and > 0") for wrong in (0.0, -1.0, math.nan, math.inf, -math.inf)),
        *bad_buffers("prediction", "residual", "weight", "loss"),
        ({"mask": 0}, "mask is null"),
        ({"grad": "misaligned"}, "align"),
    ],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(F64 if "grad" in wrong else F32), wrong, word)
