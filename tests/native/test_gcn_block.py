"""The passes of the graph network's block between its convolution and its result."""

import numpy as np
import pytest
from bank_oracles import close
from buffers import BF16, F16, F32, F64, STORED, bad_buffers, bits, call, empty, encode, filled, refused
from buffers import same_for_any_threads as same
from gcn_oracles import (
    COMPUTE,
    gcn_output,
    keeps,
    moments,
    normalized,
    numbers,
    product,
    seen,
    stored,
    sums,
    through,
    unit,
)

SIZES = [(1, 1, 1, 1), (12, 5, 3, 2), (9, 33, 50, 3), (3, 70, 1, 3), (40, 1, 40, 1), (600, 8, 3, 1), (5, 64, 32, 5)]
EMPTY = [(4, 0, 3, 2), (4, 3, 0, 2), (0, 3, 4, 1)]
DROPOUTS = (0.0, 0.3, 1.0)


class Draw:
    """Guarded arguments of one call, drawn in their order."""

    def __init__(self, dtype, *seed):
        self.random, self.dtype, self.wide = np.random.default_rng(seed), dtype, STORED[COMPUTE[dtype]]

    def values(self, *shape):
        return filled(encode(self.random.normal(size=shape), self.dtype))

    def wides(self, *shape):
        return filled(self.random.normal(size=shape).astype(self.wide))

    def result(self, *shape, wide=False):
        return empty(shape, self.wide if wide else STORED[self.dtype])

    def seed(self):
        return filled(self.random.integers(-(2**63), 2**63, (), np.int64))


def build_map(dtype=F32, rows=12, inputs=5, outputs=3, groups=2, dropout=0.3, norm=True):
    draw = Draw(dtype, rows, inputs, outputs)
    return {
        "dtype": dtype,
        "x": draw.values(rows, inputs),
        "rows": rows,
        "inputs": inputs,
        "outputs": outputs,
        "groups": groups,
        "norm": draw.wides(groups, 4, inputs) if norm else None,
        "dropout": dropout,
        "seed": draw.seed() if dropout else None,
        "weight": draw.wides(outputs, inputs),
        "bias": draw.wides(outputs),
        "y": draw.result(rows, outputs),
        "moments": draw.result(2, groups, outputs, wide=True),
        "threads": 1,
    }


def build_map_grad(dtype=F32, rows=12, inputs=5, outputs=3, groups=2, dropout=0.3, norm=True):
    draw = Draw(dtype, rows, inputs, outputs)
    return {
        "dtype": dtype,
        "grad": draw.values(rows, outputs),
        "y": draw.values(rows, outputs),
        "rows": rows,
        "inputs": inputs,
        "outputs": outputs,
        "groups": groups,
        "norm": draw.wides(groups, 4, outputs),
        "sums": draw.wides(2, groups, outputs),
        "dropout": dropout,
        "seed": draw.seed() if dropout else None,
        "x": draw.values(rows, inputs),
        "x_norm": draw.wides(groups, 4, inputs) if norm else None,
        "weight": draw.wides(outputs, inputs),
        "grad_x": draw.result(rows, inputs),
        "x_sums": draw.result(2, groups, inputs, wide=True) if norm else None,
        "grad_weight": draw.result(outputs, inputs, wide=True),
        "grad_bias": draw.result(outputs, wide=True),
        "threads": 1,
    }


def build_output(dtype=F32, rows=12, channels=5, groups=2, dropout=0.3, residual="linear", grad=False):
    draw = Draw(dtype, rows, channels)
    arguments = {
        "dtype": dtype,
        "grad": draw.values(rows, channels),
        "y": draw.values(rows, channels),
        "rows": rows,
        "channels": channels,
        "groups": groups,
        "norm": draw.wides(groups, 4, channels),
        "dropout": dropout,
        "seed": draw.seed() if dropout else None,
        "residual": draw.values(rows, channels) if residual else None,
        "residual_norm": draw.wides(groups, 4, channels) if residual == "linear" else None,
    }
    if not grad:
        del arguments["grad"]
        return {**arguments, "out": draw.result(rows, channels), "threads": 1}
    of_residual = draw.result(2, groups, channels, wide=True) if residual == "linear" else None
    results = {"masked": draw.result(rows, channels), "sums": draw.result(2, groups, channels, wide=True)}
    return {**arguments, **results, "residual_sums": of_residual, "threads": 1}


