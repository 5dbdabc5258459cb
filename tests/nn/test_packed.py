"""Packed clips give what a loop over the clips gives, one after the other in the dense form."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.testing import assert_close

from slrfast.data import PoseBatch
from slrfast.nn import AttentionPool, PoseTransformer, TemporalBlock
from slrfast.nn import attention as attention_module
from slrfast.nn.attention import TransformerBlock
from slrfast.nn.packed import Packing

LENGTHS = {"mixed": (4, 1, 7, 2), "equal": (3, 3, 3), "one frame each": (1, 1, 1), "one clip": (6,), "gap": (3, 0, 2)}
DIM = 8


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def rows(lengths, dim=DIM, dtype=torch.float64):
    return torch.randn(sum(lengths), dim, dtype=dtype, requires_grad=True)


def per_clip(call, x, lengths):
    """The dense form on one clip after the other; clips without frames have no result."""
    return torch.cat([call(clip.unsqueeze(0)).squeeze(0) for clip in x.split(lengths) if len(clip)])


def assert_same(module, x, packed, loop, **tolerance):
    """Equal results and equal gradients, of the rows and of every parameter."""
    assert_close(packed, loop, **tolerance)
    weight = torch.randn_like(packed)
    wanted = [x, *module.parameters()]
    grads = [torch.autograd.grad(y, wanted, weight, retain_graph=True) for y in (packed, loop)]
    for ours, theirs in zip(*grads, strict=True):
        assert ours.isfinite().all()
        assert_close(ours, theirs, **tolerance)


@pytest.fixture(params=LENGTHS.values(), ids=LENGTHS.keys())
def lengths(request):
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("path", ["clip by clip", "padded"])
def test_transformer_equals_a_loop_over_clips(lengths, train, path, monkeypatch):
    if path == "padded":  # what a GPU runs, through torch's attention with a mask
        monkeypatch.setattr(attention_module, "_packed_attention", attention_module._padded_attention)
    net = PoseTransformer(DIM, heads=2, ffn=12, layers=2, dropout=0.0).double().train(train)
    x = rows(lengths)
    loop = per_clip(net, x, lengths)
    assert_same(net, x, net(x, offsets_of(lengths)), loop)
    packing = Packing.of(offsets_of(lengths))
    assert_close(net.blocks[0](x, packing), per_clip(net.blocks[0], x, lengths))


def test_dropout_acts_on_the_attention_weights_of_packed_clips():
    torch.manual_seed(0)
    block = TransformerBlock(DIM, heads=2, ffn=12, dropout=0.5).double()
    lengths, qkv = (3, 5), torch.randn(8, 3, 2, 4, dtype=torch.float64)
    seen = []
    for train in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            seen.append(attention_module._packed_attention(qkv, Packing.of(offsets_of(lengths)), 0.5 * train))
            torch.manual_seed(1)
            for clip, packed in zip(qkv.split(lengths), seen[-1].split(lengths), strict=True):
                q, k, v = clip.permute(1, 2, 0, 3)
                weights = F.dropout((q @ k.mT / 2).softmax(-1), 0.5, training=train)
                assert_close(packed, (weights @ v).transpose(0, 1).flatten(1))
    assert (seen[0] != seen[1]).any()
    x, offsets = torch.randn(8, DIM, dtype=torch.float64), offsets_of(lengths)
    assert (block(x, offsets) != block(x, offsets)).any()  # training mode
    assert_close(block.eval()(x, offsets), block(x, offsets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_with_dropout_is_torchs_own(dtype):
    """The CPU form with dropout draws the same random numbers as scaled_dot_product_attention."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 9, 3, 2, 4, dtype=dtype, requires_grad=True)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    torch.manual_seed(1)
    expected = F.scaled_dot_product_attention(query, key, value, dropout_p=0.3).transpose(1, 2).flatten(2)
    torch.manual_seed(1)
    ours = attention_module._self_attention(qkv, 0.3)
    assert_close(ours, expected)
    weight = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(y, qkv, weight)[0] for y in (ours, expected)))


