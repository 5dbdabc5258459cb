import math
import re

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from slrfast import graphs, ops
from slrfast.graphs import SkeletonGraph
from slrfast.ops import _skeleton
from slrfast.reference import gcn_block as reference
from slrfast.reference.dropout import keep_mask

OP = "gcn_block"
ONE_NODE = SkeletonGraph(("a",), ((0, 0, 0, 1.0),), 1)
ONE_EDGE = SkeletonGraph(("a", "b", "c"), ((1, 2, 0, 0.5),), 3)
CHAIN256 = SkeletonGraph.from_edges([str(i) for i in range(256)], [(i, i + 1) for i in range(255)])
KINDS = ("none", "identity", "linear")


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def block(x, parameters, graph, dropout, eps, groups, identity, seed):
    """The block and its statistics by torch's own layers, group by group and message by message."""
    p = parameters
    scale = 1 / (1 - dropout) if dropout < 1 else 0.0
    outs, stats = [], []
    masks = [
        keep_mask(seed.cpu(), site, x.shape[0] * x.shape[1], p.bias.shape[1], dropout).to(x) * scale
        if dropout
        else torch.ones(x.shape[0] * x.shape[1], 1, device=x.device)
        for site in range(2)
    ]
    for rows, *kept in zip(x.chunk(groups), *(mask.chunk(groups) for mask in masks), strict=True):
        found = []

        def norm(y, weight, bias, found=found):
            found.append(torch.stack((y.mean(0), y.var(0, correction=0))))
            return F.batch_norm(y, None, None, weight, bias, training=True, eps=eps)

        heard = [0.0] * graph.num_nodes
        for k, source, target, _ in graph.edges:
            heard[target] = heard[target] + float(graph.dense()[k, source, target]) * (
                rows[:, source] @ p.weight[k] + p.bias[k]
            )
        silent = rows.new_zeros(len(rows), p.bias.shape[1])
        y = torch.stack([node + silent for node in heard], 1).flatten(0, 1)
        y = norm(y, p.norm_weight, p.norm_bias).relu() * kept[0]
        y = norm(F.linear(y, p.map_weight, p.map_bias), p.map_norm_weight, p.map_norm_bias) * kept[1]
        if identity:
            y = y + rows.flatten(0, 1)
        elif p.residual_weight is not None:
            other = F.linear(rows.flatten(0, 1), p.residual_weight, p.residual_bias)
            y = y + norm(other, p.residual_norm_weight, p.residual_norm_bias)
        outs.append(y.relu().view(*rows.shape[:2], -1))
        stats.append(torch.stack(found).detach())
    return torch.cat(outs), torch.stack(stats, 2)


@pytest.fixture
def draw(randn):
    """x and parameters; with ``steady`` every argument of a ReLU is far from 0, so that no rounding turns it."""

    def make(rows, inputs, outputs, graph, kind="linear", dtype=torch.float32, steady=False, **options):
        wide = torch.promote_types(dtype, torch.float32)
        side = torch.where(torch.arange(outputs) % 3 == 1, -3.0, 3.0) if steady else torch.zeros(outputs)

        def norm(center):
            weight, bias = 0.3 * randn(outputs) + 1, 0.3 * randn(outputs)
            pair = (0.1 * weight, center + 0.1 * bias) if steady else (weight, bias)
            return [
                t.to(wide).to(options.get("device")).requires_grad_(options.get("requires_grad", False)) for t in pair
            ]

        def linear(shape, *of_bias):
            return [randn(*shape, dtype=wide, **options), randn(*of_bias, outputs, dtype=wide, **options)]

        x = randn(rows, graph.num_nodes, inputs, dtype=dtype, **options)
        parts = graph.num_partitions
        parameters = [*linear((parts, inputs, outputs), parts), *norm(side), *linear((outputs, outputs)), *norm(-side)]
        if kind == "linear":
            parameters += [*linear((outputs, inputs)), *norm(torch.full((outputs,), 0.5) if steady else side)]
        return x, ops.GCNParameters(*parameters)

    return make


