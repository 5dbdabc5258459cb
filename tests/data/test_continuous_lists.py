import pickle

import pytest

from slrfast.data.continuous_lists import Sentence, read_sentences
from slrfast.errors import DatasetError

PHOENIX14 = (
    "id|folder|signer|annotation\n"
    "01April_2010_Thursday_heute-6694|01April_2010_Thursday_heute-6694/1/*.png|Signer04|__ON__ ABER FREUEN  MORGEN\n"
    "02May_2010-1|02May_2010-1/1/*.png|Signer01|\n"
)
PHOENIX14T = (
    "name|video|start|end|speaker|orth|translation\n"
    'a-1|a-1/1/*.png|-1|-1|Signer08|JETZT WETTER|und "nun das wetter , für morgen .\n'
)
INFO = [
    {"name": "S000000_P0004_T00", "signer": 7, "label_gloss": ["他", "是"], "label_char": ["他", "是", "谁"]},
    {"name": "S000001_P0004_T00", "length": 12, "label_gloss": ["我"], "label_char": ["我"]},
    {"name": "S000002", "label_gloss": [], "label_char": []},
]
SPLITS = "name|split\nS000000_P0004_T00|train\nS000001_P0004_T00|train\nS000009_P0001_T00|train\nS000002|dev\n"


@pytest.fixture
def csl(tmp_path):
    def write(info=INFO, splits=SPLITS, content=None):
        content = pickle.dumps({"info": info, "gloss_map": ["他"]}) if content is None else content
        (tmp_path / "csl2020ct_v2.pkl").write_bytes(content)
        (tmp_path / "split_1.txt").write_text(splits, "utf-8")
        return tmp_path

    return write


def test_phoenix14(tmp_path):
    manual = tmp_path / "annotations" / "manual"
    manual.mkdir(parents=True)
    (manual / "train.corpus.csv").write_text(PHOENIX14)
    (manual / "dev.SI5.corpus.csv").write_text("\ufeff" + PHOENIX14.replace("\n", "\r\n"), "utf-8")
    found = read_sentences(tmp_path, "train")
    assert (
        found.format == "Phoenix14"
        and found.notes == ()
        and list(found.sentences.values())
        == [
            Sentence("01April_2010_Thursday_heute-6694", "Signer04", ("__ON__", "ABER", "FREUEN", "MORGEN"), ""),
            Sentence("02May_2010-1", "Signer01", (), ""),
        ]
    )
    assert read_sentences(tmp_path, "dev.SI5") == read_sentences(manual / "train.corpus.csv", "any") == found


def test_phoenix14t(tmp_path):
    (tmp_path / "PHOENIX-2014-T.dev.corpus.csv").write_text(PHOENIX14T, "utf-8")
    found = read_sentences(tmp_path, "dev")
    text = 'und "nun das wetter , für morgen .'
    assert found.format == "Phoenix14-T" and found.sentences == {
        "a-1": Sentence("a-1", "Signer08", ("JETZT", "WETTER"), text)
    }


def test_csl_daily(csl):
    found = read_sentences(csl(), "train")
    assert found.format == "CSL-Daily" and list(found.sentences.values()) == [
        Sentence("S000000_P0004_T00", "7", ("他", "是"), "他是谁"),
        Sentence("S000001_P0004_T00", "4", ("我",), "我"),
    ]
    assert found.notes == ("1 names of split_1.txt have no annotation: 'S000009_P0001_T00'",)
    assert read_sentences(csl() / "csl2020ct_v2.pkl", "dev").sentences == {"S000002": Sentence("S000002", "", (), "")}


def test_parallel_files(tmp_path):
    (tmp_path / "train.files").write_text("train/a\ntrain/b\n")
    (tmp_path / "train.gloss").write_text("A B\n\n")
    found = read_sentences(tmp_path, "train")
    assert found.format == "parallel files" and found.sentences == {
        "train/a": Sentence("train/a", "", ("A", "B"), ""),
        "train/b": Sentence("train/b", "", (), ""),
    }
    (tmp_path / "train.text").write_text("ja .\n nein .")
    assert [row.sentence for row in read_sentences(tmp_path, "train").sentences.values()] == ["ja .", "nein ."]


