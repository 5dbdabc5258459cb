import numpy as np
import pytest
from buffers import F32, F64, STORED, bad_buffers, call, decode, empty, encode, filled, refused
from buffers import same_for_any_threads as same

FUNCTION = "otsu_mask_cpu"

# clips, frames, pixels
SIZES = [(1, 1, 1), (2, 3, 99), (1, 5, 1000), (3, 1, 16), (1, 2, 7), (2, 9, 65), (0, 3, 5), (2, 0, 5), (2, 3, 0)]


def build(dtype=F32, clips=2, frames=3, pixels=99, *, still=True):
    random = np.random.default_rng([clips, frames, pixels])
    x = 0.2 + 0.2 * random.normal(size=(clips, frames, 3, pixels))
    x[..., pixels // 3 :] += 0.6
    wide = np.float64 if dtype == F64 else np.float32
    return {
        "dtype": dtype,
        "frames": filled(encode(x, dtype)),
        "still": filled(random.random((3, pixels)).astype(wide)) if still else None,
        "clips": clips,
        "frames_each": frames,
        "pixels": pixels,
        "mask": empty((clips, frames, pixels), np.uint8),
        "threads": 1,
    }


def check(done):
    """Grey levels in the compute type, bit by bit; the threshold by the variance between both sides, one by one."""
    x = decode(np.array(done["frames"]), done["dtype"])
    if done["still"] is not None:
        x = np.abs(x - np.array(done["still"]))
    red, green, blue = (x.dtype.type(weight) * x[:, :, c] for c, weight in enumerate((0.299, 0.587, 0.114)))
    grey = np.clip(np.nan_to_num(red + green + blue, nan=0.0), x.dtype.type(0), x.dtype.type(1))
    levels = (grey * x.dtype.type(255) + x.dtype.type(0.5)).astype(np.int64)
    for clip, mask in zip(levels, np.array(done["mask"]), strict=True):
        best, expected = -1.0, np.ones(clip.shape)
        for threshold in range(255):
            front, back = clip[clip > threshold], clip[clip <= threshold]
            if front.size and back.size:
                between = front.size * back.size * (front.mean() - back.mean()) ** 2
                if between > best * (1 + 1e-12):
                    best, expected = between, clip > threshold
        np.testing.assert_array_equal(mask, expected)
    return done


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_loops(library, dtype, sizes):
    for still in (True, False):
        done = check(call(library, FUNCTION, build(dtype, *sizes, still=still)))
        assert np.array(done["mask"]).size == 0 or sizes[2] < 10 or 0 < np.array(done["mask"]).mean() < 1


@pytest.mark.parametrize("dtype", STORED)
def test_numbers_that_are_not_finite(library, dtype):
    arguments = build(dtype, still=False)
    values = encode(np.array([np.nan, np.inf, -np.inf]), dtype)
    arguments["frames"][0, 0, :, 3:6], arguments["frames"][1, 2, 1, -3:] = values, values
    with np.errstate(invalid="ignore"):
        check(call(library, FUNCTION, arguments))


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_one_level_has_no_two_sides(library, level):
    arguments = build(still=False)
    arguments["frames"][0] = level / 255
    mask = np.array(check(call(library, FUNCTION, arguments))["mask"])
    assert mask[0].all() and not mask[1].all()


def test_the_lowest_and_the_highest_level(library):
    for low, high in ((0, 255), (0, 1), (254, 255)):
        arguments = build(still=False)
        arguments["frames"][...] = low / 255
        arguments["frames"][..., 5] = high / 255
        mask = np.array(check(call(library, FUNCTION, arguments))["mask"])
        assert mask[..., 5].all() and mask.sum() == 6


@pytest.mark.parametrize("dtype", STORED)
def test_threads(library, dtype):
    same(library, FUNCTION, lambda: build(dtype, 3, 16, 5000), ["mask"])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        *(({"dtype": wrong}, f"unknown dtype {wrong}") for wrong in (4, -1)),
        *(({name: wrong}, "impossible size") for name in ("clips", "frames_each", "pixels") for wrong in (-1, 2**62)),
        ({"clips": 2**40, "frames_each": 2**40}, "impossible size"),
        ({"clips": 0, "pixels": 2**31}, "pixels must be at most 2147483647, got 2147483648"),
        *bad_buffers("frames"),
        ({"mask": 0}, "mask is null"),
        ({"still": "misaligned"}, "still is not aligned"),
    ],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)
