import json
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from slrfast.data import SyntheticSigns
from slrfast.data.subwords import BOS, EOS, PAD, SPECIAL, UNK, Subwords, TranslationDataset
from slrfast.data.text import Caption
from slrfast.errors import DatasetError, SlrfastError

pytest.importorskip("tokenizers")
GERMAN = ["und nun die wettervorhersage für morgen", "am tag regnet es im norden", "im süden scheint die sonne"]


@pytest.fixture(scope="module")
def words():
    return Subwords.train(GERMAN, size=80)


def test_special_tokens_are_the_first_four(words):
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3) and words.pieces[:4] == SPECIAL
    assert len(words) == len(words.pieces) == 80


def test_what_was_trained_on_comes_back_without_an_unknown(words):
    for sentence in GERMAN:
        tokens = words.encode(sentence)
        assert words.decode(tokens) == sentence and min(tokens) > UNK
    assert len(words.encode(GERMAN[0])) < len(GERMAN[0])  # pieces, no letters
    assert words.encode("xé")[1:] == [UNK, UNK] and words.decode(words.encode("regnet xé")) == "regnet"


def test_a_frequent_word_becomes_one_token():
    words = Subwords.train([f"{text} regnet" for text in GERMAN], size=200)
    assert len(words.encode("regnet")) == 1
    assert len(words) < 200  # there is no more to merge than there are words


@pytest.mark.parametrize("lowercase", [False, True])
@given(sentence=st.text(st.characters(), max_size=40))
@example(sentence="half \ud83d of a character")
@example(sentence="a \u2581 b\u00a0c\u3000d")
@example(sentence="e\u0301 \u0130")
@example(sentence="<eos><pad> <bos>")
def test_any_sentence_comes_back_as_it_was_cleaned(lowercase, sentence):
    words = Subwords.train([sentence, "a"], size=4000, lowercase=lowercase)
    cleaned = words.clean(sentence)
    assert words.decode(words.encode(sentence)) == cleaned == words.clean(cleaned)
    assert all(token > UNK for token in words.encode(sentence))


def test_chinese_needs_no_blanks():
    words = Subwords.train(["我爱吃苹果", "你爱吃什么", "我不爱吃"], size=30)
    assert words.decode(words.encode("你爱吃苹果")) == "你爱吃苹果"


def test_upper_and_lower_case():
    assert Subwords.train(["Regen REGEN"], size=40, lowercase=True).clean("Regen") == "regen"
    words = Subwords.train(["Regen regen"], size=40)
    assert words.decode(words.encode("Regen regen")) == "Regen regen"


def test_the_order_of_sentences_and_the_process_make_no_difference(words):
    mixed = GERMAN * 2
    random.Random(0).shuffle(mixed)
    assert Subwords.train(mixed, size=80).to_json() == words.to_json()
    code = f"from slrfast.data.subwords import Subwords; print(Subwords.train({GERMAN!r}, size=80).fingerprint)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == words.fingerprint


def test_saved_as_json_and_read_back(words):
    again = Subwords.from_json(json.loads(json.dumps(words.to_json())))
    assert again.to_json() == words.to_json() and again.fingerprint == words.fingerprint
    for sentence in (*GERMAN, "morgens nur regen", "ungesehen 12"):
        assert again.encode(sentence) == words.encode(sentence)


def test_long_sentences_are_cut_before_their_end():
    words = Subwords.train(["a b c d e f g h"], size=5 + 8 + 8, max_tokens=4)
    tokens, left_out = words.cut("a b c d e")
    assert tokens.dtype == torch.int64 and len(tokens) == 4 and tokens[-1] == EOS
    assert left_out == len(words.encode("a b c d e")) - 3
    assert words.cut("")[0].tolist() == [EOS]


def test_characters_that_are_equally_rare_are_chosen_alike_in_every_run():
    sentences = [chr(0x4E00 + i) for i in range(200)]
    assert len({Subwords.train(sentences, size=100).fingerprint for _ in range(4)}) == 1


