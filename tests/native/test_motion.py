import itertools

import numpy as np
import pytest
from buffers import BF16, F16, F32, F64, STORED, decode, encode

BACKWARD, FORWARD = range(2)


def expected(x, dtype, interval, direction, gradient):
    numbers = decode(x, dtype)
    y = np.zeros_like(numbers)
    frames = x.shape[1]
    for t in range(frames):
        early, late = (t - interval, t) if direction == BACKWARD else (t, t + interval)
        if early < 0 or late >= frames:
            continue
        if gradient:
            y[:, late] += numbers[:, t]
            y[:, early] -= numbers[:, t]
        else:
            y[:, t] = numbers[:, late] - numbers[:, early]
    return encode(y, dtype)


def poisoned(like):
    y = np.empty_like(like)
    y.view(np.uint8)[...] = 0xFF  # a NaN in every floating type
    return y


def call(library, x, dtype, interval=1, direction=BACKWARD, gradient=False, threads=1):
    y = poisoned(x)
    function = library.motion_grad_cpu if gradient else library.motion_cpu
    function(dtype, x.ctypes.data, y.ctypes.data, *x.shape, interval, direction, threads)
    return y


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("gradient", [False, True])
def test_equals_loops(library, dtype, gradient):
    random = np.random.default_rng(0)
    for shape in ((3, 7, 10), (1, 1, 5), (2, 9, 1), (2, 5, 131), (0, 4, 3), (3, 4, 0)):
        x = encode(random.normal(size=shape).astype(np.float64 if dtype == F64 else np.float32), dtype)
        for interval, direction in itertools.product((1, 2, 4, 5, 2**62), (BACKWARD, FORWARD)):
            got = call(library, x, dtype, interval, direction, gradient)
            np.testing.assert_array_equal(
                decode(got, dtype), decode(expected(x, dtype, interval, direction, gradient), dtype)
            )


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_every_half_value_survives(library, dtype):
    every = np.arange(2**16, dtype=np.uint16).view(STORED[dtype])
    x = np.stack([np.zeros_like(every), every])[None]
    got = decode(call(library, x, dtype)[0, 1], dtype)
    np.testing.assert_array_equal(got, decode(every, dtype))


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_half_results_are_rounded_to_nearest_even(library, dtype):
    random = np.random.default_rng(1)
    bits = random.integers(0, 2**16, size=(1, 2, 200_003), dtype=np.uint16)
    bits[0, 1] ^= (
        random.integers(0, 64, size=200_003, dtype=np.uint16) * bits[0, 0]
    )  # neighbours too: exact cancellation
    x = bits.view(STORED[dtype])
    with np.errstate(invalid="ignore", over="ignore"):
        want = decode(encode(decode(x[0, 1], dtype) - decode(x[0, 0], dtype), dtype), dtype)
    np.testing.assert_array_equal(decode(call(library, x, dtype)[0, 1], dtype), want)


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_threads_share_the_work_without_gaps(library, threads):
    x = np.random.default_rng(2).normal(size=(50, 64, 98)).astype(np.float32)
    for gradient in (False, True):
        got = call(library, x, F32, gradient=gradient, threads=threads)
        np.testing.assert_array_equal(got, expected(x, F32, 1, BACKWARD, gradient))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_results_written_past_the_caches(library, dtype, offset):
    size = np.dtype(STORED[dtype]).itemsize
    rows, frames, row = (32 << 20) // size // (64 * 98) + 1, 64, 98
    numbers = np.random.default_rng(3).normal(size=10_007).astype(np.float32)
    x = np.resize(encode(numbers, dtype), (rows, frames, row))
    buffer = np.empty(x.size + offset, x.dtype)
    y = buffer[offset:].reshape(x.shape)
    y[...] = poisoned(x[:1, :1, :1])
    library.motion_cpu(dtype, x.ctypes.data, y.ctypes.data, *x.shape, 1, BACKWARD, 2)
    for chosen in (0, rows // 2, rows - 1):
        part = slice(chosen, chosen + 1)
        np.testing.assert_array_equal(
            decode(y[part], dtype), decode(expected(x[part], dtype, 1, BACKWARD, False), dtype)
        )
    assert not np.isnan(decode(y, dtype)).any()


@pytest.mark.slow
def test_more_than_two_to_the_31_elements(library):
    frames = 2**31 + 7
    x = np.zeros((1, frames, 1), np.float16)
    x[0, -3:] = [[1.0], [3.0], [7.0]]
    y = np.empty_like(x)
    library.motion_cpu(F16, x.ctypes.data, y.ctypes.data, *x.shape, 2, BACKWARD, 2)
    assert y[0, -4:, 0].tolist() == [0.0, 1.0, 3.0, 6.0] and y[0, :2, 0].tolist() == [0.0, 0.0]


GOOD = {
    "dtype": F32,
    "x": 64,
    "y": 4096,
    "outer": 2,
    "frames": 3,
    "row": 4,
    "interval": 1,
    "direction": 0,
    "threads": 1,
}


@pytest.mark.parametrize("function", ["motion_cpu", "motion_grad_cpu", "motion_cuda", "motion_grad_cuda"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": 4}, "unknown dtype 4"),
        ({"dtype": -1}, "unknown dtype -1"),
        ({"direction": 2}, "unknown direction 2"),
        ({"interval": 0}, "interval must be >= 1, got 0"),
        ({"outer": -1}, "impossible sizes outer=-1"),
        ({"frames": -3}, "impossible sizes outer=2 frames=-3"),
        ({"row": 2**62}, "impossible sizes"),
        ({"outer": 2**40, "frames": 2**20}, "impossible sizes"),
        ({"x": 0}, "a buffer is null"),
        ({"y": 0}, "a buffer is null"),
        ({"x": 66}, "not aligned"),
        ({"y": 64}, "the buffers overlap"),
        ({"y": 64 + 92}, "the buffers overlap"),
        ({"x": 4096 + 92}, "the buffers overlap"),
    ],
)
def test_bad_arguments_raise_and_touch_nothing(library, function, wrong, message):
    arguments = {**GOOD, **wrong}
    if function.endswith("cuda"):
        arguments["threads"] = 0  # the null stream
    with pytest.raises(ValueError, match=f"{function}: .*{message}"):
        getattr(library, function)(*arguments.values())


def test_wrong_python_types_raise(library):
    for wrong in ({"x": -1}, {"outer": 2**63}, {"frames": 1.5}, {"dtype": "f32"}, {"threads": 2**31}):
        with pytest.raises(TypeError):
            library.motion_cpu(*{**GOOD, **wrong}.values())


def test_cuda_call_in_a_build_without_cuda(library):
    if "cuda=built" in library.build_info():
        pytest.skip("this build has CUDA")
    with pytest.raises(NotImplementedError, match="built without CUDA: not built: "):
        library.motion_cuda(*{**GOOD, "threads": 0}.values())
