import math
import re

import pytest
import torch
from torch.testing import assert_close

from slrfast import graphs, ops
from slrfast.graphs import SkeletonGraph
from slrfast.ops import _skeleton
from slrfast.reference import part_max as reference

OP = "part_max"
OVERLAPPING = SkeletonGraph(("a", "b", "c"), ((0, 0, 0, 1.0),), 1, parts=((0, 1), (1, 2, 0), (1,), (2, 1)))
WHOLE256 = SkeletonGraph(tuple(map(str, range(256))), ((0, 0, 0, 1.0),), 1, parts=(tuple(range(255, -1, -1)), (7,)))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def oracle(x, graph, grad=None):
    """Part by part; with ``grad``, its way back to the first of the largest joints."""
    pooled = torch.stack([x[:, list(part)].amax(1) for part in graph.parts], 1)
    if grad is None:
        return pooled
    back = torch.zeros(x.shape, dtype=torch.float64)
    for p, part in enumerate(graph.parts):
        for r in range(len(x)):
            for c in range(x.shape[2]):
                values = x[r, list(part), c].tolist()
                top = next((i for i, v in enumerate(values) if math.isnan(v)), values.index(max(values)))
                back[r, part[top], c] += grad[r, p, c].item()
    return pooled, back


# ---- forward and backward -------------------------------------------------------------------------------------------


def test_by_hand(device):
    x = torch.tensor([[3.0, -1.0], [5.0, -2.0], [4.0, -3.0]], device=device)[None].requires_grad_()
    out = ops.part_max(x, OVERLAPPING)
    assert out[0].tolist() == [[5.0, -1.0], [5.0, -1.0], [5.0, -2.0], [5.0, -2.0]]
    (grad,) = torch.autograd.grad(out, x, torch.tensor([[[1.0, 10.0]] * 4], device=device))
    assert grad[0].tolist() == [[0.0, 20.0], [4.0, 20.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", [graphs.HAND21, graphs.TRUNK7, OVERLAPPING], ids=lambda g: g.names[0])
def test_equals_loops(device, randn, dtype, graph):
    x = (4 * randn(5, graph.num_nodes, 9)).round().to(device, dtype).requires_grad_()  # with ties
    grad = randn(5, len(graph.parts), 9, dtype=dtype, device=device)
    out = ops.part_max(x, graph)
    pooled, back = oracle(x.detach().cpu(), graph, grad.cpu())
    assert out.dtype == dtype and out.is_contiguous() and torch.equal(out.cpu(), pooled)
    (got,) = torch.autograd.grad(out, x, grad)
    assert got.dtype == dtype and got.is_contiguous()
    (members,) = _skeleton.members(graph, device)
    plain = reference.part_max_grad(grad, reference.part_max(x, members)[1], members, graph.num_nodes)
    error, allowed = ((z.double().cpu() - back).abs().max() for z in (got, plain))
    assert error <= 1.5 * allowed + 1e-6


def test_saves_one_byte_per_result(randn, saved_shapes):
    x = randn(4, 21, 8, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.part_max(x, graphs.HAND21)
    assert [(t.dtype, tuple(t.shape)) for t in saved] == [(torch.uint8, (4, 6, 8)), (torch.int32, (6, 6))]
    assert not ops.part_max(x.detach(), graphs.HAND21).requires_grad


def test_no_second_derivative(randn):
    x = randn(2, 7, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.part_max(x, graphs.TRUNK7).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# ---- gradcheck ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [graphs.TRUNK7, OVERLAPPING], ids=lambda g: g.names[0])
def test_gradcheck(randn, graph):
    x = randn(2, graph.num_nodes, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.part_max(x, graph), x)


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(device, randn):
    x, (members,) = randn(3, 7, 5, device=device), _skeleton.members(graphs.TRUNK7, device)
    for one in (x, x.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        torch.library.opcheck(torch.ops.slrfast.part_max.default, (one, members))
        pooled, chosen = torch.ops.slrfast.part_max(one, members)
        grads = (pooled, pooled.mT.contiguous().mT) if one is x else (pooled,)
        for grad in grads:
            torch.library.opcheck(torch.ops.slrfast.part_max_grad.default, (grad, chosen, members, 7))


def test_gradient_of_strided_tensors(device, randn):
    (members,) = _skeleton.members(graphs.TRUNK7, device)
    pooled, chosen = torch.ops.slrfast.part_max(randn(3, 7, 5, device=device), members)
    turned = [t.mT.contiguous().mT for t in (pooled, chosen)]
    expected = torch.ops.slrfast.part_max_grad(pooled, chosen, members, 7)
    assert torch.equal(torch.ops.slrfast.part_max_grad(*turned, members, 7), expected)


def test_compiles_whole_with_dynamic_shapes_and_under_autocast(device, randn, compiled):
    function = compiled(lambda x: ops.part_max(x * 2, graphs.TRUNK7).square().sum())
    for rows in (3, 5):
        x = randn(rows, 7, 4, device=device, requires_grad=True)
        expected = ops.part_max(x * 2, graphs.TRUNK7).square().sum()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = function(x)
        assert_close(got, expected)
        assert_close(torch.autograd.grad(got, x), torch.autograd.grad(expected, x))


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 3, 1), (2, 3, 0), (3, 3, 33), (252, 3, 3)])
def test_ragged_sizes(device, randn, shape):
    x = randn(*shape, device=device, requires_grad=True)
    out = ops.part_max(x, OVERLAPPING)
    assert out.shape == (shape[0], 4, shape[2]) and torch.equal(out, oracle(x, OVERLAPPING))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad.cpu(), oracle(x.detach().cpu(), OVERLAPPING, torch.ones_like(out))[1].float())


def test_part_of_256_nodes(device, randn):
    x = randn(2, 256, 3, device=device, requires_grad=True)
    out = ops.part_max(x, WHOLE256)
    assert torch.equal(out, oracle(x, WHOLE256))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad.cpu(), oracle(x.detach().cpu(), WHOLE256, torch.ones_like(out))[1].float())


