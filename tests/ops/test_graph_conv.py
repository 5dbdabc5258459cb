import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import slrfast
from slrfast import graphs, ops
from slrfast.graphs import SkeletonGraph
from slrfast.ops import _dispatch, _skeleton
from slrfast.reference import graph_conv as reference

OP = "graph_conv"
PAIR = SkeletonGraph.from_edges(["wrist", "tip"], bones=[(0, 1)])
ONE_EDGE = SkeletonGraph(("a", "b", "c"), ((1, 2, 0, 0.5),), 3)
CHAIN256 = SkeletonGraph.from_edges([str(i) for i in range(256)], [(i, i + 1) for i in range(255)])


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


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


def grads_of(tensors, graph, grad):
    """The gradients in float64 of the convolution by its dense adjacency."""
    x, weight, bias = (tensor.detach().double().cpu().requires_grad_() for tensor in tensors)
    dense = torch.tensor(graph.dense(), dtype=torch.float64)
    out = torch.einsum("rpvo,pvw->rwo", torch.einsum("rvi,pio->rpvo", x, weight) + bias[:, None], dense)
    return torch.autograd.grad(out, (x, weight, bias), grad.double().cpu())


def check(got, plain, truth):
    """An error of at most 1.5 times that of the reference in the same dtype, and one unit in the last place.

    The truth in float64 is no better than a result in float64, which may be ten units off.
    """
    for mine, reference_of, exact in zip(got, plain, truth, strict=True):
        assert mine.dtype == reference_of.dtype and mine.shape == exact.shape and mine.is_contiguous()
        error, allowed = ((z.double().cpu() - exact).abs().max() for z in (mine, reference_of))
        rounding = 2e-15 if mine.dtype == torch.float64 else 2.0**-23
        assert error <= 1.5 * allowed + rounding * exact.abs().max()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 16), (16, 8)])
def test_error_is_that_of_the_reference(device, draw, dtype, inputs, outputs):
    tensors = draw(6, inputs, outputs, graphs.HAND21, device=device, dtype=dtype, requires_grad=True)
    out = ops.graph_conv(*tensors, graphs.HAND21)
    grad = torch.linspace(-1, 1, out.numel(), dtype=dtype, device=device).view(out.shape)
    edges = _skeleton.edges(graphs.HAND21, device)
    plain = reference.graph_conv(*tensors, *edges), *reference.graph_conv_grad(grad, *tensors[:2], *edges)
    truth = oracle(*tensors, graphs.HAND21), *grads_of(tensors, graphs.HAND21, grad)
    check((out, *torch.autograd.grad(out, tensors, grad)), plain, truth)


def test_error_of_long_sums_is_that_of_the_reference(device, draw):
    """Gradients that do not cancel, over more rows than float32 adds up one by one without losing digits."""
    if _dispatch.choose(OP, device.type) == "triton":
        pytest.skip("the Triton kernel adds up blocks of rows one after the other: three times the error at 1000 rows")
    tensors = [t.abs().requires_grad_() for t in draw(60_000, 4, 4, graphs.TRUNK7, device=device)]
    grad = tensors[0].detach() + 1
    edges = _skeleton.edges(graphs.TRUNK7, device)
    got = torch.autograd.grad(ops.graph_conv(*tensors, graphs.TRUNK7), tensors, grad)
    truth = grads_of(tensors, graphs.TRUNK7, grad)
    check(got, reference.graph_conv_grad(grad, *tensors[:2], *edges), truth)


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [graphs.TRUNK7, graphs.TRUNK3_LEGACY, ONE_EDGE], ids=lambda g: g.names[0])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 5), (5, 2)])
def test_gradients_equal_those_of_the_dense_adjacency(device, draw, graph, inputs, outputs):
    tensors = draw(9, inputs, outputs, graph, device=device, requires_grad=True)
    out = ops.graph_conv(*tensors, graph)
    grad = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)
    for got, truth in zip(torch.autograd.grad(out, tensors, grad), grads_of(tensors, graph, grad), strict=True):
        assert_close(got.double().cpu(), truth, rtol=1e-5, atol=1e-5)


