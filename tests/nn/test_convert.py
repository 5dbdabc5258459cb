"""Weights of other people's graph networks, and their layout: the same outputs, gradients and running statistics."""

import re

import pytest
import torch
from torch import nn

from benchmarks.baselines import gcn as field
from slrfast import graphs
from slrfast.graphs import SkeletonGraph
from slrfast.nn import ChannelsFirst, GCNBlock, GraphConv, PartGCN, convert
from slrfast.systems.stc import STCConfig

HAND = graphs.HAND21
CHANNELS = [(3, 8, False), (8, 8, True), (8, 12, True)]
STYLES = {
    "STC": {},
    "ST-GCN": {"tcn.3": "tcn.2", "tcn.4": "tcn.3"},
    "PYSKL": {
        "tcn.0": "gcn.bn", "tcn.3": "tcn.conv", "tcn.4": "tcn.bn", "residual.0": "residual.conv",
        "residual.1": "residual.bn",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(module):
    """The module with parameters and running statistics as if it had been trained."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name.endswith("running_var"):
            tensor.data.uniform_(0.5, 2.0)
        elif tensor.is_floating_point() and not name.endswith("A"):
            tensor.data += 0.1 * torch.randn_like(tensor)
    return module


def renamed(state, style):
    for old, new in STYLES[style].items():  # in this order, so that a name is free before it is taken
        state = {re.sub(rf"^{re.escape(old)}\b", new, key): tensor for key, tensor in state.items()}
    return state


def field_block(inputs, outputs, residual, graph=HAND):
    return trained(field.Block(inputs, outputs, torch.tensor(graph.dense()).double(), residual, dropout=0.0))


def gradients(module):
    """A state dict of the parameters' gradients, with the buffers as they are."""
    return module.state_dict() | {name: parameter.grad for name, parameter in module.named_parameters()}


def assert_same_state(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "residual"), CHANNELS)
def test_a_block_and_its_layout(inputs, outputs, residual, training):
    theirs = field_block(inputs, outputs, residual).train(training)
    ours = ChannelsFirst(GCNBlock(inputs, outputs, HAND, dropout=0.0, residual=residual)).train(training)
    ours.module.load_state_dict(convert.gcn_block(theirs.state_dict(), HAND))
    x = torch.randn(2, inputs, 5, 21)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    expected, out = theirs(leaves[0]), ours(leaves[1])
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    out.backward(grad)
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad)
    assert_same_state(gradients(ours.module), convert.gcn_block(gradients(theirs), HAND))  # running statistics too
    moved = theirs.tcn[0].num_batches_tracked.item()
    assert moved == training == ours.module.spatial[1].num_batches_tracked.item()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("inputs", "outputs", "residual"), CHANNELS)
def test_names_and_prefix(inputs, outputs, residual, style):
    block = field_block(inputs, outputs, residual).state_dict()
    state = {f"model.gcn.2.{key}": tensor for key, tensor in renamed(block, style).items()} | {
        "fcn.weight": torch.ones(2)
    }
    assert_same_state(convert.gcn_block(state, HAND, "model.gcn.2."), convert.gcn_block(block, HAND))
    GCNBlock(inputs, outputs, HAND, residual=residual).load_state_dict(convert.gcn_block(state, HAND, "model.gcn.2."))


def test_convolutions_without_bias():
    block = field_block(8, 12, True)
    state = block.state_dict()
    for name in ("gcn.conv", "tcn.3", "residual.0"):
        state.pop(f"{name}.bias")
        block.get_submodule(name).bias.data.zero_()
    ours = GCNBlock(8, 12, HAND, dropout=0.0)
    ours.load_state_dict(convert.gcn_block(state, HAND))
    x = torch.randn(2, 8, 5, 21)
    torch.testing.assert_close(ChannelsFirst(ours)(x), block(x))
    assert convert.graph_conv(state, HAND, "gcn.").keys() == {"weight"}
    GraphConv(8, 12, HAND, bias=False).load_state_dict(convert.graph_conv(state, HAND, "gcn."))


def small_network():
    config = STCConfig.small(gcn_channels=(8, 8, 12, 16, 16), dim=16, input_eps=0.1)
    adjacency = {"A": torch.tensor(HAND.dense()), "A_pool": torch.tensor(HAND.pooled.dense())}
    return trained(field.PartGCN(HAND, config).double()), adjacency


