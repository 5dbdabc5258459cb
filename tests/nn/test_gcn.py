"""The graph network's modules against torch's own layers: statistics, groups, modes and layouts."""

import copy
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.testing import assert_close

from slrfast import graphs
from slrfast.nn import GCNBlock, PartGCN
from slrfast.nn.norm import ChannelNorm, update_statistics

CHANNELS = (6, 6, 8, 10, 10)


def network(**options):
    torch.manual_seed(0)
    return PartGCN(graphs.HAND21, CHANNELS, 7, **options)


def plain(block, x):
    """The block by its layers, in the mode that they are in."""
    y = block.pointwise(block.dropout(block.spatial(x).relu()))
    y = block.dropout(y)
    return (y if block.residual is None else y + block.residual(x)).relu()


def plain_network(net, x):
    """[R, V, C] -> [R, out_channels]."""
    y = net.input_norm(x.flatten(1)).view(x.shape)
    for block in net.blocks[:3]:
        y = plain(block, y)
    y = torch.stack([y[:, list(part)].amax(1) for part in net.graph.parts], 1)
    for block in net.blocks[3:]:
        y = plain(block, y)
    return net.output(y.amax(1))


def buffers(module):
    return dict(module.named_buffers())


def norms(module):
    return [norm for norm in module.modules() if isinstance(norm, torch.nn.BatchNorm1d)]


def changed(module, change):
    """The module and a copy after the same change; a pruned one cannot be copied."""
    both = module, copy.deepcopy(module)
    for each in both:
        torch.manual_seed(1)
        change(each)
        each.to(next(module.parameters()).dtype)
    return both


def untrack(norm):
    norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked = False, None, None, None