def given(parameters):
    return [p for p in parameters if p is not None]


def run(function, x, parameters, grad, *arguments, **options):
    """Result, statistics, and the gradients of x and of the parameters."""
    out, stats = function(x, parameters, *arguments, **options)
    return out, stats, *torch.autograd.grad(out, (x, *given(parameters)), grad.to(out.dtype))


def widened(x, parameters):
    copies = [None if p is None else p.detach().double().requires_grad_() for p in parameters]
    return x.detach().double().requires_grad_(), ops.GCNParameters(*copies)


SEED = torch.tensor(-(2**61) + 12345)


def compare(device, draw, rows, inputs, outputs, graph, kind, dropout, groups, dtype, rtol):
    x, parameters = draw(rows, inputs, outputs, graph, kind, dtype, device=device, requires_grad=True)
    grad = torch.linspace(-1, 1, rows * graph.num_nodes * outputs, device=device).view(rows, graph.num_nodes, outputs)
    identity, seed = kind == "identity", SEED.to(device)
    options = dict(dropout=dropout, eps=0.01, groups=groups, identity=identity, seed=seed)
    got = run(ops.gcn_block, x, parameters, grad, graph, **options)
    expected = run(block, *widened(x, parameters), grad, graph, **options)
    assert got[0].dtype == x.dtype and got[0].is_contiguous() and not got[1].requires_grad
    assert got[1].dtype == torch.promote_types(dtype, torch.float32)
    for mine, truth in zip(got, expected, strict=True):
        assert_close(mine.double(), truth, rtol=rtol, atol=rtol * max(1.0, truth.abs().max().item()))


# ---- forward and backward -------------------------------------------------------------------------------------------


