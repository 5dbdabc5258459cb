import re

import pytest
import torch
from torch.testing import assert_close

from slrfast import graphs, ops
from slrfast.graphs import SkeletonGraph
from slrfast.reference import graph_conv as reference

OP = "graph_conv"
PAIR = SkeletonGraph.from_edges(["wrist", "tip"], bones=[(0, 1)])


def oracle(x, weight, bias, graph):
    """Message by message along the graph's edges, in Python floats."""
    partitions, inputs, outputs = weight.shape
    x, weight, bias = x.tolist(), weight.tolist(), bias.tolist() if bias is not None else None
    out = [[[0.0] * outputs for _ in range(graph.num_nodes)] for _ in x]
    for frame, result in zip(x, out, strict=True):
        for p, source, target, strength in graph.edges:
            for c in range(outputs):
                value = sum(frame[source][i] * weight[p][i][c] for i in range(inputs))
                result[target][c] += strength * (value + (bias[p][c] if bias is not None else 0.0))
    return torch.tensor(out, dtype=torch.float64)


@pytest.fixture
def draw(randn):
    def make(rows, inputs, outputs, graph, **options):
        partitions = graph.num_partitions
        shapes = (rows, graph.num_nodes, inputs), (partitions, inputs, outputs), (partitions, outputs)
        return [randn(*shape, **options) for shape in shapes]

    return make


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    x = torch.tensor([[[2.0], [6.0]]], device=device)
    weight = torch.tensor([1.0, 10.0, 100.0, 1000.0], device=device).reshape(4, 1, 1)
    bias = torch.tensor([0.5, 0.25, 0.125, 7.0], device=device).reshape(4, 1)
    # every weight is 1/2; the wrist hears the tip inward (partition 1), the tip hears the wrist outward (partition 2)
    expected = [1 + 30 + 0.25 + 0.125, 3 + 100 + 0.25 + 0.0625]
    assert ops.graph_conv(x, weight, bias, PAIR).flatten().tolist() == expected


@pytest.mark.parametrize("graph", [graphs.HAND21, graphs.TRUNK7, graphs.TRUNK3_LEGACY], ids=lambda g: g.names[0])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 5), (5, 2), (3, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_loops(device, draw, graph, inputs, outputs, with_bias):
    x, weight, bias = draw(3, inputs, outputs, graph, device=device)
    bias = bias if with_bias else None
    out = ops.graph_conv(x, weight, bias, graph)
    assert out.shape == (3, graph.num_nodes, outputs) and out.dtype == torch.float32
    assert_close(out.double().cpu(), oracle(x, weight, bias, graph), rtol=1e-5, atol=1e-5)


def test_equals_einsum_over_the_dense_adjacency(device, draw):
    x, weight, bias = draw(6, 4, 8, graphs.HAND21, device=device, dtype=torch.float64)
    messages = torch.einsum("rvi,pio->rpvo", x, weight) + bias[:, None]
    dense = torch.tensor(graphs.HAND21.dense(), device=device, dtype=torch.float64)
    expected = torch.einsum("rpvo,pvw->rwo", messages, dense)
    assert_close(ops.graph_conv(x, weight, bias, graphs.HAND21), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 16), (16, 8)])
def test_half_types(device, draw, dtype, inputs, outputs):
    tensors = draw(6, inputs, outputs, graphs.HAND21, device=device, dtype=dtype)
    out = ops.graph_conv(*tensors, graphs.HAND21)
    expected = oracle(*tensors, graphs.HAND21)
    assert out.dtype == dtype
    assert (out.double().cpu() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 5), (5, 2)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(draw, inputs, outputs, with_bias):
    tensors = draw(2, inputs, outputs, graphs.TRUNK7, dtype=torch.float64, requires_grad=True)
    tensors = tensors if with_bias else tensors[:2]
    assert torch.autograd.gradcheck(
        lambda x, w, b=None: ops.graph_conv(x, w, b, graphs.TRUNK7), tensors, check_undefined_grad=False
    )


def test_partitions_without_edges_get_no_gradient(draw):
    x, weight, bias = draw(4, 3, 5, graphs.TRUNK3_LEGACY, requires_grad=True)
    ops.graph_conv(x, weight, bias, graphs.TRUNK3_LEGACY).square().sum().backward()
    assert weight.grad.abs().amax((1, 2)).ne(0).tolist() == [True, False, False, True]
    assert bias.grad.abs().amax(1).ne(0).tolist() == [True, False, False, True]