def stir(module):
    """Running statistics, scales and shifts that are not those a module begins with."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            for tensor, low in (
                (norm.running_mean, -1.0),
                (norm.running_var, 0.2),
                (norm.weight, -1.0),
                (norm.bias, -1.0),
            ):
                torch.nn.init.uniform_(tensor, low, 2.0)
    return module


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize(("inputs", "residual"), [(3, True), (5, True), (3, False)])
def test_running_statistics_are_those_of_torch(momentum, inputs, residual):
    torch.manual_seed(0)
    block = GCNBlock(inputs, 5, graphs.TRUNK7, dropout=0.0, residual=residual).double()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = momentum
    twin = copy.deepcopy(block)
    for step in range(4):
        x = torch.randn(2 + step, 7, inputs, dtype=torch.float64) + step
        assert_close(block(x), plain(twin, x))
    assert_close(buffers(block), buffers(twin))
    assert all(count == 4 for name, count in buffers(block).items() if "num_batches" in name)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_groups_are_calls_one_after_the_other(momentum, groups):
    torch.manual_seed(0)
    block = GCNBlock(3, 5, graphs.TRUNK7, dropout=0.0).double()
    for norm in norms(block):
        norm.momentum = momentum
    twin, x = copy.deepcopy(block), torch.randn(8, 7, 3, dtype=torch.float64)
    for _ in range(2):
        assert_close(block(x, groups=groups), torch.cat([twin(part) for part in x.chunk(groups)]))
    assert_close(buffers(block), buffers(twin), rtol=1e-12, atol=1e-12)
    assert buffers(block)["spatial.1.num_batches_tracked"] == 2 * groups


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_wait_for_no_device(momentum):
    with FakeTensorMode():  # in which no value can be read
        update_statistics([ChannelNorm(5, momentum=momentum)], torch.rand(1, 2, 3, 5), 7)


def test_network_equals_its_layers():
    net = network(dropout=0.0, frame_dropout=0.0).double()
    twin, x = copy.deepcopy(net), torch.rand(9, 21, 2, dtype=torch.float64)
    out, expected = net(x), plain_network(twin, x)
    assert_close(out, expected)
    grad = torch.randn_like(out)
    grads, wanted = (torch.autograd.grad(y, list(m.parameters()), grad) for y, m in ((out, net), (expected, twin)))
    assert_close(grads, wanted, rtol=1e-6, atol=1e-9)
    assert_close(buffers(net), buffers(twin))


def test_groups_of_the_network_are_calls_one_after_the_other():
    net = network(dropout=0.0, frame_dropout=0.0).double()
    twin, x = copy.deepcopy(net), torch.rand(4, 3, 21, 2, dtype=torch.float64)
    out, expected = net(x, groups=2), torch.cat([twin(half) for half in x.chunk(2)])
    assert_close(out, expected)
    assert_close(buffers(net), buffers(twin))
    grad = torch.randn_like(out)
    grads, wanted = (torch.autograd.grad(y, list(m.parameters()), grad) for y, m in ((out, net), (expected, twin)))
    assert_close(grads, wanted, rtol=1e-6, atol=1e-9)
    net.eval()
    assert_close(net(x, groups=2), net(x))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (2, "{}: x must have a multiple of 2 {}, got 9"),
        (0, "{}: groups must be in [1, 2147483647], got 0"),
        (-3, "{}: groups must be in [1, 2147483647], got -3"),
    ],
)
def test_groups_are_whole(groups, sentence, train):
    with pytest.raises(ValueError, match=re.escape(sentence.format("PartGCN", "frames"))):
        network().train(train)(torch.rand(9, 21, 2), groups=groups)
    with pytest.raises(ValueError, match=re.escape(sentence.format("GCNBlock", "rows"))):
        GCNBlock(3, 5, graphs.TRUNK7).train(train)(torch.rand(9, 7, 3), groups=groups)


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def freeze_all(block):
    for norm in norms(block):
        norm.eval()


BY_LAYERS = {  # what the op for training does not do
    "frozen norms": freeze_all,
    "one frozen norm": lambda block: block.pointwise[1].eval(),
    "dropout off": lambda block: block.dropout.eval(),
    "an epsilon": lambda block: setattr(block.pointwise[1], "eps", 1.0),
    "a momentum": lambda block: setattr(block.residual[1], "momentum", None),
    "no running statistics": lambda block: untrack(block.residual[1]),
    "SyncBatchNorm": lambda block: torch.nn.SyncBatchNorm.convert_sync_batchnorm(block),
    "pruning": lambda block: prune.l1_unstructured(block.pointwise[0], "weight", 0.5),
    "another layer": lambda block: setattr(block.spatial, "0", torch.nn.Sequential(block.spatial[0], Doubled(5, 5))),
    "another map": lambda block: setattr(block.pointwise, "0", Doubled(5, 5)),
    "another residual": lambda block: setattr(block, "residual", Doubled(3, 5)),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("change", BY_LAYERS.values(), ids=BY_LAYERS)
def test_a_block_that_the_op_cannot_train_runs_by_its_layers(change, groups):
    torch.manual_seed(0)
    block = stir(GCNBlock(3, 5, graphs.TRUNK7, dropout=0.5 if change is BY_LAYERS["dropout off"] else 0.0))
    block, twin = changed(block.double(), change)
    x = torch.randn(6, 7, 3, dtype=torch.float64)
    assert block.training and not block.fuses(training=True)
    for _ in range(2):
        out, expected = block(x, groups), torch.cat([plain(twin, part) for part in x.chunk(groups)])
        assert_close(out, expected)
        grad = torch.randn_like(out)
        ours, theirs = (torch.autograd.grad(y, list(m.parameters()), grad) for m, y in ((block, out), (twin, expected)))
        assert_close(ours, theirs)
    assert_close(buffers(block), buffers(twin))
    if change is freeze_all:
        assert_close(block(x), copy.deepcopy(block).eval()(x))


def test_frozen_statistics_of_a_network_stay():
    net = stir(network(dropout=0.0, frame_dropout=0.0))
    freeze_all(net)
    before, x = copy.deepcopy(buffers(net)), torch.rand(1, 21, 2)  # one frame will do
    out = net(x)
    assert_close(out, copy.deepcopy(net).eval()(x))
    assert_close(buffers(net), before, rtol=0, atol=0)


def test_pruned_weights_train():
    torch.manual_seed(0)
    block, x = GCNBlock(5, 5, graphs.TRUNK7), torch.randn(6, 7, 5)
    prune.l1_unstructured(block.pointwise[0], "weight", 0.5)
    optimizer = torch.optim.SGD(block.parameters(), 1.0)
    for _ in range(2):
        block(x).square().sum().backward()
        optimizer.step()
    block(x)
    linear = block.pointwise[0]
    assert_close(linear.weight, linear.weight_orig * linear.weight_mask)


def test_dropout_follows_the_generator_of_torch():
    net = network(dropout=0.3)
    x = torch.rand(5, 21, 2)
    torch.manual_seed(4)
    first, second = net(x), net(x)
    torch.manual_seed(4)
    assert torch.equal(net(x), first) and not first.equal(second)


def test_dropout_keeps_the_mean():
    """Of the sums that the second dropout passes on: they are what the batch normalisation before it makes of them."""
    torch.manual_seed(0)
    block = GCNBlock(4, 64, graphs.HAND21, dropout=0.4, residual=False)
    torch.nn.init.constant_(block.pointwise[1].bias, 5.0)  # so that the last ReLU passes what is not dropped
    out = block(torch.randn(100, 21, 4))
    assert out.eq(0).float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert out.mean().item() == pytest.approx(5.0, abs=0.05)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_training_step_compiles_whole(dynamic, frozen):
    torch._dynamo.reset()
    net = network(dropout=0.0 if frozen else 0.05)  # of other random numbers than the op
    if frozen:
        freeze_all(net)
    twin, x = copy.deepcopy(net), torch.rand(2, 3, 21, 2)
    results = []
    compiled = torch.compile(twin, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for module, function in ((net, net), (twin, compiled)):
        torch.manual_seed(1)
        loss = function(x, groups=2).square().sum()
        results.append((loss, torch.autograd.grad(loss, list(module.parameters())), buffers(module)))
    assert_close(*results, rtol=1e-4, atol=1e-4)


def test_autocast_keeps_statistics_in_float32():
    net = network(dropout=0.0, frame_dropout=0.0)
    twin, x = copy.deepcopy(net), torch.rand(20, 21, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x)
    twin(x)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())
    for name, buffer in buffers(net).items():
        assert buffer.dtype in (torch.float32, torch.int64)
        assert_close(buffer, buffers(twin)[name], rtol=0.05, atol=0.05)


# ---- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [5, 3])
def test_folded_block(inputs):
    torch.manual_seed(0)
    block = stir(GCNBlock(inputs, 5, graphs.TRUNK7).double()).eval()
    x = torch.randn(4, 7, inputs, dtype=torch.float64)
    weight, node_bias, mapping, bias, residual, identity = block.folded()
    dense = torch.tensor(graphs.TRUNK7.dense(), dtype=torch.float64)
    y = F.linear((torch.einsum("rvi,pio,pvw->rwo", x, weight, dense) + node_bias).relu(), mapping, bias)
    y = y + (x if identity else x @ residual.T)
    assert identity == (inputs == 5) and (residual is None) == identity
    assert_close(y.relu(), block(x), rtol=1e-9, atol=1e-9)
    assert_close(block(x), plain(block, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_evaluation_with_and_without_a_gradient(dtype):
    net = stir(network()).to(dtype).eval()
    before, x = copy.deepcopy(buffers(net)), torch.rand(3, 4, 21, 2, dtype=dtype)
    out = net(x)
    assert out.requires_grad
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    assert_close(out, plain_network(net, x.flatten(0, 1)).view(3, 4, 7), rtol=limit, atol=limit)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_close(net(x), out.detach(), rtol=limit, atol=limit)
    assert_close(buffers(net), before, rtol=0, atol=0)


def put_hook(module, seen):
    module.register_forward_hook(lambda *_: seen.append(module))


UNFOLDED = {
    "one block trains": lambda net: net.blocks[4].train(),
    "one norm trains": lambda net: net.blocks[0].pointwise[1].train(),
    "a norm without statistics": lambda net: untrack(net.blocks[2].residual[1]),
    "pruning": lambda net: prune.l1_unstructured(net.blocks[1].spatial[0], "weight", 0.5),
    "another map": lambda net: setattr(net.blocks[1].pointwise, "0", Doubled(6, 6)),
}


@pytest.mark.parametrize("change", UNFOLDED.values(), ids=UNFOLDED)
def test_a_network_that_cannot_be_folded_runs_by_its_blocks(change):
    net, x = stir(network(dropout=0.0)).eval(), torch.rand(9, 21, 2)
    net, twin = changed(net, change)
    with torch.no_grad():
        out = net(x)
    assert_close(out, plain_network(twin, x).detach(), rtol=1e-4, atol=1e-4)
    assert_close(buffers(net), buffers(twin))


def test_hooks_are_called_with_and_without_a_gradient():
    net, x, seen = network().eval(), torch.rand(5, 21, 2), []
    for module in (net.blocks[2], net.blocks[2].spatial, net.blocks[2].residual[0], net.blocks[1].residual):
        put_hook(module, seen)
    with torch.no_grad():
        net(x)
    assert len(seen) == 4
    net(x)
    net.train()(x)
    assert len(seen) == 12


def test_synchronised_norms():
    net, x = stir(network(dropout=0.0, frame_dropout=0.0)).double(), torch.rand(9, 21, 2, dtype=torch.float64)
    twin = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert not norms(twin)
    assert_close(twin(x), net(x))
    assert_close(buffers(twin), buffers(net))
    net.eval(), twin.eval()
    assert all(block.fuses(training=False) for block in twin.blocks)
    with torch.no_grad():
        assert_close(twin(x), net(x))


def test_one_frame_and_none():
    net = stir(network()).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 21, 2)).shape == (1, 7) and net(torch.rand(0, 21, 2)).shape == (0, 7)
        assert net(torch.rand(2, 0, 21, 2)).shape == (2, 0, 7)


@pytest.mark.parametrize("training", [True, False])
def test_packed_frames_equal_a_batch(training):
    net = stir(network(dropout=0.0, frame_dropout=0.0)).double().train(training)
    twin, x = copy.deepcopy(net), torch.rand(3, 4, 21, 2, dtype=torch.float64)
    assert_close(net(x).flatten(0, 1), twin(x.flatten(0, 1)))
    assert_close(buffers(net), buffers(twin))
    turned = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert_close(net(turned), net(x))


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_of_the_parameters():
    """Those of earlier versions: their weights still load."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = [f"input_norm.{name}" for name in norm]
    for i in range(5):
        for part in ("spatial", "pointwise", *(["residual"] if i in (2, 3) else [])):
            expected += [f"blocks.{i}.{part}.0.{name}" for name in ("weight", "bias")]
            expected += [f"blocks.{i}.{part}.1.{name}" for name in norm]
    expected += ["output.0.weight", "output.0.bias", *(f"output.1.{name}" for name in norm)]
    assert list(network().state_dict()) == expected