def paired(library, dtype):
    return dtype == BF16 and library.cpu_isa() == "avx512bf16"


def decoded(done):
    """Everything that the oracles take, in float64."""
    dtype, wide = done["dtype"], COMPUTE[done["dtype"]]
    of = {name: numbers(done[name], dtype) for name in ("grad", "y", "x", "residual") if done.get(name) is not None}
    names = ("norm", "x_norm", "residual_norm", "sums", "weight", "bias")
    return of, {name: None if done.get(name) is None else numbers(done[name], wide) for name in names}


def check_map(library, done):
    dtype, (of, wide) = done["dtype"], decoded(done)
    pairs = paired(library, dtype)
    z, _, _ = seen(dtype, of["x"], wide["norm"], done["dropout"], done["seed"] or 0)
    y, error = product(dtype, *z, wide["weight"].T, done["inputs"], pairs)
    y, error = y + wide["bias"], error + unit(dtype) * (np.abs(y) + np.abs(wide["bias"]))
    got = numbers(done["y"], dtype)
    close(got, y, stored(dtype, y, error))
    if got.size:
        close(done["moments"], *moments(dtype, got, done["groups"]))


def check_map_grad(library, done):
    dtype, (of, wide) = done["dtype"], decoded(done)
    pairs, groups, dropout, seed = paired(library, dtype), done["groups"], done["dropout"], done["seed"] or 0
    kept = keeps(dropout, seed, 1, *of["grad"].shape)
    grad = of["grad"] * kept
    grad, error = through(dtype, grad, unit(dtype) * np.abs(grad), of["y"], wide["norm"], wide["sums"])
    z, unit_x, relu = seen(dtype, of["x"], wide["x_norm"], dropout, seed)
    grad_x, off = product(dtype, grad, error, wide["weight"], done["outputs"], pairs)
    if relu is not None:
        beyond, doubtful, kept = relu
        grad_x, off = np.where(beyond, grad_x, 0.0) * kept, (off + np.where(doubtful, np.abs(grad_x), 0.0)) * kept
        off = off + unit(dtype) * np.abs(grad_x)
        close(done["x_sums"], *sums(dtype, grad_x, off, unit_x, groups))
    close(numbers(done["grad_x"], dtype), grad_x, stored(dtype, grad_x, off))
    of_weight, wrong = product(dtype, grad.T, error.T, z[0], len(grad), pairs)
    close(done["grad_weight"], of_weight, wrong + np.abs(grad).T @ z[1])
    close(done["grad_bias"], grad.sum(0), error.sum(0) + unit(dtype, len(grad)) * np.abs(grad).sum(0))


def check_output(done):
    dtype, (of, wide) = done["dtype"], decoded(done)
    rest = done["dropout"], done["seed"] or 0, of.get("residual"), wide["residual_norm"]
    (value, error), unit_y, other, kept = gcn_output(dtype, of["y"], wide["norm"], *rest)
    if "out" in done:
        value = np.maximum(value, 0)
        return close(numbers(done["out"], dtype), value, stored(dtype, value, error))
    grad = np.where(value > 0, of["grad"], 0.0)
    doubtful = (np.abs(value) <= error) & (error > 0)
    off = np.where(doubtful, np.abs(of["grad"]), 0.0)
    close(numbers(done["masked"], dtype), grad, off)
    if other is not None:
        close(done["residual_sums"], *sums(dtype, grad, off, other, done["groups"]))
    grad, off = grad * kept, (off + unit(dtype) * np.abs(grad)) * kept
    close(done["sums"], *sums(dtype, grad, off, unit_y, done["groups"]))


# ---- values


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("norm", [True, False])
def test_map(library, dtype, norm):
    for index, sizes in enumerate([*SIZES, *EMPTY]):
        arguments = build_map(dtype, *sizes, DROPOUTS[index % 3], norm)
        check_map(library, call(library, "gcn_map_cpu", arguments))
        arguments = build_map_grad(dtype, *sizes, DROPOUTS[index % 3], norm)
        check_map_grad(library, call(library, "gcn_map_grad_cpu", arguments))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("residual", ["linear", "identity", None])
