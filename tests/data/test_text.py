import json

import pytest
import torch
from torch.utils.data import DataLoader

from slrfast.data import PoseBatch, SyntheticSigns, pack
from slrfast.data.text import (
    GLOSS_TEMPLATES,
    Caption,
    CaptionedDataset,
    TextEncoder,
    gloss_captions,
    read_captions,
    tiny_text_encoder,
)
from slrfast.data.wrapped import match
from slrfast.errors import DatasetError

CLOUDS = {"text": "ein wolkiger tag .", "language": "de_DE"}
WIND = {"text": "sonne, wind", "language": "de"}


class Letters:
    """A tokenizer for tests: one token a letter, then 2, then 7."""

    max_tokens = 8

    def cut(self, sentence, language):
        if language not in ("de_DE", "en_XX"):
            raise ValueError(f"TextEncoder: language must be one of de_DE, en_XX, got {language!r}")
        ids = [ord(letter) for letter in sentence]
        return torch.tensor([*ids[:6], 2, 7]), max(0, len(ids) - 6)


@pytest.fixture(scope="module")
def signs():
    return SyntheticSigns(num_classes=2, clips_per_class=3)


# --- files of captions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, content",
    [
        ("a.csv", "name,text,language\nx/1,ein wolkiger tag .,de_DE\n2,\"sonne, wind\",de\n"),
        ("a.csv", "\ufeffname|language|text|start\r\nx/1|de_DE|ein wolkiger tag .|0\r\n2|de|sonne, wind|0\r\n"),
        ("a.tsv", "name\ttext\tlanguage\nx/1\tein wolkiger tag .\tde_DE\n2\tsonne, wind\tde\n"),
        ("a.json", json.dumps([{"name": "x/1", **CLOUDS}, {"name": "2", **WIND}])),
        ("a.JSON", json.dumps({"x/1": CLOUDS, "2": WIND})),
    ],
)  # fmt: skip
def test_captions_come_from_csv_and_json(tmp_path, file, content):
    (tmp_path / file).write_text(content, "utf-8")
    captions = read_captions(tmp_path / file)
    assert captions == {"x/1": Caption("ein wolkiger tag .", "de_DE"), "2": Caption("sonne, wind", "de")}


