import builtins

import pytest

from slrfast.tasks.word_errors import WordErrors, word_errors

pytest.importorskip("jiwer")


def distance(a, b):
    """Levenshtein's, by the textbook."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[:], i
        for j, y in enumerate(b, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (x != y))
    return row[-1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "substitutions", "deletions", "insertions"),
    [
        ("ABC", "ABC", 0, 0, 0),
        ("ABC", "ABD", 1, 0, 0),
        ("ABC", "AC", 0, 1, 0),
        ("ABC", "ABXC", 0, 0, 1),
        ("ABC", "", 0, 3, 0),
        ("A", "XYZ", 1, 0, 2),
    ],
)
def test_by_hand(reference, hypothesis, substitutions, deletions, insertions):
    found = word_errors([list(reference)], [list(hypothesis)])
    assert (found.substitutions, found.deletions, found.insertions) == (substitutions, deletions, insertions)
    assert found.rate == (substitutions + deletions + insertions) / len(reference)
    assert found.deletion_rate == deletions / len(reference) and found.insertion_rate == insertions / len(reference)


def test_a_corpus_is_counted_as_one_and_equals_the_textbook():
    import random

    draw = random.Random(0)
    sentences = [[draw.choice("ABCD") for _ in range(draw.randint(0, 7))] for _ in range(80)]
    references, hypotheses = sentences[:40], sentences[40:]
    found = word_errors(references, hypotheses)
    total = sum(map(distance, references, hypotheses))
    assert found.substitutions + found.deletions + found.insertions == total
    assert found.words == sum(map(len, references)) and found.rate == total / found.words and found.sentences == 40
    assert found.insertions - found.deletions == sum(map(len, hypotheses)) - found.words


def test_glosses_are_whole_words_whatever_is_in_them():
    assert word_errors([["zwei WORTE", "", "<b>"]], [["zwei", "WORTE", "", "<b>"]]).rate == pytest.approx(2 / 3)
    assert word_errors([["A"]], [["a"]]).substitutions == 1


def test_references_without_glosses_take_insertions_only():
    found = word_errors([[], ["A", "B"], []], [["X", "Y"], ["A"], []])
    assert found == WordErrors(0, 1, 2, 2, 3, 2) and found.rate == 1.5


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ([["A"]], [], "hypotheses must be 1, got 0"),
        ([], [], "references must hold at least one gloss, got 0 sentences without any"),
        ([[], []], [["A"], []], "references must hold at least one gloss, got 2 sentences without any"),
        (["A B"], [["A"]], r"references must be lists of glosses, got \['A B'\]; split the text"),
        ([["A"]], ["A"], r"hypotheses must be lists of glosses, got \['A'\]; split the text"),
        ([["A"]], [None], r"hypotheses must be lists of glosses, got \[None\]$"),
    ],
)
def test_errors(references, hypotheses, message):
    with pytest.raises(ValueError, match=f"^word_errors: {message}"):
        word_errors(references, hypotheses)


def test_without_jiwer(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "jiwer":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"need the package jiwer: pip install 'slrfast\[metrics\]'"):
        word_errors([["A"]], [["A"]])
