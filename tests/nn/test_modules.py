"""Modules with state: what each computes, written out once more in plain torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slrfast import graphs
from slrfast.nn import (
    AttentionPool,
    GCNBlock,
    GraphConv,
    MemoryBank,
    MomentumEncoder,
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


def test_momentum_encoder_averages_parameters_and_leaves_buffers():
    torch.manual_seed(0)
    query = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    key = MomentumEncoder(query, 0.75)
    before = [p.clone() for p in key.parameters()]
    with torch.no_grad():
        for parameter in query.parameters():
            parameter.add_(torch.randn_like(parameter))
    query(torch.randn(8, 3))
    key.update(query)
    for old, new, target in zip(before, key.parameters(), query.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * target)
        assert not new.requires_grad
    assert not torch.equal(query[1].running_mean, key.encoder[1].running_mean)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1.5"):
        MomentumEncoder(query, 1.5)


def test_memory_bank_wraps_and_survives_the_state_dict():
    bank = MemoryBank(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bank.features.norm(dim=1), torch.ones(5))
    keys = torch.eye(3)
    bank.enqueue(keys)
    bank.enqueue(2 * keys)
    assert bank.cursor.item() == 1
    torch.testing.assert_close(bank.features, keys[[2, 1, 2, 0, 1]])
    again = MemoryBank(5, 3)
    again.load_state_dict(bank.state_dict())
    assert torch.equal(again.features, bank.features) and again.cursor.item() == 1


def test_memory_bank_refuses_no_rows():
    with pytest.raises(ValueError, match="MemoryBank: size must be >= 1, got 0"):
        MemoryBank(0, 3)


def _enqueue_in_a_group(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    bank = MemoryBank(4, 2, gather=True, normalize=False, generator=torch.Generator().manual_seed(rank))
    bank.enqueue(torch.full((2, 2), float(rank)))
    torch.save(bank.features, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_gathered_banks_are_the_same_in_every_process(tmp_path):
    torch.multiprocessing.spawn(_enqueue_in_a_group, (str(tmp_path),), nprocs=2)
    expected = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)