def test_by_hand(device):
    x = torch.tensor([[[1.0]], [[3.0]], [[5.0]], [[5.0]]], device=device)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    parameters = ops.GCNParameters(one.view(1, 1, 1), zero.view(1, 1), one, zero, 2 * one.view(1, 1), one, 3 * one, one)
    out, stats = ops.gcn_block(x, parameters, ONE_NODE, groups=2, eps=1e-12)
    # BN makes -1 and 1 of 1 and 3, the ReLU 0 and 1, the map 1 and 3, BN -1 and 1 again; two equal values become 0
    assert_close(out.flatten(), torch.tensor([0.0, 4.0, 1.0, 1.0], device=device))
    assert_close(stats.flatten(0, 1)[:, :, 0].cpu(), torch.tensor([[2.0, 5.0], [1.0, 0.0], [2.0, 1.0], [1.0, 0.0]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dropout", "groups"), [(0.0, 1), (0.05, 2), (0.5, 1), (1.0, 3)])
def test_equals_layers_of_torch(device, draw, kind, dropout, groups):
    sizes = (6, 5, 5) if kind == "identity" else (6, 3, 5)
    compare(device, draw, *sizes, graphs.TRUNK7, kind, dropout, groups, torch.float64, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_layers_of_torch_in_float32(device, draw, kind):
    sizes = (6, 5, 5) if kind == "identity" else (6, 7, 5)
    compare(device, draw, *sizes, graphs.HAND21, kind, 0.05, 2, torch.float32, 3e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_error_is_that_of_the_reference(device, draw, dtype, kind, dropout):
    """At most 1.5 times as far from float64, in the middle of several draws."""
    settings = dict(dropout=dropout, eps=1e-5, groups=2, identity=kind == "identity", seed=SEED.to(device))
    edges = _skeleton.edges(graphs.TRUNK3, device)

    def plain(x, parameters, graph, dropout, eps, groups, identity, seed):
        out, *_, stats = reference.gcn_block(x, parameters, *edges, seed, dropout, eps, groups, identity)
        return out, stats

    found = {}
    for _ in range(25):
        x, parameters = draw(24, 12, 12, graphs.TRUNK3, kind, dtype, True, device=device, requires_grad=True)
        grad = x.detach().roll(5, 0).flip(2)
        if kind == "identity":
            x.detach().mul_(0.1)
        truth = run(plain, *widened(x, parameters), grad, graphs.TRUNK3, **settings)
        results = [run(function, x, parameters, grad, graphs.TRUNK3, **settings) for function in (ops.gcn_block, plain)]
        names = ("out", "stats", "x", *(name for name, p in parameters._asdict().items() if p is not None))
        for name, mine, its, exact in zip(names, *results, truth, strict=True):
            assert mine.dtype == its.dtype
            errors = [(z.double() - exact).norm() for z in (mine, its)]
            found.setdefault(name, []).append(torch.stack((*errors, exact.norm())))
    middle = {name: torch.stack(several).median(0).values.tolist() for name, several in found.items()}
    for name, (error, allowed, size) in middle.items():
        # a bias in front of a normalisation has no gradient but rounding: in units of its weight's
        size = max(size, middle[name.replace("bias", "weight")][2])
        assert error <= 1.5 * allowed + 2.0**-23 * size, name


def test_groups_equal_calls_one_after_the_other(device, draw):
    x, parameters = draw(6, 4, 5, graphs.TRUNK7, device=device, requires_grad=True)
    grad = torch.linspace(-1, 1, 6 * 7 * 5, device=device).view(6, 7, 5)
    together = run(ops.gcn_block, x, parameters, grad, graphs.TRUNK7, groups=2)
    one, two = (
        run(ops.gcn_block, part.detach().requires_grad_(), parameters, g, graphs.TRUNK7)
        for part, g in zip(x.chunk(2), grad.chunk(2), strict=True)
    )
    assert_close(together[0], torch.cat((one[0], two[0])), rtol=1e-5, atol=1e-6)
    assert_close(together[1], torch.cat((one[1], two[1]), 2), rtol=1e-5, atol=1e-6)
    assert_close(together[2], torch.cat((one[2], two[2])), rtol=1e-4, atol=1e-5)
    assert_close(together[3:], tuple(a + b for a, b in zip(one[3:], two[3:], strict=True)), rtol=1e-4, atol=1e-4)


def test_gradients_only_where_wanted(device, draw):
    x, parameters = draw(4, 3, 5, graphs.TRUNK7, device=device, requires_grad=True)
    whole = torch.autograd.grad(ops.gcn_block(x, parameters, graphs.TRUNK7)[0].sum(), (x, *parameters))
    out, _ = ops.gcn_block(x.detach(), parameters, graphs.TRUNK7)
    assert_close(torch.autograd.grad(out.sum(), parameters), whole[1:], rtol=0, atol=0)
    frozen = ops.GCNParameters(*(p.detach() for p in parameters))
    out, _ = ops.gcn_block(x, frozen, graphs.TRUNK7)
    assert_close(torch.autograd.grad(out.sum(), x)[0], whole[0], rtol=0, atol=0)
    assert not ops.gcn_block(x.detach(), frozen, graphs.TRUNK7)[0].requires_grad


def test_no_second_derivative(draw):
    x, parameters = draw(2, 3, 5, graphs.TRUNK7, requires_grad=True)
    out, _ = ops.gcn_block(x, parameters, graphs.TRUNK7)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(("kind", "count"), [("none", 2), ("identity", 2), ("linear", 3)])
def test_saves_no_mask(draw, saved_shapes, kind, count):
    x, parameters = draw(4, 5, 5, graphs.TRUNK7, kind, requires_grad=True)
    call = dict(dropout=0.1, identity=kind == "identity")
    shapes = saved_shapes(lambda: ops.gcn_block(x, parameters, graphs.TRUNK7, **call))
    assert sum(shape == (4, 7, 5) for shape in shapes) == 1 + count  # x and the products
    assert max(math.prod(shape) for shape in shapes) == 4 * 7 * 5


# ---- gradcheck ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(draw, kind):
    x, parameters = draw(4, 2, 2, graphs.TRUNK3, kind, torch.float64, requires_grad=True)

    def function(x, *parameters):
        settings = dict(dropout=0.3, groups=2, identity=kind == "identity", eps=0.1, seed=SEED)
        return ops.gcn_block(x, ops.GCNParameters(*parameters), graphs.TRUNK3, **settings)[0]

    assert torch.autograd.gradcheck(function, (x, *given(parameters)))


# ---- dropout --------------------------------------------------------------------------------------------------------


def test_a_seed_gives_one_result(device, draw):
    x, parameters = draw(4, 3, 5, graphs.TRUNK7, device=device)

    def call(seed):
        return ops.gcn_block(x, parameters, graphs.TRUNK7, dropout=0.5, seed=torch.tensor(seed, device=device))[0]

    assert torch.equal(call(7), call(7))
    assert not call(7).equal(call(8)) and not call(7).equal(call(7 + 2**32))


def test_without_a_seed_torch_draws_one(device, draw):
    x, parameters = draw(4, 3, 5, graphs.TRUNK7, device=device)

    def call(dropout):
        return ops.gcn_block(x, parameters, graphs.TRUNK7, dropout=dropout)[0]

    torch.manual_seed(3)
    first, second = call(0.5), call(0.5)
    torch.manual_seed(3)
    assert torch.equal(call(0.5), first) and not second.equal(first)
    state = torch.get_rng_state()
    call(0.0)
    assert torch.equal(torch.get_rng_state(), state)


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(device, draw, kind):
    x, parameters = draw(4, 5, 5, graphs.TRUNK7, kind, device=device)
    edges, seed = _skeleton.edges(graphs.TRUNK7, device), SEED.to(device)
    settings = 0.3, 0.01, 2, kind == "identity"
    permuted = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided = [p if p is None or p.dim() < 2 else p.mT.contiguous().mT for p in parameters]
    for one, several in ((x, list(parameters)), (permuted, strided)):
        arguments = one, several, *edges, seed, *settings
        torch.library.opcheck(torch.ops.slrfast.gcn_block.default, arguments)
        out, *kept = torch.ops.slrfast.gcn_block(*arguments)
        torch.library.opcheck(torch.ops.slrfast.gcn_block_grad.default, (one.detach(), *arguments, *kept))


def test_gradient_of_strided_tensors(device, draw):
    """What another compiler may hand to the gradient: the tensors kept by the forward pass, in another order."""
    x, parameters = draw(4, 3, 5, graphs.TRUNK7, device=device)
    arguments = x, list(parameters), *_skeleton.edges(graphs.TRUNK7, device), SEED.to(device), 0.3, 0.01, 2, False
    out, *kept = torch.ops.slrfast.gcn_block(*arguments)
    expected = torch.ops.slrfast.gcn_block_grad(out, *arguments, *kept)
    turned = [t.permute(*range(1, t.dim()), 0).contiguous().permute(-1, *range(t.dim() - 1)) for t in (out, *kept)]
    assert_close(torch.ops.slrfast.gcn_block_grad(turned[0], *arguments, *turned[1:]), expected)


def test_compiles_whole(device, draw, compiled):
    x, parameters = draw(4, 3, 5, graphs.TRUNK7, device=device, requires_grad=True)

    def step(x, parameters):
        out, stats = ops.gcn_block(x, parameters, graphs.TRUNK7, dropout=0.3, groups=2)
        return out.square().sum(), stats

    results = []
    for function in (step, compiled(step)):
        torch.manual_seed(5)
        loss, stats = function(x, parameters)
        results.append((loss, stats, *torch.autograd.grad(loss, (x, *parameters))))
    assert_close(*results)


def test_autocast(device, draw):
    x, parameters = draw(4, 8, 16, graphs.HAND21, steady=True, device=device, requires_grad=True)
    grad = torch.linspace(-1, 1, 4 * 21 * 16, device=device).view(4, 21, 16)
    expected = run(ops.gcn_block, x, parameters, grad, graphs.HAND21, dropout=0.3, seed=SEED.to(device))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out, stats = ops.gcn_block(x, parameters, graphs.HAND21, dropout=0.3, seed=SEED.to(device))
    grads = torch.autograd.grad(out.float(), (x, *parameters), grad)
    assert out.dtype == torch.bfloat16 and stats.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in grads)
    assert_close(out.float(), expected[0], rtol=0.05, atol=0.05)
    assert_close(stats, expected[1], rtol=0.05, atol=0.05)
    with torch.autocast(device.type, dtype=torch.bfloat16):  # leaves float64 alone, like torch's own products
        assert ops.gcn_block(x.double(), parameters, graphs.HAND21)[0].dtype == torch.float64
    for name, got, wanted in zip(("x", *parameters._fields), grads, expected[2:], strict=True):
        if "bias" not in name:
            assert (got - wanted).norm() < 0.05 * wanted.norm(), name


def test_fake_tensors_never_reach_a_kernel(draw):
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, parameters = draw(4, 3, 5, graphs.TRUNK7)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = ops.GCNParameters(*map(mode.from_tensor, parameters))
        out, stats = ops.gcn_block(mode.from_tensor(x), fakes, graphs.TRUNK7, dropout=0.1, groups=2)
    assert out.shape == (4, 7, 5) and stats.shape == (3, 2, 2, 5)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "graph", "kind"),
    [
        (1, 3, 4, graphs.TRUNK7, "linear"),
        (1, 2, 2, ONE_EDGE, "identity"),
        (2, 4, 3, ONE_NODE, "none"),
        (9, 1, 33, graphs.TRUNK3_LEGACY, "linear"),
        (3, 50, 1, graphs.TRUNK3_LEGACY, "linear"),
        (4, 33, 33, ONE_EDGE, "identity"),
        (4, 50, 3, graphs.TRUNK3, "linear"),
        (1, 2, 3, CHAIN256, "linear"),
    ],
    ids=lambda value: value.names[0] if isinstance(value, SkeletonGraph) else str(value),
)
def test_ragged_sizes_and_odd_graphs(device, draw, rows, inputs, outputs, graph, kind):
    compare(device, draw, rows, inputs, outputs, graph, kind, 0.2, 1, torch.float64, 1e-8)


def test_as_many_groups_as_frames(device, draw):
    compare(device, draw, 5, 3, 4, graphs.TRUNK7, "linear", 0.2, 5, torch.float64, 1e-8)


def test_any_strides(device, draw):
    x, parameters = draw(6, 4, 5, graphs.TRUNK7, device=device)
    views = ops.GCNParameters(*(p if p.dim() < 2 else p.mT.contiguous().mT for p in parameters))
    base = torch.zeros(12, 7, 9, device=device)
    for view in (base[::2, :, 2:6], base.permute(0, 1, 2)[6:, :, :4], base.view(7, 9, 12).permute(2, 0, 1)[:6, :, :4]):
        view.copy_(x)
        assert_close(
            ops.gcn_block(view, views, graphs.TRUNK7), ops.gcn_block(x, parameters, graphs.TRUNK7), rtol=1e-5, atol=1e-5
        )
    same = x[:1].expand(6, 7, 4)
    assert_close(
        ops.gcn_block(same, parameters, graphs.TRUNK7), ops.gcn_block(same.contiguous(), parameters, graphs.TRUNK7)
    )


def test_arguments_are_left_alone(device, draw):
    x, parameters = draw(4, 5, 5, graphs.TRUNK7, "identity", device=device, requires_grad=True)
    before = [t.detach().clone() for t in (x, *given(parameters))]
    out, _ = ops.gcn_block(x, parameters, graphs.TRUNK7, identity=True, dropout=0.1)
    out.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (x, *given(parameters)), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_spoils_its_group_only(device, draw, kind):
    x, parameters = draw(6, 5, 5, graphs.TRUNK7, kind, device=device)
    clean = ops.gcn_block(x, parameters, graphs.TRUNK7, groups=2, identity=kind == "identity")
    x[4] = math.nan
    x.requires_grad_()
    out, stats = ops.gcn_block(x, parameters, graphs.TRUNK7, groups=2, identity=kind == "identity")
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out[:3], clean[0][:3]) and torch.equal(stats[:, :, 0], clean[1][:, :, 0])
    assert out[3:].isnan().all() and stats[:, :, 1].isnan().all()
    assert grad[:3].isfinite().all() and not grad[3:].isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.5, 1.0])