@pytest.mark.parametrize("training", [True, False])
def test_a_whole_network(training):
    theirs = small_network()[0].train(training)
    ours = PartGCN(HAND, (8, 8, 12, 16, 16), 16, dropout=0.0, frame_dropout=0.0, input_eps=0.1).train(training)
    names = {"blocks": [f"blocks.{i}" for i in range(5)], "output": "fc"}
    ours.load_state_dict(convert.part_gcn(theirs.state_dict(), HAND, **names))
    x = torch.randn(2, 6, 21, 2)
    torch.testing.assert_close(ours(x), theirs(x).mT)
    assert_same_state(ours.state_dict(), convert.part_gcn(theirs.state_dict(), HAND, **names))
    torch.testing.assert_close(ChannelsFirst(ours.eval())(x.permute(0, 3, 1, 2)), theirs.eval()(x))


def test_the_names_of_stc_and_masa():
    """Their network has adjacencies of its own, blocks that share them, and a two-dimensional last convolution."""
    network, adjacency = small_network()
    state = {}
    for key, tensor in network.state_dict().items():
        if not key.endswith(".A"):
            key = re.sub(r"blocks\.([012])\.", r"st_gcn_networks.\1.", key)
            key = re.sub(r"blocks\.([34])\.", lambda match: f"st_gcn_pool.{int(match[1]) - 3}.", key)
            key = key.replace("fc.", "conv4.")
            state[f"hand.{key}"] = tensor[..., None] if key == "conv4.0.weight" else tensor
    state |= {f"hand.{key}": tensor for key, tensor in adjacency.items()} | {
        "hand.tcn_full_b1.bn.weight": torch.ones(4)
    }
    expected = convert.part_gcn(network.state_dict(), HAND, blocks=[f"blocks.{i}" for i in range(5)], output="fc")
    assert_same_state(convert.part_gcn(state, HAND, "hand."), expected)
    with pytest.raises(ValueError, match=r"part_gcn: graph must be that of hand.A_pool, got entries that differ"):
        convert.part_gcn(state | {"hand.A_pool": adjacency["A_pool"] * 2}, HAND, "hand.")


class UnitGCN(nn.Module):
    """A graph convolution with PYSKL's names: the adjacency is fixed, learned, or fixed and corrected."""

    def __init__(self, inputs, outputs, adjacency, adaptive):
        super().__init__()
        self.adaptive, self.outputs = adaptive, outputs
        if adaptive == "init":
            self.A = nn.Parameter(adjacency.clone())
        else:
            self.register_buffer("A", adjacency)
        if adaptive in ("offset", "importance"):
            self.PA = nn.Parameter(torch.full_like(adjacency, float(adaptive == "importance")))
        self.conv, self.bn = nn.Conv2d(inputs, outputs * len(adjacency), 1), nn.BatchNorm2d(outputs)

    def adjacency(self):
        corrected = {"offset": torch.add, "importance": torch.mul}.get(self.adaptive)
        return (corrected(self.A, self.PA) if corrected else self.A).detach()

    def forward(self, x):
        y = self.conv(x).unflatten(1, (-1, self.outputs))
        return self.bn(torch.einsum("nkctv,kvw->nctw", y, self.adjacency())).relu()


@pytest.mark.parametrize("adaptive", [None, "init", "offset", "importance"])
def test_a_learned_adjacency_becomes_the_graph(adaptive):
    fixed = torch.tensor(graphs.TRUNK7.dense()[:3]).double()  # three partitions
    theirs = UnitGCN(4, 6, fixed, adaptive)
    for parameter in (theirs.PA,) if hasattr(theirs, "PA") else (theirs.A,) if adaptive else ():
        parameter.data += torch.randn(3, 7, 7).float()  # as exact as a checkpoint
    state = {f"gcn.0.gcn.{key}": tensor for key, tensor in theirs.state_dict().items()}
    graph = SkeletonGraph.from_dense(theirs.adjacency())
    ours = nn.Sequential(ChannelsFirst(GraphConv(4, 6, graph)), nn.BatchNorm2d(6), nn.ReLU())
    ours[0].module.load_state_dict(convert.graph_conv(state, graph, "gcn.0.gcn."))
    x = torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)  # edges are float32
    if adaptive:
        with pytest.raises(ValueError, match=r"graph_conv: graph must be that of gcn.0.gcn.A.*from_dense$"):
            convert.graph_conv(state, SkeletonGraph.from_dense(fixed), "gcn.0.gcn.")


IMPORTANCE = "net.edge_importance.1"