def test_one_language_for_a_file_and_other_columns(tmp_path):
    (tmp_path / "a.csv").write_text("video,translation\nv,größere wolkenlücken .\n", "utf-8")
    options = dict(name_column="video", text_column="translation")
    assert read_captions(tmp_path / "a.csv", language="de", **options) == {"v": ("größere wolkenlücken .", "de")}
    with pytest.raises(DatasetError, match=r"row 1 \(v\) has no language; give language='de_DE'"):
        read_captions(tmp_path / "a.csv", **options)
    (tmp_path / "b.json").write_text(json.dumps({"v": "regen", "w": ""}))
    assert read_captions(tmp_path / "b.json", language="de") == {"v": ("regen", "de"), "w": ("", "")}


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("a.csv", b"name,words\n1,a\n", "the column 'text' is missing, found 'name', 'words'"),
        ("a.csv", b"", "the column 'name' is missing"),
        ("a.csv", b"name,text,language\n", "holds no captions"),
        ("a.csv", b"name,text,language\n1,a, b,en\n", "row 1 has more cells than the header; put texts"),
        ("a.csv", b"name,text,language\n,rain,en\n", "row 1 has no name"),
        ("a.csv", b"name,text,language\n1,rain,en\n1,sun,en\n", "row 2 is a second, other sentence for '1'"),
        ("a.csv", b"name,text\n\xff\xfe", "is no text in UTF-8"),
        ("a.json", b"{", "is no JSON"),
        ("a.json", b"[" * 100_000, "is no JSON"),
        ("a.json", b"3", "holds no captions"),
        ("a.json", b'{"a": 3}', "entry 1 must have a text name, text and, if any, language, got"),
        ("a.json", b'[{"name": "a"}]', "entry 1 must have a text name"),
        ("a.json", b'["a"]', "entry 1 must have a text name"),
        ("a.json", b'{"a": {"text": "x", "language": 3}}', "entry 1 must have a text name"),
    ],
)  # fmt: skip
def test_files_that_are_no_captions(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{file}: {message}"):
        read_captions(tmp_path / file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match="a.csv: cannot be read"):
        read_captions(tmp_path / "a.csv")


def test_repeated_rows_are_one_caption(tmp_path):
    (tmp_path / "a.csv").write_text("name,text,language\n1,rain,en\n1,rain,en\n")
    assert read_captions(tmp_path / "a.csv") == {"1": ("rain", "en")}


# --- glosses -----------------------------------------------------------------------------------------------------


def test_a_gloss_goes_through_a_constant_template(signs):
    captions = gloss_captions(signs)
    assert captions["sign01/002"] == ("This word is sign01.", "en_XX") and len(captions) == len(signs)
    unknown = signs.subset([0])
    unknown.clips[0].label = -1
    assert gloss_captions(unknown) == {}
    signs.clips[0].label = 0
    assert gloss_captions(signs, "{gloss}!", "el")["sign00/000"] == ("sign00!", "el")
    named = signs.subset([0])
    named.class_names = ["{0.x}_%s", "b"]
    assert gloss_captions(named, language="de")["sign00/000"] == ("Dieses Wort ist {0.x} %s.", "de")
    with pytest.raises(
        ValueError, match="gloss_captions: language must be one of en_XX, .*, got 'el'; give a template"
    ):
        gloss_captions(signs, language="el")
    with pytest.raises(ValueError, match="template must contain {gloss}, got 'word'"):
        gloss_captions(signs, "word")


def test_the_templates_are_in_languages_that_mbart_knows():
    from slrfast.data.text_files import LANGUAGES

    assert set(GLOSS_TEMPLATES) <= set(LANGUAGES) and all("{gloss}" in text for text in GLOSS_TEMPLATES.values())


# --- clips with texts --------------------------------------------------------------------------------------------


def test_tokens_come_with_clips_and_batches(signs):
    texts = {
        "sign00/000": Caption("ab", "en_XX"),
        "001": Caption("c", "en_XX"),
        "sign01/002.npz": Caption("de", "de_DE"),
    }
    data = CaptionedDataset(signs, texts, Letters())
    assert data[0].tokens.tolist() == [97, 98, 2, 7] and data[0].xy is signs[0].xy
    assert data[1].tokens.tolist() == []  # two clips are called 001
    batch = data.batch([5, 0, -2])
    assert batch.token_lengths.tolist() == [4, 4, 0] and batch.tokens.tolist() == [
        [100, 101, 2, 7],
        [97, 98, 2, 7],
        [0] * 4,
    ]
    assert batch.xy.equal(signs.batch([5, 0, 4]).xy) and batch.index.tolist() == [5, 0, 4]
    assert data.notes == ["4 of 6 clips have no text and are unpaired"]
    assert data.labels == signs.labels and data.lengths == signs.lengths and data.class_names == signs.class_names
    assert data.groups == signs.groups and data.splits == signs.splits and data.names == signs.names
    loaded = next(iter(DataLoader(data, 2, collate_fn=PoseBatch.collate)))
    assert loaded.token_lengths.tolist() == [4, 0]
    assert "4 of 6 clips have no text" in data.summary()


def test_subsets_and_stores(signs, tmp_path):
    store = pack(signs, tmp_path / "store")
    data = CaptionedDataset(store, gloss_captions(store), Letters())
    part = data.subset([4, 1])
    assert (
        len(part) == 2
        and part.names == ["sign01/001", "sign00/001"]
        and part.lengths == [store.lengths[4], store.lengths[1]]
    )
    assert part.batch([1, 0]).tokens.equal(data.batch([1, 4]).tokens) and part[0].index == 0 and len(data) == 6
    assert part[0].tokens.equal(data[4].tokens) and part.class_names == data.class_names
    with pytest.raises(IndexError):
        data[6]


def test_a_batch_of_unpaired_clips_only(signs):
    data = CaptionedDataset(signs, {"sign00/000": Caption("ab", "en_XX")}, Letters())
    batch = data.batch([1, 2])
    assert batch.tokens.shape == (2, 0) and batch.token_lengths.tolist() == [0, 0]
    assert PoseBatch.collate([data[1], data[2]]).token_lengths.tolist() == [0, 0]


def test_texts_that_are_empty_or_long_are_noted(signs):
    texts = {name: Caption("abcdefgh", "en_XX") for name in signs.names} | {"sign00/001": Caption(" \n", "")}
    data = CaptionedDataset(signs, texts, Letters())
    assert data[0].tokens.tolist() == [97, 98, 99, 100, 101, 102, 2, 7] and not len(data[1].tokens)
    assert data.notes == [
        "1 of 6 clips have no text and are unpaired",
        "1 captions are empty: 'sign00/001'",
        "5 texts were cut to 8 tokens: 'sign00/000', 'sign00/002', 'sign01/000' and 2 more",
    ]


def test_captions_that_cannot_be_used(signs):
    with pytest.raises(
        DatasetError, match="no caption belongs to any clip; captions are of 'a', clips are 'sign00/000'"
    ):
        CaptionedDataset(signs, {"a": Caption("ab", "en_XX")}, Letters())
    with pytest.raises(
        DatasetError, match="the caption of 'sign00/001': TextEncoder: language must be one of de_DE, en_XX"
    ):
        CaptionedDataset(signs, {"sign00/001": Caption("ab", "xx")}, Letters())


def test_with_a_real_encoder(signs, tmp_path):
    pytest.importorskip("transformers")
    captions = gloss_captions(signs)
    encoder = tiny_text_encoder(tmp_path, {caption.text for caption in captions.values()}, cache=tmp_path / "cache")
    data = CaptionedDataset(signs, captions, encoder)
    assert encoder.fill(data.tokens) == 2
    batch = data.batch(range(6))
    features = TextEncoder(tmp_path, tmp_path / "cache")(batch.tokens, batch.token_lengths)
    assert features[0].equal(features[1]) and not features[0].equal(features[5])


def test_a_real_sample_of_german_sentences(shared_data, tmp_path):
    pytest.importorskip("transformers")
    folder = shared_data / "phoenix14t_sample"
    names, texts = ((folder / f"train.{kind}").read_text("utf-8").split("\n") for kind in ("files", "text"))
    rows = [f"{name}|{text}" for name, text in zip(names, texts, strict=True) if name]
    (tmp_path / "corpus.csv").write_text("name|text\n" + "\n".join(rows), "utf-8")
    captions = read_captions(tmp_path / "corpus.csv", language="de")
    assert len(captions) == 5
    encoder = tiny_text_encoder(tmp_path / "encoder", [caption.text for caption in captions.values()])
    for text, language in captions.values():
        tokens = encoder.tokenize(text, language)
        assert 3 not in tokens and 5 < len(tokens) <= 128


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, found, wanted",
    [
        (["a", "b"], {"b": 1}, [None, 1]),
        (["x/a.npz", "y/a.npz"], {"x/a": 1, "y/a.mp4": 2}, [1, 2]),
        (["x/a.npz", "y/a.npz"], {"a": 1}, [None, None]),
        (["x/a.npz"], {"p/a": 1, "q/a": 2}, [None]),
        (["v1.2", "v1.3"], {"v1.2": 1}, [1, None]),
        (["a.npz"], {"a.npz": 1, "a": 2}, [1]),
        (["train/a"], {"a.mp4": 1}, [1]),
        (["train/a.npz"], {"test/a": 1}, [None]),
        (["set/train/a.npz", "b"], {"train/a": 1, "set/b": 2}, [1, 2]),
        (["retrain/a.npz"], {"train/a": 1}, [None]),
        (["", "/", "..", ".mp4"], {"": 1, "/": 2, "..": 3}, [1, 2, 3, 1]),
    ],
)
def test_matching_by_name(names, found, wanted):
    assert match(names, found) == wanted


def test_two_for_one_clip_are_refused_unless_the_same():
    assert match(["a/1.npz"], {"a/1.mp4": 5, "a/1.avi": 5}) == [5]
    with pytest.raises(DatasetError, match=r"'a/1.mp4' and 'a/1.avi' both belong to the clip 'a/1.npz'"):
        match(["a/1.npz"], {"a/1.mp4": 5, "a/1.avi": 6})
