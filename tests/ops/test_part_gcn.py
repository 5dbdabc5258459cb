import math
import re
import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from slrfast import graphs, nn, ops
from slrfast.graphs import SkeletonGraph
from slrfast.ops import _skeleton
from slrfast.reference import part_gcn as reference

OP = "part_gcn"
MANY_PARTS = SkeletonGraph(
    ("a", "b"),
    ((0, 0, 1, 0.5), (0, 1, 1, 0.5)),
    1,
    parts=((0,), (1,), (0, 1), (1, 0), (0,)),
    pooled=SkeletonGraph(tuple("pqrst"), ((0, 0, 4, 1.0), (0, 4, 0, -1.0)), 1),
)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def oracle(x, joint_blocks, part_blocks, graph):
    """In float64, message by message."""
    x = x.detach().double().cpu()
    for blocks, skeleton in ((joint_blocks, graph), (part_blocks, graph.pooled)):
        if skeleton is not graph:
            x = torch.stack([x[:, list(part)].amax(1) for part in graph.parts], 1)
        for block in blocks:
            weight, node_bias, mapping, bias, residual, identity = (
                t.double().cpu() if isinstance(t, torch.Tensor) else t for t in block
            )
            y = node_bias.expand(len(x), -1, -1).clone()
            for p, source, target, _ in skeleton.edges:
                y[:, target] += float(skeleton.dense()[p, source, target]) * (x[:, source] @ weight[p])
            y = F.linear(y.relu(), mapping, bias)
            x = (y + (x if identity else 0 if residual is None else x @ residual.T)).relu()
    return x.amax(1)


@pytest.fixture
def draw(randn):
    def make(rows, graph, channels, joints, dtype=torch.float32, device="cpu"):
        wide, blocks = torch.promote_types(dtype, torch.float32), []
        for i, (k, n) in enumerate(zip(channels, channels[1:], strict=False)):
            skeleton = graph if i < joints else graph.pooled
            shapes = (skeleton.num_partitions, k, n), (skeleton.num_nodes, n), (n, n), (n,), (n, k)
            tensors = [randn(*shape, device=device).to(wide) / math.sqrt(shape[-1] or 1) for shape in shapes]
            same = k == n
            blocks.append(ops.FoldedBlock(*tensors[:4], None if same or i == 0 else tensors[4], same))
        x = randn(rows, graph.num_nodes, channels[0], dtype=dtype, device=device)
        return x, blocks[:joints], blocks[joints:], graph

    return make


def raw(x, joint_blocks, part_blocks, graph):
    blocks = [*joint_blocks, *part_blocks]
    constants = *_skeleton.edges(graph, x.device), *_skeleton.members(graph, x.device)
    return (
        x, [tensor for block in blocks for tensor in block[:5]], [block.identity for block in blocks], *constants,
        *_skeleton.edges(graph.pooled, x.device), len(joint_blocks),
    )  # fmt: skip


# ---- values ---------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    graph = SkeletonGraph(
        ("a", "b"), ((0, 0, 1, 0.5),), 1, parts=((0, 1),), pooled=SkeletonGraph(("p",), ((0, 0, 0, 1.0),), 1)
    )

    def block(weight, node_bias, factor, bias, *rest):
        tensors = [[[[weight]]], [[b] for b in node_bias], [[factor]], [bias]]
        return ops.FoldedBlock(*(torch.tensor(t, device=device) for t in tensors), *rest)

    x = torch.tensor([[[4.0], [1.0]], [[-4.0], [1.0]]], device=device)
    joints = [block(3.0, [-1.0, 1.0], 2.0, -3.0, None, True)]
    # at a: relu(-1) = 0, 0 - 3 + x; at b: relu(1.5 x_a + 1) 2 - 3 + x_b
    assert_close(oracle(x, joints, [block(1.0, [0.0], 1.0, 0.0)], graph).flatten().tolist(), [12.0, 0.0])
    assert ops.part_gcn(x, joints, [block(1.0, [0.0], 1.0, 0.0)], graph).flatten().tolist() == [12.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("graph", "channels", "joints"),
    [
        (graphs.HAND21, (2, 8, 8, 12, 20, 20), 3),
        (graphs.TRUNK7_LEGACY, (2, 8, 33, 50), 2),
        (MANY_PARTS, (3, 64, 5), 1),
        (MANY_PARTS, (1, 1, 70, 1), 1),
    ],
    ids=lambda value: value.names[0] if isinstance(value, SkeletonGraph) else str(value),
)
def test_error_is_that_of_the_reference(device, draw, dtype, graph, channels, joints):
    arguments = draw(13, graph, channels, joints, dtype, device)
    out, truth = ops.part_gcn(*arguments), oracle(*arguments)
    assert out.dtype == dtype and out.shape == (13, channels[-1]) and out.is_contiguous()
    error, allowed = ((z.double().cpu() - truth).norm() for z in (out, reference.part_gcn(*raw(*arguments))))
    assert error <= 1.5 * allowed + (2e-15 if dtype == torch.float64 else 2.0**-23) * truth.norm()