def test_first_of_equals_gets_the_gradient(device):
    x = torch.zeros(2, 3, 2, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.part_max(x, OVERLAPPING).sum(), x)
    assert grad[0, :, 0].tolist() == [1.0, 2.0, 1.0]  # parts begin with a, b, b and c


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values(device, value):
    x = torch.ones(2, 3, 4, device=device)
    x[0, 1] = value
    x[0, 2, 0] = math.nan
    x.requires_grad_()
    out = ops.part_max(x, OVERLAPPING)
    assert_close(out, oracle(x, OVERLAPPING), rtol=0, atol=0, equal_nan=True)
    (grad,) = torch.autograd.grad(out.sum(), x)
    expected = oracle(x.detach().cpu(), OVERLAPPING, torch.ones_like(out))[1].float()
    assert torch.equal(grad.cpu(), expected)


def test_minus_infinity_is_a_maximum(device):
    x = torch.full((1, 3, 2), -math.inf, device=device)
    assert (ops.part_max(x, OVERLAPPING) == -math.inf).all()


def test_any_strides(device, randn):
    base = randn(6, 9, 8, device=device)
    for x in (base[::2, 1:8], base[:, :7, ::2], base.permute(2, 1, 0)[:, :7], base[:1, :7].expand(5, 7, 8)):
        assert torch.equal(ops.part_max(x, graphs.TRUNK7), ops.part_max(x.contiguous(), graphs.TRUNK7))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(randn, threads):
    x, before = randn(300, 21, 33, requires_grad=True), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = ops.part_max(x, graphs.HAND21)
        (grad,) = torch.autograd.grad(out.sum(), x)
    finally:
        torch.set_num_threads(before)
    (members,) = _skeleton.members(graphs.HAND21, x.device)
    pooled, chosen = reference.part_max(x, members)
    assert torch.equal(out, pooled)
    assert torch.equal(grad, reference.part_max_grad(torch.ones_like(pooled), chosen, members, 21))


# ---- errors ---------------------------------------------------------------------------------------------------------

X = torch.zeros(4, 7, 2)


@pytest.mark.parametrize(
    ("x", "graph", "error", "message"),
    [
        (X[0], graphs.TRUNK7, ValueError, "x must have shape [R, V, C], got [7, 2]"),
        ([1.0], graphs.TRUNK7, TypeError, "x must be a torch.Tensor, got list"),
        (X.int(), graphs.TRUNK7, TypeError, "x must be float64, float32, bfloat16 or float16, got torch.int32"),
        (X, graphs.HAND21, ValueError, "x must have the graph's 21 nodes, got 7"),
        (X, "hand", TypeError, "graph must be a slrfast.graphs.SkeletonGraph, got str"),
        (X[:, :6], graphs.HAND6, ValueError, "graph must have parts, got ()"),
    ],
)
def test_errors(x, graph, error, message):
    with pytest.raises(error, match=re.escape(f"part_max: {message}")):
        ops.part_max(x, graph)
