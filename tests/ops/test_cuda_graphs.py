"""Every op of the graph networks, forward and backward, replayed from a CUDA graph on numbers that it was not captured
with: the same as without the graph."""

import pytest
import torch
from torch.testing import assert_close

from benchmarks.capture import graphed
from slrfast import graphs, nn, ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]),
]
ROWS, NODES = 12, 21


def check(function, *inputs):
    """``function`` of the inputs and the gradients of all of them, which are leaves, eager and replayed."""
    shape = function(*inputs).shape
    grad = torch.empty(shape, device="cuda", dtype=inputs[0].dtype).normal_()

    def call():
        y = function(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, grad)]

    compare(call, [*inputs, grad])


@torch.no_grad()
def draw(tensors):
    for tensor in tensors:
        tensor.normal_()


def compare(call, inputs):
    draw(inputs)
    replay = graphed(call)
    draw(inputs)
    expected = [tensor.clone() for tensor in call()]
    for mine, theirs in zip(replay(), expected, strict=True):
        assert_close(mine, theirs)


def leaves(dtype, *shapes):
    return [torch.zeros(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]


def test_graph_conv(dtype):
    partitions = graphs.HAND21.num_partitions
    inputs = leaves(dtype, (ROWS, NODES, 8), (partitions, 8, 16), (partitions, 16))
    check(lambda x, weight, bias: ops.graph_conv(x, weight, bias, graphs.HAND21), *inputs)


def test_part_max(dtype):
    check(lambda x: ops.part_max(x, graphs.HAND21), *leaves(dtype, (ROWS, NODES, 8)))


@pytest.mark.parametrize("inputs, residual", [(8, False), (16, True), (8, True)], ids=["none", "identity", "linear"])
def test_gcn_block(dtype, inputs, residual):
    """With dropout, whose masks follow from a seed on the device."""
    block = nn.GCNBlock(inputs, 16, graphs.HAND21, residual=residual).cuda().to(dtype)
    parameters, seed = block.parameters_of_op(), torch.tensor(7, device="cuda")
    (x,) = leaves(dtype, (ROWS, NODES, inputs))
    given = [p for p in parameters if p is not None]

    def function(x, *weights):
        identity = residual and inputs == 16
        return ops.gcn_block(x, parameters, graphs.HAND21, dropout=0.25, identity=identity, groups=2, seed=seed)[0]

    check(function, x, *given)


def test_part_gcn(dtype):
    network = nn.PartGCN(graphs.HAND21, (8, 8, 16, 16, 16), 16).cuda().to(dtype).eval()
    folded = network.folded()
    (x,) = leaves(dtype, (ROWS, NODES, 2))

    @torch.no_grad()
    def call():
        return [ops.part_gcn(x, *folded, graphs.HAND21), network(x)]

    compare(call, [x])