# ---- compilation and constants --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 5), (5, 2)])
def test_compiles_whole(device, draw, compiled, inputs, outputs):
    tensors = draw(3, inputs, outputs, graphs.HAND21, device=device, requires_grad=True)
    expected = ops.graph_conv(*tensors, graphs.HAND21)
    got = compiled(ops.graph_conv)(*tensors, graphs.HAND21)
    assert_close(got, expected)
    grads = torch.autograd.grad(got.square().sum(), tensors)
    assert_close(grads, torch.autograd.grad(expected.square().sum(), tensors))


def test_autocast_multiplies_in_bfloat16(device, draw, compiled):
    tensors = draw(3, 8, 16, graphs.HAND21, device=device, requires_grad=True)
    for function in (ops.graph_conv, compiled(ops.graph_conv)):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out = function(*tensors, graphs.HAND21)
        assert out.dtype == torch.bfloat16
        assert_close(out.float(), ops.graph_conv(*tensors, graphs.HAND21), rtol=0.05, atol=0.1)
        assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.float().sum(), tensors))


def test_constants_are_made_once_per_dtype():
    cpu = torch.device("cpu")
    first = reference.graph_tensors(PAIR, cpu, torch.float32)
    again = reference.graph_tensors(SkeletonGraph.from_edges(["wrist", "tip"], [(0, 1)]), cpu, torch.float32)
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert reference.graph_tensors(PAIR, cpu, torch.float64)[0].dtype == torch.float64


def test_constants_made_under_inference_mode_can_be_trained_with(draw):
    graph = SkeletonGraph.from_edges(["a", "b", "c"], bones=[(0, 1), (1, 2)])
    x, weight, bias = draw(2, 3, 4, graph, requires_grad=True)
    with torch.inference_mode():
        ops.graph_conv(x, weight, bias, graph)
    ops.graph_conv(x, weight, bias, graph).sum().backward()
    assert x.grad is not None


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 252])
def test_any_number_of_rows_and_strides(device, draw, rows):
    x, weight, bias = draw(rows, 4, 6, graphs.TRUNK7, device=device)
    views = x.mT.contiguous().mT, weight.permute(2, 1, 0).contiguous().permute(2, 1, 0), bias.T.contiguous().T
    expected = ops.graph_conv(x, weight, bias, graphs.TRUNK7)
    assert expected.shape == (rows, 7, 6)
    assert_close(ops.graph_conv(*views, graphs.TRUNK7), expected)


def test_nan_spreads_to_its_frame_only(draw):
    x, weight, bias = draw(3, 2, 4, graphs.HAND21)
    x[1, 5, 0] = float("nan")
    out = ops.graph_conv(x, weight, bias, graphs.HAND21)
    assert out[1].isnan().any() and out[[0, 2]].isfinite().all()


# ---- errors ---------------------------------------------------------------------------------------------------------

X, W, B = torch.zeros(3, 2, 5), torch.zeros(4, 5, 6), torch.zeros(4, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[:, :1], W, B), ValueError, "x must have the graph's 2 nodes, got 1"),
        ((X, W[:3], B[:3]), ValueError, "weight must have the graph's 4 partitions, got 3"),
        ((X, W[:, :4], B), ValueError, "weight must have shape [P, Cin, Cout] with Cin = 5, got [4, 4, 6]"),
        ((X, W, B[:, :5]), ValueError, "bias must have shape [P, Cout] with Cout = 6, got [4, 5]"),
        ((X[0], W, B), ValueError, "x must have shape [R, V, Cin], got [2, 5]"),
        ((X, W.int(), B), TypeError, "weight must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((X.double(), W, B), TypeError, "weight must be torch.float64, got torch.float32"),
        ((X, W, B.to("meta")), ValueError, "bias must be on the device of x (cpu), got meta"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(f"graph_conv: {message}")):
        ops.graph_conv(*arguments, PAIR)


def test_graph_of_another_type():
    with pytest.raises(TypeError, match="graph_conv: graph must be a slrfast.graphs.SkeletonGraph, got ndarray"):
        ops.graph_conv(X, W, B, PAIR.dense())
