"""An index finds what the whole computation finds, is kept in a file, and damaged or foreign files are refused."""

import builtins
import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from slrfast.errors import CheckpointError
from slrfast.tasks.retrieval_index import IndexFileError, Match, SignTextIndex
from slrfast.tasks.row_sets import RowSets, similarity_matrix
from tests.tasks.test_retrieval import row_sets

CLIPS, TEXTS = row_sets(60, 1, 9, 0), row_sets(7, 1, 6, 1)
NAMES = [f"clip{i}" for i in range(60)]


@pytest.fixture
def index():
    return SignTextIndex(CLIPS, NAMES, "signs", dtype=torch.float32, row_temperature=0.2, made_by={"model": "5f"})


@pytest.fixture
def saved(index, tmp_path):
    index.save(tmp_path / "clips.index")
    return tmp_path / "clips.index"


def expected(queries, k):
    matrix = similarity_matrix(CLIPS, queries, row_temperature=0.2).T
    scores, positions = matrix.sort(dim=1, descending=True, stable=True)
    return [
        [Match(NAMES[i], score) for i, score in zip(row, found, strict=True)]
        for row, found in zip(positions[:, :k].tolist(), scores[:, :k].tolist(), strict=True)
    ]


def names(found):
    return [[match.name for match in matches] for matches in found]


def test_search_is_exact(index):
    found = index.search(TEXTS, 5)
    assert names(found) == names(expected(TEXTS, 5))
    for mine, theirs in zip(sum(found, []), sum(expected(TEXTS, 5), []), strict=True):
        assert mine.score == pytest.approx(theirs.score, abs=1e-6)
    assert [len(matches) for matches in index.search(TEXTS, 1000)] == [60] * 7


def test_texts_are_found_by_signs():
    index = SignTextIndex(TEXTS, list("abcdefg"), "texts", dtype=torch.float32)
    matrix = similarity_matrix(CLIPS, TEXTS)
    assert names(index.search(CLIPS, 1)) == [["abcdefg"[i]] for i in matrix.argmax(1).tolist()]


@pytest.mark.parametrize("coarse", ["topk", "faiss"])
def test_a_coarse_stage_proposes_what_is_compared(index, coarse):
    if coarse == "faiss":
        pytest.importorskip("faiss")
    assert index.search(TEXTS, 5, candidates=1000, coarse=coarse) == index.search(TEXTS, 5)
    proposed = (TEXTS.means() @ CLIPS.means().T).topk(9).indices.tolist()
    everything = index.search(TEXTS, 60)
    for found, positions, ranked in zip(
        index.search(TEXTS, 4, candidates=9, coarse=coarse), proposed, everything, strict=True
    ):
        allowed = {NAMES[i] for i in positions}
        assert names([found]) == [[match.name for match in ranked if match.name in allowed][:4]]


def test_average_rows_rank_as_the_similarity_does_where_words_weigh_the_same():
    """A high temperature makes all weights equal."""
    index = SignTextIndex(CLIPS, NAMES, "signs", dtype=torch.float32, row_temperature=1e6)
    assert index.search(TEXTS, 3, candidates=3, coarse="topk") == index.search(TEXTS, 3)