def test_is_the_network_in_evaluation_mode(device):
    """With running statistics, scales and shifts that are not those a module begins with."""
    torch.manual_seed(0)
    network = nn.PartGCN(graphs.HAND21, (6, 6, 8, 10, 10), 7).double().to(device)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            for tensor, low in (
                (module.running_mean, -1),
                (module.running_var, 0.2),
                (module.weight, -1),
                (module.bias, -1),
            ):
                torch.nn.init.uniform_(tensor, low, 2)
    network.eval()
    x = torch.rand(9, 21, 2, dtype=torch.float64, device=device)
    y = network.input_norm(x.flatten(1)).view(x.shape).detach()
    out = ops.part_gcn(y, *network.folded(), graphs.HAND21)
    for block in network.blocks[:3]:
        y = block(y)
    y = ops.part_max(y, graphs.HAND21)
    for block in network.blocks[3:]:
        y = block(y)
    assert_close(out, y.amax(1), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert_close(network(x), network.output(out), rtol=1e-9, atol=1e-9)


# ---- no gradient ----------------------------------------------------------------------------------------------------


def test_no_gradient_flows(draw):
    x, *rest = draw(3, graphs.TRUNK7, (2, 4, 4), 1)
    expected = ops.part_gcn(x, *rest)
    x.requires_grad_()
    with pytest.warns(UserWarning, match=re.escape("part_gcn: x requires grad, but no gradient flows to it; pass")):
        out = ops.part_gcn(x, *rest)
    assert not out.requires_grad and torch.equal(out, expected)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.part_gcn(x, *rest)


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(device, draw):
    x, joints, parts, graph = draw(3, graphs.TRUNK7, (2, 4, 4, 5), 2, device=device)
    torch.library.opcheck(torch.ops.slrfast.part_gcn.default, raw(x, joints, parts, graph))

    def turn(block):
        return ops.FoldedBlock(
            *(t if i > 4 or t is None or t.dim() < 2 else t.mT.contiguous().mT for i, t in enumerate(block))
        )

    turned = [list(map(turn, blocks)) for blocks in (joints, parts)]
    permuted = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    torch.library.opcheck(torch.ops.slrfast.part_gcn.default, raw(permuted, *turned, graph))
    assert_close(ops.part_gcn(permuted, *turned, graph), ops.part_gcn(x, joints, parts, graph))


def test_network_in_evaluation_mode_compiles_whole(device, compiled):
    network = nn.PartGCN(graphs.TRUNK7, (4, 4, 8, 8, 8), 8).eval().to(device)
    x = torch.rand(3, 7, 2, device=device)
    with torch.no_grad():
        assert_close(compiled(network)(x), network(x))


def test_compiles_whole(device, draw, compiled):
    function = compiled(lambda x, *rest: ops.part_gcn(x * 2, *rest) + 1)
    x, *rest = draw(3, graphs.TRUNK7, (2, 4, 5), 1, device=device)
    for rows in (x, x.repeat(2, 1, 1)):
        assert_close(function(rows, *rest), ops.part_gcn(rows * 2, *rest) + 1)


def test_autocast(device, draw):
    x, *rest = draw(5, graphs.HAND21, (2, 8, 8, 12), 2, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = ops.part_gcn(x, *rest)
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), ops.part_gcn(x, *rest), rtol=0.05, atol=0.05)
    with torch.autocast(device.type, dtype=torch.bfloat16):  # leaves float64 alone, like torch's own products
        assert torch.equal(ops.part_gcn(x.double(), *rest), ops.part_gcn(x.double().clone(), *rest).double())


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 123])
def test_any_number_of_rows_and_strides(device, draw, rows):
    x, *rest = draw(rows, graphs.TRUNK7, (4, 6, 5), 1, device=device)
    expected = ops.part_gcn(x, *rest)
    assert expected.shape == (rows, 5)
    assert_close(ops.part_gcn(x.mT.contiguous().mT, *rest), expected)
    assert_close(expected.double().cpu(), oracle(x, *rest).view(rows, 5), rtol=1e-5, atol=1e-5)


