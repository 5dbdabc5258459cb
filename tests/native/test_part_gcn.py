import numpy as np
import pytest
from bank_oracles import close
from buffers import BF16, F16, F32, F64, STORED, address, bad_buffers, call, empty, encode, filled, refused
from buffers import same_for_any_threads as same
from gcn_oracles import COMPUTE, dense, graph_conv, numbers, product, stored, unit

# rows, nodes, channels of x and of every block, joint blocks, partitions, edges, parts, members, edges of the parts
SIZES = [
    (1, 1, (1, 1, 1), 1, 1, 1, 1, 1, 1),
    (9, 7, (2, 5, 5, 9, 3), 2, 4, 25, 3, 4, 9),
    (5, 21, (2, 33, 33, 50), 1, 4, 90, 6, 6, 20),
    (3, 2, (70, 1, 64, 1), 1, 2, 3, 9, 2, 30),
    (11, 2, (3, 64, 2), 1, 2, 3, 40, 2, 90),
    (40, 5, (1, 3, 3, 3), 2, 3, 0, 2, 3, 0),
    (0, 5, (1, 3, 3, 3), 2, 3, 4, 2, 3, 2),
    (4, 3, (0, 3, 2), 1, 2, 4, 2, 2, 3),
]
LARGE = (203, 21, (2, 32, 32, 40), 2, 4, 60, 6, 6, 20)
INPUTS, OUTPUTS, IDENTITY, WEIGHT, NODE_BIAS, MAP, BIAS, RESIDUAL = range(8)


def skeleton(random, nodes, partitions, count, prefix=""):
    edges = np.stack([random.integers(0, limit, count) for limit in (partitions, nodes, nodes)], 1).astype(np.int32)
    coefficients = random.normal(size=count).astype(np.float32)
    pair = (filled(edges), filled(coefficients)) if count else (None, None)
    return dict(zip((f"{prefix}edges", f"{prefix}coefficients", f"{prefix}edge_count"), (*pair, count), strict=True))


def build(dtype=F32, rows=9, nodes=7, channels=(2, 5, 5, 9), joint=2, partitions=4, edges=25, parts=3, most=4, more=9):
    random = np.random.default_rng([rows, nodes, parts])

    def wides(*shape):
        numbers = random.normal(size=shape) / np.sqrt(max(shape[-1], 1))
        return filled(numbers.astype(STORED[COMPUTE[dtype]]))

    layers = []
    for i, (k, n) in enumerate(zip(channels, channels[1:], strict=False)):
        weights = wides(partitions, k, n), wides(nodes if i < joint else parts, n), wides(n, n), wides(n)
        layers.append((k, n, int(k == n), *weights, wides(n, k) if k != n and i != 1 else None))
    blocks = filled(np.array([[address(field) for field in layer] for layer in layers], np.int64))
    blocks.layers = layers
    return {
        "dtype": dtype,
        "x": filled(encode(random.normal(size=(rows, nodes, channels[0])), dtype)),
        "rows": rows,
        "nodes": nodes,
        "inputs": channels[0],
        "partitions": partitions,
        "blocks": blocks,
        "count": len(layers),
        "joint_blocks": joint,
        **skeleton(random, nodes, partitions, edges),
        "members": filled(random.integers(0, nodes, (parts, most)).astype(np.int32)),
        "parts": parts,
        "most": most,
        **skeleton(random, parts, partitions, more, "pooled_"),
        "out": empty((rows, channels[-1]), STORED[dtype]),
        "threads": 1,
    }


def check(library, done):
    dtype, wide = done["dtype"], COMPUTE[done["dtype"]]
    pairs = dtype == BF16 and library.cpu_isa() == "avx512bf16"
    x = numbers(done["x"], dtype)
    error = np.zeros_like(x)
    adjacency = dense(done["edges"], done["coefficients"], done["nodes"], done["partitions"])
    for i, (_, _, identity, *weights) in enumerate(done["blocks"].layers):
        weight, node_bias, mapping, bias, residual = (None if w is None else numbers(w, wide) for w in weights)
        if i == done["joint_blocks"]:
            x, error = (z[:, np.array(done["members"])].max(2) for z in (x, error))
            adjacency = dense(done["pooled_edges"], done["pooled_coefficients"], done["parts"], done["partitions"])

        def plus(y, off, z, more=0.0):
            return y + z, off + more + unit(dtype) * (np.abs(y) + np.abs(z))

        y, off = plus(*graph_conv(dtype, x, adjacency, weight, None, pairs, error), node_bias)
        y, off = plus(*product(dtype, np.maximum(y, 0), off, mapping.T, y.shape[2], pairs), bias)
        if identity:
            y, off = plus(y, off, x, error)
        elif residual is not None:
            y, off = plus(y, off, *product(dtype, x, error, residual.T, x.shape[2], pairs))
        x, error = np.maximum(y, 0), off + (2.0**-8 * np.abs(y) if pairs else 0.0)
    close(numbers(done["out"], dtype), x.max(1), stored(dtype, x.max(1), error.max(1)))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(library, dtype, sizes):
    check(library, call(library, "part_gcn_cpu", build(dtype, *sizes)))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_several_tiles(library, dtype):
    check(library, call(library, "part_gcn_cpu", build(dtype, *LARGE)))


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_nan_spoils_its_frame_only(library, dtype):
    arguments = build(dtype)
    arguments["x"][4, :, 1] = encode(np.array([np.nan]), dtype)[0]
    out = numbers(call(library, "part_gcn_cpu", arguments)["out"], dtype)
    assert np.isnan(out[4]).all() and np.isfinite(np.delete(out, 4, 0)).all()


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_threads(library, dtype):
    same(library, "part_gcn_cpu", lambda: build(dtype, *LARGE), ["out"])


