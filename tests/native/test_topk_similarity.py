import numpy as np
import pytest
from bank_oracles import BANK_DTYPES, UNIT, close, narrow, scores
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
    call,
    empty,
    filled,
    refused,
    same_for_any_threads,
    unit_rows,
)

FUNCTION = "topk_similarity_cpu"


def build(dtype=F32, bank_dtype=F32, b=5, n=37, d=11, k=4, ordered=1, layout="row", values=None):
    random = np.random.default_rng([b, n, d])
    query, bank = values or (unit_rows(random, b, d), unit_rows(random, n, d))
    return {
        "dtype": dtype,
        "query": filled(query, STORED[dtype]),
        **Bank(bank, bank_dtype, layout).arguments(),
        "b": b,
        "n": n,
        "d": d,
        "k": k,
        "sorted": ordered,
        "values": empty([b, k], STORED[dtype]),
        "indices": empty([b, k], np.int64),
        "threads": 1,
    }


def check(library, done, rows=slice(None)):
    dtype, bank, k = done["dtype"], done["bank"], done["k"]
    values, indices = done["values"][rows], done["indices"][rows]
    s, error = scores(dtype, done["query"][rows], bank.numbers, 1.0, narrow(library, dtype, bank))
    assert ((indices >= 0) & (indices < done["n"])).all()
    close(values, np.take_along_axis(s, indices, 1), np.take_along_axis(error, indices, 1))
    mask = np.zeros(s.shape, bool)
    np.put_along_axis(mask, indices, True, 1)
    assert (mask.sum(1) == k).all()
    left = np.where(mask, -np.inf, s - error).max(1, initial=-np.inf)
    assert (np.where(mask, s + error, np.inf).min(1, initial=np.inf) >= left).all()
    if done["sorted"]:
        fall, rise = values[:, :-1] - values[:, 1:], indices[:, 1:] - indices[:, :-1]
        assert (fall >= 0).all() and (rise[fall == 0] > 0).all()
    else:
        assert (np.diff(indices, axis=1) > 0).all()