def test_without_faiss(index, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert index.search(TEXTS, 3, candidates=20) == index.search(TEXTS, 3, candidates=20, coarse="topk")
    with pytest.raises(ImportError, match=r"search: coarse='faiss' needs the package faiss: pip install faiss-cpu"):
        index.search(TEXTS, 3, candidates=20, coarse="faiss")


class TestFile:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_what_is_saved_is_loaded(self, dtype, tmp_path):
        names = ["ein Satz, mit „Zeichen“ \ud800", "", *NAMES[2:]]
        index = SignTextIndex(CLIPS, names, "signs", dtype=dtype, row_temperature=0.5, made_by={"run": "runs/a"})
        index.save(tmp_path / "one")
        found = SignTextIndex.load(tmp_path / "one")
        assert found.gallery.rows.dtype == dtype
        assert found.names == ["ein Satz, mit „Zeichen“ ?", *names[1:]]
        assert (found.kind, found.row_temperature, found.made_by) == ("signs", 0.5, {"run": "runs/a"})
        for mine, theirs in ((found.gallery.rows, index.gallery.rows), (found.means, index.means)):
            assert torch.equal(mine, theirs)
        assert [[m.score for m in row] for row in found.search(TEXTS, 4)] == [
            [m.score for m in row] for row in index.search(TEXTS, 4)
        ]
        assert len(found) == 60 and found.dim == 8

    def test_rows_are_mapped_and_changes_stay_out_of_the_file(self, saved):
        before = saved.read_bytes()
        with open("/proc/self/maps") as file:
            assert "clips.index" not in file.read()
        index = SignTextIndex.load(saved)
        with open("/proc/self/maps") as file:
            assert "clips.index" in file.read()
        index.gallery.rows.zero_()
        assert saved.read_bytes() == before

    def test_an_open_index_may_be_replaced(self, index, saved):
        opened = SignTextIndex.load(saved)
        before = opened.search(TEXTS, 3)
        SignTextIndex(TEXTS, list("abcdefg"), "texts").save(saved)
        assert opened.search(TEXTS, 3) == before
        assert SignTextIndex.load(saved).kind == "texts"

    def test_saved_where_nothing_can_be_written(self, index, tmp_path):
        with pytest.raises(CheckpointError, match="cannot be written"):
            index.save(tmp_path / "no" / "folder")

    def test_another_program_reads_it(self, saved):
        with safe_open(saved, "np") as file:
            assert file.get_tensor("rows").shape == (len(CLIPS.rows), 8)
            assert json.loads(file.get_tensor("names").tobytes()) == NAMES
            assert json.loads(file.metadata()["header"])["kind"] == "signs"


def change(path, tensors=None, header=None, **told):
    """Write an index again with other tensors, header or metadata."""
    with safe_open(path, "pt") as file:
        all_of = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), **told}
    if header is not None:
        metadata["header"] = header if isinstance(header, str) else json.dumps(header)
    all_of |= tensors or {}
    save_file({name: tensor for name, tensor in all_of.items() if tensor is not None}, path, metadata)


def text(value):
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