COMMON = [
    *(({"dtype": wrong}, f"unknown dtype {wrong}") for wrong in (4, -1)),
    *(({name: wrong}, "nodes and partitions must be in") for name in ("nodes", "parts") for wrong in (0, -1, 2**62)),
    *(({name: wrong}, "impossible size") for name in ("edge_count", "pooled_edge_count") for wrong in (-1, 2**62)),
    *(({"rows": wrong}, "rows through|impossible size") for wrong in (-1, 2**62, 2**61, 2**63 - 1)),
    ({"rows": 2**61, "nodes": 8}, "impossible size"),
    *(({"inputs": wrong}, "impossible size") for wrong in (-1, 2**62, 2**61)),
    *(({"most": wrong}, "parts must have|impossible size") for wrong in (-1, 0, 2**62)),
    *(({"joint_blocks": wrong}, "blocks on the joints") for wrong in (-1, 0, 3, 4)),
    *(({"count": wrong}, "blocks on the joints") for wrong in (-1, 0, 1, 2)),
    *bad_buffers("x", "edges", "coefficients", "members", "pooled_edges", "pooled_coefficients", "out"),
    ({"blocks": 0}, "null|blocks on the joints"),
    ({"blocks": "misaligned"}, "align"),
]


@pytest.mark.parametrize(("wrong", "word"), COMMON, ids=str)
def test_bad_arguments(library, wrong, word):
    refused(library, "part_gcn_cpu", build(), wrong, word)


@pytest.mark.parametrize("block", range(3))
def test_blocks_that_do_not_fit_are_bad_arguments(library, block):
    wrongs = [
        *((INPUTS, wrong, "maps .* channels, given") for wrong in (-1, 0, 4, 2**62)),
        *((OUTPUTS, wrong, "maps .* channels, given|impossible size") for wrong in (-1, 0, 2**62, 2**61, 2**56, 2**31)),
        *((field, 0, "is null") for field in (WEIGHT, NODE_BIAS, MAP, BIAS)),
        *((field, 2, "is not aligned") for field in (WEIGHT, NODE_BIAS, MAP, BIAS, RESIDUAL)),
    ]
    for field, wrong, word in wrongs:
        good = build()
        good["blocks"][block, field] = wrong
        refused(library, "part_gcn_cpu", good, {}, word)
    good = build()
    good["blocks"][2, IDENTITY] = 1
    refused(library, "part_gcn_cpu", good, {}, "block 2 maps 5 to 9 channels, given 5")
    good = build()
    good["blocks"][1, RESIDUAL] = good["blocks"][1, MAP]
    refused(library, "part_gcn_cpu", good, {}, "block 1 has a residual map besides identity")


@pytest.mark.parametrize("wrong", [-1, 7, 2**31 - 1])
def test_members_that_are_no_nodes_are_bad_arguments(library, wrong):
    good = build()
    good["members"][2, 3] = wrong
    refused(library, "part_gcn_cpu", good, {}, f"members must be nodes of 0..6, got {wrong}")


@pytest.mark.parametrize("edges", ["edges", "pooled_edges"])
@pytest.mark.parametrize("column", range(3))
def test_edges_that_lead_nowhere_are_bad_arguments(library, edges, column):
    limit = (4, 7, 7) if edges == "edges" else (4, 3, 3)
    for wrong in (-1, limit[column], 2**31 - 1):
        good = build()
        good[edges][3, column] = wrong
        shown = ", ".join(map(str, good[edges][3]))
        refused(library, "part_gcn_cpu", good, {}, rf"edge 3 \({shown}\) must be in 4 partitions of {limit[1]} nodes")
