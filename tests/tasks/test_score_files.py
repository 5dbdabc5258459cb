import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from slrfast.tasks.score_files import ScoreFileError, Scores, read_scores, write_scores

VALUES = torch.tensor([[0.1, -2.5, 3e-9], [1e300, float("-inf"), -0.0]], dtype=torch.float64)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".json", ".JSON"])
@pytest.mark.parametrize("class_names", [(), ("go", 'a "b", c', "您\r\n好")])
def test_scores_come_back_exactly(tmp_path, suffix, class_names):
    written = Scores(("x/1.npz", "zwei, drei\n"), VALUES, class_names)
    write_scores(tmp_path / f"a{suffix}", written)
    read = read_scores(tmp_path / f"a{suffix}")
    assert read.names == written.names and read.class_names == class_names
    assert torch.equal(read.values, VALUES) and read.source == str(tmp_path / f"a{suffix}")


def test_files_of_other_programs(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffname,0,1\r\nv, 0.5 ,2\r\n\r\n", "utf-8")
    assert (
        read_scores(tmp_path / "a.csv").values.tolist() == [[0.5, 2]]
        and not read_scores(tmp_path / "a.csv").class_names
    )
    (tmp_path / "a.json").write_text('{"scores": {"v": [1, 2.5]}, "made by": {"x": 1}}')
    assert read_scores(tmp_path / "a.json").values.tolist() == [[1, 2.5]]
    np.savez(tmp_path / "a.npz", names=["v"], scores=np.float16([[1, 2]]))
    assert read_scores(tmp_path / "a.npz").values.dtype == torch.float64


def test_scores_of_a_model():
    values = torch.randn(2, 3, requires_grad=True).bfloat16()
    scores = Scores.of(["a", "b"], values, ["x", "y", "z"])
    assert torch.equal(scores.values, values.detach().double()) and not scores.values.requires_grad
    with pytest.raises(TypeError, match="Scores.of: values must be float64"):
        Scores.of(["a"], torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"Scores.of: values must have shape \[N, C\], got \[2\]"):
        Scores.of(["a"], torch.ones(2))


@pytest.mark.parametrize(
    "names, values, classes, message",
    [
        (("a",), [[1, 2], [3, 4]], (), "has 1 names for the scores of 2 clips"),
        (("a", "a"), [[1, 2], [3, 4]], (), "names a clip more than once: 'a'"),
        (("a", ""), [[1, 2], [3, 4]], (), "has a clip without a name"),
        (("a",), [[1, 2]], ("x",), "names 1 classes, its scores are of 2"),
        (("a",), [[1, 2]], ("x", "x"), "names a class more than once: 'x'"),
        (("b", "a"), [[1, 2], [1, float("nan")]], (), "the scores of 'a' must be finite, or -inf for some .* got nan"),
        (("a",), [[1, float("inf")]], (), "must be finite, or -inf for some classes, got inf"),
        (("a",), [[float("-inf")] * 2], (), "got -inf for all"),
        ((), torch.zeros(0, 2).tolist(), (), "must be float64"),
        (("a",), [[]], (), "holds scores of 1 clips and 0 classes"),
    ],
)
def test_scores_that_cannot_be(names, values, classes, message):
    with pytest.raises(ScoreFileError, match=f"^scores: .*{message}"):
        Scores(names, torch.tensor(values, dtype=torch.float64), classes)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("a.csv", b"", r"must begin with a header 'name,<class>,<class>', got \[\]"),
        ("a.csv", b"clip,0,1\n", "must begin with a header"),
        ("a.csv", b"name,0,1\n", "holds scores of 0 clips and 2 classes"),
        ("a.csv", b"name\na\n", "holds scores of 1 clips and 0 classes"),
        ("a.csv", b"name,0,1\na,1\n", "'a' has 1 scores, there are 2 classes"),
        ("a.csv", b"name,0,1\na,1,x\n", "the scores of 'a' must be numbers, got 'x'"),
        ("a.csv", b"name,0,1\na,1,nan\n", "the scores of 'a' must be finite"),
        ("a.csv", b'name,0,1\n"a,1,2\n', "is no file of comma-separated values"),
        ("a.csv", b"name,0\n\xff,1\n", "is no text in UTF-8"),
        ("a.json", b"{", "is no JSON"),
        ("a.json", b"[" * 100_000, "is no JSON"),
        ("a.json", b"[]", 'must be {"scores": {name: '),
        ("a.json", b'{"scores": [[1, 2]]}', 'must be {"scores": {name: '),
        ("a.json", b'{"scores": {}}', 'must be {"scores": {name: '),
        ("a.json", b'{"scores": {"a": [1, 2], "b": [1]}}', "'b' has 1 scores, there are 2 classes"),
        ("a.json", b'{"scores": {"a": [1], "a": [2]}}', "names a clip more than once: 'a'"),
        ("a.json", b'{"scores": {"a": 3}}', "holds scores of 1 clips and 0 classes"),
        ("a.json", b'{"scores": {"a": [true]}}', "the scores of 'a' must be numbers, got True"),
        ("a.json", b'{"scores": {"a": [NaN]}}', "must be finite"),
        ("a.json", b'{"scores": {"a": [1' + b"0" * 400 + b"]}}", "must be numbers, got 1000"),
        ("a.json", b'{"scores": {"a": [1]}, "class_names": [1]}', r"class_names must be texts, got \[1\]"),
        ("a.npz", b"PK", "is damaged"),
        ("a.npz", pickle.dumps([1]), "is damaged"),
    ],
)
def test_files_that_hold_no_scores(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ScoreFileError, match=f"{file}: .*{message}") as caught:
        read_scores(tmp_path / file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "arrays, message",
    [
        (dict(scores=np.ones((1, 2))), "the array 'names' is missing"),
        (dict(names=["a"]), "the array 'scores' is missing"),
        (dict(names=["a"], scores=np.ones(2)), r"scores must be numbers \[clips, classes\], got float64 \[2\]"),
        (dict(names=["a"], scores=[["x"]]), r"scores must be numbers \[clips, classes\], got <U1"),
        (dict(names=[1], scores=[[1.0]]), r"names must be a row of texts, got int64 \[1\]"),
        (dict(names=np.array(["a"], object), scores=[[1.0]]), "is damaged .*allow_pickle"),
        (dict(names=["a"], scores=[[1.0]], class_names=[["x"]]), "class_names must be a row of texts"),
    ],
)
def test_archives_that_hold_no_scores(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ScoreFileError, match=f"a.npz: .*{message}"):
        read_scores(tmp_path / "a.npz")


