"""Modules with state: what each computes, written out once more in plain torch."""

import pytest
import torch
from torch.nn import functional as F

from slrfast import graphs
from slrfast.nn import (
    AttentionPool,
    GCNBlock,
    GraphConv,
    PartGCN,
    PoseTransformer,
    ProjectionHead,
    TemporalBlock,
)


def test_graph_conv_is_a_pointwise_convolution_and_a_sum_over_partitions():
    torch.manual_seed(0)
    module = GraphConv(5, 7, graphs.HAND21)
    x = torch.randn(3, 21, 5)
    adjacency = torch.tensor(graphs.HAND21.dense())
    expected = sum((x @ module.weight[k] + module.bias[k]).mT @ adjacency[k] for k in range(4)).mT
    torch.testing.assert_close(module(x), expected)
    bound = (6 / (5 + 4 * 7)) ** 0.5
    assert module.weight.abs().max() <= bound and module.weight.abs().max() > 0.9 * bound


def test_gcn_block_without_residual_or_dropout():
    torch.manual_seed(0)
    block = GCNBlock(3, 8, graphs.TRUNK7, dropout=0.0, residual=False).train()
    x = torch.randn(6, 7, 3)

    def norm(y):
        return (y - y.mean((0, 1))) / (y.var((0, 1), unbiased=False) + 1e-5).sqrt()

    y = norm(block.spatial[0](x)).relu()
    y = norm(block.pointwise[0](y)).relu()
    torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)


def test_part_gcn_pools_parts_and_is_frame_wise():
    torch.manual_seed(0)
    net = PartGCN(graphs.HAND21, (4, 4, 8, 8, 8), 16).eval()
    x = torch.randn(2, 5, 21, 2)
    whole = net(x)
    assert whole.shape == (2, 5, 16)
    torch.testing.assert_close(whole[:, 2:3], net(x[:, 2:3]))
    with pytest.raises(ValueError, match="PartGCN: graph must have parts and a pooled graph"):
        PartGCN(graphs.HAND6)


def test_temporal_block_sees_two_frames_to_either_side():
    torch.manual_seed(0)
    block = TemporalBlock(6).eval()
    x = torch.randn(1, 6, 11)
    changed = x.clone()
    changed[..., 5] += 1
    moved = (block(x) != block(changed)).any(1)[0]
    assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    assert (block(x) >= 0).all()


def test_transformer_block_equations():
    torch.manual_seed(0)
    net = PoseTransformer(16, heads=4, ffn=24, layers=1, dropout=0.0)
    x = torch.randn(2, 9, 16)
    block = net.blocks[0]
    h = F.layer_norm(x, (16,), eps=1e-12)
    q, k, v = (y.view(2, 9, 4, 4).transpose(1, 2) for y in block.qkv(h).chunk(3, -1))
    attended = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 9, 16)
    h = F.layer_norm(h + block.out(attended), (16,), eps=1e-12)
    h = F.layer_norm(h + block.ffn_out(F.gelu(block.ffn_in(h))), (16,), eps=1e-12)
    torch.testing.assert_close(net(x), h)


def test_transformer_refuses_a_width_that_heads_do_not_divide():
    with pytest.raises(ValueError, match="dim must be a multiple of heads = 4, got 10"):
        PoseTransformer(10, heads=4)


def test_attention_pool_ignores_masked_positions():
    torch.manual_seed(0)
    pool = AttentionPool(4)
    x = torch.randn(2, 5, 4)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    out = pool(x, mask)
    weights = pool.score(x[0][mask[0]]).softmax(0)
    torch.testing.assert_close(out[0], (weights * x[0][mask[0]]).sum(0))
    torch.testing.assert_close(out[1], x[1].mean(0))


def test_projection_head_has_unit_rows():
    head = ProjectionHead(8, 4)
    torch.testing.assert_close(head(torch.randn(5, 8)).norm(dim=1), torch.ones(5))