SIZES = [(1, 1, 1), (7, 300, 252), (3, 5, 507), (33, 97, 123), (17, 191, 1), (2, 96, 128), (65, 1000, 16), (3, 9001, 5)]


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
@pytest.mark.parametrize("ordered", [0, 1])
def test_values(library, dtype, bank_dtype, ordered):
    for index, (b, n, d) in enumerate(SIZES):
        for k in {1, min(10, n), (n + 1) // 2, n}:
            done = call(library, FUNCTION, build(dtype, bank_dtype, b, n, d, k, ordered, LAYOUTS[index % 3]))
            check(library, done)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_layouts(library, layout, bank_dtype):
    n = {"far": 7, "same": 29}.get(layout, 205)
    for dtype in COMPUTED:
        for k in (1, 5, n):
            check(library, call(library, FUNCTION, build(dtype, bank_dtype, 9, n, 19, k, 1, layout)))


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_of_equal_scores_the_first_come_first(library, dtype, bank_dtype):
    random = np.random.default_rng(0)
    for b, n, d in ((20, 210, 3), (3, 5000, 2)):
        values = [random.integers(-2, 3, size=shape).astype(float) for shape in ((b, d), (n, d))]
        values[0][0] = 0.0
        whole = values[0] @ values[1].T
        order = np.argsort(-whole, axis=1, kind="stable")
        for k in (1, 10, n // 2, n - 1, n):
            for ordered in (0, 1):
                done = call(library, FUNCTION, build(dtype, bank_dtype, b, n, d, k, ordered, values=values))
                want = order[:, :k] if ordered else np.sort(order[:, :k], axis=1)
                np.testing.assert_array_equal(done["indices"], want)
                np.testing.assert_array_equal(done["values"], np.take_along_axis(whole, want, 1))


def test_rows_in_rising_and_falling_order(library):
    for n in (130, 5000):
        for slope in (1.0, -1.0):
            bank = slope * np.arange(n, dtype=float)[:, None] / 256
            values = [np.array([[1.0], [-1.0], [0.0]]), bank]
            for k in (1, 10, n // 2, n):
                check(library, call(library, FUNCTION, build(F32, F32, 3, n, 1, k, values=values)))


def test_zeros_of_both_signs_are_equal(library):
    bank = np.where(np.arange(50) % 3 == 0, 0.0, -0.0)[:, None]
    for dtype in COMPUTED:
        for k in (1, 10, 25, 50):
            done = call(library, FUNCTION, build(dtype, dtype, 2, 50, 1, k, values=[np.ones((2, 1)), bank]))
            np.testing.assert_array_equal(done["indices"], np.tile(np.arange(k), (2, 1)))


def test_empty_batch_writes_nothing(library):
    assert call(library, FUNCTION, build(b=0))["values"].size == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bank_dtype", [F32, BF16, F16])
def test_a_row_that_is_not_finite_spoils_only_itself(library, wrong, bank_dtype):
    for dtype in COMPUTED:
        for k in (1, 10, 70, 150):
            arguments = build(dtype, bank_dtype, 37, 150, 30, k)
            arguments["query"][3, 4] = wrong
            done = call(library, FUNCTION, arguments)
            assert len(set(done["indices"][3])) == k and set(done["indices"][3]) <= set(range(150))
            check(library, done, np.arange(37) != 3)


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
@pytest.mark.parametrize("ordered", [0, 1])
def test_nan_ranks_beside_infinity(library, bank_dtype, ordered):
    random = np.random.default_rng(1)
    bank = random.integers(1, 4, size=(150, 1)).astype(float)
    bank[[7, 100], 0] = np.nan
    bank[[3, 90, 149], 0] = np.inf
    bank[[0, 5], 0] = -np.inf
    rank = np.where(np.isnan(bank[:, 0]), np.inf, bank[:, 0])
    order = np.argsort(-rank, kind="stable")
    for dtype in COMPUTED:
        for k in (1, 2, 5, 6, 75, 149, 150):
            arguments = build(dtype, bank_dtype, 3, 150, 1, k, ordered, values=[np.ones((3, 1)), bank])
            done = call(library, FUNCTION, arguments)
            for values, indices in zip(done["values"], done["indices"], strict=True):
                assert sorted(indices) == sorted(order[:k])
                np.testing.assert_array_equal(values, bank[indices, 0])
                if ordered:
                    np.testing.assert_array_equal(rank[indices], rank[order[:k]])
                else:
                    np.testing.assert_array_equal(indices, np.sort(order[:k]))


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_threads(library, bank_dtype):
    for dtype in COMPUTED:
        for k in (10, 2500):
            same_for_any_threads(
                library,
                FUNCTION,
                lambda dtype=dtype, k=k: build(dtype, bank_dtype, 35, 5003, 17, k),
                ["values", "indices"],
            )


@pytest.mark.parametrize(
    ("wrong", "word"),
    [*BAD_BANK, *(({"k": wrong}, "k ") for wrong in (0, -1, 38, 2**62)), *bad_buffers("query", "values", "indices")],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)


# ---- the adjoint ----------------------------------------------------------------------------------------------------

ADJOINT = "topk_similarity_grad_cpu"


def adjoint(dtype=F32, bank_dtype=F32, b=5, n=37, d=11, k=4, layout="row"):
    random = np.random.default_rng([b, n, d, k])
    return {
        "dtype": dtype,
        "grad": filled(random.normal(size=(b, k)), STORED[dtype]),
        "indices": filled(random.integers(0, n, size=(b, k)), np.int64),
        **Bank(unit_rows(random, n, d), bank_dtype, layout).arguments(),
        "b": b,
        "n": n,
        "d": d,
        "k": k,
        "result": empty([b, d], STORED[dtype]),
        "threads": 1,
    }


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_adjoint(library, dtype, bank_dtype):
    sizes = [(1, 1, 1, 1), (7, 300, 252, 10), (3, 5, 507, 5), (33, 97, 123, 48), (17, 191, 1, 191), (0, 9, 4, 3)]
    for index, (b, n, d, k) in enumerate(sizes):
        for layout in (LAYOUTS[index % 3], LAYOUTS[3 + index % 2]):
            done = call(library, ADJOINT, adjoint(dtype, bank_dtype, b, n, d, k, layout))
            rows, grad = done["bank"].numbers[done["indices"]], done["grad"].astype(np.float64)
            sizes_ = np.einsum("bk,bkd->bd", np.abs(grad), np.abs(rows))
            close(done["result"], np.einsum("bk,bkd->bd", grad, rows), (2 * np.sqrt(k) + 8) * UNIT[dtype] * sizes_)


def test_adjoint_far(library):
    for bank_dtype in BANK_DTYPES:
        done = call(library, ADJOINT, adjoint(F64, bank_dtype, 3, 7, 19, 5, "far"))
        want = np.einsum("bk,bkd->bd", done["grad"], done["bank"].numbers[done["indices"]])
        np.testing.assert_allclose(done["result"], want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_adjoint_of_a_row_that_is_not_finite(library, wrong):
    for dtype in COMPUTED:
        clean = call(library, ADJOINT, adjoint(dtype))["result"]
        arguments = adjoint(dtype)
        arguments["grad"][3, 1] = wrong
        done = call(library, ADJOINT, arguments)["result"]
        assert not np.isfinite(done[3]).any()
        np.testing.assert_array_equal(np.delete(done, 3, 0), np.delete(clean, 3, 0))


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_adjoint_threads(library, bank_dtype):
    for dtype in COMPUTED:
        same_for_any_threads(
            library, ADJOINT, lambda dtype=dtype: adjoint(dtype, bank_dtype, 65, 3001, 65, 300), ["result"]
        )


@pytest.mark.parametrize(("wrong", "word"), [*BAD_BANK, ({"k": -1}, ""), *bad_buffers("grad", "indices", "result")])
def test_adjoint_bad_arguments(library, wrong, word):
    refused(library, ADJOINT, adjoint(), wrong, word)
