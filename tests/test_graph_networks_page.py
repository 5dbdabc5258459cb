"""The page on graph networks: what is after computes what was before (tests/test_pages.py runs every block)."""

import re

import pytest
import torch

from benchmarks.baselines import gcn as field
from slrfast import graphs
from slrfast.graphs import SkeletonGraph
from slrfast.systems.stc import STCConfig
from tests import pages

PAGE = pages.ROOT / "docs" / "graph-networks.md"
SECTIONS = {title: pages.fences(text, "python") for title, text in pages.sections(PAGE)[1].items()}
STC, STGCN, PYSKL = (title for title, blocks in SECTIONS.items() if len(blocks) == 3)
ADJACENCY = torch.tensor(graphs.TRUNK7.dense()[:3])


def run(*blocks):
    return pages.run(PAGE, *blocks)


def trained(module):
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("A"):
            tensor.add_(0.1 * torch.rand_like(tensor))
    return module


def pair(title, inputs, outputs, **options):
    """What was before, also as a function of x, and what makes what is after of its state."""
    before, after, weights = SECTIONS[title]
    old, load = run(before), run(after, weights)["load"]
    importance = torch.rand(3, 7, 7)
    if title == STC:
        adjacency, prefix, beside, number = torch.tensor(graphs.HAND21.dense()), "st_gcn_networks.2.", {}, 2
        module, options = old["Block"](inputs, outputs, 4, dropout=0.0, **options), {"dropout": 0.0, **options}
    elif title == STGCN:
        adjacency, prefix, number = ADJACENCY * importance, "st_gcn_networks.0.", 0
        beside = {"A": ADJACENCY, "edge_importance.0": importance}
        module = old["st_gcn"](inputs, outputs, 3, **options)
    else:
        adjacency, prefix, beside, number = None, "backbone.gcn.1.gcn.", {}, 1
        module = old["unit_gcn"](inputs, outputs, ADJACENCY)

    def convert(state):
        state = {f"{prefix}{key}": tensor for key, tensor in state.items()}
        return load(state | beside, number, inputs, outputs, **options)

    return trained(module), module if adjacency is None else lambda x: module(x, adjacency), convert


CASES = [
    *((title, inputs, outputs, options) for inputs, outputs in ((3, 8), (8, 8)) for title, options in (
        (STC, {}), (STC, {"residual": False}), (STGCN, {}), (STGCN, {"residual": False}), (STGCN, {"stride": 2}),
        (PYSKL, {}),
    )),
]  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("title", "inputs", "outputs", "options"), CASES)
def test_before_and_after_agree(title, inputs, outputs, options, training):
    torch.manual_seed(0)
    old, compute, convert = pair(title, inputs, outputs, **options)
    new = convert(old.state_dict())
    old.train(training), new.train(training)
    x = torch.randn(2, inputs, 6, 21 if title == STC else 7)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    expected, out = compute(leaves[0]), new(leaves[1])
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(expected)
    expected.backward(grad), out.backward(grad)
    assert leaves[0].grad.any()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-3, atol=1e-4)
    # gradients have the form of the weights; the adjacency is no parameter of what is after
    gradients = {name: parameter.grad for name, parameter in old.named_parameters() if not name.endswith("PA")}
    wanted = dict(convert(old.state_dict() | gradients).named_parameters())
    assert len(wanted) == len(gradients)
    for name, parameter in new.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].detach(), rtol=1e-3, atol=2e-4)
    theirs, ours = ([b for b in m.buffers() if b.dim() == 1] for m in (old, new))  # running statistics
    assert len(theirs) == len(ours) > 0
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_a_missing_residual_is_not_left_as_it_was():
    old, _, convert = pair(STGCN, 3, 8)
    with pytest.raises(RuntimeError, match="Missing key"):
        convert({key: tensor for key, tensor in old.state_dict().items() if not key.startswith("residual")})


def test_both_layouts_agree():
    torch.manual_seed(0)
    (code,) = SECTIONS["Channels last"]
    found = run(code)
    assert found["y"].shape == (8, 32, 21, 64)
    found["block"].eval()
    again = found["block"](found["x"].flatten(0, 1)).unflatten(0, (8, 32))
    torch.testing.assert_close(
        found["ChannelsFirst"](found["block"])(found["x"].permute(0, 3, 1, 2)), again.movedim(3, 1)
    )
    x = torch.randn(2, 3, 4, 5, 6)  # N C T V M, and both ways of the page to clips and to frames
    torch.testing.assert_close(
        x.permute(0, 4, 1, 2, 3).flatten(0, 1).permute(0, 2, 3, 1).flatten(0, 1), x.permute(0, 4, 2, 3, 1).flatten(0, 2)
    )


def published_checkpoint():
    """A network of the field, and its state under the published names."""
    theirs = trained(field.PartGCN(graphs.HAND21, STCConfig(input_eps=0.1))).eval()
    state = {"A": torch.tensor(graphs.HAND21.dense()), "A_pool": torch.tensor(graphs.HAND21.pooled.dense())}
    for key, tensor in theirs.state_dict().items():
        if not key.endswith(".A"):
            key = re.sub(r"blocks\.([012])", r"st_gcn_networks.\1", key).replace("fc.", "conv4.")
            key = key.replace("blocks.3", "st_gcn_pool.0").replace("blocks.4", "st_gcn_pool.1")
            state[key] = tensor
    return theirs, {f"st_gcn_hand.{key}": tensor for key, tensor in state.items()}


def test_a_checkpoint_of_a_whole_network(tmp_path, monkeypatch):
    torch.manual_seed(0)
    theirs, state = published_checkpoint()
    torch.save(state, tmp_path / "checkpoint.pt")
    monkeypatch.chdir(tmp_path)
    (code,) = SECTIONS["A checkpoint of STC or MASA"]
    found = run(code)
    assert not found["features"].requires_grad
    x = torch.rand(2, 4, 21, 2)
    torch.testing.assert_close(found["network"](x), theirs(x).mT, rtol=1e-4, atol=1e-4)


def test_own_skeletons():
    bones, adjacency = SECTIONS["Your own skeleton"]
    found = run(bones)
    assert found["features"].shape == (2, 8, 512)
    assert isinstance(run(adjacency)["graph"], SkeletonGraph)


def test_no_block_is_left_out():
    tested = {STC, STGCN, PYSKL, "Channels last", "A checkpoint of STC or MASA", "Your own skeleton"}
    assert {title for title, blocks in SECTIONS.items() if blocks} == tested
