import numpy as np
import pytest
from bank_oracles import BANK_DTYPES, close, mined_bce, narrow
from buffers import (
    BAD_BANK,
    BF16,
    COMPUTED,
    F16,
    F32,
    LAYOUTS,
    STORED,
    Bank,
    bad_buffers,
    bad_temperatures,
    call,
    empty,
    filled,
    refused,
    same_for_any_threads,
    unit_rows,
)

FUNCTION = "mined_bce_cpu"


def build(dtype=F32, bank_dtype=F32, b=5, n=37, d=11, m=4, layout="row", temperature=0.02, scale=1.0, positives=None):
    random = np.random.default_rng([b, n, d, m])
    bank = Bank(scale * unit_rows(random, n, d), bank_dtype, layout)
    if positives is None:
        positives = random.integers(-1, n, size=(b, m))
        positives[:, 1::3] = positives[:, : m - 1 : 3][:, : positives[:, 1::3].shape[1]]  # repeated
    return {
        "dtype": dtype,
        "query": filled(scale * unit_rows(random, b, d), STORED[dtype]),
        **bank.arguments(),
        "positives": filled(positives, np.int64),
        "b": b,
        "n": n,
        "d": d,
        "m": m,
        "temperature": temperature,
        "loss": empty([b], STORED[dtype]),
        "grad": empty([b, d], STORED[dtype]),
        "threads": 1,
    }


def check(library, done, rows=slice(None)):
    half = narrow(library, done["dtype"], done["bank"])
    query, positives = done["query"][rows], done["positives"][rows]
    loss, grad = mined_bce(done["dtype"], query, done["bank"].numbers, positives, done["temperature"], half)
    close(done["loss"][rows], *loss)
    close(done["grad"][rows], *grad)


SIZES = [(1, 1, 1, 1), (7, 300, 252, 10), (3, 5, 507, 7), (33, 97, 123, 40), (17, 191, 1, 2), (65, 1000, 16, 10)]


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_values(library, dtype, bank_dtype):
    for index, (b, n, d, m) in enumerate(SIZES):
        check(library, call(library, FUNCTION, build(dtype, bank_dtype, b, n, d, m, LAYOUTS[index % 3])))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_layouts(library, layout, bank_dtype):
    n = {"far": 7, "same": 29}.get(layout, 205)
    for dtype in COMPUTED:
        check(library, call(library, FUNCTION, build(dtype, bank_dtype, 9, n, 19, 5, layout)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 5.0, 1e3])
def test_temperatures_and_lengths(library, scale):
    for dtype in COMPUTED:
        for temperature in (0.01, 1.0, 10.0):
            check(library, call(library, FUNCTION, build(dtype, dtype, 6, 130, 24, 5, "row", temperature, scale)))


def test_what_counts_as_a_positive(library):
    n = 37
    cases = np.array([[-1, -1, -1, -1], [5, 5, 5, 5], [5, -1, -1, -1], [0, 36, 0, 36], [36, 0, -1, -1]])
    outside = np.array(
        [[n, -2, n + 1, 2**62], [5, n, 2**63 - 1, -(2**63)], [-7, 5, -1, 5], [0, n, 36, n], [36, -9, 0, 0]]
    )
    for dtype in COMPUTED:
        given = call(library, FUNCTION, build(dtype, positives=cases))
        check(library, given)
        padded = call(library, FUNCTION, build(dtype, positives=np.array(outside)))
        np.testing.assert_array_equal(padded["loss"], given["loss"])
        np.testing.assert_array_equal(padded["grad"], given["grad"])


def test_every_row_may_be_a_positive(library):
    random = np.random.default_rng(0)
    positives = np.stack([random.permutation(150) for _ in range(6)])
    check(library, call(library, FUNCTION, build(F32, F32, 6, 150, 12, 150, positives=positives)))


def test_no_positives_at_all(library):
    for pointer in ({}, {"positives": None}):
        done = call(library, FUNCTION, {**build(m=0, positives=np.zeros((5, 0))), **pointer})
        check(library, {**done, "positives": np.zeros((5, 0), np.int64)})


def test_empty_batch_writes_nothing(library):
    assert call(library, FUNCTION, build(b=0))["loss"].size == 0


def test_unwanted_gradient(library):
    for dtype in COMPUTED:
        whole = call(library, FUNCTION, build(dtype, F32, 7, 150, 30))
        part = call(library, FUNCTION, {**build(dtype, F32, 7, 150, 30), "grad": None})
        np.testing.assert_array_equal(part["loss"], whole["loss"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bank_dtype", [F32, BF16, F16])
def test_a_row_that_is_not_finite_spoils_only_itself(library, wrong, bank_dtype):
    for dtype in COMPUTED:
        arguments = build(dtype, bank_dtype, 37, 150, 30)
        arguments["query"][3, 4] = wrong
        done = call(library, FUNCTION, arguments)
        assert not np.isfinite(done["loss"][3])
        check(library, done, np.arange(37) != 3)


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_a_bank_row_that_is_not_finite(library, bank_dtype):
    for dtype in COMPUTED:
        for wrong in (np.nan, np.inf, -np.inf):
            arguments = build(dtype, bank_dtype, 20, 150, 30)
            arguments["bank"].spoil(149, 4, wrong)
            done = call(library, FUNCTION, arguments)
            assert not np.isfinite(done["grad"]).all(1).any()
            above = arguments["query"][:, 4] * wrong > 0
            assert not np.isfinite(done["loss"][above | np.isnan(wrong)]).any()


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_threads(library, bank_dtype):
    for dtype in COMPUTED:
        same_for_any_threads(
            library, FUNCTION, lambda dtype=dtype: build(dtype, bank_dtype, 35, 6001, 33), ["loss", "grad"]
        )


@pytest.mark.parametrize(
    ("wrong", "word"),
    [*BAD_BANK, *bad_temperatures("temperature"), *bad_buffers("query", "positives", "loss")]
    + [({"grad": "misaligned"}, "align"), ({"m": -1}, "impossible"), ({"m": 2**61}, "impossible")],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)
