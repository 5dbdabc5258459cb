import numpy as np
import pytest
from bank_oracles import BANK_DTYPES, close, narrow, neighbor_kl
from buffers import (
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
)

FUNCTION = "neighbor_kl_cpu"
TEMPERATURES = (0.05, 0.1)


def build(dtype=F32, bank_dtypes=(F32, F32), b=5, n=37, d=11, student_d=7, k=9, layouts=("row", "row"), values=None):
    random = np.random.default_rng([b, n, d, student_d])
    shapes = (b, d), (n, d), (b, student_d), (n, student_d)
    teacher, teacher_bank, student, student_bank = values or [unit_rows(random, *shape) for shape in shapes]
    return {
        "dtype": dtype,
        "teacher": filled(teacher, STORED[dtype]),
        **Bank(teacher_bank, bank_dtypes[0], layouts[0]).arguments("teacher_bank"),
        "d": d,
        "student": filled(student, STORED[dtype]),
        **Bank(student_bank, bank_dtypes[1], layouts[1]).arguments("student_bank"),
        "student_d": student_d,
        "b": b,
        "n": n,
        "k": k,
        "teacher_temperature": TEMPERATURES[0],
        "student_temperature": TEMPERATURES[1],
        "loss": empty([b], STORED[dtype]),
        "grad": empty([b, student_d], STORED[dtype]),
        "threads": 1,
    }


def check(library, done, rows=None, least=0.5):
    banks = done["teacher_bank"], done["student_bank"]
    half = [narrow(library, done["dtype"], bank) for bank in banks]
    rows = np.ones(done["b"], bool) if rows is None else rows
    loss, grad, clear = neighbor_kl(
        done["dtype"],
        done["teacher"][rows],
        banks[0].numbers,
        done["student"][rows],
        banks[1].numbers,
        done["k"],
        (done["teacher_temperature"], done["student_temperature"]),
        half,
    )
    assert clear.mean() >= least
    close(done["loss"][rows][clear], loss[0][clear], loss[1][clear])
    close(done["grad"][rows][clear], grad[0][clear], grad[1][clear])


SIZES = [(1, 1, 1, 1), (7, 300, 252, 33), (3, 5, 507, 4), (33, 97, 40, 123), (17, 191, 2, 3), (2, 1000, 16, 16)]


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_values(library, dtype, bank_dtype):
    for index, (b, n, d, student_d) in enumerate(SIZES):
        dtypes = (bank_dtype, BANK_DTYPES[index % 4])
        layouts = LAYOUTS[index % 3], LAYOUTS[(index + 1) % 3]
        for k in sorted({1, 2, (n + 1) // 2, n - 1, n} - {0}):
            if k <= n:
                check(library, call(library, FUNCTION, build(dtype, dtypes, b, n, d, student_d, k, layouts)))


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "same"])
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_layouts(library, layout, bank_dtype):
    n = {"far": 7, "same": 29}.get(layout, 205)
    for dtype in COMPUTED:
        for layouts in ((layout, "row"), ("row", layout)):
            arguments = build(dtype, (bank_dtype, bank_dtype), 9, n, 19, 6, 5, layouts)
            check(library, call(library, FUNCTION, arguments))