def test_gradients_only_where_wanted(device, draw):
    tensors = draw(4, 3, 5, graphs.TRUNK7, device=device, requires_grad=True)
    whole = torch.autograd.grad(ops.graph_conv(*tensors, graphs.TRUNK7).sum(), tensors)
    for wanted in range(3):
        some = [t if i == wanted else t.detach() for i, t in enumerate(tensors)]
        (got,) = torch.autograd.grad(ops.graph_conv(*some, graphs.TRUNK7).sum(), tensors[wanted])
        assert torch.equal(got, whole[wanted])
    assert not ops.graph_conv(*(t.detach() for t in tensors), graphs.TRUNK7).requires_grad


def test_no_second_derivative(draw):
    x, weight, bias = draw(2, 3, 5, graphs.TRUNK7, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.graph_conv(x, weight, bias, graphs.TRUNK7).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_partitions_without_edges_get_no_gradient(device, draw):
    x, weight, bias = draw(4, 3, 5, graphs.TRUNK3_LEGACY, device=device, requires_grad=True)
    ops.graph_conv(x, weight, bias, graphs.TRUNK3_LEGACY).square().sum().backward()
    assert weight.grad.abs().amax((1, 2)).ne(0).tolist() == [True, False, False, True]
    assert bias.grad.abs().amax(1).ne(0).tolist() == [True, False, False, True]


def test_saves_its_arguments_only(draw, saved_shapes):
    x, weight, bias = draw(4, 3, 5, graphs.HAND21, requires_grad=True)
    edges = len(graphs.HAND21.edges)
    shapes = saved_shapes(lambda: ops.graph_conv(x, weight, bias, graphs.HAND21))
    assert shapes == [(4, 21, 3), (4, 3, 5), (edges, 3), (edges,)]


# ---- gradcheck ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 5), (5, 2)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(draw, inputs, outputs, with_bias):
    tensors = draw(2, inputs, outputs, graphs.TRUNK3, dtype=torch.float64, requires_grad=True)
    tensors = tensors if with_bias else tensors[:2]
    assert torch.autograd.gradcheck(lambda x, w, b=None: ops.graph_conv(x, w, b, graphs.TRUNK3), tensors)


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(device, draw):
    x, weight, bias = draw(3, 2, 5, graphs.TRUNK7, device=device)
    grad = draw(3, 5, 2, graphs.TRUNK7, device=device)[0].mT.contiguous().mT
    edges = _skeleton.edges(graphs.TRUNK7, device)
    permuted = x.permute(2, 0, 1).contiguous().permute(1, 2, 0), weight.mT.contiguous().mT
    torch.library.opcheck(torch.ops.slrfast.graph_conv.default, (x, weight, bias, *edges))
    torch.library.opcheck(torch.ops.slrfast.graph_conv.default, (*permuted, None, *edges))
    torch.library.opcheck(torch.ops.slrfast.graph_conv_grad.default, (grad.contiguous(), x, weight, *edges))
    torch.library.opcheck(torch.ops.slrfast.graph_conv_grad.default, (grad, *permuted, *edges))


def test_compiles_whole(device, draw, compiled):
    tensors = draw(3, 2, 5, graphs.HAND21, device=device, requires_grad=True)
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
    with torch.autocast(device.type, dtype=torch.bfloat16):  # leaves float64 alone, like torch's own products
        assert ops.graph_conv(*(t.double() for t in tensors), graphs.HAND21).dtype == torch.float64


def test_constants_are_made_once():
    cpu = torch.device("cpu")
    first = _skeleton.edges(PAIR, cpu)
    again = _skeleton.edges(SkeletonGraph.from_edges(["wrist", "tip"], [(0, 1)]), cpu)
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert first[0].tolist() == [list(edge[:3]) for edge in PAIR.edges] and first[1].dtype == torch.float32


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("allow", [False, True])
def test_fake_tensors_leave_no_constants_behind(draw, warm, allow):
    graph = SkeletonGraph.from_edges(["a", "b", "c"], [(0, 1), (1, 2)], parts=((0, 1), (2, warm, allow)[: 2 - warm]))
    x, weight, bias = draw(2, 3, 4, graph)
    if warm:
        expected = ops.graph_conv(x, weight, bias, graph), ops.part_max(x, graph)
    with FakeTensorMode(allow_non_fake_inputs=allow) as mode:
        fakes = [mode.from_tensor(t) for t in (x, weight, bias)]
        assert ops.graph_conv(*fakes, graph).shape == (2, 3, 4) and ops.part_max(fakes[0], graph).shape == (2, 2, 3)
    got = ops.graph_conv(x, weight, bias, graph), ops.part_max(x, graph)
    assert all(type(t) is torch.Tensor for t in got)
    if warm:
        assert_close(got, expected, rtol=0, atol=0)


def test_an_exported_network_leaves_no_constants_behind(draw):
    class Module(torch.nn.Module):
        def forward(self, x, weight, bias):
            return ops.graph_conv(x, weight, bias, graph)

    graph = SkeletonGraph.from_edges([*"abcd"], bones=[(0, 1), (1, 2), (2, 3)])
    tensors = draw(2, 3, 4, graph)
    program = torch.export.export(Module(), tuple(tensors))
    assert_close(program.module()(*tensors), ops.graph_conv(*tensors, graph), rtol=0, atol=0)
    assert type(ops.graph_conv(*tensors, graph)) is torch.Tensor


def test_constants_are_on_the_device_of_x_whatever_the_default(draw):
    graph = SkeletonGraph.from_edges([*"abcde"], [(0, 1), (1, 2), (2, 3), (3, 4)], parts=((0, 1), (2,)))
    x, weight, bias = draw(2, 3, 4, graph)
    with torch.device("meta"):
        got = ops.graph_conv(x, weight, bias, graph), ops.part_max(x, graph)
    assert_close(got, (ops.graph_conv(x, weight, bias, graph), ops.part_max(x, graph)))


def test_raw_calls_of_other_shapes_read_nothing_beyond_a_tensor(draw):
    if _dispatch.unavailable("native", "cpu"):
        pytest.skip("no native kernels")
    x, weight, bias = draw(2, 3, 4, PAIR)
    edges, coefficients = _skeleton.edges(PAIR, x.device)
    grad, op, backward = torch.zeros(2, 2, 4), torch.ops.slrfast.graph_conv, torch.ops.slrfast.graph_conv_grad
    wrongs = [
        lambda: op(x, weight[:, :2], bias, edges, coefficients),
        lambda: op(x, weight, bias[:3], edges, coefficients),
        lambda: op(x, weight, bias[:, :3], edges, coefficients),
        lambda: op(x, weight, bias, edges[:, :2], coefficients),
        lambda: op(x, weight, bias, edges, coefficients[1:]),
        lambda: op(x, weight, bias, edges.long(), coefficients),
        lambda: backward(grad[:1], x, weight, edges, coefficients),
        lambda: backward(grad[..., :3], x, weight, edges, coefficients),
        lambda: backward(grad, x, weight[:, :2], edges, coefficients),
        lambda: backward(grad, x, weight, edges, coefficients[1:]),
    ]
    with slrfast.backend("native"):
        for wrong in wrongs:
            with pytest.raises(ValueError, match="a CPU kernel of the graph network takes"):
                wrong()
        strided = edges.repeat(1, 2)[:, :3], coefficients.repeat_interleave(2)[::2]
        assert torch.equal(op(x, weight, bias, *strided), op(x, weight, bias, edges, coefficients))


def test_constants_made_under_inference_mode_can_be_trained_with(draw):
    graph = SkeletonGraph.from_edges(["a", "b", "c"], bones=[(0, 1), (1, 2)])
    x, weight, bias = draw(2, 3, 4, graph, requires_grad=True)
    with torch.inference_mode():
        ops.graph_conv(x, weight, bias, graph)
    ops.graph_conv(x, weight, bias, graph).sum().backward()
    assert x.grad is not None


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 123])
def test_any_number_of_rows_and_strides(device, draw, rows):
    x, weight, bias = draw(rows, 4, 6, graphs.TRUNK7, device=device)
    views = x.mT.contiguous().mT, weight.permute(2, 1, 0).contiguous().permute(2, 1, 0), bias.T.contiguous().T
    expected = ops.graph_conv(x, weight, bias, graphs.TRUNK7)
    assert expected.shape == (rows, 7, 6)
    assert_close(ops.graph_conv(*views, graphs.TRUNK7), expected)