def test_dropout_keeps_nan(device, draw, kind, dropout):
    """A NaN is not lost where it is dropped, or a training that has gone wrong would look sound."""
    x, parameters = draw(6, 5, 5, graphs.TRUNK7, kind, device=device)
    x[4] = math.nan
    x.requires_grad_()
    out, stats = ops.gcn_block(x, parameters, graphs.TRUNK7, groups=2, identity=kind == "identity", dropout=dropout)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert out[:3].isfinite().all() and out[3:].isnan().all() and stats[:, :, 1].isnan().all()
    assert grad[:3].isfinite().all() and not grad[3:].isfinite().any()


def test_threads_agree(draw):
    x, parameters = draw(200, 9, 20, graphs.HAND21, requires_grad=True)
    grad = torch.linspace(-1, 1, 200 * 21 * 20).roll(99).view(200, 21, 20)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(ops.gcn_block, x, parameters, grad, graphs.HAND21, dropout=0.1, groups=2, seed=SEED))
    finally:
        torch.set_num_threads(before)
    for name, one, two in zip(("out", "stats", "x"), *results, strict=False):
        assert torch.equal(one, two), name
    for name, one, two in zip(parameters._fields, *(result[3:] for result in results), strict=True):
        size = two if "norm" in name or "weight" in name else results[0][3:][parameters._fields.index(name) - 1]
        assert (one - two).norm() <= 1e-6 * size.norm(), name  # a bias before a normalisation has no gradient