OFFSETS = CLIPS.offsets
HEADER = {"kind": "signs", "row_temperature": 1.0, "made_by": {}}
DAMAGE = {
    "another version": ({"version": "2"}, "is of version 2 and this slrfast reads 1; build it again"),
    "foreign": ({"format": "something"}, "is no sign-text index"),
    "no offsets": ({"tensors": {"offsets": None}}, "it has no 'offsets'"),
    "no names": ({"tensors": {"names": None}}, "it has no 'names'"),
    "no header": ({"header": "{}"}, "it has no 'made_by'"),
    "header is no JSON": ({"header": "{"}, "is damaged"),
    "header is nested": ({"header": "[" * 100_000}, "is damaged"),
    "header is a list": ({"header": []}, "header must be a mapping, got list"),
    "kind": ({"header": HEADER | {"kind": "words"}}, "kind must be one of 'signs', 'texts', got 'words'"),
    "temperature": ({"header": HEADER | {"row_temperature": 0}}, "row_temperature must be finite and > 0, got 0"),
    "temperature is a text": ({"header": HEADER | {"row_temperature": "x"}}, "row_temperature must be a number"),
    "made_by": ({"header": HEADER | {"made_by": 3}}, "made_by must be a mapping, got int"),
    "offsets fall": ({"tensors": {"offsets": OFFSETS[[0, 2, 1, *range(3, 61)]]}}, "offsets must rise from 0"),
    "offsets end early": ({"tensors": {"offsets": OFFSETS.clamp(max=50)}}, "offsets must rise from 0 to the"),
    "offsets start late": ({"tensors": {"offsets": OFFSETS.clamp(min=1)}}, "offsets must rise from 0"),
    "offsets are floats": ({"tensors": {"offsets": OFFSETS.double()}}, "offsets must be torch.int64"),
    "offsets are a matrix": ({"tensors": {"offsets": OFFSETS[None]}}, "offsets must have shape"),
    "offsets are none": ({"tensors": {"offsets": OFFSETS[:0]}}, "offsets must rise from 0"),
    "rows are integers": ({"tensors": {"rows": CLIPS.rows.int()}}, "rows must be torch.float16 or torch.float32"),
    "rows are a vector": ({"tensors": {"rows": CLIPS.rows[:, 0].contiguous()}}, "must have shape"),
    "rows are one number": ({"tensors": {"rows": torch.tensor(1.0)}}, "must have shape"),
    "too few rows": ({"tensors": {"rows": CLIPS.rows[:-1]}}, "offsets must rise from 0 to the"),
    "fewer names": ({"tensors": {"names": text(NAMES[1:])}}, "names must be 60, got 59"),
    "names are no texts": ({"tensors": {"names": text([1] * 60)}}, "names must be a list of texts"),
    "names are no list": ({"tensors": {"names": text("x")}}, "names must be a list of texts, got str"),
    "names are no JSON": ({"tensors": {"names": text(NAMES)[:-4]}}, "is damaged"),
    "names are no UTF-8": ({"tensors": {"names": torch.full((9,), 255, dtype=torch.uint8)}}, "is damaged"),
    "names are floats": ({"tensors": {"names": torch.zeros(60)}}, "names must be torch.uint8"),
    "means of others": ({"tensors": {"means": CLIPS.means()[:, 1:].contiguous()}}, "means must have shape"),
    "NaN in means": ({"tensors": {"means": CLIPS.means() / 0}}, "means must hold finite numbers"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_and_foreign_files(saved, what):
    changes, message = DAMAGE[what]
    change(saved, **changes)
    with pytest.raises(IndexFileError) as error:
        SignTextIndex.load(saved)
    assert message in str(error.value) and str(error.value).startswith(str(saved)) and "\n" not in str(error.value)


def test_truncated_at_every_length(saved):
    whole = saved.read_bytes()
    for size in {0, 1, 7, 8, 9, 100, *range(0, len(whole), 997), len(whole) - 1}:
        saved.write_bytes(whole[:size])
        with pytest.raises(IndexFileError, match=r"clips\.index: is no sign-text index, or damaged \("):
            SignTextIndex.load(saved)


def test_no_index_at_all(tmp_path):
    with pytest.raises(IndexFileError, match=r"none: cannot be read \(No such file or directory\)"):
        SignTextIndex.load(tmp_path / "none")
    with pytest.raises(IndexFileError, match="cannot be read"):
        SignTextIndex.load(tmp_path)
    for content in (b"PK\x03\x04" + b"x" * 99, struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 2) + b"{}"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(IndexFileError, match=r"is no sign-text index"):
            SignTextIndex.load(tmp_path / "file")


def test_a_nan_in_a_row_is_found_when_it_is_met(saved):
    rows = CLIPS.rows.clone()
    rows[int(OFFSETS[31])] = torch.nan
    change(saved, {"rows": rows})
    index = SignTextIndex.load(saved)
    with pytest.raises(IndexFileError, match=r"its rows are damaged .*NaN between query 0 and item 31"):
        index.search(TEXTS, 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"names": NAMES[1:]}, ValueError, "SignTextIndex: names must be 60, one per item, got 59"),
        ({"names": [3, *NAMES[1:]]}, ValueError, "names must be texts, got '?3"),
        ({"names": [None, *NAMES[1:]]}, ValueError, "names must be texts, got '?None"),
        ({"kind": "clips"}, ValueError, "kind must be one of 'signs', 'texts', got 'clips'"),
        ({"dtype": torch.float64}, ValueError, "dtype must be torch.float16 or torch.float32, got torch.float64"),
        ({"row_temperature": -1}, ValueError, "row_temperature must be finite and > 0"),
        ({"gallery": RowSets(CLIPS.rows / 0, OFFSETS)}, ValueError, "gallery must hold finite numbers"),
        ({"gallery": RowSets(CLIPS.rows[:0], OFFSETS[:1])}, ValueError, "gallery must have at least one item, got 0"),
        ({"gallery": RowSets(CLIPS.rows * 1e6, OFFSETS)}, ValueError, "gallery must hold finite numbers"),
    ],
)
def test_what_no_index_is_made_of(changes, error, message):
    with pytest.raises(error, match=message):
        SignTextIndex(**{"gallery": CLIPS, "names": NAMES, "kind": "signs"} | changes)


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        (row_sets(2, 1, 2, 0, dim=9), {}, r"search: queries must have shape \[S, 8\]"),
        (row_sets(9, 0, 1, 0), {}, "search: queries must have at least one row each, got 0"),
        (RowSets(TEXTS.rows / 0, TEXTS.offsets), {}, "search: queries must hold finite numbers"),
        (TEXTS, {"k": 0}, r"search: k must be in \[1, 2147483648\], got 0"),
        (TEXTS, {"k": 5, "candidates": 4}, r"search: candidates must be in \[5, 2147483648\], got 4"),
        (TEXTS, {"candidates": 20, "coarse": "hnsw"}, "coarse must be one of 'auto', 'faiss', 'topk', got 'hnsw'"),
    ],
)
def test_wrong_searches(index, queries, options, message):
    with pytest.raises(ValueError, match=message):
        index.search(queries, **options)


def test_no_queries(index):
    none = RowSets(torch.zeros(0, 8), torch.zeros(1, dtype=torch.int64))
    assert index.search(none) == index.search(none, candidates=20) == []