def network_of_one_block():
    """A block of a whole ST-GCN, which has the adjacency and an importance for each block beside them."""
    state = {f"net.st_gcn_networks.1.{key}": tensor for key, tensor in field_block(8, 12, True).state_dict().items()}
    del state["net.st_gcn_networks.1.gcn.A"]
    return state | {"net.A": torch.tensor(HAND.dense()).double(), IMPORTANCE: torch.rand(4, 21, 21) + 0.5}


@pytest.mark.parametrize(
    ("function", "prefix"),
    [(convert.gcn_block, "net.st_gcn_networks.1."), (convert.graph_conv, "net.st_gcn_networks.1.gcn.")],
)
def test_an_importance_of_the_network_becomes_the_graph(function, prefix):
    state = network_of_one_block()
    with pytest.raises(ValueError, match=r"graph must be that of net.A \* net.edge_importance.1, got .*from_dense$"):
        function(state, HAND, prefix)
    graph = SkeletonGraph.from_dense(state["net.A"] * state[IMPORTANCE])
    assert_same_state(
        function(state, graph, prefix), function({**state, IMPORTANCE: torch.ones(4, 21, 21)}, HAND, prefix)
    )
    with pytest.raises(ValueError, match=r"graph must be that of net.A, got entries that differ"):
        function({key: tensor for key, tensor in state.items() if key != IMPORTANCE}, graph, prefix)
    del state["net.A"]
    with pytest.raises(ValueError, match=r": state must have net.A with net.edge_importance.1, got none$"):
        function(state, graph, prefix)


def test_a_network_of_one_graph_has_no_importances():
    network, adjacency = small_network()
    names = {"blocks": [f"blocks.{i}" for i in range(5)], "output": "fc"}
    state = network.state_dict() | adjacency | {f"edge_importance.{i}": torch.ones(4, 21, 21) for i in range(3)}
    assert_same_state(convert.part_gcn(state, HAND, **names), convert.part_gcn(network.state_dict(), HAND, **names))
    state["edge_importance.2"] *= 1.5
    with pytest.raises(ValueError) as error:
        convert.part_gcn(state, HAND, **names)
    rule = "edge_importance.2 must be 1 everywhere, as blocks share a graph here, got other values"
    assert str(error.value) == f"part_gcn: {rule}; take convert.gcn_block for every block, with a graph of its own"


def broken(changes):
    state = field_block(8, 12, True).state_dict()
    for key, change in changes.items():
        if change is None:
            del state[key]
        else:
            state[key] = change(state.get(key))
    return state


