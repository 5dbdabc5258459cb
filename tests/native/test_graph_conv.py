import time

import numpy as np
import pytest
from bank_oracles import close
from buffers import BF16, F16, F32, F64, STORED, address, bad_buffers, bits, call, empty, encode, filled, refused
from buffers import same_for_any_threads as same
from gcn_oracles import COMPUTE, dense, graph_conv, graph_conv_grad, moments, numbers, parts_of, stored, through

# rows, nodes, inputs, outputs, partitions, edges, groups
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (6, 7, 5, 3, 4, 25, 2),
    (3, 21, 33, 50, 4, 90, 3),
    (17, 2, 70, 1, 2, 5, 1),
    (9, 5, 1, 40, 3, 0, 1),
    (40, 3, 8, 8, 1, 1, 4),
    (310, 4, 2, 3, 2, 6, 1),
    (5, 64, 3, 33, 6, 30, 5),
    (4, 3, 0, 5, 2, 4, 1),
    (4, 3, 5, 0, 2, 4, 1),
    (0, 3, 5, 4, 2, 4, 1),
]


def skeleton(random, nodes, partitions, count):
    edges = np.stack([random.integers(0, limit, count) for limit in (partitions, nodes, nodes)], 1).astype(np.int32)
    if count == 0:
        return {"edges": None, "coefficients": None}
    return {"edges": filled(edges), "coefficients": filled(random.normal(size=count).astype(np.float32))}


def adjacency(call):
    return dense(call["edges"], call["coefficients"], call["nodes"], call["partitions"])


def build(dtype=F32, rows=6, nodes=7, inputs=5, outputs=3, partitions=4, edges=25, groups=2, offset=0.0):
    random = np.random.default_rng([rows, nodes, inputs, outputs])
    wide = STORED[COMPUTE[dtype]]
    return {
        "dtype": dtype,
        "x": filled(encode(random.normal(size=(rows, nodes, inputs)) + offset, dtype)),
        "rows": rows,
        "nodes": nodes,
        "inputs": inputs,
        "outputs": outputs,
        "partitions": partitions,
        **skeleton(random, nodes, partitions, edges),
        "edge_count": edges,
        "weight": filled(random.normal(size=(partitions, inputs, outputs)).astype(wide)),
        "bias": filled(random.normal(size=(partitions, outputs)).astype(wide)),
        "y": empty((rows, nodes, outputs), STORED[dtype]),
        "groups": groups,
        "moments": empty((2, groups, outputs), wide),
        "threads": 1,
    }


def build_grad(dtype=F32, rows=6, nodes=7, inputs=5, outputs=3, partitions=4, edges=25, groups=2, norm=True):
    random = np.random.default_rng([rows, nodes, inputs, outputs])
    wide = STORED[COMPUTE[dtype]]

    def values(*shape):
        return filled(encode(random.normal(size=shape), dtype))

    def scales(*shape):
        return filled(random.normal(size=shape).astype(wide))

    of_norm = {"norm": scales(groups, 4, outputs), "sums": scales(2, groups, outputs)}
    return {
        "dtype": dtype,
        "grad": values(rows, nodes, outputs),
        "y": values(rows, nodes, outputs) if norm else None,
        **(of_norm if norm else dict.fromkeys(of_norm)),
        "groups": groups,
        "x": values(rows, nodes, inputs),
        "rows": rows,
        "nodes": nodes,
        "inputs": inputs,
        "outputs": outputs,
        "partitions": partitions,
        **skeleton(random, nodes, partitions, edges),
        "edge_count": edges,
        "weight": scales(partitions, inputs, outputs),
        "along": values(rows, nodes, inputs) if norm else None,
        "grad_x": empty((rows, nodes, inputs), STORED[dtype]),
        "grad_weight": empty((partitions, inputs, outputs), wide),
        "grad_bias": empty((partitions, outputs), wide),
        "threads": 1,
    }


def paired(library, dtype):
    return dtype == BF16 and library.cpu_isa() == "avx512bf16"


def check(library, done):
    dtype = done["dtype"]
    bias = None if done["bias"] is None else numbers(done["bias"], COMPUTE[dtype])
    weight = numbers(done["weight"], COMPUTE[dtype])
    want = graph_conv(dtype, numbers(done["x"], dtype), adjacency(done), weight, bias, paired(library, dtype))
    y = numbers(done["y"], dtype)
    close(y, want[0], stored(dtype, *want))
    if done["moments"] is not None and y.size:
        close(done["moments"], *moments(dtype, y, done["groups"]))


