import numpy as np
import pytest
from bank_oracles import BANK_DTYPES
from buffers import (
    BF16,
    F16,
    F32,
    F64,
    LAYOUTS,
    Bank,
    bad_buffers,
    bits,
    call,
    decode,
    encode,
    filled,
    refused,
    unit_rows,
)

FUNCTION = "enqueue_cpu"


def build(bank_dtype=F32, key_dtype=F32, n=11, d=7, b=4, cursor=9, normalize=1, layout="row", keys=None):
    random = np.random.default_rng([n, d, b])
    keys = random.normal(size=(b, d)) if keys is None else keys
    return {
        **Bank(random.normal(size=(n, d)), bank_dtype, layout).arguments(),
        "n": n,
        "d": d,
        "cursor": filled(np.array(cursor, np.int64)),
        "key_dtype": key_dtype,
        "keys": filled(encode(keys, key_dtype)),
        "b": len(keys),
        "normalize": normalize,
        "threads": 1,
    }


def check(library, arguments):
    """Calls it, and compares every byte of the bank's buffer that is no new key with what was there."""
    bank, n, b, start = arguments["bank"], arguments["n"], arguments["b"], int(arguments["cursor"])
    keys = np.array(arguments["keys"])
    numbers = decode(keys, arguments["key_dtype"]).astype(np.float64)
    before = np.array(bank.view), None if bank.buffer.size > 2**20 else np.array(bank.buffer)
    call(library, FUNCTION, arguments)
    assert arguments["cursor"] == (start + b) % n
    np.testing.assert_array_equal(bits(arguments["keys"]), bits(keys))
    length = np.maximum(np.linalg.norm(numbers, axis=1, keepdims=True), 1e-12) if arguments["normalize"] else 1.0
    newest = {(start + j) % n: j for j in range(b)}
    for row in range(n):
        if row not in newest:
            np.testing.assert_array_equal(bits(bank.view[row]), bits(before[0][row]))
            continue
        want = (numbers / length)[newest[row]]
        got = decode(np.ascontiguousarray(bank.view[row]), bank.dtype).astype(np.float64)
        if not arguments["normalize"] and arguments["key_dtype"] != F64:
            np.testing.assert_array_equal(got, decode(encode(want, bank.dtype), bank.dtype))
        else:  # two roundings, of the quotient in float32 or float64 and to the bank's type
            wide = F64 in (bank.dtype, arguments["key_dtype"])
            unit = {F32: 2.0**-24, F64: 2.0**-53, BF16: 2.0**-8, F16: 2.0**-11}[bank.dtype]
            unit = 1.01 * unit + 8 * (2.0**-53 if wide else 2.0**-24)
            assert (np.abs(got - want) <= unit * np.abs(want) + 1.01 * 2.0**-25 * (bank.dtype == F16)).all()
    if before[1] is not None:
        bank.view[...] = before[0]  # so that all else in the buffer must be what it was
        np.testing.assert_array_equal(bits(bank.buffer), bits(before[1]))


WRITABLE = [layout for layout in LAYOUTS if layout != "same"]


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
@pytest.mark.parametrize("key_dtype", BANK_DTYPES)
@pytest.mark.parametrize("normalize", [0, 1])
def test_values(library, bank_dtype, key_dtype, normalize):
    sizes = [
        (1, 1, 1, 0),
        (11, 7, 4, 9),
        (11, 252, 0, 3),
        (5, 507, 5, 4),
        (97, 123, 33, 0),
        (8, 1, 19, 7),
        (3, 33, 200, 1),
    ]
    for index, (n, d, b, cursor) in enumerate(sizes):
        for layout in (WRITABLE[index % 4], WRITABLE[(index + 1) % 4]):
            check(library, build(bank_dtype, key_dtype, n, d, b, cursor, normalize, layout))


@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_far(library, bank_dtype):
    check(library, build(bank_dtype, F32, 7, 19, 5, 4, 1, "far"))


@pytest.mark.parametrize("normalize", [0, 1])
def test_keys_much_shorter_or_longer_than_one(library, normalize):
    random = np.random.default_rng(0)
    for dtype, scales in ((F32, (1e-15, 1e-9, 1e9, 1e15)), (F64, (1e-100, 1e-15, 1e-9, 1e9, 1e100))):
        for scale in scales:
            check(library, build(dtype, dtype, normalize=normalize, keys=scale * unit_rows(random, 4, 7)))
        check(library, build(dtype, dtype, normalize=normalize, keys=np.zeros((4, 7))))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_key_that_is_not_finite_spoils_only_its_own_row(library, wrong):
    for bank_dtype in BANK_DTYPES:
        clean, spoiled = build(bank_dtype), build(bank_dtype)
        spoiled["keys"][2, 3] = wrong
        call(library, FUNCTION, clean)
        call(library, FUNCTION, spoiled)
        row = (9 + 2) % 11
        assert not np.isfinite(spoiled["bank"].numbers[row]).all()
        np.testing.assert_array_equal(
            np.delete(spoiled["bank"].numbers, row, 0), np.delete(clean["bank"].numbers, row, 0)
        )


@pytest.mark.parametrize("layout", ["row", "column"])
@pytest.mark.parametrize("bank_dtype", BANK_DTYPES)
def test_threads_write_the_same(library, layout, bank_dtype):
    def written(threads, b):
        arguments = build(bank_dtype, F32, 2001, 131, b, 1500, 1, layout)
        return bits(call(library, FUNCTION, {**arguments, "threads": threads})["bank"].view)

    for b in (1999, 5000):
        one = written(1, b)
        for threads in (2, 3, 7):
            np.testing.assert_array_equal(written(threads, b), one)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        *(({name: wrong}, "dtype") for name in ("bank_dtype", "key_dtype") for wrong in (4, -1)),
        *(({size: wrong}, "impossible") for size in ("b", "n", "d") for wrong in (-1, -(2**62))),
        ({"b": 2**62}, "impossible"),
        *bad_buffers("bank", "cursor", "keys"),
    ],
)
def test_bad_arguments(library, wrong, word):
    arguments = build()
    before = np.array(arguments["bank"].view)
    refused(library, FUNCTION, arguments, wrong, word)
    np.testing.assert_array_equal(arguments["bank"].view, before)
    assert arguments["cursor"] == 9