def temporal_loop(block, x, lengths):
    """Both branches clip by clip, then join and BN (over the frames of all clips) at once."""

    def branches(clip):
        wide = block.wide(clip).relu()
        return torch.cat((wide, block.narrow2(block.narrow1(clip).relu()).relu()), 1)

    joined = per_clip(lambda clip: branches(clip.mT).mT, x, lengths) @ block.join[0].weight.squeeze(2).T
    return block.join[1](joined + block.join[0].bias).relu()


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_temporal_block_sees_no_other_clip(lengths, train):
    block = TemporalBlock(DIM).double().train(train)
    block.join[1].running_mean.normal_()
    x = rows(lengths)
    ours, theirs = copy.deepcopy(block), copy.deepcopy(block)
    packed, loop = ours(x, offsets_of(lengths)), temporal_loop(theirs, x, lengths)
    for buffer, expected in zip(ours.buffers(), theirs.buffers(), strict=True):  # running statistics
        assert_close(buffer, expected)
    assert_same(block, x, block(x, offsets_of(lengths)), temporal_loop(block, x, lengths))
    assert_close(packed, loop)
    assert (packed >= 0).all()
    if not train:
        assert_close(packed, per_clip(lambda clip: block(clip.mT).mT, x, lengths))


def test_equal_lengths_train_as_the_dense_form():
    torch.manual_seed(0)
    block, x = TemporalBlock(DIM).double(), rows((5, 5, 5))
    assert_same(block, x, block(x, offsets_of((5, 5, 5))), block(x.unflatten(0, (3, 5)).mT).mT.flatten(0, 1))


def test_groups_of_the_temporal_block_are_calls_one_after_the_other():
    torch.manual_seed(0)
    block, x = TemporalBlock(DIM).double(), torch.randn(6, DIM, 5, dtype=torch.float64)
    twin = copy.deepcopy(block)
    assert_close(block(x, groups=3), torch.cat([twin(part) for part in x.chunk(3)]))
    assert_close(list(block.buffers()), list(twin.buffers()))
    assert_close(block.eval()(x, groups=3), block(x))


def test_a_pruned_temporal_block_trains():
    torch.manual_seed(0)
    block, x = TemporalBlock(DIM), torch.randn(2, DIM, 5)
    twin = copy.deepcopy(block)
    prune.l1_unstructured(block.join[0], "weight", 0.5)
    twin.join[0].weight.data *= block.join[0].weight_mask
    for _ in range(2):
        out = block(x)
        out.sum().backward()
    assert_close(out, twin(x))


def test_frozen_statistics_of_a_temporal_block_need_no_second_frame():
    block, x = TemporalBlock(DIM), torch.randn(1, DIM, 1)
    block.join[1].eval()
    assert_close(block(x), copy.deepcopy(block).eval()(x))


def test_attention_pool_equals_a_loop_over_clips():
    torch.manual_seed(0)
    lengths, pool = (4, 1, 7, 2), AttentionPool(DIM).double()
    x, offsets = rows(lengths), offsets_of((4, 1, 7, 2))
    assert_same(pool, x, pool(x, offsets=offsets), per_clip(lambda clip: pool(clip), x, (4, 1, 7, 2)).view(-1, DIM))
    mask = torch.rand(len(x)) < 0.6
    mask[:5] = False  # two clips without any True
    packed = pool(x, mask, offsets)
    loop = [pool(c[None], m[None]) for c, m in zip(x.split(lengths), mask.split(lengths), strict=True)]
    assert_same(pool, x, packed, torch.cat(loop))
    assert_close(packed[0], x[:4].mean(0))
    assert_close(packed[1], x[4])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("offsets", [None, Packing.of(offsets_of((3, 1, 2)))], ids=["dense", "packed"])
