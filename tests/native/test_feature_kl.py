import numpy as np
import pytest
from bank_oracles import UNIT, close, kl
from buffers import (
    BF16,
    COMPUTED,
    F16,
    F32,
    STORED,
    bad_buffers,
    bad_temperatures,
    call,
    empty,
    filled,
    refused,
    same_for_any_threads,
    unit_rows,
)

FUNCTION = "feature_kl_cpu"


def build(dtype=F32, b=5, d=11, temperature=0.1, values=None):
    random = np.random.default_rng([b, d])
    teacher, student = values or (unit_rows(random, b, d), unit_rows(random, b, d))
    return {
        "dtype": dtype,
        "teacher": filled(teacher, STORED[dtype]),
        "student": filled(student, STORED[dtype]),
        "b": b,
        "d": d,
        "temperature": temperature,
        "loss": empty([b], STORED[dtype]),
        "grad": empty([b, d], STORED[dtype]),
        "threads": 1,
    }


def check(done, rows=slice(None)):
    dtype, temperature = done["dtype"], done["temperature"]
    teacher, student = (done[name][rows].astype(np.float64) / temperature for name in ("teacher", "student"))
    errors = [4 * UNIT[dtype] * np.abs(x) for x in (teacher, student)]
    loss, weight, off = kl(dtype, teacher, errors[0], student, errors[1], np.ones(teacher.shape, bool))
    close(done["loss"][rows], *loss)
    close(done["grad"][rows], weight / temperature, off / temperature)


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 10.0])
def test_values(library, dtype, temperature):
    for b, d in ((1, 1), (7, 252), (3, 507), (33, 123), (17, 2), (65, 16), (2, 5000), (0, 4)):
        check(call(library, FUNCTION, build(dtype, b, d, temperature)))


@pytest.mark.parametrize("dtype", COMPUTED)
def test_lengths(library, dtype):
    random = np.random.default_rng(0)
    for scale in (1e-30, 1e-3, 30.0, 1e4):
        values = [scale * unit_rows(random, 9, 40) for _ in range(2)]
        check(call(library, FUNCTION, build(dtype, 9, 40, 0.1, values)))


@pytest.mark.parametrize("dtype", COMPUTED)
def test_equal_features(library, dtype):
    random = np.random.default_rng(1)
    for values in ([unit_rows(random, 9, 40)] * 2, [np.ones((9, 40)), np.zeros((9, 40))]):
        done = call(library, FUNCTION, build(dtype, 9, 40, 0.1, values))
        np.testing.assert_allclose(done["loss"], 0.0, atol=16 * UNIT[dtype])
        np.testing.assert_allclose(done["grad"], 0.0, atol=160 * UNIT[dtype])


def test_unwanted_gradient(library):
    for dtype in COMPUTED:
        whole = call(library, FUNCTION, build(dtype, 7, 150))
        part = call(library, FUNCTION, {**build(dtype, 7, 150), "grad": None})
        np.testing.assert_array_equal(part["loss"], whole["loss"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_row_that_is_not_finite_spoils_only_itself(library, wrong, name):
    for dtype in COMPUTED:
        for column in (0, 4, 29):
            arguments = build(dtype, 37, 30)
            arguments[name][3, column] = wrong
            done = call(library, FUNCTION, arguments)
            assert not np.isfinite(done["loss"][3])
            check(done, np.arange(37) != 3)


def test_threads(library):
    for dtype in COMPUTED:
        same_for_any_threads(library, FUNCTION, lambda dtype=dtype: build(dtype, 1001, 300), ["loss", "grad"])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        *(({"dtype": wrong}, "dtype") for wrong in (4, -1, BF16, F16)),
        *(({size: wrong}, "impossible") for size in ("b", "d") for wrong in (-1, -(2**62))),
        ({"b": 2**62}, "impossible"),
        *bad_temperatures("temperature"),
        *bad_buffers("teacher", "student", "loss"),
        ({"grad": "misaligned"}, "align"),
    ],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)
