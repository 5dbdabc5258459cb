import numpy as np
import pytest
from buffers import BF16, COMPUTED, F16, F32, F64, STORED, bad_buffers, call, empty, filled, refused
from buffers import same_for_any_threads as same

FUNCTION = "masked_pose_loss_cpu"

SIZES = [(1, 1), (5, 140), (3, 79), (2, 8191), (2, 8193), (1, 20000), (0, 5), (2, 0)]  # clips, keypoints


def build(dtype=F32, clips=5, keypoints=140, *, seed=0):
    random = np.random.default_rng([clips, keypoints, seed])
    stored, shape = STORED[dtype], (clips, keypoints)
    mask = random.random(shape) < 0.4
    mask[1:2] = False
    return {
        "dtype": dtype,
        "prediction": filled(random.normal(size=(*shape, 2)).astype(stored)),
        "target": filled(random.normal(size=(*shape, 2)).astype(stored)),
        "mask": filled(mask.astype(np.uint8)),
        "confidence": filled(random.random(shape).astype(stored)),
        "clips": clips,
        "keypoints": keypoints,
        "loss": empty((clips,), stored),
        "count": empty((clips,), np.int64),
        "grad": empty((*shape, 2), stored),
        "threads": 1,
    }


def check(done, clips=None):
    """Against longdouble, with the roundings of the entries and of their sum."""
    unit = np.finfo(STORED[done["dtype"]]).eps
    y, x, c = (np.array(done[name], np.longdouble) for name in ("prediction", "target", "confidence"))
    for b in range(len(y)) if clips is None else clips:
        chosen = np.array(done["mask"][b], bool)
        difference, weight = (y[b] - x[b])[chosen], c[b][chosen][:, None]
        each = weight * difference**2
        assert done["count"][b] == chosen.sum()
        assert abs(done["loss"][b] - each.sum()) <= 64 * unit * each.sum()
        slope = 2 * weight * difference
        assert (np.abs(done["grad"][b][chosen] - slope) <= 3 * unit * np.abs(slope)).all()
        assert not done["grad"][b][~chosen].any()


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients(library, dtype, sizes):
    check(call(library, FUNCTION, build(dtype, *sizes)))


@pytest.mark.parametrize("dtype", COMPUTED)
def test_nothing_masked_is_no_loss(library, dtype):
    arguments = build(dtype)
    arguments["mask"][...] = 0
    for name in ("prediction", "target", "confidence"):
        arguments[name][...] = np.nan
    done = call(library, FUNCTION, arguments)
    assert not done["loss"].any() and not done["grad"].any() and not done["count"].any()


def test_every_byte_but_zero_masks(library):
    arguments, plain = build(), build()
    arguments["mask"][arguments["mask"] == 1] = 255
    done, expected = call(library, FUNCTION, arguments), call(library, FUNCTION, plain)
    for name in ("loss", "count", "grad"):
        np.testing.assert_array_equal(done[name], expected[name])


@pytest.mark.parametrize("dtype", COMPUTED)
def test_unwanted_gradient(library, dtype):
    whole, part = call(library, FUNCTION, build(dtype)), call(library, FUNCTION, {**build(dtype), "grad": None})
    np.testing.assert_array_equal(part["loss"], whole["loss"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["prediction", "target", "confidence"])
def test_a_number_that_is_not_finite_spoils_only_its_clip(library, wrong, name):
    arguments = build()
    arguments["mask"][2, 33] = 1
    arguments[name][2, 33] = wrong
    done = call(library, FUNCTION, arguments)
    assert not np.isfinite(done["loss"][2])
    check(done, [0, 1, 3, 4])


@pytest.mark.parametrize("dtype", COMPUTED)
def test_threads(library, dtype):
    same(library, FUNCTION, lambda: build(dtype, 3, 250000), ["loss", "count", "grad"])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        *(({"dtype": wrong}, f"dtype must be SLR_F32 or SLR_F64, got {wrong}") for wrong in (BF16, F16, 4, -1)),
        *(({name: wrong}, "impossible size") for name in ("clips", "keypoints") for wrong in (-1, 2**62)),
        ({"clips": 2**40, "keypoints": 2**40}, "impossible size"),
        *bad_buffers("prediction", "target", "confidence", "loss", "count"),
        ({"mask": 0}, "mask is null"),
        ({"grad": "misaligned"}, "align"),
    ],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(F64 if "grad" in wrong else F32), wrong, word)
