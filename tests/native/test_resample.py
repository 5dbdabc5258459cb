import numpy as np
import pytest
from buffers import BF16, F32, F64, STORED, bad_buffers, call, decode, empty, encode, filled, refused
from buffers import same_for_any_threads as same
from clip_oracles import BAD_WINDOWS, numbers, plain, resampled, spoiled_windows, wide_of, windows


def build(dtype=F32, row=10, out_frames=7):
    frames = np.random.default_rng(row).normal(size=(24, row)).astype(wide_of(dtype))
    return {
        "dtype": dtype,
        "frames": filled(encode(frames, dtype)),
        "total": 24,
        "row": row,
        **windows(out_frames),
        "result": empty((2, 3, out_frames, row), STORED[dtype]),
        "threads": 1,
    }


def build_nearest(row=10, out_frames=7):
    frames = np.random.default_rng(row).integers(0, 256, (24, row), np.uint8)
    result = empty((2, 3, out_frames, row), np.uint8)
    return {"frames": filled(frames), "total": 24, "row": row, **windows(out_frames), "result": result, "threads": 1}


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("row", [0, 1, 3, 4, 7, 8, 15, 16, 17, 98, 147])
def test_equals_loops_bit_by_bit(library, dtype, row):
    for out_frames in (1, 6, 14, 64):
        done = call(library, "resample_cpu", build(dtype, row, out_frames))
        expected = encode(resampled(numbers(done, "frames"), done), dtype)
        np.testing.assert_array_equal(numbers(done, "result"), decode(expected, dtype))


@pytest.mark.parametrize("row", [0, 1, 3, 98, 300])
def test_nearest_copies_bytes(library, row):
    for out_frames in (1, 6, 14, 64):
        done = plain(call(library, "resample_nearest_cpu", build_nearest(row, out_frames)))
        np.testing.assert_array_equal(done["result"], resampled(done["frames"], done, "nearest"))


def test_a_frame_of_weight_zero_is_not_read(library):
    arguments = build(F32, 5, 14)  # the third window of the first view is its 14 frames
    arguments["frames"][12] = np.nan
    done = call(library, "resample_cpu", arguments)
    assert np.isnan(done["result"][0, 2]).any(1).nonzero()[0].tolist() == [2]


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_threads(library, dtype):
    same(library, "resample_cpu", lambda: build(dtype, 1000, 400), ["result"])
    same(library, "resample_nearest_cpu", lambda: build_nearest(4000, 400), ["result"])


def test_bad_arguments(library):
    sizes = [({"row": wrong}, "impossible size") for wrong in (-1, 2**61, 2**62)]
    for wrong, word in [*BAD_WINDOWS, *sizes, *bad_buffers("frames", "result")]:
        refused(library, "resample_cpu", build(), wrong, word)
    for wrong in (4, -1):
        refused(library, "resample_cpu", build(), {"dtype": wrong}, f"unknown dtype {wrong}")
    for wrong, word in [*BAD_WINDOWS, *sizes, ({"frames": 0}, "null"), ({"result": 0}, "null")]:
        refused(library, "resample_nearest_cpu", build_nearest(), wrong, word)


def test_windows_outside_their_clips(library):
    for function, good in (("resample_cpu", build()), ("resample_nearest_cpu", build_nearest())):
        for word in spoiled_windows(good):
            refused(library, function, good, {}, word)