def check_grad(library, done):
    dtype, groups = done["dtype"], done["groups"]
    grad = numbers(done["grad"], dtype)
    error = np.zeros_like(grad)
    if done["norm"] is not None and grad.size:
        rows = [numbers(done[name], dtype).reshape(grad.shape[0] * grad.shape[1], -1) for name in ("grad", "y")]
        norm, sums = (np.array(done[name], np.float64) for name in ("norm", "sums"))
        assert len(parts_of(rows[0], groups)) == groups
        grad, error = (z.reshape(grad.shape) for z in through(dtype, rows[0], 0.0 * rows[0], rows[1], norm, sums))
    along = None if done["along"] is None else numbers(done["along"], dtype)
    x, weight = numbers(done["x"], dtype), numbers(done["weight"], COMPUTE[dtype])
    want = graph_conv_grad(dtype, grad, error, x, adjacency(done), weight, along, paired(library, dtype))
    close(numbers(done["grad_x"], dtype), want[0][0], stored(dtype, *want[0]))
    close(done["grad_weight"], *want[1])
    close(done["grad_bias"], *want[2])


# ---- values


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(library, dtype, sizes):
    check(library, call(library, "graph_conv_cpu", build(dtype, *sizes)))
    check(library, call(library, "graph_conv_cpu", {**build(dtype, *sizes), "bias": None, "moments": None}))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("norm", [True, False])
def test_gradients(library, dtype, sizes, norm):
    check_grad(library, call(library, "graph_conv_grad_cpu", build_grad(dtype, *sizes, norm=norm)))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("channels", [(9, 70), (70, 9)])
def test_many_nodes(library, dtype, channels):
    sizes = (3, 256, *channels, 3, 700, 1)
    check(library, call(library, "graph_conv_cpu", build(dtype, *sizes)))
    check_grad(library, call(library, "graph_conv_grad_cpu", build_grad(dtype, *sizes)))


@pytest.mark.parametrize("dtype", STORED)
def test_moments_far_from_zero(library, dtype):
    """The deviation of values near 1000, none of which is lost; and of a channel that is constant."""
    arguments = build(dtype, 2400, 2, 1, 2, 1, 2, 3, offset=1000.0)
    arguments["edges"][...] = [[0, 0, 0], [0, 1, 1]]
    arguments["coefficients"][...] = 1.0
    arguments["weight"][...] = [[[1.0, 0.0]]]
    arguments["bias"][...] = 0.1
    done = call(library, "graph_conv_cpu", arguments)
    y = parts_of(numbers(done["y"], dtype), 3)
    np.testing.assert_allclose(done["moments"][0] / y.astype(np.longdouble).mean(1), 1.0, rtol=0, atol=2.0**-22)
    np.testing.assert_allclose(done["moments"][1, :, 0], y[:, :, 0].var(1), rtol=1e-4)
    np.testing.assert_allclose(done["moments"][1, :, 1], 0.0, atol=1e-14)


def test_gradient_may_be_added_in_place(library):
    apart = call(library, "graph_conv_grad_cpu", build_grad())
    arguments = build_grad()
    arguments["grad_x"] = arguments["along"]
    library.graph_conv_grad_cpu(*map(address, arguments.values()))
    np.testing.assert_array_equal(arguments["along"], apart["grad_x"])


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_nan_stays_in_its_frame_and_group(library, dtype):
    arguments = build(dtype, 6, 7, 5, 3, 4, 25, 2)
    arguments["x"][1, :, 2] = encode(np.array([np.nan]), dtype)[0]
    done = call(library, "graph_conv_cpu", arguments)
    y = numbers(done["y"], dtype)
    assert np.isnan(y[1]).any() and np.isfinite(np.delete(y, 1, 0)).all()
    assert np.isnan(done["moments"][:, 0]).all() and np.isfinite(done["moments"][:, 1]).all()


def test_gradients_of_long_sums(library):
    """Of numbers that are all positive, as exact as a float: tiles are added up without rounding."""
    arguments = build_grad(F32, 60_000, 2, 1, 3, 2, 2, 1, norm=False)
    arguments["edges"][...] = [[0, 0, 0], [1, 1, 0]]
    arguments["coefficients"][...] = 1.0
    arguments["grad"][...] = np.abs(arguments["grad"])
    done = call(library, "graph_conv_grad_cpu", arguments)
    expected = numbers(done["grad"], F32)[:, 0].sum(0)
    np.testing.assert_allclose(done["grad_bias"], [expected, expected], rtol=2.0**-22)