def test_nan_spoils_its_frame_only(device, draw):
    x, *rest = draw(4, graphs.TRUNK7, (2, 6, 5), 1, device=device)
    x[2] = math.nan
    out = ops.part_gcn(x, *rest)
    assert out[2].isnan().all() and out[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_agree(draw, threads):
    arguments, before = draw(300, graphs.HAND21, (2, 33, 33, 20), 2), torch.get_num_threads()
    expected = oracle(*arguments)
    torch.set_num_threads(1)
    try:
        one = ops.part_gcn(*arguments)
        torch.set_num_threads(threads)
        assert torch.equal(ops.part_gcn(*arguments), one)
    finally:
        torch.set_num_threads(before)
    assert_close(one.double(), expected, rtol=1e-5, atol=1e-5)


# ---- errors ---------------------------------------------------------------------------------------------------------

X = torch.zeros(3, 7, 2)
JOINT = ops.FoldedBlock(torch.zeros(4, 2, 5), torch.zeros(7, 5), torch.zeros(5, 5), torch.zeros(5))
PART = ops.FoldedBlock(torch.zeros(4, 5, 6), torch.zeros(3, 6), torch.zeros(6, 6), torch.zeros(6))
SAME = ops.FoldedBlock(torch.zeros(4, 5, 5), torch.zeros(3, 5), torch.zeros(5, 5), torch.zeros(5), None, True)


@pytest.mark.parametrize(
    ("x", "joint", "part", "graph", "error", "message"),
    [
        (X[0], JOINT, PART, graphs.TRUNK7, ValueError, "x must have shape [R, V, C], got [7, 2]"),
        (X.int(), JOINT, PART, graphs.TRUNK7, TypeError,
         "x must be float64, float32, bfloat16 or float16, got torch.int32"),
        (X[:, :6], JOINT, PART, graphs.TRUNK7, ValueError, "x must have the graph's 7 nodes, got 6"),
        (X, None, PART, graphs.TRUNK7, ValueError, "joint_blocks must have at least one block, got 0"),
        (X, JOINT, None, graphs.TRUNK7, ValueError, "part_blocks must have at least one block, got 0"),
        (X[:, :3], JOINT._replace(node_bias=torch.zeros(3, 5)), PART, graphs.TRUNK3, ValueError,
         "graph must have parts and a pooled graph, got None"),
        (X, JOINT, PART, "trunk", TypeError, "graph must be a slrfast.graphs.SkeletonGraph, got str"),
        (X, JOINT._replace(weight=torch.zeros(4, 3, 5)), PART, graphs.TRUNK7, ValueError,
         "joint_blocks[0].weight must have shape [P, 2, Cout], got [4, 3, 5]"),
        (X, JOINT._replace(weight=torch.zeros(3, 2, 5)), PART, graphs.TRUNK7, ValueError,
         "joint_blocks[0].weight must have the graph's 4 partitions, got 3"),
        (X, JOINT._replace(node_bias=torch.zeros(6, 5)), PART, graphs.TRUNK7, ValueError,
         "joint_blocks[0].node_bias must have shape [7, 5], got [6, 5]"),
        (X, JOINT, PART._replace(map=torch.zeros(6, 5)), graphs.TRUNK7, ValueError,
         "part_blocks[0].map must have shape [6, 6], got [6, 5]"),
        (X, JOINT, PART._replace(bias=torch.zeros(5)), graphs.TRUNK7, ValueError,
         "part_blocks[0].bias must have shape [6], got [5]"),
        (X, JOINT, PART._replace(residual=torch.zeros(5, 6)), graphs.TRUNK7, ValueError,
         "part_blocks[0].residual must have shape [6, 5], got [5, 6]"),
        (X, JOINT, PART._replace(bias=torch.zeros(6).int()), graphs.TRUNK7, TypeError,
         "part_blocks[0].bias must be float64, float32, bfloat16 or float16, got torch.int32"),
        (X, JOINT, PART._replace(bias=torch.zeros(6, device="meta")), graphs.TRUNK7, ValueError,
         "part_blocks[0].bias must be on the device of x (cpu), got meta"),
        (X, JOINT, PART._replace(identity=True), graphs.TRUNK7, ValueError,
         "part_blocks[0].identity must go with Cin = Cout and no residual map, got (5, 6)"),
        (X, JOINT, SAME._replace(residual=torch.zeros(5, 5)), graphs.TRUNK7, ValueError,
         "part_blocks[0].identity must go with Cin = Cout and no residual map, got (5, 5)"),
        (X, JOINT._replace(weight=None), PART, graphs.TRUNK7, TypeError,
         "joint_blocks[0].weight must be a torch.Tensor, got NoneType"),
        (X, JOINT._replace(weight=torch.tensor(1.0)), PART, graphs.TRUNK7, ValueError,
         "joint_blocks[0].weight must have shape [P, 2, Cout], got []"),
        (X, JOINT._replace(weight=torch.zeros(4, 2, 0)), PART, graphs.TRUNK7, ValueError,
         "joint_blocks[0].weight must have at least one output channel, got 0"),
        (X, JOINT, PART._replace(weight=torch.zeros(4, 5, 0)), graphs.TRUNK7, ValueError,
         "part_blocks[0].weight must have at least one output channel, got 0"),
        (X, 3, PART, graphs.TRUNK7, TypeError, "joint_blocks[0] must be a slrfast.ops.FoldedBlock, got int"),
    ],
)  # fmt: skip
def test_errors(x, joint, part, graph, error, message):
    blocks = ([] if block is None else [block] for block in (joint, part))
    with pytest.raises(error, match=re.escape(f"part_gcn: {message}")):
        ops.part_gcn(x, *blocks, graph)


def test_the_block_at_fault_is_named():
    with pytest.raises(TypeError, match=re.escape("part_gcn: part_blocks[1] must be a slrfast.ops.FoldedBlock")):
        ops.part_gcn(X, [JOINT], [PART, tuple(PART)], graphs.TRUNK7)
    with pytest.raises(TypeError, match="part_gcn: joint_blocks must be a sequence of slrfast.ops.FoldedBlock"):
        ops.part_gcn(X, None, [PART], graphs.TRUNK7)


def test_pooled_graph_of_another_number_of_partitions():
    pooled = SkeletonGraph(("p",), ((0, 0, 0, 1.0),), 1)
    graph = SkeletonGraph(("a", "b"), ((1, 0, 1, 1.0),), 2, parts=((0, 1),), pooled=pooled)
    joint = ops.FoldedBlock(torch.zeros(2, 2, 5), torch.zeros(2, 5), torch.zeros(5, 5), torch.zeros(5))
    part = ops.FoldedBlock(torch.zeros(1, 5, 6), torch.zeros(1, 6), torch.zeros(6, 6), torch.zeros(6))
    with pytest.raises(
        ValueError, match=re.escape("part_gcn: graph must have a pooled graph of its 2 partitions, got 1")
    ):
        ops.part_gcn(X[:, :2], [joint], [part], graph)
