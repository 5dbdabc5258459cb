"""slrfast search: indexes of clips and of texts are made and searched, and what cannot be is said in one sentence."""

import json
import shutil

import pytest
import torch

from slrfast.data import PreprocessOptions, SyntheticSigns
from slrfast.data.text import gloss_captions
from slrfast.tasks.retrieval_index import SignTextIndex
from slrfast.tasks.row_sets import RowSets, similarity_matrix
from slrfast.train import finetune, finetune_retrieval
from slrfast.train.cli import main
from slrfast.train.config import RunError
from slrfast.train.search import search_command

pytest.importorskip("sentencepiece")


@pytest.fixture(autouse=True)
def retrieval_is_a_task(monkeypatch):
    known = {**finetune.tasks(), "retrieval": finetune_retrieval.TASK}
    monkeypatch.setattr(finetune, "tasks", lambda: known)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with poses, captions, a run of pretrain slp, and an index of either kind."""
    home = tmp_path_factory.mktemp("search")
    patch = pytest.MonkeyPatch()
    patch.setenv("SLRFAST_CACHE", str(home / "cache"))
    signs = SyntheticSigns(num_classes=4, clips_per_class=4)
    signs.save(home / "poses")
    captions = {f"{name}.npz": caption.text for name, caption in gloss_captions(signs).items()}
    (home / "captions.json").write_text(json.dumps(captions))
    shared = f"--data {home}/poses --captions {home}/captions.json --language en_XX --text_encoder tiny"
    words = f"pretrain slp {shared} --preset small --run {home}/run --system.layers 1 --system.epochs 1"
    assert main([*words.split(), "--system.batch_size", "16"]) == 0
    assert search_command(f"--run {home}/run --data {home}/poses --index {home}/clips".split()) == 0
    words = f"--run {home}/run --captions {home}/captions.json --language en --gallery texts --index {home}/texts"
    assert search_command(words.split()) == 0
    yield home
    patch.undo()


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch):
    monkeypatch.setenv("SLRFAST_CACHE", str(home / "cache"))


def found(capsys, *words):
    capsys.readouterr()
    assert search_command([*(str(word) for word in words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(*words):
    """Through the error that the command line turns into one sentence."""
    with pytest.raises(RunError) as error:
        search_command([str(word) for word in words])
    told = str(error.value)
    assert "\n" not in told
    return told


def test_texts_find_clips(home, capsys):
    told = found(capsys, "--index", home / "clips", "--text", "This word is sign02.", "--k", 3)
    index = SignTextIndex.load(home / "clips")
    assert (index.kind, len(index), told["query"]) == ("signs", 16, "This word is sign02.")
    scores = [match["score"] for match in told["results"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert {match["name"] for match in told["results"]} <= set(index.names)
    everything = found(capsys, "--index", home / "clips", "--text", "This word is sign02.", "--k", 99)["results"]
    assert everything[:3] == told["results"] and {match["name"] for match in everything} == set(index.names)
    same = found(
        capsys, "--index", home / "clips", "--text", "This word is sign02.", "--candidates", 16, "--coarse", "topk",
    )["results"]  # fmt: skip
    assert same == everything[:10]


def test_clips_find_texts_with_the_networks_own_similarity(home, capsys):
    file = sorted((home / "poses").rglob("*.npz"))[5]
    told = found(capsys, "--index", home / "texts", "--pose", file)
    index = SignTextIndex.load(home / "texts")
    assert sorted(index.names) == [f"This word is sign0{i}." for i in range(4)]
    clips = SignTextIndex.load(home / "clips")
    number = clips.names.index(str(file.relative_to(home / "poses")))
    own = clips.gallery.select(torch.tensor([number]))
    expected = dict(zip(index.names, similarity_matrix(own, index.gallery)[0].tolist(), strict=True))
    assert {match["name"]: match["score"] for match in told["results"]} == pytest.approx(expected, abs=2e-3)


def test_people_read_a_table(home, capsys):
    assert search_command(f"--index {home}/clips --text rain --k 2".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("1  ") and ".npz" in lines[0]


def test_made_and_searched_at_once_with_glosses_and_float32(home, tmp_path, capsys):
    told = found(
        capsys, "--run", home / "run", "--data", home / "poses", "--captions", "glosses", "--gallery", "texts",
        "--index", tmp_path / "own", "--dtype", "float32", "--pose", sorted((home / "poses").rglob("*.npz"))[0],
    )  # fmt: skip
    assert told["items"] == len(told["results"]) == 4 and told["gallery"] == "texts"
    assert SignTextIndex.load(tmp_path / "own").gallery.rows.dtype == torch.float32


def test_a_fine_tuned_run(home, tmp_path, capsys):
    words = f"finetune retrieval --encoder {home}/run --data {home}/poses --captions {home}/captions.json --language en"
    options = f"--task.epochs 1 --task.batch_size 12 --text_encoder tiny --run {tmp_path}/tuned"
    assert main([*words.split(), *options.split()]) == 0
    run = tmp_path / "tuned"
    made = found(capsys, "--run", run, "--data", home / "poses", "--index", tmp_path / "index", "--text", "sign01")
    assert len(made["results"]) == 10 and made["items"] == 16
    assert found(capsys, "--index", tmp_path / "index", "--text", "sign01")["results"] == made["results"]
    other = refused("--index", home / "clips", "--text", "a", "--run", run)
    assert "was made with another network than that of" in other and "make it again" in other


def test_an_index_is_not_overwritten_unasked(home, tmp_path):
    shutil.copy(home / "clips", tmp_path / "clips")
    words = "--run", home / "run", "--data", home / "poses", "--index", tmp_path / "clips"
    assert "exists; choose another --index, or use --overwrite" in refused(*words)
    assert search_command([*map(str, words), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--index {clips}", "give --data or --captions to make an index, --text or --pose to search in one"),
        ("--index {clips} --text a --pose b", "--text looks among signs and --pose among texts; give one of them"),
        ("--index {clips} --pose {pose}", "holds signs, which are found by a text; give --text"),
        ("--index {texts} --text a", "holds texts, which are found by a pose file; give --pose"),
        ("--index {clips} --text a --language xx", "language must be one of"),
        ("--index {clips} --text .. --language en_XX --k 0", "search: k must be in [1, 2147483648], got 0"),
        ("--index {clips} --text a --k 5 --candidates 4", "candidates must be in [5, 2147483648], got 4"),
        ("--index {clips} --text a --coarse x --candidates 20", "coarse must be one of 'auto', 'faiss', 'topk'"),
        ("--index {clips} --text a --run {poses}", "is not a run folder: it has no config.yaml"),
        ("--index {clips} --text a --device gpu", "'gpu' is no device"),
        ("--index {clips} --text a --k many", "see slrfast search --help"),
        ("--index new --data {poses}", "--run is needed"),
        ("--index new --captions {captions}", "--gallery signs needs --data"),
        ("--index new --data {poses} --gallery texts", "--gallery texts needs --captions"),
        ("--index new --data {poses} --gallery words", "--gallery must be signs or texts, got 'words'"),
        ("--index new --data {poses} --dtype int8", "--dtype must be float16 or float32, got 'int8'"),
        ("--index {poses} --data {poses} --run {run}", "is a folder"),
        ("--index {poses}/no/new --data {poses} --run {run}", "its folder does not exist"),
        ("--index new --captions glosses --gallery texts --run {run}", "--captions glosses needs --data"),
    ],
)
def test_refused_in_one_sentence(words, message, home):
    names = {name: home / name for name in ("clips", "texts", "poses", "run")}
    pose = sorted((home / "poses").rglob("*.npz"))[0]
    words = words.format(**names, pose=pose, captions=home / "captions.json")
    assert message in refused(*words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--index {home}/none --text a", "none: cannot be read (No such file or directory)"),
        ("--index {home}/captions.json --text a", "is no sign-text index"),
        ("--index {home}/texts --pose {home}/none.npz", "none.npz"),
        ("--index {home}/texts --pose {home}/captions.json", "captions.json: "),
        ("--index {home}/new --data {home}/none --run {home}/run", "none"),
        ("--index {home}/new --captions {home}/no.csv --gallery texts --run {home}/run", "no.csv: cannot be read"),
        ("--index {home}/clips --text a --text_encoder {home}/none", "none"),
        ("--index {home}/clips --text  --language en_XX", "sentence must not be empty"),
    ],
)
def test_files_that_cannot_be_used(words, message, home, monkeypatch, capsys):
    """From the command line, in one sentence."""
    from slrfast.train import cli

    monkeypatch.setattr(cli, "evaluate_command", search_command)
    capsys.readouterr()
    assert main(["evaluate", *words.format(home=home).split(" ")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("slrfast: ") and message in told[0]
    assert not (home / "new").exists()


def test_runs_of_other_systems_and_tasks(home, tmp_path):
    words = "--preset small --system.epochs 1 --system.batch_size 16 --system.bank_size 16"
    assert main(["pretrain", "masa", "--data", f"{home}/poses", "--run", f"{tmp_path}/masa", *words.split()]) == 0
    told = refused("--index", tmp_path / "new", "--data", home / "poses", "--run", tmp_path / "masa")
    assert "is a run of masa; search needs finetune retrieval or pretrain slp" in told
    words = f"--encoder {home}/run --data {home}/poses --run {tmp_path}/islr --task.epochs 1 --task.batch_size 12"
    assert main(["finetune", "islr", *words.split()]) == 0
    told = refused("--index", tmp_path / "new", "--data", home / "poses", "--run", tmp_path / "islr")
    assert "was fine-tuned for islr; search needs finetune retrieval or pretrain slp" in told


def test_an_index_whose_run_is_unknown_gone_or_unfinished(home, tmp_path):
    index = SignTextIndex.load(home / "clips")
    for run, message in ((None, "--run is needed"), (5, "--run is needed"), ("gone", "gone is not a run folder")):
        SignTextIndex(index.gallery, index.names, "signs", made_by={"run": run}).save(tmp_path / "own")
        assert message in refused("--index", tmp_path / "own", "--text", "a")
    assert search_command([*f"--index {tmp_path}/own --run {home}/run --language en --text".split(), "a"]) == 0
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("name: retrieval\ntask: {}\ntrain: {}\n")
    told = refused("--index", tmp_path / "own", "--text", "a", "--run", tmp_path / "unfinished")
    assert "has no model yet; finish it with slrfast finetune retrieval --resume" in told


def test_an_index_of_another_width(home, tmp_path):
    SignTextIndex(RowSets(torch.eye(3), torch.arange(4)), list("abc"), "signs").save(tmp_path / "own")
    words = f"--index {tmp_path}/own --run {home}/run --language en --text a"
    assert "search: queries must have shape [S, 3], got [" in refused(*words.split())


def test_another_text_encoder_than_the_runs(home):
    """A folder instead of the run's tiny one, which its captions were made of."""
    (tiny,) = (home / "cache" / "tiny").iterdir()
    words = f"--index {home}/clips --language en --text_encoder {tiny} --text"
    assert search_command([*words.split(), "sign01"]) == 0


def test_poses_are_prepared_as_the_runs_were(home):
    from slrfast.train.config import preprocess_options

    assert preprocess_options({"layout": 79, "max_frames": 9}, 49) == PreprocessOptions(layout=79, max_frames=9)
    assert preprocess_options(None, 79).layout == 79
    with pytest.raises(RunError, match="unexpected keyword"):
        preprocess_options({"size_of_things": 3}, 79)