def test_no_rows_have_no_gradient(device, draw):
    tensors = draw(0, 4, 6, graphs.TRUNK7, device=device, requires_grad=True)
    grads = torch.autograd.grad(ops.graph_conv(*tensors, graphs.TRUNK7).sum(), tensors)
    assert [g.shape for g in grads] == [t.shape for t in tensors] and not any(g.any() for g in grads)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 33), (50, 3), (33, 50)])
@pytest.mark.parametrize("graph", [graphs.TRUNK7, ONE_EDGE], ids=lambda g: g.names[0])
def test_channels_that_fit_no_vector(device, draw, graph, inputs, outputs):
    tensors = draw(9, inputs, outputs, graph, device=device, requires_grad=True)
    out = ops.graph_conv(*tensors, graph)
    assert_close(out.double().cpu(), oracle(*tensors, graph), rtol=1e-5, atol=1e-5)
    grad = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)
    for got, truth in zip(torch.autograd.grad(out, tensors, grad), grads_of(tensors, graph, grad), strict=True):
        assert_close(got.double().cpu(), truth, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 3), (3, 0)])
def test_no_channels(device, draw, inputs, outputs):
    tensors = draw(2, inputs, outputs, graphs.TRUNK7, device=device, requires_grad=True)
    out = ops.graph_conv(*tensors, graphs.TRUNK7)
    assert_close(out.double().cpu(), oracle(*tensors, graphs.TRUNK7).view(2, 7, outputs))
    for got, truth in zip(
        torch.autograd.grad(out.sum(), tensors), grads_of(tensors, graphs.TRUNK7, torch.ones_like(out)), strict=True
    ):
        assert_close(got.double().cpu(), truth)


def test_256_nodes(device, draw):
    tensors = draw(1, 3, 5, CHAIN256, device=device, requires_grad=True)
    out = ops.graph_conv(*tensors, CHAIN256)
    assert_close(out.double().cpu(), oracle(*tensors, CHAIN256), rtol=1e-5, atol=1e-5)
    grad = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)
    for got, truth in zip(torch.autograd.grad(out, tensors, grad), grads_of(tensors, CHAIN256, grad), strict=True):
        assert_close(got.double().cpu(), truth, rtol=1e-5, atol=1e-4)


def test_nan_spreads_to_its_frame_only(device, draw):
    x, weight, bias = draw(3, 2, 4, graphs.HAND21, device=device)
    x[1, 5, 0] = float("nan")
    out = ops.graph_conv(x, weight, bias, graphs.HAND21)
    assert out[1].isnan().any() and out[[0, 2]].isfinite().all()


def test_threads_agree(draw):
    tensors, before = draw(100, 9, 20, graphs.HAND21, requires_grad=True), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = ops.graph_conv(*tensors, graphs.HAND21)
            results.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    for one, two in zip(*results, strict=True):
        assert (one - two).norm() <= 1e-6 * two.norm()


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
