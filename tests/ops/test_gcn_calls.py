"""gcn_block beyond its values: what its gradient keeps in memory, and calls with what does not fit, raw ones too."""

import gc

import pytest
import torch

import slrfast
from slrfast import graphs, ops
from slrfast.kernels import native
from slrfast.ops import _dispatch, _skeleton

SEED = torch.tensor(5)
KINDS = ("none", "identity", "linear")
needs_native = pytest.mark.skipif(_dispatch.unavailable("native", "cpu") is not None, reason="no native kernels")


@pytest.fixture
def draw(randn):
    def make(inputs, outputs, kind="linear", **options):
        shapes = [(4, inputs, outputs), (4, outputs), *[(outputs,)] * 2, (outputs, outputs), *[(outputs,)] * 3]
        shapes += [(outputs, inputs), *[(outputs,)] * 3] if kind == "linear" else []
        return randn(4, 7, inputs, **options), ops.GCNParameters(*(randn(*shape, **options) for shape in shapes))

    return make


def test_backward_gives_autograd_no_gradient_that_it_did_not_ask_for(draw):
    x, parameters = draw(3, 5, requires_grad=True)
    out, _ = ops.gcn_block(x.detach(), parameters._replace(weight=parameters.weight.detach()), graphs.TRUNK7)
    grads = out.grad_fn.apply(torch.ones_like(out), None)
    assert [g is None for g in grads] == [True] * 6 + [False] * 11


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_the_gradient(draw, monkeypatch, kind):
    """When the last kernel runs there are two gradients of the block's size: of the convolution and of x."""
    x, parameters = draw(5, 5, kind, requires_grad=True)
    out, _ = ops.gcn_block(x, parameters, graphs.TRUNK7, identity=kind == "identity", dropout=0.1)
    grad, alive = torch.ones_like(out), []

    def large():
        tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == x.shape]
        return {t.untyped_storage()._cdata for t in tensors}

    class Spy:
        def __getattr__(self, name):
            if name == "graph_conv_grad_cpu":
                alive.append(large())
            return getattr(library, name)

    library, before = native.LIBRARY, large()
    monkeypatch.setattr(native, "LIBRARY", Spy())
    with slrfast.backend("native"):
        out.backward(grad)
    assert len(alive) == 1 and len(alive[0] - before) == 2


@needs_native
def test_raw_calls_of_other_shapes_read_nothing_beyond_a_tensor(draw):
    x, parameters = draw(3, 5)
    edges = _skeleton.edges(graphs.TRUNK7, x.device)
    good = [x, list(parameters), *edges, SEED, 0.3, 0.01, 2, False]
    out, *kept = torch.ops.slrfast.gcn_block(*good)
    wrongs = [(i, p[..., :-1]) for i, p in enumerate(parameters) if i not in (2, 3, 6, 7, 10, 11)]
    with slrfast.backend("native"):
        for i, wrong in wrongs:
            changed = [*good[:1], [wrong if i == j else p for j, p in enumerate(parameters)], *good[2:]]
            with pytest.raises((ValueError, RuntimeError)):
                torch.ops.slrfast.gcn_block(*changed)
        for i, wrong in ((2, edges[0][:-1]), (3, edges[1].double()), (4, SEED.int())):
            with pytest.raises(ValueError, match="a CPU kernel of the graph network takes"):
                torch.ops.slrfast.gcn_block(*good[:i], wrong, *good[i + 1 :])
        for i in range(4):
            wrong = [k[1:] if i == j else k for j, k in enumerate(kept)]
            with pytest.raises(ValueError, match="a CPU kernel of the graph network takes"):
                torch.ops.slrfast.gcn_block_grad(out, *good, *wrong)
        with pytest.raises(ValueError, match="a CPU kernel of the graph network takes"):
            torch.ops.slrfast.gcn_block_grad(out[1:], *good, *kept)


def test_parameters_of_another_type(draw):
    x, parameters = draw(3, 5)
    with pytest.raises(TypeError, match=r"gcn_block: parameters must be slrfast\.ops\.GCNParameters, got tuple"):
        ops.gcn_block(x, tuple(parameters), graphs.TRUNK7)


def test_no_output_channels(draw):
    with pytest.raises(ValueError, match="gcn_block: weight must have at least one output channel, got 0"):
        ops.gcn_block(*draw(3, 0), graphs.TRUNK7)