def test_output(library, dtype, residual):
    for index, (rows, channels, _, groups) in enumerate([*SIZES, *EMPTY]):
        arguments = dtype, rows, channels, groups, DROPOUTS[index % 3], residual
        check_output(call(library, "gcn_output_cpu", build_output(*arguments)))
        check_output(call(library, "gcn_output_grad_cpu", build_output(*arguments, grad=True)))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_mask_is_that_of_the_hash(library, dtype):
    """The result is 2 where a channel is kept: dropout of 1 by one half, at both sites."""
    for rows, channels in ((70, 33), (3, 200)):
        arguments = build_output(dtype, rows, channels, 1, 0.5, None)
        arguments["norm"][0] = [[0.0], [0.0], [0.0], [1.0]] + np.zeros((1, channels))
        done = call(library, "gcn_output_cpu", arguments)
        np.testing.assert_array_equal(done["out"], keeps(0.5, done["seed"], 1, rows, channels))
        arguments = build_map(dtype, rows, channels, channels, 1, 0.5)
        arguments["norm"][0] = [[0.0], [0.0], [0.0], [1.0]] + np.zeros((1, channels))
        arguments["weight"][...], arguments["bias"][...] = np.eye(channels), 0.0
        done = call(library, "gcn_map_cpu", arguments)
        np.testing.assert_array_equal(done["y"], keeps(0.5, done["seed"], 0, rows, channels))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_moments_of_a_constant_and_far_from_zero(library, dtype):
    arguments = build_map(dtype, 3000, 1, 2, 1, 0.0, False)
    arguments["x"][...] += 1000.0
    arguments["weight"][...], arguments["bias"][...] = [[1.0], [0.0]], 0.1
    done = call(library, "gcn_map_cpu", arguments)
    x = done["x"].astype(np.float64)
    np.testing.assert_allclose(done["moments"][0, 0] / [x.mean() + 0.1, 0.1], 1.0, rtol=2.0**-22)
    np.testing.assert_allclose(done["moments"][1, 0], [x.var(), 0.0], rtol=1e-4, atol=1e-14)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_nan_spoils_its_row_and_the_statistics_of_its_group(library, dtype):
    nan = encode(np.array([np.nan]), dtype)[0]
    for arguments in (build_map(dtype, dropout=0.0), build_map(dtype, norm=False)):
        arguments["x"][1] = nan
        done = call(library, "gcn_map_cpu", arguments)
        y = numbers(done["y"], dtype)
        assert np.isnan(y[1]).all() and np.isfinite(np.delete(y, 1, 0)).all()
        assert np.isnan(done["moments"][:, 0]).all() and np.isfinite(done["moments"][:, 1]).all()
    arguments = build_output(dtype, dropout=0.0)
    arguments["y"][1, 2] = nan
    out = numbers(call(library, "gcn_output_cpu", arguments)["out"], dtype)
    assert np.argwhere(np.isnan(out)).tolist() == [[1, 2]]


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("dropout", [0.5, 1.0])
def test_dropout_keeps_nan(library, dtype, dropout):
    """Also where it drops: NaN times 0, as in torch."""
    nan = encode(np.array([np.nan]), dtype)[0]
    arguments = build_output(dtype, 12, 40, dropout=dropout, residual=None)
    arguments["y"][1] = nan
    out = numbers(call(library, "gcn_output_cpu", arguments)["out"], dtype)
    assert np.isnan(out[1]).all() and np.isfinite(np.delete(out, 1, 0)).all()
    arguments = build_map(dtype, 12, 1, 3, 2, dropout)
    arguments["x"][1] = nan
    y = numbers(call(library, "gcn_map_cpu", arguments)["y"], dtype)
    assert np.isnan(y[1]).all() and np.isfinite(np.delete(y, 1, 0)).all()
    arguments = build_output(dtype, 12, 40, dropout=dropout, residual=None, grad=True)
    arguments["y"][1] = nan
    done = call(library, "gcn_output_grad_cpu", arguments)
    np.testing.assert_array_equal(done["masked"][1], done["grad"][1])  # of a NaN, the gradient passes
    assert np.isnan(done["sums"][1, 0]).all() and np.isfinite(done["sums"][:, 1]).all()