def test_an_array_may_not_claim_more_than_it_has(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", names=["a"], scores=np.zeros((1, 50)))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["scores.npy"] = parts["scores.npy"].replace(b"(1, 50)", b"(9, 50)")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ScoreFileError, match="b.npz: the array 'scores' has 400 bytes, which do not fit its shape"):
        read_scores(tmp_path / "b.npz")
    monkeypatch.setattr("slrfast.tasks.score_files.MAX_BYTES", 300)
    with pytest.raises(ScoreFileError, match="unpacks to 528 bytes, too much for one file of scores"):
        read_scores(tmp_path / "a.npz")


def test_paths_that_cannot_be(tmp_path):
    with pytest.raises(ScoreFileError, match="a.csv: cannot be read"):
        read_scores(tmp_path / "a.csv")
    with pytest.raises(ScoreFileError, match="a.npz: cannot be opened"):
        read_scores(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"read_scores: path must end in .npz, .csv or .json, got 'a.pkl'"):
        read_scores(tmp_path / "a.pkl")
    with pytest.raises(ValueError, match="write_scores: path must end in"):
        write_scores(tmp_path / "a.txt", Scores.of(["a"], torch.ones(1, 2)))


def test_names_that_utf8_lacks(tmp_path):
    scores = Scores.of(["\udcfe"], torch.ones(1, 2))
    for suffix in (".npz", ".json"):
        write_scores(tmp_path / f"a{suffix}", scores)
        assert read_scores(tmp_path / f"a{suffix}").names == ("\udcfe",)
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(ScoreFileError, match="a.csv: UTF-8 has no such name as"):
        write_scores(tmp_path / "a.csv", scores)
    assert (tmp_path / "a.csv").read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == [
        "a.csv", "a.json", "a.npz",
    ]  # fmt: skip


def test_json_is_strict(tmp_path):
    write_scores(tmp_path / "a.json", Scores(("a", "b"), VALUES))
    json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