TO_ONE_FRAME = "frames are seen one by one here: leave a temporal convolution in your code and take convert.graph_conv"
REFUSED = [
    ({"gcn.conv.weight": None}, "state must have gcn.conv.weight, got gcn.A, gcn.conv.bias, tcn.0.weight, 18 more"),
    (
        {"tcn.4.running_var": None},
        "state must have tcn.4.running_var, got gcn.A, gcn.conv.weight, gcn.conv.bias, 18 more",
    ),
    ({"tcn.0.weight": lambda t: t.tolist()}, "tcn.0.weight must be a torch.Tensor, got list"),
    (
        {"gcn.conv.weight": lambda t: t[:45]},
        "gcn.conv.weight must have shape [P * Cout, Cin, 1, 1] with P = 4 and Cout = 12, got [45, 8, 1, 1]",
    ),
    (
        {"gcn.conv.weight": lambda t: t.expand(-1, -1, 3, 1)},
        "gcn.conv.weight must have shape [P * Cout, Cin, 1, 1] with P = 4 and Cout = 12, got [48, 8, 3, 1]; "
        + TO_ONE_FRAME,
    ),
    ({"gcn.conv.bias": lambda t: t[:12]}, "gcn.conv.bias must have shape [48], got [12]"),
    (
        {"tcn.3.weight": lambda t: t.expand(-1, -1, 9, 1)},
        "tcn.3.weight must have shape [12, Cin, 1, 1], got [12, 12, 9, 1]; " + TO_ONE_FRAME,
    ),
    ({"tcn.3.bias": lambda t: t[:3]}, "tcn.3.bias must have shape [12], got [3]"),
    ({"tcn.4.running_mean": lambda t: t[:3]}, "tcn.4.running_mean must have shape [12], got [3]"),
    (
        {"residual.0.weight": lambda t: t[:, :5]},
        "residual.0.weight must map 8 channels to another number of them, got [12, 5]; "
        "a GCNBlock adds its input as it is where the channels stay",
    ),
    (
        {"gcn.down.0.weight": lambda t: torch.ones(3)},
        "state must have nothing that a GCNBlock lacks, got gcn.down.0.weight",
    ),
    (
        {"gcn.A": lambda t: t[:3]},
        "graph must be that of gcn.A, [3, 21, 21], got [4, 21, 21]; make it with SkeletonGraph.from_dense",
    ),
    (
        {"gcn.A": lambda t: t + 0.25},
        "graph must be that of gcn.A, got entries that differ by up to 0.25; make it with SkeletonGraph.from_dense",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_a_block_cannot_be_made_of(changes, sentence):
    with pytest.raises((ValueError, TypeError)) as error:
        convert.gcn_block(broken(changes), HAND)
    assert str(error.value) == f"gcn_block: {sentence}"


def test_a_wrong_prefix_is_named():
    state = {f"gcn.{i}.gcn.conv.weight": torch.ones(12, 3, 1, 1) for i in range(2)}
    sentence = "graph_conv: state must have conv.weight, got {}; prefix may be 'gcn.0.gcn.' or 'gcn.1.gcn.'"
    with pytest.raises(ValueError, match=re.escape(sentence.format(", ".join(state)))):
        convert.graph_conv(state, HAND)
    with pytest.raises(
        ValueError, match=r"state must have gcn\.2\.gcn\.conv\.weight.*prefix may be 'gcn\.0\.' or 'gcn\.1\.'"
    ):
        convert.gcn_block(state, HAND, "gcn.2.")


def test_a_state_inside_a_checkpoint_is_named():
    state = {f"module.st_gcn_networks.0.{key}": tensor for key, tensor in field_block(3, 8, False).state_dict().items()}
    checkpoint = {"epoch": 3, "optimizer": {"state": {}}, "state_dict": state}
    sentence = "got epoch, optimizer, state_dict; the tensors are in state['state_dict']"
    calls = [
        (convert.graph_conv, "module.st_gcn_networks.0.gcn."),
        (convert.gcn_block, "module.st_gcn_networks.0."),
        (convert.part_gcn, "module."),
    ]
    for function, prefix in calls:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            function(checkpoint, HAND, prefix)
        with pytest.raises(ValueError, match=re.escape(f"; prefix may be '{prefix}'")):
            function(state, HAND)


def test_partitions_must_divide_the_channels():
    with pytest.raises(ValueError) as error:
        convert.graph_conv({"conv.weight": torch.ones(10, 3, 1, 1)}, HAND)
    rule = "have shape [P * Cout, Cin, 1, 1] with P = 4"
    assert str(error.value) == f"graph_conv: conv.weight must {rule}, got [10, 3, 1, 1]"


@pytest.mark.parametrize("function", [convert.graph_conv, convert.gcn_block, convert.part_gcn])
def test_only_mappings_and_graphs_are_taken(function):
    with pytest.raises(TypeError, match=r"state must be a mapping .*, got str; read a file with .*weights_only=True"):
        function("model.pt", HAND)
    with pytest.raises(TypeError, match=r"graph must be a slrfast.graphs.SkeletonGraph, got ndarray"):
        function({}, HAND.dense())


def test_a_network_of_parts_needs_parts():
    with pytest.raises(ValueError, match="part_gcn: graph must have parts and a pooled graph"):
        convert.part_gcn({}, graphs.HAND6)
    with pytest.raises(ValueError, match="part_gcn: blocks must name five blocks"):
        convert.part_gcn({}, HAND, blocks=["blocks.0"])
    state = small_network()[0].state_dict()
    state["data_bn.weight"] = torch.ones(63)
    with pytest.raises(ValueError, match=r"part_gcn: data_bn.weight must have shape \[42\], got \[63\]"):
        convert.part_gcn(state, HAND, blocks=[f"blocks.{i}" for i in range(5)], output="fc")


def test_channels_first():
    module = ChannelsFirst(GraphConv(3, 4, HAND))
    x = torch.randn(2, 5, 21, 3).permute(0, 3, 1, 2)  # channels innermost already
    torch.testing.assert_close(module(x), module(x.contiguous()))
    assert module(x).shape == (2, 4, 5, 21) and module(x).is_contiguous(memory_format=torch.channels_last)
    assert module(x[:0]).shape == (0, 4, 5, 21)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    with pytest.raises(ValueError, match=r"ChannelsFirst: x must have shape \[N, C, T, V\], got \[2, 3, 5\]"):
        module(x[..., 0])


def test_channels_first_passes_options_on():
    block = GCNBlock(3, 3, HAND, dropout=0.0).train()
    x = torch.randn(4, 3, 5, 21)
    both = ChannelsFirst(block)(x, groups=2)
    torch.testing.assert_close(both, torch.cat([ChannelsFirst(block)(part) for part in x.split(2)]))
