"""Buffers for the native functions: every storage type, guarded on both sides, and banks in every layout.

A call is a dict from the parameters' names, in the header's order, to numbers, arrays, banks or None (a null pointer).
"""

import ctypes
import mmap
import tempfile
import time

import numpy as np
import pytest

F32, F64, BF16, F16 = range(4)
STORED = {F32: np.float32, F64: np.float64, BF16: np.uint16, F16: np.float16}
COMPUTED = (F32, F64)
CANARY = 0xA5
LAYOUTS = ("row", "column", "step", "same", "backward", "far")
FAR = 2**30 + 3  # elements from row to row: the offsets of the third row on need more than 31 bits

_mprotect = ctypes.CDLL(None).mprotect
_mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def decode(array, dtype):
    """The numbers in a buffer, in the type they are computed in."""
    if dtype == BF16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64 if dtype == F64 else np.float32)


def encode(numbers, dtype):
    """Rounded to nearest, ties to even."""
    if dtype == BF16:
        bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(numbers), np.uint16(0x7FC0), rounded)
    with np.errstate(over="ignore"):
        return numbers.astype(STORED[dtype])


class Guarded(np.ndarray):
    """An array that ends where memory ends: an access beyond it crashes, and `before` shows what was written there."""

    before: np.ndarray


def empty(shape, stored):
    """A guarded array whose bytes are all ones: NaN in every floating type, -1 in every integer."""
    count = int(np.prod(shape)) * np.dtype(stored).itemsize
    pages = -(-count // mmap.PAGESIZE) + 1
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = pages * mmap.PAGESIZE - count
    array = np.ndarray.__new__(Guarded, shape, stored, buffer=memory, offset=start)
    everything = np.frombuffer(memory, np.uint8)
    everything[: start + count] = 0xFF
    array.before = everything[:start]
    array.before[...] = CANARY
    if _mprotect(everything.ctypes.data + start + count, mmap.PAGESIZE, 0):
        raise OSError("mprotect failed")
    return array


def filled(values, stored=None):
    array = empty(np.shape(values), stored or values.dtype)
    array[...] = values
    return array


def bits(array):
    return np.array(array).reshape(-1).view(np.uint8)


def untouched(array):
    return bool((bits(array) == 0xFF).all())


class Bank:
    """Rows [n, d] somewhere in a larger buffer that is NaN everywhere else."""

    def __init__(self, values, dtype, layout="row"):
        values = encode(values, dtype)
        n, d = values.shape
        strides = {
            "row": (d, 1),
            "column": (1, n),
            "step": (4 * d, 2),
            "same": (0, 1),
            "backward": (-d, 1),
            "far": (FAR, 1),
        }
        self.row, self.column = strides[layout]
        span = (n - 1) * abs(self.row) + (d - 1) * self.column + 1 if n and d else 0
        size = values.dtype.itemsize
        if layout == "far":
            with tempfile.TemporaryFile() as file:  # a sparse file: pages that are not touched cost nothing
                file.truncate(max(span, 1) * size)
                memory = mmap.mmap(file.fileno(), max(span, 1) * size)
            self.buffer = np.frombuffer(memory, values.dtype)[:span]
        else:
            self.buffer = empty(span, values.dtype)
        start = (n - 1) * d if layout == "backward" else 0
        self.view = np.lib.stride_tricks.as_strided(
            self.buffer[start:], values.shape, (self.row * size, self.column * size), writeable=True
        )
        self.view[...] = values[:1] if layout == "same" else values
        self.dtype, self.address = dtype, self.buffer.ctypes.data + start * size

    @property
    def numbers(self):
        return decode(np.ascontiguousarray(self.view), self.dtype).astype(np.float64)

    def spoil(self, row, column, number):
        self.view[row, column] = encode(np.array([number]), self.dtype)[0]

    def arguments(self, name="bank"):
        prefix = name.removesuffix("bank")
        return {
            f"{name}_dtype": self.dtype,
            name: self,
            f"{prefix}row_stride": self.row,
            f"{prefix}column_stride": self.column,
        }


def unit_rows(random, count, d):
    rows = random.normal(size=(count, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def address(value):
    if value is None:
        return 0
    if isinstance(value, Bank):
        return value.address
    return value.ctypes.data if isinstance(value, np.ndarray) else value


def call(library, function, arguments):
    """Calls it, and sees that nothing was written in front of a buffer nor into an argument that is only read."""
    buffers = [value.buffer if isinstance(value, Bank) else value for value in arguments.values()]
    buffers = [buffer for buffer in buffers if isinstance(buffer, Guarded)]
    outputs = [untouched(buffer) for buffer in buffers]
    copies = [np.array(buffer) for buffer in buffers]
    getattr(library, function)(*map(address, arguments.values()))
    for buffer, output, copy in zip(buffers, outputs, copies, strict=True):
        assert (buffer.before == CANARY).all(), "wrote in front of a buffer"
        if not output and not function.startswith("enqueue"):
            np.testing.assert_array_equal(bits(buffer), bits(copy))
    return arguments


# ---- what every function has to refuse, and how ---------------------------------------------------------------------

BAD_BANK = [
    *(({"dtype": wrong}, "dtype") for wrong in (4, -1, BF16, F16)),
    *(({"bank_dtype": wrong}, "dtype") for wrong in (4, -1)),
    *(({size: wrong}, "impossible") for size in ("b", "n", "d") for wrong in (-1, -(2**62))),
    ({"b": 2**62}, "impossible"),
    ({"bank": 0}, "null"),
    ({"bank": "misaligned"}, "align"),
]


def bad_temperatures(name):
    return [({name: wrong}, "temperature") for wrong in (0.0, -0.07, float("nan"), float("inf"), -float("inf"))]


def bad_buffers(*names):
    return [({name: wrong}, word) for name in names for wrong, word in ((0, "null"), ("misaligned", "align"))]


def refused(library, function, good, wrong, word):
    """`good` with one thing wrong: one sentence that names the function, and no output touched."""
    arguments = dict(good)
    outputs = [value for value in good.values() if isinstance(value, np.ndarray) and untouched(value) and value.size]
    assert outputs or function.startswith("enqueue")
    for name, value in wrong.items():
        assert name in arguments
        arguments[name] = address(good[name]) + 1 if value == "misaligned" else value
    with pytest.raises(ValueError, match=f"^{function}: [^\\n]*{word}[^\\n]*$"):
        getattr(library, function)(*map(address, arguments.values()))
    assert all(map(untouched, outputs))


# ---- threads --------------------------------------------------------------------------------------------------------


def same_for_any_threads(library, function, build, names):
    """The outputs `names` have the same bits for every number of threads, of which several really work."""

    def outputs(threads):
        done = call(library, function, {**build(), "threads": threads})
        return [bits(done[name]) for name in names]

    one = outputs(1)
    for threads in (2, 3, 7, 64):
        for first, other in zip(one, outputs(threads), strict=True):
            np.testing.assert_array_equal(first, other)
    if "threads=serial" in library.build_info():
        return
    kept = {**build(), "threads": 3}
    arguments = [*map(address, kept.values())]
    whole, own = time.process_time_ns(), time.thread_time_ns()
    while time.process_time_ns() - whole < 60_000_000:
        getattr(library, function)(*arguments)
    own, whole = time.thread_time_ns() - own, time.process_time_ns() - whole
    assert own < 0.9 * whole, "one thread did nearly all of the work"