def test_a_small_vocabulary_keeps_the_frequent_characters():
    words = Subwords.train(["aaaa bb c"], size=6)
    assert len(words) == 6 and UNK in words.encode("c") and UNK not in words.encode("a")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Subwords.train(["", "  "]), DatasetError, "every training sentence is empty"),
        (lambda: Subwords.train([]), DatasetError, "every training sentence is empty"),
        (lambda: Subwords.train(["a"], size=4), ValueError, r"size must be in \[5, \d+\], got 4"),
        (lambda: Subwords.train(["a"], max_tokens=1), ValueError, "max_tokens must be in"),
        (lambda: Subwords(["a"]).decode([7]), ValueError, r"tokens must be in \[0, 4\], got \[7\]"),
        (lambda: Subwords([]), ValueError, "pieces must hold at least one, got 0"),
        (lambda: Subwords(["a", "a"]), ValueError, "pieces must be different, got one twice"),
        (lambda: Subwords(["<eos>"]), ValueError, "pieces must be different, got one twice"),
        (lambda: Subwords("ab"), TypeError, "pieces must be a list of texts, got 'ab'"),
        (lambda: Subwords(["a", 1]), TypeError, "pieces must be a list of texts"),
        (lambda: Subwords(["a", "b"], [["a", "b"]]), ValueError, "merges must be pairs of pieces that make one"),
        (lambda: Subwords(["a"], [["a", ["b"]]]), ValueError, "merges must be pairs of pieces that make one"),
        (lambda: Subwords(["a"], lowercase="no"), TypeError, "lowercase must be true or false, got 'no'"),
        (lambda: Subwords.from_json({"pieces": ["a"]}), TypeError, "value must be an object with lowercase, max_"),
        (lambda: Subwords.from_json(["a"]), TypeError, "value must be an object"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_the_package(monkeypatch, words):
    saved = words.to_json()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SlrfastError, match=r"needs the package tokenizers: pip install 'slrfast\[text\]'"):
        Subwords.train(["a"])
    assert Subwords.from_json(saved).decode(words.encode(GERMAN[0])) == GERMAN[0]  # reading tokens does not


# --- clips with sentences -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signs():
    return SyntheticSigns(num_classes=2, clips_per_class=3)


def test_tokens_and_sentences_by_name(signs, words):
    captions = {
        "sign00/000": Caption("im  norden", "de"),
        "sign01/002.mp4": Caption("die sonne", "de"),
        "001": Caption("nirgends", "de"),
        "sign01/000": Caption(" ", "de"),
    }
    data = TranslationDataset(signs, captions, words)
    assert data.sentences == ["im norden", "", "", "", "", "die sonne"]
    batch = data.batch([0, 5, 1])
    assert batch.token_lengths[2] == 0
    for row, length, sentence in zip(batch.tokens, batch.token_lengths, ("im norden", "die sonne"), strict=False):
        assert row[length - 1] == EOS and words.decode(row[:length]) == sentence and not row[length:].any()
    assert data[0].tokens.tolist() == batch.tokens[0, : batch.token_lengths[0]].tolist()
    kept = data.with_sentences()
    assert len(kept) == 2 and kept.sentences == ["im norden", "die sonne"] and kept.names[1] == "sign01/002"
    assert kept.batch([1]).tokens[0].tolist() == data[5].tokens.tolist()
    assert kept.notes == data.notes
    assert data.notes == ["4 of 6 clips have no sentence", "1 captions are empty: 'sign01/000'"]


def test_a_run_goes_on_with_the_same_sentences_and_vocabulary_alone(signs, words):
    first = {"sign00/000": Caption("im norden", "de")}
    other = {"sign00/000": Caption("im süden", "de")}
    made = [TranslationDataset(signs, *of).made_of for of in ((first, words), (other, words), (first, words))]
    assert made[0] == made[2] != made[1]
    assert TranslationDataset(signs, first, Subwords(["a"])).made_of != made[0]


def test_no_sentence_for_any_clip(signs, words):
    with pytest.raises(DatasetError, match="no caption belongs to any clip; captions are of 'x', clips are 'sign00/0"):
        TranslationDataset(signs, {"x": Caption("im norden", "de")}, words)
    with pytest.raises(DatasetError, match="every sentence of these clips is empty"):
        TranslationDataset(signs, {name: Caption("", "") for name in signs.names}, words)
