import numpy as np
import pytest
from bank_oracles import BANK_DTYPES, close, info_nce, mined_bce, narrow
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

FUNCTION = "bank_losses_cpu"
RESULTS = ["info_nce", "mined_bce", "grad_info_nce", "grad_mined_bce"]


def build(dtype=F32, bank_dtype=F32, b=5, n=37, d=11, m=4, layout="row", temperatures=(0.07, 0.02), p=None):
    p = b if p is None else p
    random = np.random.default_rng([b, n, d, m])
    query, positive, bank = (unit_rows(random, count, d) for count in (b, b, n))
    bank = Bank(bank, bank_dtype, layout)
    positives = random.integers(-1, n, size=(p, m))
    return {
        "dtype": dtype,
        "query": filled(query, STORED[dtype]),
        "positive": filled(positive, STORED[dtype]),
        **bank.arguments(),
        "positives": filled(positives, np.int64),
        "b": b,
        "n": n,
        "d": d,
        "p": p,
        "m": m,
        "temperature": temperatures[0],
        "mined_temperature": temperatures[1],
        "info_nce": empty([b], STORED[dtype]),
        "mined_bce": empty([p], STORED[dtype]),
        "grad_info_nce": empty([b, d], STORED[dtype]),
        "grad_mined_bce": empty([p, d], STORED[dtype]),
        "threads": 1,
    }


def check(library, done, rows=slice(None)):
    dtype, bank = done["dtype"], done["bank"]
    half = narrow(library, dtype, bank)
    query = done["query"][rows]
    loss, _, grad = info_nce(dtype, query, done["positive"][rows], bank.numbers, done["temperature"], half)
    close(done["info_nce"][rows], *loss)
    close(done["grad_info_nce"][rows], *grad)
    positives = done["positives"][rows]
    loss, grad = mined_bce(dtype, query, bank.numbers, positives, done["mined_temperature"], half)
    close(done["mined_bce"][rows], *loss)
    close(done["grad_mined_bce"][rows], *grad)


SIZES = [(1, 1, 1, 1), (7, 300, 252, 10), (3, 5, 507, 7), (33, 97, 123, 40), (17, 191, 1, 2), (65, 1000, 16, 10)]


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_values(library, dtype, bank_dtype):
    for index, (b, n, d, m) in enumerate(SIZES):
        temperatures = [(0.07, 0.02), (1.0, 0.05), (0.1, 10.0)][index % 3]
        check(library, call(library, FUNCTION, build(dtype, bank_dtype, b, n, d, m, LAYOUTS[index % 3], temperatures)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_layouts(library, layout, bank_dtype):
    n = {"far": 7, "same": 29}.get(layout, 205)
    for dtype in COMPUTED:
        check(library, call(library, FUNCTION, build(dtype, bank_dtype, 9, n, 19, 5, layout)))


def test_no_positives_at_all(library):
    for dtype in COMPUTED:
        for pointer in ({}, {"positives": None}):
            done = call(library, FUNCTION, {**build(dtype, F32, 7, 150, 30, 0), **pointer})
            check(library, {**done, "positives": np.zeros((7, 0), np.int64)})


def test_only_the_first_rows_have_positives(library):
    for dtype in COMPUTED:
        for bank_dtype in BANK_DTYPES:
            whole = call(library, FUNCTION, build(dtype, bank_dtype, 150, 300, 30))
            for p in (0, 1, 16, 64, 65, 149):
                arguments = build(dtype, bank_dtype, 150, 300, 30, p=p)
                arguments["positives"][:] = whole["positives"][:p]
                done = call(library, FUNCTION, arguments)
                for name in RESULTS:
                    np.testing.assert_array_equal(done[name], whole[name][: len(done[name])])


def test_unwanted_gradients(library):
    for dtype in COMPUTED:
        whole = call(library, FUNCTION, build(dtype, F32, 7, 150, 30))
        for unwanted in (("grad_info_nce",), ("grad_mined_bce",), ("grad_info_nce", "grad_mined_bce")):
            part = call(library, FUNCTION, {**build(dtype, F32, 7, 150, 30), **dict.fromkeys(unwanted)})
            for name in set(RESULTS) - set(unwanted):
                np.testing.assert_array_equal(part[name], whole[name])


def test_empty_batch_writes_nothing(library):
    assert call(library, FUNCTION, build(b=0))["info_nce"].size == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bank_dtype", [F32, BF16, F16])
def test_a_row_that_is_not_finite_spoils_only_itself(library, wrong, bank_dtype):
    for dtype in COMPUTED:
        arguments = build(dtype, bank_dtype, 37, 150, 30)
        arguments["query"][3, 4] = wrong
        done = call(library, FUNCTION, arguments)
        assert not np.isfinite([done["info_nce"][3], done["mined_bce"][3]]).any()
        check(library, done, np.arange(37) != 3)


def test_a_bank_row_that_is_nan_spoils_every_row(library):
    for dtype in COMPUTED:
        for bank_dtype in BANK_DTYPES:
            arguments = build(dtype, bank_dtype, 20, 150, 30)
            arguments["bank"].spoil(149, 4, np.nan)
            done = call(library, FUNCTION, arguments)
            for name in RESULTS:
                assert not np.isfinite(done[name]).any()


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_threads(library, bank_dtype):
    for dtype in COMPUTED:
        same_for_any_threads(library, FUNCTION, lambda dtype=dtype: build(dtype, bank_dtype, 35, 6001, 33), RESULTS)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [*BAD_BANK, *bad_temperatures("temperature"), *bad_temperatures("mined_temperature")]
    + bad_buffers("query", "positive", "info_nce", "mined_bce")
    + [({name: "misaligned"}, "align") for name in ("positives", "grad_info_nce", "grad_mined_bce")]
    + [({"m": -1}, "impossible"), ({"p": -1}, "impossible"), ({"p": 6}, "at most 5 rows")],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)