def tied(random, b, n, d, student_d):
    small = [random.integers(-2, 3, size=shape).astype(float) for shape in ((b, d), (n, d))]
    return [*small, unit_rows(random, b, student_d), unit_rows(random, n, student_d)]


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_of_equal_rows_the_first_are_neighbours(library, dtype, bank_dtype):
    b, n, d, student_d = 21, 210, 3, 5
    values = tied(np.random.default_rng(0), b, n, d, student_d)
    values[0][0] = 0.0  # every row is equally near
    scores = values[0] @ values[1].T
    for k in (1, 50, n // 2, n - 1, n):
        done = call(library, FUNCTION, build(dtype, (bank_dtype, F32), b, n, d, student_d, k, values=values))
        # the same choice without ties: the score in which the index decides
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        for row in range(b):
            banks = [Bank(values[i][order[row]], dtype_) for i, dtype_ in ((1, bank_dtype), (3, F32))]
            only = {"teacher_bank": banks[0], "student_bank": banks[1], "b": 1}
            check(library, {**done, **only}, slice(row, row + 1), least=1.0)


@pytest.mark.parametrize("dtype", COMPUTED)
def test_teacher_and_student_alike(library, dtype):
    random = np.random.default_rng(1)
    query, bank = unit_rows(random, 9, 20), unit_rows(random, 130, 20)
    arguments = build(dtype, (dtype, dtype), 9, 130, 20, 20, 40, values=[query, bank, query, bank])
    arguments.update(arguments["teacher_bank"].arguments("student_bank"), student_temperature=TEMPERATURES[0])
    done = call(library, FUNCTION, arguments)
    np.testing.assert_allclose(done["loss"], 0.0, atol=1e-5 if dtype == F32 else 1e-14)
    np.testing.assert_allclose(done["grad"], 0.0, atol=1e-4 if dtype == F32 else 1e-13)


@pytest.mark.parametrize("temperatures", [(0.01, 0.01), (10.0, 0.05), (0.02, 10.0)])
def test_temperatures_and_lengths(library, temperatures):
    random = np.random.default_rng(2)
    for scale in (1e-3, 1.0, 3.0):
        values = [scale * unit_rows(random, count, 24) for count in (6, 130, 6, 130)]
        for dtype in COMPUTED:
            arguments = build(dtype, (dtype, dtype), 6, 130, 24, 24, 60, values=values)
            arguments.update(teacher_temperature=temperatures[0], student_temperature=temperatures[1])
            check(library, call(library, FUNCTION, arguments))


def test_empty_batch_writes_nothing(library):
    assert call(library, FUNCTION, build(b=0))["loss"].size == 0


def test_unwanted_gradient(library):
    for dtype in COMPUTED:
        whole = call(library, FUNCTION, build(dtype, n=150, k=70))
        part = call(library, FUNCTION, {**build(dtype, n=150, k=70), "grad": None})
        np.testing.assert_array_equal(part["loss"], whole["loss"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_row_that_is_not_finite_spoils_only_itself(library, wrong, name):
    for dtype in COMPUTED:
        for bank_dtype in (F32, BF16, F16):
            for k in (1, 70, 150):
                arguments = build(dtype, (bank_dtype, bank_dtype), 37, 150, 30, 20, k)
                arguments[name][3, 4] = wrong
                done = call(library, FUNCTION, arguments)
                assert not np.isfinite(done["loss"][3])
                check(library, done, np.arange(37) != 3)


def test_a_bank_row_that_is_nan_spoils_every_row(library):
    for dtype in COMPUTED:
        for bank_dtype in BANK_DTYPES:
            for name, k in (("teacher_bank", 1), ("teacher_bank", 70), ("teacher_bank", 150), ("student_bank", 150)):
                arguments = build(dtype, (bank_dtype, bank_dtype), 20, 150, 30, 20, k)
                arguments[name].spoil(149, 4, np.nan)
                done = call(library, FUNCTION, arguments)
                assert not np.isfinite(done["loss"]).any() and not np.isfinite(done["grad"]).all(1).any()


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_threads(library, bank_dtype):
    dtypes = bank_dtype, bank_dtype
    for dtype in COMPUTED:
        for k in (10, 2500):
            same_for_any_threads(
                library, FUNCTION, lambda dtype=dtype, k=k: build(dtype, dtypes, 35, 5003, 17, 9, k), ["loss", "grad"]
            )


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        *(({"dtype": wrong}, "dtype") for wrong in (4, -1, BF16, F16)),
        *(({f"{bank}_dtype": wrong}, "dtype") for bank in ("teacher_bank", "student_bank") for wrong in (4, -1)),
        *(({size: -1}, "impossible") for size in ("b", "n", "d", "student_d")),
        ({"b": 2**62}, "impossible"),
        *(({"k": wrong}, "k ") for wrong in (0, -1, 38, 2**62)),
        *bad_temperatures("teacher_temperature"),
        *bad_temperatures("student_temperature"),
        *bad_buffers("teacher", "student", "teacher_bank", "student_bank", "loss"),
        ({"grad": "misaligned"}, "align"),
    ],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)


def test_a_float64_teacher_decides_between_float32_twins(library):
    random = np.random.default_rng(3)
    teacher, student, student_bank = (unit_rows(random, count, 3) for count in (1, 1, 60))
    bank = np.repeat(teacher, 60, 0) * (1 + 1e-12 * np.arange(60)[:, None])  # equal once rounded to float32
    done = call(
        library, FUNCTION, build(F64, (F64, F64), 1, 60, 3, 3, 7, values=[teacher, bank, student, student_bank])
    )
    check(library, done, least=1.0)