def test_infinite_gradients_stay_infinite(library):
    arguments = build_grad(F32, 600, 2, 1, 3, 1, 1, 1, norm=False)
    arguments["edges"][...], arguments["coefficients"][...] = 0, 1.0
    arguments["grad"][...] = 1.0
    arguments["grad"][5, 0, 1] = np.inf
    done = call(library, "graph_conv_grad_cpu", arguments)
    np.testing.assert_array_equal(done["grad_bias"], [[600.0, np.inf, 600.0]])


def test_many_partitions_cost_no_more_than_their_edges(library):
    """Hundredths of a second; looking through all edges for each node of each partition would take many."""
    arguments = build(F32, 1, 256, 1, 1, 8192, 8192, 1)
    begin = time.perf_counter()
    call(library, "graph_conv_cpu", arguments)
    assert time.perf_counter() - begin < 2


# ---- threads


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_threads(library, dtype):
    sizes = (202, 7, 33, 20, 4, 25, 2)
    same(library, "graph_conv_cpu", lambda: build(dtype, *sizes), ["y", "moments"])
    same(library, "graph_conv_grad_cpu", lambda: build_grad(dtype, *sizes), ["grad_x"])


@pytest.mark.parametrize("threads", [2, 3, 64])
def test_gradients_of_weights_on_threads(library, threads):
    arguments = {**build_grad(F32, 202, 7, 33, 20, 4, 25, 2), "threads": threads}
    check_grad(library, call(library, "graph_conv_grad_cpu", arguments))
    again = call(library, "graph_conv_grad_cpu", {**build_grad(F32, 202, 7, 33, 20, 4, 25, 2), "threads": threads})
    for name in ("grad_weight", "grad_bias"):
        np.testing.assert_array_equal(bits(arguments[name]), bits(again[name]))


# ---- refusals

IMPOSSIBLE = (-1, 2**62, 2**61, 2**56, 2**31)  # channels
SKELETON = [
    *(({"dtype": wrong}, f"unknown dtype {wrong}") for wrong in (4, -1)),
    *(
        ({name: wrong}, "nodes and partitions must be in")
        for name in ("nodes", "partitions")
        for wrong in (0, -1, 2**62)
    ),
    *(({"edge_count": wrong}, "impossible size") for wrong in (-1, -(2**62), 2**62)),
    *(({"groups": wrong}, "groups must divide 6 rows") for wrong in (0, -1, 4, 2**62)),
    *(({"rows": wrong}, "groups must divide|impossible size") for wrong in (-1, -2, 2**62, 2**61, 2**63 - 2)),
    *(({name: wrong}, "impossible size") for name in ("inputs", "outputs") for wrong in IMPOSSIBLE),
    ({"rows": 2**61, "nodes": 8}, "impossible size"),
    *bad_buffers("edges", "coefficients"),
]
FORWARD = [*SKELETON, *bad_buffers("x", "weight", "y"), *(({n: "misaligned"}, "align") for n in ("bias", "moments"))]
BACKWARD = [
    *SKELETON,
    *bad_buffers("grad", "y", "sums", "x", "weight", "grad_x", "grad_weight", "grad_bias"),
    *(({name: "misaligned"}, "align") for name in ("norm", "along")),
]


@pytest.mark.parametrize(("wrong", "word"), FORWARD, ids=str)
def test_bad_arguments(library, wrong, word):
    refused(library, "graph_conv_cpu", build(), wrong, word)


@pytest.mark.parametrize(("wrong", "word"), BACKWARD, ids=str)
def test_bad_arguments_of_the_gradient(library, wrong, word):
    refused(library, "graph_conv_grad_cpu", build_grad(), wrong, word)


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("wrong", [-1, -(2**31), 2**31 - 1, None])
def test_edges_that_lead_nowhere_are_bad_arguments(library, column, wrong):
    limit = (4, 7, 7)[column]
    for function, good in (("graph_conv_cpu", build()), ("graph_conv_grad_cpu", build_grad())):
        good["edges"][24, column] = limit if wrong is None else wrong
        shown = ", ".join(map(str, good["edges"][24]))
        refused(library, function, good, {}, rf"edge 24 \({shown}\) must be in 4 partitions of 7 nodes")