def test_what_a_masked_position_holds_does_not_matter(offsets, value):
    torch.manual_seed(0)
    pool, x = AttentionPool(DIM), torch.randn(*((2, 3) if offsets is None else (6,)), DIM)
    mask = torch.tensor([True, False, True, False, True, False]).view(x.shape[:-1])  # a packed clip without any True
    spoiled = x.clone()
    spoiled.view(-1, DIM)[[1, 5]] = value
    results = []
    for rows in (x.requires_grad_(), spoiled.requires_grad_()):
        out = pool(rows, mask, offsets)
        results.append((out, torch.autograd.grad(out.square().sum(), [rows, *pool.parameters()])))
    assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("how", ["half module", "autocast"])
def test_a_sequence_without_any_position_that_counts_is_averaged(dtype, how):
    if dtype == torch.float32 and how == "autocast":
        pytest.skip("no autocast to float32")
    torch.manual_seed(0)
    pool, x = AttentionPool(DIM), torch.randn(2, 5, DIM)
    if how == "half module":
        pool, x = pool.to(dtype), x.to(dtype)
    x.requires_grad_()
    mask = torch.tensor([[False] * 5, [True, False, False, False, False]])
    with torch.autocast("cpu", dtype, enabled=how == "autocast"):
        dense = pool(x, mask)
        packed = pool(x.flatten(0, 1), mask.flatten(), offsets_of((5, 5)))
    assert dense.dtype == packed.dtype == dtype
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype != torch.float32 else {}
    for out in (dense, packed):
        assert_close(out[0].float(), x[0].float().mean(0), **tolerance)
        assert_close(out[1].float(), x[1, 0].float(), **tolerance)
        (gradient,) = torch.autograd.grad(out.float().sum(), x)
        assert gradient.isfinite().all() and (gradient[0] != 0).all() and (gradient[1, 1:] == 0).all()


def test_both_hands_of_a_frame_pool_as_two_rows():
    torch.manual_seed(0)
    lengths, pool = (3, 2), AttentionPool(DIM)
    hands, seen = torch.randn(5, 2 * DIM), torch.rand(5, 2) < 0.7
    packing = Packing.of(offsets_of(lengths))
    packed = pool(hands.unflatten(1, (2, DIM)).flatten(0, 1), seen.flatten(), packing.times(2))
    for out, clip, mask in zip(packed, hands.split(lengths), seen.split(lengths), strict=True):
        assert_close(out, pool(torch.cat(clip.chunk(2, 1)).unsqueeze(0), mask.T.flatten().unsqueeze(0))[0])


def encoder(x, offsets, temporal, transformer, pool):
    return pool(transformer(temporal[1](temporal[0](x, offsets), offsets), offsets), offsets=offsets)


def test_an_encoder_shares_one_packing_and_runs_in_bfloat16():
    torch.manual_seed(0)
    batch = PoseBatch.random(4, min_frames=1, max_frames=12)
    temporal = nn.ModuleList((TemporalBlock(DIM), TemporalBlock(DIM)))
    parts = nn.ModuleList((temporal, PoseTransformer(DIM, heads=2, ffn=12, layers=1, dropout=0.1), AttentionPool(DIM)))
    x = torch.randn(len(batch.xy), DIM, requires_grad=True)
    torch.manual_seed(1)
    expected = encoder(x, batch.offsets, *parts)
    torch.manual_seed(1)
    assert_close(encoder(x, Packing.of(batch.offsets), *parts), expected, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        rounded = encoder(x, batch.offsets, *parts)
        assert temporal[0](x, batch.offsets).dtype == torch.bfloat16
    assert_close(rounded.float(), expected, rtol=0.1, atol=0.1)
    rounded.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parts.parameters())