def test_gradient_of_a_bias_over_many_rows(library):
    """Of numbers that are all positive, as exact as a float: tiles are added up without rounding."""
    arguments = build_map_grad(F32, 60_000, 2, 3, 1, 0.0, norm=False)
    arguments["norm"][0] = [[1.0], [0.0], [1.0], [0.0]] + np.zeros((1, 3))
    arguments["sums"][...] = 0.0
    arguments["grad"][...] = np.abs(arguments["grad"])
    done = call(library, "gcn_map_grad_cpu", arguments)
    np.testing.assert_allclose(done["grad_bias"], done["grad"].astype(np.float64).sum(0), rtol=2.0**-22)


# ---- threads

LARGE = (1202, 33, 20, 2)


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_threads(library, dtype):
    same(library, "gcn_map_cpu", lambda: build_map(dtype, *LARGE), ["y", "moments"])
    same(library, "gcn_map_grad_cpu", lambda: build_map_grad(dtype, *LARGE), ["grad_x", "x_sums"])
    sizes = dtype, 4800, 70, 2, 0.3, "linear"
    same(library, "gcn_output_cpu", lambda: build_output(*sizes), ["out"])
    same(library, "gcn_output_grad_cpu", lambda: build_output(*sizes, grad=True), ["masked", "sums", "residual_sums"])


@pytest.mark.parametrize("threads", [2, 3, 64])
def test_gradients_of_weights_on_threads(library, threads):
    first, second = (
        call(library, "gcn_map_grad_cpu", {**build_map_grad(F32, *LARGE), "threads": threads}) for _ in range(2)
    )
    check_map_grad(library, first)
    for name in ("grad_weight", "grad_bias"):
        np.testing.assert_array_equal(bits(first[name]), bits(second[name]))


# ---- refusals

COMMON = [
    *(({"dtype": wrong}, f"unknown dtype {wrong}") for wrong in (4, -1)),
    *(({"groups": wrong}, "groups must divide 12 rows, got") for wrong in (0, -1, 5, 2**62)),
    *(({"rows": wrong}, "groups must divide|impossible size") for wrong in (-1, -2, 2**62, 2**61, 2**63 - 2)),
    *(({"dropout": wrong}, r"dropout must be in \[0, 1\], got") for wrong in (-0.1, 1.5, float("nan"), float("inf"))),
    *bad_buffers("seed"),
]
IMPOSSIBLE = (-1, 2**62, 2**61, 2**56, 2**31)
OF_MAP = [*COMMON, *(({n: wrong}, "impossible size") for n in ("inputs", "outputs") for wrong in IMPOSSIBLE)]
OF_OUTPUT = [*COMMON, *(({"channels": wrong}, "impossible size") for wrong in IMPOSSIBLE)]
REFUSED = {
    "gcn_map_cpu": (
        build_map,
        [*OF_MAP, *bad_buffers("x", "weight", "bias", "y", "moments"), ({"norm": "misaligned"}, "align")],
    ),
    "gcn_map_grad_cpu": (
        build_map_grad,
        [
            *OF_MAP,
            *bad_buffers("grad", "y", "norm", "sums", "x", "weight", "grad_x", "x_sums", "grad_weight", "grad_bias"),
            ({"x_norm": "misaligned"}, "align"),
        ],
    ),
    "gcn_output_cpu": (
        build_output,
        [*OF_OUTPUT, *bad_buffers("y", "norm", "residual", "out"), ({"residual_norm": "misaligned"}, "align")],
    ),
    "gcn_output_grad_cpu": (
        lambda: build_output(grad=True),
        [
            *OF_OUTPUT,
            *bad_buffers("grad", "y", "norm", "residual", "masked", "sums", "residual_sums"),
            ({"residual_norm": "misaligned"}, "align"),
        ],
    ),
}


@pytest.mark.parametrize("function", REFUSED)
def test_bad_arguments(library, function):
    build, wrongs = REFUSED[function]
    for wrong, word in wrongs:
        refused(library, function, build(), wrong, word)


def test_statistics_of_inputs_are_needed_only_with_their_norm(library):
    arguments = build_map_grad(norm=False)
    assert arguments["x_sums"] is None
    check_map_grad(library, call(library, "gcn_map_grad_cpu", arguments))
    assert normalized(F32, np.ones((2, 1)), np.ones((1, 4, 1)))[0][0].tolist() == [[2.0], [2.0]]
