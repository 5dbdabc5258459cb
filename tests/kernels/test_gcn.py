"""Parts of the graph network's kernels: dropout masks, moments, sorted edges, and layers of several tiles each way."""

import os

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from slrfast.graphs import HAND21, TRUNK3, SkeletonGraph
from slrfast.kernels.triton import _gcn, _gcn_map, gcn_block, graph_conv
from slrfast.ops import _skeleton
from slrfast.reference import dropout
from slrfast.reference import gcn_block as reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def draw():
    """Seeded normal numbers, drawn in float64."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32: torch.randn(shape, generator=generator, dtype=torch.float64).to(
        DEVICE, dtype
    )


# ---- dropout --------------------------------------------------------------------------------------------------------


@triton.jit
def factors(seed, out, first, threshold: tl.int64, SITE: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr):
    rows, channel = tl.arange(0, ROWS) < ROWS, tl.arange(0, C)
    factor = _gcn.dropout_factor(seed, SITE, tl.cast(first, tl.int64), rows, channel, threshold, 2.0, tl.float32)
    tl.store(out + tl.arange(0, ROWS)[:, None] * C + channel[None, :], factor)


def kept_from(first, seed, site, rows, channels, probability):
    """keep_mask for rows that begin at ``first``, in Python's integers."""
    word, seed = 0xFFFFFFFF, int(seed)

    def mix(x):
        x = (x ^ x >> 16) * 0x7FEB352D & word
        x = (x ^ x >> 15) * 0x846CA68B & word
        return x ^ x >> 16

    base = mix((seed & word) + (site + 1) * 0x9E3779B9 & word) ^ (seed >> 32 & word)
    keys = [mix(mix(base + (row & word) & word) + (row >> 32) & word) for row in range(first, first + rows)]
    bits = [[mix(key ^ c * 0x9E3779B9 & word) for c in range(channels)] for key in keys]
    return torch.tensor(bits, device=DEVICE) >= dropout.threshold(probability)


@pytest.mark.parametrize("first", [0, 2**31 - 5, 2**32 - 7, 3 * 2**32 + 11])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 - 1, -(2**63), 0x123456789ABCDEF])
def test_dropout_is_the_reference_bit_for_bit(first, seed):
    rows, channels = 16, 32
    seed = torch.tensor(seed, device=DEVICE)
    for site, probability in ((0, 0.05), (1, 0.5), (1, 1.0)):
        out = torch.full((rows, channels), torch.nan, device=DEVICE)
        factors[(1,)](seed, out, first, dropout.threshold(probability), site, rows, channels)
        expected = kept_from(first, seed, site, rows, channels, probability)
        assert out.equal(expected * 2.0)
        if first == 0:
            assert expected.equal(dropout.keep_mask(seed, site, rows, channels, probability))


# ---- moments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 300.0])
@pytest.mark.parametrize(("frames", "groups"), [(3, 1), (100, 2), (75, 3)])
def test_moments_far_from_zero(draw, monkeypatch, mean, frames, groups):
    """A variance from sums of squares would keep two digits of seven here."""
    monkeypatch.setattr(_gcn, "BLOCKS", 2)
    x = draw(frames, 7, 20) * (1 + torch.arange(20, device=DEVICE)) + mean
    call = _gcn_map.settings(x, torch.tensor(0, device=DEVICE), 0.0, 1e-5, groups)
    stats = torch.full((2, groups, 20), torch.nan, device=DEVICE)
    y = _gcn_map.launch_linear(x, torch.eye(20, device=DEVICE), x.new_zeros(20), None, False, stats, call)
    assert_close(y, x, rtol=1e-6, atol=0)
    assert_close(stats.double(), reference.moments(y.double(), groups), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_of_a_graph_convolution(draw, dtype):
    """Those of the numbers that are stored, rounded as they are."""
    x, weight, bias = draw(150, 3, 5, dtype=dtype), draw(4, 5, 24, dtype=dtype), draw(4, 24) + 30
    (edges,) = graph_conv.neighbors(*_skeleton.edges(TRUNK3, DEVICE), 3, 4)
    y, partial, block = graph_conv.launch_convolve(x, weight, bias, None, edges, 2, True)
    stats = torch.full((2, 2, 24), torch.nan, device=DEVICE)
    _gcn.merge_moments(partial, stats, 75, 3, block)
    assert_close(stats.double(), reference.moments(y.double(), 2), rtol=1e-6, atol=1e-6)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [16, 256])