def test_a_real_sample(shared_data):
    found = read_sentences(shared_data / "phoenix14t_sample", "dev").sentences
    assert len(found) == 5
    first = found["dev/11August_2010_Wednesday_tagesschau-2"]
    assert first.glosses == ("DRUCK", "TIEF", "KOMMEN") and first.sentence.startswith("tiefer luftdruck bestimmt")


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("train.corpus.csv", "id|folder|annotation\n", "must have the columns id|signer|annotation or name|speaker"),
        ("train.corpus.csv", "", "must have the columns"),
        ("train.corpus.csv", "id|folder|signer|annotation\n", "holds no sentences of the split 'train'"),
        ("train.corpus.csv", PHOENIX14 + "x|y|z\n", "line 4 must have 4 cells, got 3"),
        ("train.corpus.csv", PHOENIX14 + "x|y|z|A|B\n", "line 4 must have 4 cells, got 5"),
        ("train.corpus.csv", PHOENIX14 + "|f|Signer01|A\n", "row 3 has no name"),
        ("train.corpus.csv", PHOENIX14 + "02May_2010-1|f|Signer01|A\n", "a second, other annotation of '02May_2010-1'"),
        ("train.corpus.csv", b"\xff\xfe|", "is no text in UTF-8"),
        ("train.files", "a\nb\n", "train.gloss: cannot be read"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=message.replace("|", r"\|")):
        read_sentences(tmp_path, "train")


def test_repeated_rows_are_one(tmp_path):
    (tmp_path / "train.corpus.csv").write_text(PHOENIX14 + PHOENIX14.split("\n")[1])
    assert len(read_sentences(tmp_path, "train").sentences) == 2


def test_no_list_and_no_split(tmp_path, csl):
    with pytest.raises(DatasetError, match="none: there is no such list; give a folder with train.corpus.csv"):
        read_sentences(tmp_path / "none", "train")
    with pytest.raises(DatasetError, match="holds no list of the split 'test'"):
        read_sentences(tmp_path, "test")
    with pytest.raises(DatasetError, match="split_1.txt: there is no split 'test'; there are 'train', 'dev'"):
        read_sentences(csl(), "test")


def test_parallel_files_of_different_lengths(tmp_path):
    (tmp_path / "train.files").write_text("a\nb\n")
    (tmp_path / "train.gloss").write_text("A\n")
    with pytest.raises(DatasetError, match="train.gloss: must have 2 lines as train.files has, got 1"):
        read_sentences(tmp_path, "train")


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"content": pickle.dumps({"info": [Evil()]})}, "refused: the pickle asks for builtins.print"),
        ({"content": b"\x80\x04"}, "is damaged"),
        ({"content": pickle.dumps([1])}, "must be a dict with the list 'info'"),
        ({"info": [{"name": 3}]}, "info 0 must have a name and lists of texts"),
        ({"info": [{"name": "a", "label_gloss": "AB"}]}, "info 0 must have a name and lists of texts"),
        ({"info": [{"name": "a", "label_gloss": ["A"], "label_char": [1]}]}, "info 0 must have a name"),
        ({"info": [*INFO, {**INFO[1], "label_gloss": []}]}, "second, other annotation of 'S000001_P0004_T00'"),
        ({"splits": "name,split\n"}, "split_1.txt: there is no split 'train'; there are none"),
        ({"splits": "name\na\n"}, r"must have the columns name\|split, got 'name'"),
        ({"splits": "name|split\nx|train\n"}, "holds no sentences of the split 'train'"),
    ],
)
def test_damaged_csl_daily(csl, changes, message, capsys):
    with pytest.raises(DatasetError, match=message):
        read_sentences(csl(**changes), "train")
    assert capsys.readouterr().out == ""


def test_csl_daily_without_its_splits(csl):
    folder = csl()
    (folder / "split_1.txt").unlink()
    with pytest.raises(DatasetError, match="split_1.txt: cannot be read"):
        read_sentences(folder, "train")
