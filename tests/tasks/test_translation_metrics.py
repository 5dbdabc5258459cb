import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slrfast.errors import SlrfastError
from slrfast.tasks.translation_metrics import TOKENIZERS, longest_common_subsequence, rouge_l, translation_metrics

pytest.importorskip("sacrebleu")


def test_hand_computed_case():
    found = translation_metrics(["the cat sat on mat", "a dog"], ["the cat sat on the mat", "the dog barks"])
    # 1-grams: 5 + 1 of 7; 2-grams: 3 + 0 of 5; 3-grams: 2 of 3; 4-grams: 1 of 2; lengths 7 and 9
    brevity = math.exp(1 - 9 / 7)
    precisions = [6 / 7, 3 / 5, 2 / 3, 1 / 2]
    for n in (1, 2, 3, 4):
        expected = 100 * brevity * math.prod(precisions[:n]) ** (1 / n)
        assert found[f"bleu{n}"] == pytest.approx(expected)
    # common: "the cat sat on mat" (5 of 5, 5 of 6) and "dog" (1 of 2, 1 of 3)
    first = 2.44 * 1 * (5 / 6) / (5 / 6 + 1.44 * 1)
    second = 2.44 * (1 / 2) * (1 / 3) / (1 / 3 + 1.44 / 2)
    assert found["rouge_l"] == pytest.approx(50 * (first + second))


def test_every_cumulative_bleu_is_sacrebleus_own():
    from sacrebleu.metrics import BLEU

    hypotheses = ["morgen regnet es im norden .", "am tag sonne", "in der nacht klar und kalt"]
    references = ["morgen regnet es oft im norden .", "am tag scheint die sonne", "in der nacht klar und kalt ."]
    found = translation_metrics(hypotheses, references)
    for n in (1, 2, 3, 4):
        assert found[f"bleu{n}"] == BLEU(max_ngram_order=n).corpus_score(hypotheses, [references]).score
    assert "tok:13a" in found["bleu_signature"] and "smooth:exp" in found["bleu_signature"]


def test_an_order_without_a_match_is_smoothed_as_the_signature_says():
    from sacrebleu.metrics import BLEU

    hypotheses, references = (
        ["the wind blows in north", "sun shines today"],
        ["the wind blows from the north", "sun shines"],
    )
    found, bleu = translation_metrics(hypotheses, references), BLEU()
    assert found["bleu4"] == bleu.corpus_score(hypotheses, [references]).score > 0
    assert found["bleu_signature"] == str(bleu.get_signature())


def test_a_perfect_translation_and_one_without_anything_in_common():
    text = ["es regnet im norden", "im süden scheint die sonne"]
    perfect = translation_metrics(text, text)
    assert [round(perfect[name], 9) for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l")] == [100] * 5
    nothing = translation_metrics(["a b c d", "e"], text)
    assert nothing["bleu1"] == nothing["rouge_l"] == 0


def test_chinese_is_scored_by_characters():
    found = translation_metrics(["我爱吃苹果"], ["我爱苹果"], tokenizer="zh")
    assert found["bleu1"] == pytest.approx(100 * 4 / 5)
    assert found["rouge_l"] == pytest.approx(100 * 2.44 * 0.8 / (1 + 1.44 * 0.8))
    assert "tok:zh" in found["bleu_signature"] and found["rouge_variant"].endswith("tok:zh")
    assert translation_metrics(["我爱吃苹果"], ["我爱苹果"])["rouge_l"] == 0  # one word to 13a


def test_an_empty_hypothesis_counts_as_one():
    found = translation_metrics(["", "im norden regen"], ["morgen sonne heute", "im norden regen"])
    assert found["rouge_l"] == pytest.approx(50)
    assert found["bleu1"] == pytest.approx(100 * math.exp(1 - 6 / 3))
    assert translation_metrics(["", " "], ["a b", "c"])["bleu4"] == 0


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_tokenizer_is_there(tokenizer):
    found = translation_metrics(["sonne und wind ."], ["sonne und wind ."], tokenizer=tokenizer)
    assert found["bleu1"] == pytest.approx(100) and f"tok:{tokenizer}" in found["bleu_signature"]


def test_many_sentences_that_end_in_a_point_are_no_reason_to_warn(caplog):
    translation_metrics(["es regnet ."] * 200, ["es regnet ."] * 200)
    assert not caplog.records


@pytest.mark.parametrize(
    ("hypotheses", "references", "error", "message"),
    [
        ([], [], ValueError, "references must hold at least one sentence, got 0"),
        (["a"], ["a", "b"], ValueError, "hypotheses must be as many as the 2 references, got 1"),
        (["a", "b"], ["a", " \t"], ValueError, r"references must hold no empty sentence, got 1, first at \[1\]; leave"),
        (["a", None], ["a", "b"], TypeError, "hypotheses must be texts, got NoneType"),
    ],
)
def test_wrong_input(hypotheses, references, error, message):
    with pytest.raises(error, match=f"translation_metrics: {message}"):
        translation_metrics(hypotheses, references)


def test_an_unknown_tokenizer():
    with pytest.raises(ValueError, match="tokenizer must be one of '13a', 'zh', 'char', 'intl', 'none', got 'moses'"):
        translation_metrics(["a"], ["a"], tokenizer="moses")


def test_without_sacrebleu(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(SlrfastError, match=r"needs the package sacrebleu: pip install 'slrfast\[metrics\]'"):
        translation_metrics(["a"], ["a"])


def table(a, b):
    """The longest common subsequence by the recurrence."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


@given(st.text("abcd", max_size=90), st.text("abcd", max_size=90))
def test_the_common_subsequence_is_that_of_the_recurrence(a, b):
    assert longest_common_subsequence(a, b) == table(a, b) == longest_common_subsequence(b, a)


def test_rouge_by_hand():
    # Lin 2004, section 3.1: S1 "police killed the gunman", S2 "police kill the gunman", S3 "the gunman kill police"
    reference = "police killed the gunman".split()
    assert rouge_l("police kill the gunman".split(), reference, beta=1.0) == pytest.approx(75)
    assert rouge_l("the gunman kill police".split(), reference, beta=1.0) == pytest.approx(50)
    assert rouge_l([], reference) == rouge_l(reference, []) == rouge_l([], []) == 0
    # precision 1, recall 1/2: 2.44 * 0.5 / (0.5 + 1.44)
    assert rouge_l(["a"], ["a", "b"]) == pytest.approx(100 * 1.22 / 1.94)
