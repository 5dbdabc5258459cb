"""The token decoder: its equations, its masks, and that decoding with the cache is decoding without it."""

import pytest
import torch
from torch.nn import functional as F

from slrfast.nn import DecoderCache, Packing, TokenDecoder, sinusoidal_positions

LENGTHS = (7, 3, 5)


def make(vocabulary=11, dim=16, layers=3, lengths=LENGTHS, dtype=torch.float64):
    torch.manual_seed(0)
    decoder = TokenDecoder(vocabulary, dim, heads=4, ffn=24, layers=layers).to(dtype).eval()
    frames = torch.randn(sum(lengths), dim, dtype=dtype)
    packing = Packing.of(torch.tensor([0, *lengths]).cumsum(0))
    return decoder, frames, packing


def test_equations():
    decoder, frames, packing = make(layers=1, lengths=(7,))
    tokens, block = torch.tensor([[1, 4, 7]]), decoder.blocks[0]

    def attend(query, key, value, mask=None):
        query, key, value = (x.view(-1, 4, 4).transpose(0, 1) for x in (query, key, value))
        scores = query @ key.mT / 2
        scores = scores if mask is None else scores.masked_fill(mask, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(0, 1).reshape(-1, 16)

    def norm(x):
        return F.layer_norm(x, (16,))

    x = decoder.embedding.weight[tokens[0]] * 4 + sinusoidal_positions(3, 16, dtype=torch.float64)
    x = norm(x + block.out(attend(*block.qkv(x).chunk(3, -1), mask=torch.ones(3, 3).triu(1).bool())))
    x = norm(x + block.out_frames(attend(block.query(x), *block.frames(frames).chunk(2, -1))))
    x = norm(x + block.ffn_out(F.gelu(block.ffn_in(x))))
    torch.testing.assert_close(decoder(tokens, decoder.read(frames, packing))[0], x @ decoder.embedding.weight.T)


def test_decoding_with_the_cache_equals_decoding_everything_again():
    decoder, frames, packing = make()
    memory = decoder.read(frames, packing)
    tokens = torch.randint(11, (3, 9))
    cache = DecoderCache(memory)
    steps = torch.stack([decoder.step(token, cache) for token in tokens.T], 1)
    torch.testing.assert_close(steps, decoder(tokens, memory), rtol=1e-12, atol=1e-12)
    assert cache.length == 9


def test_hypotheses_of_a_clip_share_its_frames_and_can_change_places():
    decoder, frames, packing = make()
    memory, cache = decoder.read(frames, packing), DecoderCache(decoder.read(frames, packing))
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(11, (3, 2, 1), generator=generator)  # two hypotheses of three clips
    for _ in range(5):
        step = decoder.step(texts[:, :, -1].flatten(), cache).view(3, 2, 11)
        for k in range(2):
            torch.testing.assert_close(step[:, k], decoder(texts[:, k], memory)[:, -1], rtol=1e-12, atol=1e-12)
        parents = torch.randint(2, (3, 2), generator=generator)
        cache.select((parents + torch.tensor([[0], [2], [4]])).flatten())
        texts = texts.gather(1, parents[:, :, None].expand(-1, -1, texts.shape[2]))
        texts = torch.cat((texts, torch.randint(11, (3, 2, 1), generator=generator)), 2)


def test_a_position_sees_no_later_token():
    decoder, frames, packing = make()
    memory = decoder.read(frames, packing)
    tokens = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = decoder(tokens, memory), decoder(changed, memory)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(-1).all()


def test_a_clip_sees_its_own_frames_all_of_them_and_no_padding():
    decoder, frames, packing = make()
    frames.requires_grad_()
    logits = decoder(torch.tensor([[1, 2]] * 3), decoder.read(frames, packing))
    for clip, own in enumerate(packing.offsets.tolist()[:-1]):
        (gradient,) = torch.autograd.grad(logits[clip].square().sum(), frames, retain_graph=True)
        seen = gradient.abs().sum(1) > 0
        assert seen.nonzero().flatten().tolist() == list(range(own, own + LENGTHS[clip]))
        alone = decoder.read(frames[own : own + LENGTHS[clip]], Packing.of(torch.tensor([0, LENGTHS[clip]])))
        assert alone.present is None
        torch.testing.assert_close(decoder(torch.tensor([[1, 2]]), alone)[0], logits[clip], rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_alone():
    decoder, frames, packing = make()
    memory, tokens = decoder.read(frames, packing), torch.tensor([[1, 2, 3]] * 3)
    assert torch.equal(decoder(tokens, memory), decoder(tokens, memory))
    decoder.train()
    assert not torch.equal(decoder(tokens, memory), decoder(tokens, memory))


def test_gradients_reach_every_parameter():
    decoder, frames, packing = make()
    decoder(torch.tensor([[1, 2, 3]] * 3), decoder.read(frames, packing)).square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_wrong_input():
    decoder, frames, packing = make()
    memory = decoder.read(frames, packing)
    for call, error, message in (
        (lambda: TokenDecoder(10, 10, heads=4), ValueError, "dim must be a multiple of heads = 4, got 10"),
        (lambda: TokenDecoder(1), ValueError, r"vocabulary must be in \[2, \d+\], got 1"),
        (lambda: decoder.read(frames[:, :8], packing), ValueError, r"frames must have shape \[S, 16\]"),
        (lambda: decoder.read(frames[1:], packing), ValueError, "packing must be of 14 rows, got 15"),
        (
            lambda: decoder.read(frames, Packing.of(torch.tensor([0, 15, 15]))),
            ValueError,
            "frames must have at least one frame in every clip, got 0",
        ),
        (lambda: decoder(torch.zeros(2, 3).long(), memory), ValueError, r"tokens must have shape \[3, L\]"),
        (lambda: decoder(torch.zeros(3, 3), memory), TypeError, "tokens must be torch.int64, got torch.float32"),
    ):
        with pytest.raises(error, match=f"TokenDecoder: {message}"):
            call()
