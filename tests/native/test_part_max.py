import numpy as np
import pytest
from buffers import BF16, F16, F32, STORED, bad_buffers, call, decode, empty, encode, filled, refused
from buffers import same_for_any_threads as same

# rows, nodes, channels, parts, members of a part
SIZES = [
    (1, 1, 1, 1, 1),
    (5, 7, 33, 3, 4),
    (9, 2, 50, 6, 2),
    (3, 256, 3, 2, 256),
    (0, 4, 3, 2, 2),
    (4, 4, 0, 2, 2),
    (3, 4, 5, 0, 1),
]


def build(dtype=F32, rows=5, nodes=7, channels=6, parts=3, most=4, numbers=None):
    random = np.random.default_rng([rows, nodes, channels])
    numbers = random.integers(-3, 4, (rows, nodes, channels)) * 0.5 if numbers is None else numbers
    members = np.array([random.permutation(nodes)[:most] for _ in range(parts)], np.int32).reshape(parts, most)
    for part in range(1, parts):
        members[part, part % most + 1 :] = members[part, 0]  # shorter than the longest
    return {
        "dtype": dtype,
        "x": filled(encode(numbers, dtype)),
        "rows": rows,
        "nodes": nodes,
        "channels": channels,
        "members": filled(members),
        "parts": parts,
        "most": most,
        "pooled": empty((rows, parts, channels), STORED[dtype]),
        "chosen": empty((rows, parts, channels), np.uint8),
        "threads": 1,
    }


def build_grad(dtype=F32, rows=5, nodes=7, channels=6, parts=3, most=4):
    forward = build(dtype, rows, nodes, channels, parts, most)
    random = np.random.default_rng(1)
    chosen = random.integers(0, most, (rows, parts, channels))
    length = [len(set(part)) for part in forward["members"].tolist()]
    chosen = np.minimum(chosen, np.array(length, int).reshape(parts, 1) - 1).astype(np.uint8)
    return {
        "dtype": dtype,
        "grad": filled(encode(random.normal(size=(rows, parts, channels)), dtype)),
        "chosen": filled(chosen),
        **{name: forward[name] for name in ("rows", "nodes", "channels", "members", "parts", "most")},
        "grad_x": empty((rows, nodes, channels), STORED[dtype]),
        "threads": 1,
    }


def check(done):
    x = decode(np.array(done["x"]), done["dtype"])
    several = x[:, np.array(done["members"])]
    best = np.where(np.isnan(several), np.inf, several).argmax(2) if several.size else np.zeros(done["chosen"].shape)
    np.testing.assert_array_equal(done["chosen"], best)
    want = np.take_along_axis(several, best[:, :, None].astype(int), 2)[:, :, 0]
    np.testing.assert_array_equal(decode(np.array(done["pooled"]), done["dtype"]), want)


def check_grad(done):
    """Every sum over parts is rounded once."""
    grad, want = decode(np.array(done["grad"]), done["dtype"]), np.zeros(done["grad_x"].shape, np.longdouble)
    for r, p, c in np.ndindex(grad.shape):
        want[r, done["members"][p, done["chosen"][r, p, c]], c] += grad[r, p, c]
    rounding = {BF16: 2.0**-8, F16: 2.0**-11}.get(done["dtype"], 0.0)
    got = decode(np.array(done["grad_x"]), done["dtype"])
    sizes = np.abs(want) * rounding + np.finfo(got.dtype).eps * np.abs(grad).max(initial=0) * done["parts"]
    assert (np.abs(got - want) <= sizes).all()


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients(library, dtype, sizes):
    check(call(library, "part_max_cpu", build(dtype, *sizes)))
    check_grad(call(library, "part_max_grad_cpu", build_grad(dtype, *sizes)))


@pytest.mark.parametrize("dtype", STORED)
def test_nan_is_the_largest_and_the_first_of_equals_wins(library, dtype):
    column = np.array([[1.0, 1.0], [np.nan, 2.0], [np.inf, np.inf], [np.nan, -np.inf], [2.0, np.inf]])
    arguments = build(dtype, 1, 5, 2, 2, 3, column[None])
    arguments["members"][...] = [[2, 1, 3], [4, 2, 4]]
    done = call(library, "part_max_cpu", arguments)
    assert done["chosen"][0].tolist() == [[1, 0], [1, 0]]
    np.testing.assert_array_equal(decode(np.array(done["pooled"]), dtype)[0], [[np.nan, np.inf], [np.inf, np.inf]])


@pytest.mark.parametrize("dtype", STORED)
def test_minus_infinity_everywhere(library, dtype):
    done = call(library, "part_max_cpu", build(dtype, 2, 7, 6, 3, 4, np.full((2, 7, 6), -np.inf)))
    assert not done["chosen"].any() and (decode(np.array(done["pooled"]), dtype) == -np.inf).all()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_threads(library, dtype):
    same(library, "part_max_cpu", lambda: build(dtype, 301, 21, 33, 6, 6), ["pooled", "chosen"])
    same(library, "part_max_grad_cpu", lambda: build_grad(dtype, 301, 21, 33, 6, 6), ["grad_x"])


COMMON = [
    *(({"dtype": wrong}, f"unknown dtype {wrong}") for wrong in (4, -1)),
    *(({name: wrong}, "impossible size") for name in ("rows", "channels", "parts") for wrong in (-1, 2**62, 2**61)),
    *(({"nodes": wrong}, "impossible size|members must be nodes of") for wrong in (-1, 0, 6, 2**62)),
    ({"rows": 2**61, "nodes": 8}, "impossible size"),
    *(({"most": wrong}, "parts must have 1 to 256 nodes") for wrong in (-1, 0, 257, 2**62)),
    *bad_buffers("members"),
]


def test_bad_arguments(library):
    for wrong, word in [*COMMON, *bad_buffers("x", "pooled"), ({"chosen": 0}, "null")]:
        refused(library, "part_max_cpu", build(most=7, parts=1), wrong, word)
    for wrong, word in [*COMMON, *bad_buffers("grad", "grad_x"), ({"chosen": 0}, "null")]:
        refused(library, "part_max_grad_cpu", build_grad(most=7, parts=1), wrong, word)


@pytest.mark.parametrize("wrong", [-1, 7, -(2**31), 2**31 - 1])
def test_members_that_are_no_nodes_are_bad_arguments(library, wrong):
    for function, good in (("part_max_cpu", build()), ("part_max_grad_cpu", build_grad())):
        good["members"][2, 3] = wrong
        refused(library, function, good, {}, f"members must be nodes of 0..6, got {wrong}")