def test_edges_by_target_and_by_source(monkeypatch, block):
    monkeypatch.setattr(graph_conv, "BLOCK", block)
    dense = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0))
    dense[1] = 0  # a partition without edges
    dense[dense < 0.5] = 0
    graph = SkeletonGraph.from_dense(dense)
    for side, found in enumerate(graph_conv.neighbors(*_skeleton.edges(graph, DEVICE), 9, 3, 2)):
        offsets = found.offsets.tolist()
        assert offsets[0] == 0 and offsets[-1] == len(graph.edges) and len(offsets) == 28
        for key in range(27):
            node, partition = divmod(key, 3)
            column = dense[partition, node] if side else dense[partition, :, node]
            here = slice(offsets[key], offsets[key + 1])
            assert found.sources[here].tolist() == column.nonzero().flatten().tolist()
            assert_close(found.coefficients[here].cpu(), column[column > 0], rtol=0, atol=0)
            assert_close(found.strengths[key].item(), column.double().sum().item(), rtol=1e-12, atol=0)


# ---- layers of several tiles ----------------------------------------------------------------------------------------


def test_sums_over_rows_in_splits(draw, monkeypatch):
    monkeypatch.setattr(graph_conv, "PROGRAMS", 7)
    x, grad = draw(300, 70), draw(300, 150)
    assert_close(graph_conv.launch_outer(x, grad)[0], x.T @ grad, rtol=1e-5, atol=1e-4)
    x, grad = draw(100, 21, 4), draw(100, 21, 6)
    (edges,) = graph_conv.neighbors(*_skeleton.edges(HAND21, DEVICE), 21, 4)
    dense = torch.tensor(HAND21.dense(), device=DEVICE)
    expected = torch.einsum("rvi,pvw,rwo->pio", x, dense, grad)
    assert_close(graph_conv.launch_outer(x, grad, 4, edges), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("inputs", "identity"), [(150, True), (40, False)])
def test_block_of_several_tiles(draw, inputs, identity):
    """More rows, inputs and outputs than a tile has, and none of them a multiple of it; two groups."""
    outputs = 150
    shapes = [(4, inputs, outputs), (4, outputs), (outputs,), (outputs,), (outputs, outputs), *[(outputs,)] * 3]
    shapes += [] if identity else [(outputs, inputs), *[(outputs,)] * 3]
    parameters = [draw(*shape) / shape[-1] ** 0.5 for shape in shapes] + [None] * (12 - len(shapes))
    for i in (2, 6, 10):
        parameters[i] = parameters[i] if parameters[i] is None else parameters[i] + 1
    seed = torch.tensor(-(2**40) + 3, device=DEVICE)
    settings = *_skeleton.edges(TRUNK3, DEVICE), seed, 0.2, 1e-5, 2, identity
    x, grad = draw(48, 3, inputs), draw(48, 3, outputs)
    got = gcn_block.gcn_block(x, parameters, *settings)
    grads = gcn_block.gcn_block_grad(grad, x, parameters, *settings, *got[1:])
    wide = [None if p is None else p.double() for p in parameters]
    expected = reference.gcn_block(x.double(), tuple(wide), *settings)
    expected_grads = reference.gcn_block_grad(grad.double(), x.double(), tuple(wide), *settings, *expected[1:])
    for one, other in zip((*got, *grads), (*expected, *expected_grads), strict=True):
        assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
