"""The graph network's modules against torch's own layers: statistics, groups, modes and layouts."""

import copy
import re

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from slrfast import graphs
from slrfast.nn import GCNBlock, PartGCN

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


@pytest.mark.parametrize("momentum", [0.1, None])
def test_groups_are_calls_one_after_the_other(momentum):
    torch.manual_seed(0)
    block = GCNBlock(3, 5, graphs.TRUNK7, dropout=0.0).double()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = momentum
    twin, x = copy.deepcopy(block), torch.randn(8, 7, 3, dtype=torch.float64)
    assert_close(block(x, groups=2), torch.cat([twin(half) for half in x.chunk(2)]))
    assert_close(buffers(block), buffers(twin))
    assert buffers(block)["spatial.1.num_batches_tracked"] == 2


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


def test_a_group_of_the_network_is_whole():
    with pytest.raises(ValueError, match=re.escape("PartGCN: x must have a multiple of 2 frames, got 9")):
        network()(torch.rand(9, 21, 2), groups=2)


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


def test_training_step_compiles_whole():
    torch._dynamo.reset()
    net = network()
    twin, x = copy.deepcopy(net), torch.rand(2, 3, 21, 2)
    results = []
    for module, function in ((net, net), (twin, torch.compile(twin, fullgraph=True, backend="aot_eager"))):
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