def test_packing_pads_and_unpads(lengths):
    packing = Packing.of(offsets_of(lengths))
    x = torch.randn(sum(lengths), 2, 3)
    assert (packing.num_clips, packing.num_rows, packing.longest) == (len(lengths), sum(lengths), max(lengths))
    padded = nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True)
    assert_close(packing.pad(x), padded, rtol=0, atol=0)
    assert_close(packing.unpad(padded), x, rtol=0, atol=0)
    assert packing.present.sum(1).tolist() == list(lengths)
    assert packing.clip.tolist() == [clip for clip, length in enumerate(lengths) for _ in range(length)]
    assert packing.times(3).offsets.tolist() == offsets_of([3 * length for length in lengths]).tolist()
    elsewhere = packing.to("meta")
    assert elsewhere.lengths == tuple(lengths) and elsewhere.place.device.type == "meta"


def test_a_transformer_of_no_frames_at_all():
    net = PoseTransformer(DIM, heads=2, ffn=12, layers=1)
    for lengths in ((), (0, 0)):
        assert net(torch.zeros(0, DIM), offsets_of(lengths)).shape == (0, DIM)


@pytest.mark.parametrize("op", ["TemporalBlock", "TransformerBlock", "PoseTransformer", "AttentionPool"])
@pytest.mark.parametrize(
    ("offsets", "error", "message"),
    [
        (torch.tensor([0, 4, 9]), ValueError, "offsets must rise from 0 to the 10 frames, got [0, 4, 9]"),
        (torch.tensor([1, 4, 10]), ValueError, "offsets must rise from 0 to the 10 frames, got [1, 4, 10]"),
        (torch.tensor([0, 7, 5, 10]), ValueError, "offsets must rise from 0 to the 10 frames, got [0, 7, 5, 10]"),
        (torch.tensor([0, 1, 2, 9, 4, 5, 6, 7, 10]), ValueError, "to the 10 frames, got 4 after 9"),
        (torch.arange(12), ValueError, "to the 10 frames, got 0 to 11"),
        (torch.zeros(0, dtype=torch.int64), ValueError, "offsets must rise from 0 to the 10 frames, got []"),
        (torch.tensor([0, 10], dtype=torch.int32), TypeError, "offsets must be torch.int64, got torch.int32"),
        (torch.tensor([[0, 10]]), ValueError, "offsets must have shape [B+1], got [1, 2]"),
        ([0, 10], TypeError, "offsets must be a torch.Tensor, got list"),
        (Packing.of(torch.tensor([0, 9])), ValueError, "offsets must pack the 10 rows of x, got 9"),
    ],
)
def test_offsets_that_do_not_fit(op, offsets, error, message):
    modules = {
        "TemporalBlock": TemporalBlock(DIM),
        "TransformerBlock": TransformerBlock(DIM, 2, 12),
        "PoseTransformer": PoseTransformer(DIM, 2, 12),
        "AttentionPool": AttentionPool(DIM),
    }
    with pytest.raises(error, match=f"^{op}: .*" + re.escape(message)):
        modules[op](torch.zeros(10, DIM), offsets=offsets)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: AttentionPool(DIM)(x, offsets=torch.tensor([0, 4, 4, 10])), ValueError,
         "AttentionPool: offsets must leave no clip empty, got no frame for clip 1"),
        (lambda x: AttentionPool(DIM)(x[None, :0]), ValueError, "AttentionPool: x must have at least one position"),
        (lambda x: AttentionPool(DIM)(x, torch.ones(9) > 0, torch.tensor([0, 10])), ValueError,
         "AttentionPool: mask must have shape [S] with S = 10, got [9]"),
        (lambda x: AttentionPool(DIM)(x[None], torch.ones(1, 10)), TypeError,
         "AttentionPool: mask must be torch.bool, got torch.float32"),
        (lambda x: AttentionPool(DIM)(x), ValueError, "AttentionPool: x must have shape [B, T, 8], got [10, 8]"),
        (lambda x: TemporalBlock(4)(x, torch.tensor([0, 10])), ValueError,
         "TemporalBlock: x must have shape [S, 4], got [10, 8]"),
        (lambda x: TemporalBlock(DIM)(x[:1], torch.tensor([0, 1])), ValueError,
         "TemporalBlock: x must have at least two frames in training mode, got 1"),
        (lambda x: TemporalBlock(DIM)(x[None, :1].mT), ValueError,
         "TemporalBlock: x must have at least two frames in training mode, got 1"),
        (lambda x: TemporalBlock(DIM).eval()(x[:0], torch.tensor([0])), ValueError,
         "TemporalBlock: x must have at least one frame, got 0"),
        (lambda x: TemporalBlock(DIM).eval()(x[None, :0].mT), ValueError,
         "TemporalBlock: x must have at least one frame, got [1, 8, 0]"),
        (lambda x: TemporalBlock(DIM).eval()(x[:0, :, None]), ValueError,
         "TemporalBlock: x must have at least one frame, got [0, 8, 1]"),
        (lambda x: TemporalBlock(DIM)(x[:, :, None], groups=3), ValueError,
         "TemporalBlock: x must have a multiple of 3 sequences, got 10"),
        (lambda x: TemporalBlock(DIM)(x[:, :, None], groups=0), ValueError,
         "TemporalBlock: groups must be in [1, 2147483647], got 0"),
        (lambda x: TemporalBlock(DIM)(x[:, :, None], groups=10), ValueError,
         "TemporalBlock: x must have at least two frames per group in training mode, got 1"),
        (lambda x: TemporalBlock(DIM)(x, torch.tensor([0, 5, 10]), groups=2), ValueError,
         "TemporalBlock: groups must be 1 with offsets, got 2"),
        (lambda x: PoseTransformer(DIM, 2)(x[None], torch.tensor([0, 10])), ValueError,
         "PoseTransformer: x must have shape [S, 8], got [1, 10, 8]"),
        (lambda x: Packing.of(torch.tensor([0, 3, 2])), ValueError, "Packing: offsets must rise from 0, got [0, 3, 2]"),
        (lambda x: PoseTransformer(DIM, 2)(x, Packing.of(torch.tensor([0, 10]), "meta")), ValueError,
         "PoseTransformer: offsets must be on the device of x (cpu), got meta"),
    ],
)  # fmt: skip
def test_other_input_that_does_not_fit(call, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        call(torch.zeros(10, DIM))


def test_one_frame_is_enough_in_evaluation_mode():
    block, x = TemporalBlock(DIM).eval(), torch.randn(1, DIM)
    assert_close(block(x, torch.tensor([0, 1])), block(x[None].mT)[..., 0])


@pytest.mark.parametrize("offsets", [None, Packing.of(offsets_of((3, 1, 6)))], ids=["dense", "packed"])
def test_both_forms_compile_to_one_graph(offsets):
    torch.manual_seed(0)
    temporal, pool = TemporalBlock(DIM), AttentionPool(DIM)
    net = PoseTransformer(DIM, heads=2, ffn=12, layers=1, dropout=0.0)

    def forward(x, mask):
        if offsets is None:
            return pool(net(temporal(x.mT).mT), mask)
        return pool(net(temporal(x, offsets), offsets), mask, offsets)

    x, mask = torch.randn(*((2, 5) if offsets is None else (10,)), DIM, requires_grad=True), torch.rand(10) < 0.7
    mask = mask.view(x.shape[:-1])
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")(x, mask)
    expected = forward(x, mask)
    assert_close(compiled, expected)
    assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (compiled, expected)))


def test_other_lengths_compile_again():
    torch._dynamo.reset()
    torch.manual_seed(0)
    block, pool = TransformerBlock(DIM, heads=2, ffn=12, dropout=0.0), AttentionPool(DIM)

    def forward(x, packing):
        return pool(block(x, packing), offsets=packing)

    compiled = torch.compile(forward, fullgraph=True, backend="eager")
    for lengths in ((2, 3), (4, 1), (3, 5, 2), (2, 2)):
        x, packing = rows(lengths, dtype=torch.float32), Packing.of(offsets_of(lengths))
        assert_close(compiled(x, packing), forward(x, packing))