# ---- errors ---------------------------------------------------------------------------------------------------------

X = torch.zeros(4, 2, 3)
PAIR = SkeletonGraph.from_edges(["wrist", "tip"], bones=[(0, 1)])
C = torch.zeros(5)
PLAIN = ops.GCNParameters(torch.zeros(4, 3, 5), torch.zeros(4, 5), C, C, torch.zeros(5, 5), C, C, C)
LINEAR = ops.GCNParameters(*PLAIN[:8], torch.zeros(5, 3), C, C, C)


@pytest.mark.parametrize(
    ("x", "changes", "options", "error", "message"),
    [
        (X[:, :1], {}, {}, ValueError, "x must have the graph's 2 nodes, got 1"),
        (X[0], {}, {}, ValueError, "x must have shape [R, V, Cin], got [2, 3]"),
        ([1.0], {}, {}, TypeError, "x must be a torch.Tensor, got list"),
        (X.int(), {}, {}, TypeError, "x must be float64, float32, bfloat16 or float16, got torch.int32"),
        (X, {"weight": torch.zeros(3, 3, 5)}, {}, ValueError, "bias must have shape [P, Cout] with P = 3, got [4, 5]"),
        (X, {"weight": torch.zeros(4, 2, 5)}, {}, ValueError,
         "weight must have shape [P, Cin, Cout] with Cin = 3, got [4, 2, 5]"),
        (X, {"weight": torch.zeros(3, 3, 5), "bias": torch.zeros(3, 5)}, {}, ValueError,
         "weight must have the graph's 4 partitions, got 3"),
        (X, {"norm_weight": C[:4]}, {}, ValueError, "norm_weight must have shape [Cout] with Cout = 5, got [4]"),
        (X, {"map_weight": torch.zeros(5, 4)}, {}, ValueError,
         "map_weight must have shape [Cout, Cout] with Cout = 5, got [5, 4]"),
        (X, {"residual_weight": torch.zeros(5, 4)}, {}, ValueError,
         "residual_weight must have shape [Cout, Cin] with Cin = 3, got [5, 4]"),
        (X, {"map_bias": C.int()}, {}, TypeError,
         "map_bias must be float64, float32, bfloat16 or float16, got torch.int32"),
        (X, {"map_bias": C.to("meta")}, {}, ValueError, "map_bias must be on the device of x (cpu), got meta"),
        (X, {"residual_bias": None}, {}, ValueError,
         "parameters must have all residual tensors or none, got [True, False, True, True]"),
        (X, {}, {"identity": True}, ValueError, "identity must go with Cin = Cout and no residual map, got (3, 5)"),
        (X, {}, {"dropout": 1.5}, ValueError, "dropout must be in [0, 1], got 1.5"),
        (X, {}, {"dropout": -0.5}, ValueError, "dropout must be in [0, 1], got -0.5"),
        (X, {}, {"dropout": math.nan}, ValueError, "dropout must be in [0, 1], got nan"),
        (X, {}, {"dropout": "a"}, TypeError, "dropout must be a number, got str"),
        (X, {}, {"eps": 0.0}, ValueError, "eps must be finite and > 0, got 0.0"),
        (X, {}, {"groups": 0}, ValueError, "groups must be in [1, 2147483647], got 0"),
        (X, {}, {"groups": 1.0}, TypeError, "groups must be an integer, got float"),
        (X, {}, {"groups": 3}, ValueError, "x must have a multiple of groups = 3 rows, got 4"),
        (X[:0], {}, {}, ValueError, "x must have more than one value per channel and group in training mode, got 0"),
        (X, {"map_bias": None}, {}, TypeError, "map_bias must be a torch.Tensor, got NoneType"),
        (X, {}, {"seed": 5}, TypeError, "seed must be a torch.Tensor, got int"),
        (X, {}, {"seed": torch.tensor(5, dtype=torch.int32)}, TypeError, "seed must be torch.int64, got torch.int32"),
        (X, {}, {"seed": torch.tensor([5])}, ValueError, "seed must have shape [], got [1]"),
        (X, {}, {"seed": torch.tensor(5, device="meta")}, ValueError,
         "seed must be on the device of x (cpu), got meta"),
    ],
)  # fmt: skip
def test_errors(x, changes, options, error, message):
    parameters = LINEAR if any("residual" in name for name in changes) else PLAIN
    options = {"dropout": 0.5, **options}
    with pytest.raises(error, match=re.escape(f"gcn_block: {message}")):
        ops.gcn_block(x, parameters._replace(**changes), PAIR, **options)


def test_identity_and_a_residual_map():
    with pytest.raises(ValueError, match=re.escape("identity must go with Cin = Cout and no residual map, got (3, 5)")):
        ops.gcn_block(X, LINEAR, PAIR, identity=True)


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (3, 3)])
def test_one_value_per_channel_has_no_statistics(rows, groups):
    message = "x must have more than one value per channel and group in training mode, got 1"
    weight = PLAIN._replace(weight=torch.zeros(1, 3, 5), bias=torch.zeros(1, 5))
    with pytest.raises(ValueError, match=message):
        ops.gcn_block(torch.zeros(rows, 1, 3), weight, ONE_NODE, groups=groups)


def test_graph_of_another_type():
    with pytest.raises(TypeError, match="gcn_block: graph must be a slrfast.graphs.SkeletonGraph, got ndarray"):
        ops.gcn_block(X, PLAIN, PAIR.dense())
