import numpy as np
import pytest
from bank_oracles import BANK_DTYPES, close, info_nce, narrow
from buffers import (
    BAD_BANK,
    BF16,
    COMPUTED,
    F16,
    F32,
    F64,
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
    untouched,
)

FUNCTION = "info_nce_cpu"


def build(dtype=F32, bank_dtype=F32, b=5, n=37, d=11, layout="row", temperature=0.07, values=None):
    random = np.random.default_rng([b, n, d])
    query, positive, bank = values or (unit_rows(random, count, d) for count in (b, b, n))
    bank = Bank(bank, bank_dtype, layout)
    return {
        "dtype": dtype,
        "query": filled(query, STORED[dtype]),
        "positive": filled(positive, STORED[dtype]),
        **bank.arguments(),
        "b": b,
        "n": n,
        "d": d,
        "temperature": temperature,
        "loss": empty([b], STORED[dtype]),
        "rank": empty([b], np.int64),
        "grad": empty([b, d], STORED[dtype]),
        "threads": 1,
    }


def check(library, done, rows=slice(None)):
    dtype, bank = done["dtype"], done["bank"]
    query, positive = done["query"][rows], done["positive"][rows]
    half = narrow(library, dtype, bank)
    loss, rank, grad = info_nce(dtype, query, positive, bank.numbers, done["temperature"], half)
    close(done["loss"][rows], *loss)
    assert (rank[0] <= done["rank"][rows]).all() and (done["rank"][rows] <= rank[1]).all()
    close(done["grad"][rows], *grad)


SIZES = [(1, 1, 1), (7, 300, 252), (3, 5, 507), (33, 97, 123), (17, 191, 1), (2, 96, 128), (65, 1000, 16), (4, 3000, 8)]


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_values(library, dtype, bank_dtype):
    for index, (b, n, d) in enumerate(SIZES):
        layout = LAYOUTS[index % 3]
        check(library, call(library, FUNCTION, build(dtype, bank_dtype, b, n, d, layout)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_layouts(library, layout, bank_dtype):
    n = {"far": 7, "same": 29}.get(layout, 205)
    for dtype in COMPUTED:
        check(library, call(library, FUNCTION, build(dtype, bank_dtype, 9, n, 19, layout)))


@pytest.mark.parametrize("temperature", [0.01, 1.0, 10.0])
def test_temperatures_and_lengths(library, temperature):
    random = np.random.default_rng(0)
    for scale in (1e-4, 1.0, 3.0):
        values = [scale * unit_rows(random, count, 24) for count in (6, 6, 130)]
        for dtype in COMPUTED:
            check(library, call(library, FUNCTION, build(dtype, dtype, 6, 130, 24, "row", temperature, values)))


@pytest.mark.parametrize("dtype", COMPUTED)
def test_long_vectors_do_not_overflow(library, dtype):
    random = np.random.default_rng(1)
    values = [1e4 * unit_rows(random, count, 24) for count in (6, 6, 130)]
    done = call(library, FUNCTION, build(dtype, dtype, 6, 130, 24, "row", 0.01, values))
    want, _, _ = info_nce(dtype, done["query"], done["positive"], done["bank"].numbers, 0.01)
    close(done["loss"], *want)
    assert np.isfinite(done["grad"]).all()


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_rank_counts_only_what_is_strictly_above(library, bank_dtype):
    random = np.random.default_rng(2)
    values = [random.integers(-3, 4, size=(count, 5)).astype(float) for count in (40, 40, 500)]
    for dtype in COMPUTED:
        done = call(library, FUNCTION, build(dtype, bank_dtype, 40, 500, 5, "row", 0.5, values))
        own = (values[0] * values[1]).sum(1)
        np.testing.assert_array_equal(done["rank"], (values[0] @ values[2].T > own[:, None]).sum(1))


def test_empty_batch_writes_nothing(library):
    done = call(library, FUNCTION, build(b=0))
    assert done["loss"].size == 0
    getattr(library, FUNCTION)(F32, 0, 0, F32, done["bank"].address, 11, 1, 0, 37, 11, 0.07, 0, 0, 0, 1)


@pytest.mark.parametrize("unwanted", [("grad",), ("rank",), ("grad", "rank")])
def test_unwanted_results(library, unwanted):
    for dtype in COMPUTED:
        whole = call(library, FUNCTION, build(dtype, F32, 7, 150, 30))
        part = call(library, FUNCTION, {**build(dtype, F32, 7, 150, 30), **dict.fromkeys(unwanted)})
        for name in {"loss", "grad", "rank"} - set(unwanted):
            np.testing.assert_array_equal(part[name], whole[name])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bank_dtype", [F32, BF16, F16])
def test_a_row_that_is_not_finite_spoils_only_itself(library, wrong, bank_dtype):
    for dtype in COMPUTED:
        for name in ("query", "positive"):
            arguments = build(dtype, bank_dtype, 37, 150, 30)
            arguments[name][3, 4] = wrong
            done = call(library, FUNCTION, arguments)
            assert not np.isfinite(done["loss"][3]) and not np.isfinite(done["grad"][3]).all()
            assert 0 <= done["rank"][3] <= 150
            check(library, done, np.arange(37) != 3)


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
@pytest.mark.parametrize("layout", ["row", "column"])
def test_a_bank_row_that_is_not_finite(library, bank_dtype, layout):
    random = np.random.default_rng(3)
    for dtype in COMPUTED:
        for wrong in (np.nan, np.inf, -np.inf):
            values = [unit_rows(random, count, 30) for count in (20, 20, 150)]
            values[2][149, 4] = wrong
            done = call(library, FUNCTION, build(dtype, bank_dtype, 20, 150, 30, layout, values=values))
            above = values[0][:, 4] * wrong > 0
            assert not np.isfinite(done["grad"]).all(1).any()
            assert not np.isfinite(done["loss"][above | np.isnan(wrong)]).any()


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_threads(library, bank_dtype):
    sizes = {"b": 35, "n": 6001, "d": 33}
    same_for_any_threads(library, FUNCTION, lambda: build(F32, bank_dtype, **sizes), ["loss", "rank", "grad"])
    same_for_any_threads(library, FUNCTION, lambda: build(F64, bank_dtype, **sizes), ["loss", "rank", "grad"])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [*BAD_BANK, *bad_temperatures("temperature"), *bad_buffers("query", "positive", "loss")]
    + [({"rank": "misaligned"}, "align"), ({"grad": "misaligned"}, "align")],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)


def test_results_are_poisoned_before_a_call():
    arguments = build()
    assert all(untouched(arguments[name]) for name in ("loss", "rank", "grad"))
