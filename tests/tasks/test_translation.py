"""The translator on a made-up encoder: its loss, its search against the decoder without a cache, what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slrfast.data import PoseBatch
from slrfast.data.subwords import BOS, EOS, PAD, UNK, Subwords
from slrfast.nn import Packing
from slrfast.tasks.beam_search import beam_search
from slrfast.tasks.translation import Translator, TranslatorConfig

TINY = dict(dim=16, heads=2, ffn=32, layers=2, dropout=0.0, max_tokens=6)
WORDS = Subwords(["\u2581a", "\u2581b", "\u2581c", "\u2581d"])


class Frames(nn.Module):
    """An encoder: a linear map of every frame."""

    keypoints, frame_dim = 49, 8

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(49 * 2, self.frame_dim)

    def frame_features(self, batch):
        return self.map(batch.xy.flatten(1)), Packing.of(batch.offsets)


def make(seed=0, words=WORDS, **changes):
    torch.manual_seed(seed)
    return Translator(TranslatorConfig(**(TINY | changes)), Frames(), words)


def batch_of(*texts, seed=0):
    tokens = [torch.tensor(text, dtype=torch.int64) for text in texts]
    batch = PoseBatch.random(len(texts), min_frames=4, max_frames=9, seed=seed)
    padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    return replace(batch, tokens=padded, token_lengths=torch.tensor([len(text) for text in tokens]))


TEXTS = ([4, 5, 6, EOS], [7, EOS], [5, 5, 4, 7, EOS])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_label_smoothed_cross_entropy_without_padding(smoothing):
    model, batch = make(label_smoothing=smoothing), batch_of(*TEXTS)
    terms = model.training_step(batch)
    given = torch.cat((torch.full((3, 1), BOS), batch.tokens[:, :-1]), 1)
    logits = model.decoder(given, model.read(batch)).flatten(0, 1)
    targets = batch.tokens.flatten()
    expected = F.cross_entropy(logits, targets, ignore_index=PAD, label_smoothing=smoothing)
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["perplexity"], F.cross_entropy(logits, targets, ignore_index=PAD).exp())
    terms["loss"].backward()
    assert [name for name, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_padding_and_clips_without_a_sentence_change_nothing():
    model = make()
    alone, batch = model.training_step(batch_of(*TEXTS)), batch_of(*TEXTS)
    wider = replace(batch, tokens=F.pad(batch.tokens, (0, 3), value=6))
    torch.testing.assert_close(model.training_step(wider)["loss"], alone["loss"])
    first, last, both = (replace(batch, token_lengths=torch.tensor(n)) for n in ([4, 0, 0], [0, 0, 5], [4, 0, 5]))
    losses = [model.training_step(each)["loss"] for each in (first, last, both)]
    torch.testing.assert_close(losses[2], (4 * losses[0] + 5 * losses[1]) / 9)
    nothing = model.training_step(replace(batch, token_lengths=torch.zeros(3, dtype=torch.int64)))["loss"]
    nothing.backward()
    assert nothing == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


def recomputed(model, batch, beams):
    """Beam search that runs the decoder over every hypothesis from its start in each step."""
    memory, texts = model.read(batch), None

    def step(tokens, parents):
        nonlocal texts
        if texts is None:
            texts = tokens.unsqueeze(2)
        else:
            texts = torch.cat((texts.gather(1, parents[:, :, None].expand_as(texts)), tokens.unsqueeze(2)), 2)
        logits = torch.stack([model.decoder(texts[:, k], memory)[:, -1] for k in range(beams)], 1)
        logits[..., [PAD, BOS, UNK]] = -torch.inf
        return logits.log_softmax(-1)

    return beam_search(step, batch.size, bos=BOS, eos=EOS, beams=beams, max_length=model.config.max_tokens)


@pytest.mark.parametrize("beams", [1, 4, 9])  # 5 tokens can be chosen: more beams than the vocabulary has tokens
def test_searching_with_the_cache_equals_searching_without(beams):
    model = make(seed=3).double().eval()
    batch = batch_of(*TEXTS)
    batch = replace(batch, xy=batch.xy.double())
    cached, plain = model.search(batch, beams), recomputed(model, batch, beams)
    assert cached.lists() == plain.lists()
    torch.testing.assert_close(cached.scores, plain.scores, rtol=1e-10, atol=1e-10)


def test_one_beam_is_greedy():
    model = make(seed=5).eval()
    batch = batch_of(*TEXTS)
    memory, texts = model.read(batch), torch.full((3, 1), BOS)
    for _ in range(model.config.max_tokens):
        logits = model.decoder(texts, memory)[:, -1]
        logits[:, [PAD, BOS, UNK]] = -torch.inf
        texts = torch.cat((texts, logits.argmax(1, keepdim=True)), 1)
    greedy = [[int(t) for t in row] for row in texts[:, 1:]]
    greedy = [row[: row.index(EOS)] if EOS in row else row for row in greedy]
    assert model.search(batch, beams=1).lists() == greedy


def test_a_clip_alone_and_in_a_batch():
    model = make(seed=2).double()
    batch = PoseBatch.random(6, min_frames=2, max_frames=30, seed=4)
    batch = replace(batch, xy=batch.xy.double())
    together = model.search(batch)
    for clip in range(6):
        rows = slice(batch.offsets[clip], batch.offsets[clip + 1])
        one = replace(
            batch,
            xy=batch.xy[rows],
            confidence=batch.confidence[rows],
            offsets=torch.tensor([0, int(batch.lengths[clip])]),
            label=batch.label[clip : clip + 1],
            index=batch.index[clip : clip + 1],
        )
        alone = model.search(one)
        assert alone.lists()[0] == together.lists()[clip]
        torch.testing.assert_close(alone.scores[0], together.scores[clip], rtol=1e-10, atol=1e-10)


def test_special_tokens_are_never_chosen_and_the_mode_is_kept():
    model = make(seed=1, max_tokens=5).train()
    with torch.no_grad():
        model.decoder.embedding.weight[[PAD, BOS, UNK]] *= 50
    for text in model.search(batch_of(*TEXTS)).lists():
        assert set(text).isdisjoint({PAD, BOS, UNK, EOS}) and len(text) <= 5
    assert model.training and model.encoder.training
    sentences = model.translate(batch_of(*TEXTS), beams=2)
    assert len(sentences) == 3 and set("".join(sentences)) <= set("abcd ")


def test_it_learns_to_read_what_is_in_the_clips():
    model = make(label_smoothing=0.1, learning_rate=3e-3, warmup=0.0, max_tokens=6)
    batch = batch_of(*TEXTS)
    optimizer = model.optimizer()
    for _ in range(60):
        optimizer.zero_grad()
        terms = model.training_step(batch)
        terms["loss"].backward()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3
        optimizer.step()
    assert model.search(batch).lists() == [text[:-1] for text in map(list, TEXTS)]
    assert model.translate(batch) == ["a b c", "d", "b b a d"]
    assert terms["perplexity"] < 1.5


def test_a_frozen_encoder_gets_no_gradient():
    model = make(encoder_rate=0.0)
    model.train()
    model.training_step(batch_of(*TEXTS))["loss"].backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.projector[0].weight.grad.any()


def test_the_papers_settings():
    config = TranslatorConfig.slp()
    assert (config.learning_rate, config.weight_decay, config.batch_size, config.epochs) == (1e-4, 1e-4, 32, 60)
    assert (config.warmup, config.schedule, config.beams, config.layers) == (6.0, "cosine", 4, 3)
    assert config.optimizer == "adamw"


def test_the_vocabulary_goes_through_json():
    model = make()
    again = Translator(model.config, Frames(), **json.loads(json.dumps(model.extra())))
    assert again.vocabulary.to_json() == WORDS.to_json()


def test_under_autocast_it_trains_and_translates():
    model, batch = make(), batch_of(*TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.training_step(batch)["loss"]
        assert loss.dtype == torch.float32 and len(model.translate(batch)) == 3
    loss.backward()
    torch.testing.assert_close(loss, model.training_step(batch)["loss"], rtol=0.05, atol=0.05)


class Pooled(nn.Module):
    """An encoder without features of frames, as STC is."""


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Translator(TranslatorConfig(**TINY), Pooled(), WORDS),
            ValueError,
            "encoder must have features of single frames, got Pooled; use MASA",
        ),
        (lambda: Translator(TranslatorConfig(**TINY), Frames(), {"pieces": []}), TypeError, "value must be an object"),
        (lambda: make().training_step(PoseBatch.random(2)), ValueError, "batch must have tokens, got none; use a Tr"),
        (lambda: make().training_step(batch_of([4, 8, EOS])), ValueError, r"tokens must be in \[0, 7\], got \[2, 8\]"),
        (lambda: make().search(batch_of(*TEXTS), beams=0), ValueError, r"beams must be in \[1, 65536\], got 0"),
        (lambda: TranslatorConfig(dim=30, heads=4), ValueError, "dim must be even and a multiple of 4 heads, got 30"),
        (lambda: TranslatorConfig(beams=0), ValueError, "beams must be in"),
        (lambda: TranslatorConfig(label_smoothing=1.0), ValueError, r"label_smoothing must be in \[0, 1\), got 1.0"),
        (lambda: TranslatorConfig(length_penalty=-1.0), ValueError, "length_penalty must be in"),
        (lambda: TranslatorConfig(max_tokens=1), ValueError, "max_tokens must be in"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
