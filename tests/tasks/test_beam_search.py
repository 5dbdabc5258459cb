"""Beam search against all sequences written out, against greedy decoding, and clips apart against clips together."""

import itertools

import pytest
import torch

from slrfast.tasks.beam_search import beam_search

EOS, BOS = 0, 1


def random_model(clips, vocabulary, length, seed, peaked=1.0):
    """log p(next | clip, all tokens before) as a table over prefixes."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(vocabulary**n for n in range(length))
    return (peaked * torch.randn(clips, size, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(-1)


def place(prefix, vocabulary):
    """Where a prefix stands in the table."""
    number = 0
    for token in prefix:
        number = number * vocabulary + token
    return sum(vocabulary**n for n in range(len(prefix))) + number


class Stepper:
    """A step function that remembers whole hypotheses and looks them up."""

    def __init__(self, table):
        self.table, self.prefixes = table, None

    def __call__(self, tokens, parents):
        clips, beams = tokens.shape
        if self.prefixes is None:
            self.prefixes = [[[] for _ in range(beams)] for _ in range(clips)]
        else:
            self.prefixes = [
                [self.prefixes[b][parents[b, k]] + [int(tokens[b, k])] for k in range(beams)] for b in range(clips)
            ]
        size = self.table.shape[-1]
        rows = [[self.table[b, place(p, size)] for p in of_clip] for b, of_clip in enumerate(self.prefixes)]
        return torch.stack([torch.stack(row) for row in rows])


def search(table, **options):
    return beam_search(Stepper(table), len(table), bos=BOS, eos=EOS, **options)


def exhaustive(table, clip, max_length, length_penalty):
    """The best of all sequences that <eos> ends and all of ``max_length`` tokens without one."""
    size = table.shape[-1]
    best = (-float("inf"), None)
    for length in range(1, max_length + 1):
        for body in itertools.product(range(1, size), repeat=length - 1):
            for last in range(size) if length == max_length else [EOS]:
                sequence = [*body, last]
                total = sum(float(table[clip, place(sequence[:t], size), sequence[t]]) for t in range(length))
                best = max(best, (total / length**length_penalty, sequence[:-1] if last == EOS else sequence))
    return best


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize(("vocabulary", "length"), [(2, 5), (3, 4), (4, 3)])
def test_with_a_beam_for_every_sequence_it_is_exhaustive(vocabulary, length, length_penalty):
    table = random_model(6, vocabulary, length, seed=vocabulary, peaked=2.0)
    found = search(table, beams=2 * vocabulary**length, max_length=length, length_penalty=length_penalty)
    truth = [exhaustive(table, clip, length, length_penalty) for clip in range(6)]
    assert found.lists() == [sequence for _, sequence in truth]
    torch.testing.assert_close(found.scores, torch.tensor([score for score, _ in truth], dtype=torch.float64))


def test_one_beam_is_greedy():
    table = random_model(40, 4, 6, seed=0)
    found = search(table, beams=1, max_length=6)
    for clip, text in enumerate(found.lists()):
        greedy = []
        while len(greedy) < 6 and (token := int(table[clip, place(greedy, 4)].argmax())) != EOS:
            greedy.append(token)
        assert text == greedy
        assert bool(found.finished[clip]) == (len(greedy) < 6)
    assert 0 < found.finished.sum() < 40  # both ways to end occur


def test_more_beams_find_likelier_texts_on_the_whole():
    table = random_model(60, 4, 6, seed=1)
    scores = [search(table, beams=beams, max_length=6).scores.mean() for beams in (1, 4, 16)]
    assert scores[0] < scores[1] < scores[2]


def test_a_clip_alone_and_in_a_batch():
    table = random_model(12, 5, 5, seed=2)
    together = search(table, beams=3, max_length=5)
    for clip in range(12):
        alone = search(table[clip : clip + 1], beams=3, max_length=5)
        assert alone.lists() == together.lists()[clip : clip + 1]
        assert alone.scores[0] == together.scores[clip]
        assert alone.finished[0] == together.finished[clip]


def test_the_length_penalty_prefers_longer_texts():
    table = random_model(60, 4, 6, seed=3)
    lengths = [
        search(table, beams=8, max_length=6, length_penalty=penalty).lengths.double().mean() for penalty in (0, 1, 3)
    ]
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("beams", [2, 3, 7, 64])
def test_more_beams_than_tokens(beams):
    table = random_model(5, 2, 4, seed=4)  # <eos> and one word
    found = search(table, beams=beams, max_length=4)
    for clip in range(5):
        assert found.lists()[clip] == exhaustive(table, clip, 4, 1.0)[1]


def test_forbidden_tokens_are_not_chosen_and_a_sure_end_ends_at_once():
    table = random_model(3, 4, 4, seed=5)
    table[..., 2] = -float("inf")
    assert all(2 not in text for text in search(table, beams=4, max_length=4).lists())
    table[...] = -float("inf")
    table[..., EOS] = 0.0
    found = search(table, beams=4, max_length=4)
    assert found.lists() == [[], [], []] and found.scores.tolist() == [0, 0, 0] and found.finished.all()


def test_no_clips():
    assert beam_search(lambda t, p: torch.zeros(*t.shape, 5), 0, bos=1, eos=0).lists() == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beams": 0}, ValueError, r"beams must be in \[1, 65536\], got 0"),
        ({"beams": 2.0}, TypeError, "beams must be an integer, got float"),
        ({"max_length": 0}, ValueError, r"max_length must be in \[1, 65536\], got 0"),
        ({"length_penalty": -1.0}, ValueError, r"length_penalty must be in \[0, 16\], got -1.0"),
        ({"eos": 9}, ValueError, "eos must be one of 3 > 1 tokens, got 9"),
    ],
)
def test_wrong_options(change, error, message):
    options = {"bos": 1, "eos": 0, "beams": 2, "max_length": 3} | change
    with pytest.raises(error, match=f"beam_search: {message}"):
        beam_search(lambda tokens, _: torch.zeros(*tokens.shape, 3), 2, **options)


def test_wrong_steps():
    for wrong, message in (
        (lambda t, p: torch.zeros(2, 3), r"step must have shape \[2, 2, V\]"),
        (lambda t, p: torch.full((2, 2, 3), float("nan")), "no NaN, got NaN at token 1"),
        (lambda t, p: torch.zeros(2, 2, 1), "eos must be one of 1 > 1 tokens, got 0"),
    ):
        with pytest.raises(ValueError, match=f"beam_search: .*{message}"):
            beam_search(wrong, 2, bos=0, eos=0, beams=2)
