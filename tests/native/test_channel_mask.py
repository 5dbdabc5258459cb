import numpy as np
import pytest
from buffers import COMPUTED, F32, F64, STORED, bad_buffers, call, decode, empty, encode, filled, refused
from buffers import same_for_any_threads as same

FUNCTION = "channel_mask_cpu"

# clips, frames, channels
SIZES = [(1, 1, 1), (2, 8, 300), (1, 33, 128), (3, 2, 127), (2, 5, 1), (1, 300, 17), (0, 5, 3), (2, 0, 3), (2, 5, 0)]


def build(dtype=F32, clips=2, frames=8, channels=300, *, least=0.25, outputs=("masked", "keep", "variance")):
    random = np.random.default_rng([clips, frames, channels])
    z = random.normal(size=(clips, frames, channels)) * random.random((clips, 1, channels))
    z += 3 * random.normal(size=(clips, 1, channels))
    wide = np.float64 if dtype == F64 else np.float32
    shapes = {
        "masked": ((clips, frames, channels), STORED[dtype]),
        "keep": ((clips, channels), np.uint8),
        "variance": ((clips, channels), wide),
    }
    return {
        "dtype": dtype,
        "z": filled(encode(z, dtype)),
        "clips": clips,
        "frames": frames,
        "channels": channels,
        "least": filled(np.full(clips, least)),
        **{name: empty(*shapes[name]) if name in outputs else None for name in shapes},
        "threads": 1,
    }


def check(done):
    dtype = done["dtype"]
    z = decode(np.array(done["z"]), dtype)
    exact = z.astype(np.float64)
    truth = exact.var(1, ddof=1) if z.shape[1] > 1 and z.size else np.zeros((z.shape[0], z.shape[2]))
    tolerance = 1e-12 if dtype == F64 else 2e-5
    least = np.array(done["least"])[:, None]
    if done["variance"] is not None:
        variance = np.array(done["variance"])
        np.testing.assert_allclose(variance, truth, rtol=tolerance, atol=tolerance)
    clear = np.abs(truth - least) > 2 * tolerance * (1 + truth)
    if done["keep"] is not None:
        keep = np.array(done["keep"])
        assert set(np.unique(keep)) <= {0, 1}
        np.testing.assert_array_equal(keep[clear], (truth >= least)[clear])
        if done["variance"] is not None:
            np.testing.assert_array_equal(keep, variance >= least.astype(variance.dtype))
        if done["masked"] is not None:
            expected = np.where(keep[:, None] == 1, np.array(done["z"]), 0)
            np.testing.assert_array_equal(np.array(done["masked"]), expected)
    return done


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_numpy(library, dtype, sizes):
    done = check(call(library, FUNCTION, build(dtype, *sizes)))
    if sizes[2] >= 100 and sizes[1] >= 8:
        assert 0.1 < np.array(done["keep"]).mean() < 0.9


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("outputs", [("masked",), ("keep",), ("variance",), ("masked", "keep"), ()], ids=str)
def test_any_result_may_be_missing(library, dtype, outputs):
    done = check(call(library, FUNCTION, build(dtype, outputs=outputs)))
    whole = check(call(library, FUNCTION, build(dtype)))
    for name in outputs:
        np.testing.assert_array_equal(np.array(done[name]), np.array(whole[name]))


def test_results_past_the_cache(library):
    """More than 4 MiB, with rows that begin on a vector's border and rows that do not."""
    for channels in (64 << 10, (64 << 10) + 3):
        check(call(library, FUNCTION, build(F32, 1, 20, channels)))


@pytest.mark.parametrize("dtype", COMPUTED)
def test_limits_of_every_clip(library, dtype):
    arguments = build(dtype)
    arguments["least"][...] = 0.0, np.nan
    keep = np.array(call(library, FUNCTION, arguments)["keep"])
    assert keep[0].all() and not keep[1].any()
    arguments = build(dtype)
    variance = np.array(call(library, FUNCTION, build(dtype))["variance"])
    arguments["least"][...] = variance[:, 7]  # exactly at the limit
    np.testing.assert_array_equal(np.array(call(library, FUNCTION, arguments)["keep"]), variance >= variance[:, 7:8])


@pytest.mark.parametrize("dtype", STORED)
def test_numbers_that_are_not_finite(library, dtype):
    arguments = build(dtype, least=0.0)
    arguments["z"][0, 3, 7], arguments["z"][1, 2, 299] = encode(np.array([np.nan, np.inf]), dtype)
    done = call(library, FUNCTION, arguments)
    keep, masked = np.array(done["keep"]), decode(np.array(done["masked"]), dtype)
    assert keep.sum() == keep.size - 2 and not keep[0, 7] and not keep[1, 299]
    assert not masked[0, :, 7].any() and not masked[1, :, 299].any()


@pytest.mark.parametrize("dtype", STORED)
def test_threads(library, dtype):
    same(library, FUNCTION, lambda: build(dtype, 3, 32, 5000), ["masked", "keep", "variance"])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        *(({"dtype": wrong}, f"unknown dtype {wrong}") for wrong in (4, -1)),
        *(({name: wrong}, "impossible size") for name in ("clips", "frames", "channels") for wrong in (-1, 2**62)),
        ({"clips": 2**40, "frames": 2**40}, "impossible size"),
        *bad_buffers("z", "least"),
        *(({name: "misaligned"}, f"{name} is not aligned") for name in ("masked", "variance")),
    ],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)
