"""``slrfast finetune slt`` on made-up continuous signing: that it learns, what it writes, what it refuses."""

import csv
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from slrfast.data import Pose, SyntheticSigns
from slrfast.data.formats import FORMATS
from slrfast.data.synthetic_sentences import SyntheticSentences
from slrfast.errors import SlrfastError
from slrfast.systems import SLP
from slrfast.tasks.probe import group_folds, known_groups
from slrfast.tasks.translation import Translator
from slrfast.train import finetune, finetune_islr, finetune_slt
from slrfast.train.cli import main
from slrfast.train.finetune import build_task, hold_out, load_finetuned
from slrfast.train.runs import RunFolder

pytest.importorskip("sacrebleu")
pytest.importorskip("tokenizers")
WORDS = ("regen", "sonne", "wind", "nacht")
SIGNERS = 3
HELD_OUT = group_folds(known_groups([""] * 96), 3)[0]
SMALL_SLP = [
    *("--preset", "small", "--system.tasks", "[reconstruction]", "--system.branches", "[manual]"),
    *("--system.gcn_channels", "[8,8,16,16,16]", "--system.dim", "32", "--system.branch_dim", "32"),
    *("--system.layers", "1", "--system.manual_ffn", "64", "--system.epochs", "1"),
]
SMALL = [
    *("--preset", "small", "--task.dim", "64", "--task.ffn", "128", "--task.layers", "1", "--task.dropout", "0"),
    *("--task.label_smoothing", "0.1", "--task.learning_rate", "0.004", "--task.batch_size", "8"),
    *("--task.max_tokens", "12", "--vocabulary", "60", "--folds", "3"),
]


@pytest.fixture(autouse=True, scope="module")
def slt_is_a_task():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "tasks", lambda: {m.TASK.name: m.TASK for m in (finetune_islr, finetune_slt)})
        yield


@pytest.fixture(scope="module")
def signing(tmp_path_factory):
    """Clips of two signs each, poses/<signer>/<number>.npz, and captions.csv with a word for each sign.

    Both hands do the same in these four signs: a network that both share has one set of running statistics.
    """
    folder = tmp_path_factory.mktemp("signing")
    signs = SyntheticSigns(len(WORDS), 3 * SIGNERS, SIGNERS, seed=1947, noise=0.0, variation=0.3)
    assert {sign.hands for sign in signs.signs} == {"mirror"}
    takes = {}
    for i, clip in enumerate(signs.clips):
        takes.setdefault((clip.label, clip.group), []).append(signs.pose(i))
    draw, rows = np.random.default_rng(0), []
    for number, (round, first, second) in enumerate(np.ndindex(2 * SIGNERS, len(WORDS), len(WORDS))):
        group = f"signer{round % SIGNERS}"
        poses = [takes[sign, group][draw.integers(3)] for sign in (first, second)]
        xy, confidence = (np.concatenate([getattr(pose, key)[::5] for pose in poses]) for key in ("xy", "confidence"))
        path = folder / "poses" / group / f"{number:03d}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        FORMATS["npz"].write(path, Pose(xy, confidence, 25.0, (640, 480), "coco133"))
        rows.append((f"{group}/{number:03d}", f"{WORDS[first]} und {WORDS[second]} ."))
    write_captions(folder / "captions.csv", rows)
    return folder


@pytest.fixture(scope="module")
def encoder(signing, tmp_path_factory):
    run = tmp_path_factory.mktemp("encoders") / "slp"
    told = ["pretrain", "slp", "--data", str(signing / "poses"), *SMALL_SLP, "--run", str(run)]
    assert main(told) == 0
    return run


@pytest.fixture(scope="module")
def trained(signing, encoder, tmp_path_factory):
    run = tmp_path_factory.mktemp("translators") / "slt"
    assert translate(signing, encoder, run, "--task.epochs", "12") == 0
    return run


def write_captions(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("name", "text"), *rows])
    return path


def read_captions(signing):
    with (signing / "captions.csv").open(newline="") as file:
        return [tuple(row) for row in list(csv.reader(file))[1:]]


def translate(signing, encoder, run, *changes, captions=None):
    told = ["--encoder", encoder, "--data", signing / "poses", "--captions", captions or signing / "captions.csv"]
    return main(["finetune", "slt", *map(str, told), *SMALL, "--run", str(run), *map(str, changes)])


def opened(signing, encoder, run, **changes):
    """The data of a run."""
    values = {
        **{"data": str(signing / "poses"), "test_data": None, "train_split": None, "test_split": None},
        **{"captions": str(signing / "captions.csv"), "test_captions": None, "lowercase": False, "vocabulary": 60},
        **{"folds": 3, "preprocess": {"layout": 79}, "task": load_finetuned(run).config},
        **{"train_list": "train", "test_list": "test"},
    }
    return finetune_slt.open_data(values | changes, SLP.from_pretrained(encoder), lambda _: None)


def written(run):
    return [json.loads(line) for line in (run / "sentences.jsonl").read_text().splitlines()]


def test_it_learns_to_translate_clips_that_it_never_saw(signing, encoder, trained):
    results = json.loads((trained / "results.json").read_text())
    data = opened(signing, encoder, trained)
    model = load_finetuned(trained)
    fresh = build_task(Translator, model.config, SLP.from_pretrained(encoder), data.extra, seed=0)
    before, _ = finetune_slt.TASK.test(fresh, data, None)
    after, text = finetune_slt.TASK.test(model, data, None)
    assert after["metrics"] == results["metrics"]
    assert before["metrics"]["bleu4"] < 10
    assert after["metrics"]["bleu4"] > 60 and after["metrics"]["rouge_l"] > 80
    assert (results["train_clips"], results["test_clips"]) == (64, 32)
    assert "BLEU-4" in text and "tok:13a" in text and "beta 1.2" in text


def test_translations_are_written_beside_their_references(signing, encoder, trained):
    rows = written(trained)
    sentences = dict(read_captions(signing))
    assert len(rows) == 32
    for row in rows:
        assert row["reference"] == sentences[row["name"].removesuffix(".npz")]
    data, model = opened(signing, encoder, trained), load_finetuned(trained)
    assert [row["hypothesis"] for row in rows] == model.translate(data.test.batch(range(32)))


def test_some_clips_without_a_sentence_are_left_out_and_said_so(signing, tmp_path, capsys):
    rows = read_captions(signing)
    rows = [(name, " " if i < 6 else text) for i, (name, text) in enumerate(rows)][:-4]
    captions = write_captions(tmp_path / "captions.csv", rows)
    assert translate(signing, "masa:small", tmp_path / "run", "--task.epochs", "1", captions=captions) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    told = capsys.readouterr()
    assert results["train_clips"] + results["test_clips"] == 96 - 10
    assert "clips have no sentence" in told.err + told.out and "captions are empty" in told.err + told.out


@pytest.fixture
def annotated(signing, tmp_path):
    """Annotations in Phoenix14-T's form: every fourth clip is of the test."""
    rows = read_captions(signing)
    for split, of in (("train", [row for i, row in enumerate(rows) if i % 4]), ("test", rows[::4])):
        lines = [f"{name}|{name}|-1|-1|Signer01|REGEN|{text}" for name, text in of]
        header = "name|video|start|end|speaker|orth|translation"
        (tmp_path / f"PHOENIX-2014-T.{split}.corpus.csv").write_text("\n".join([header, *lines]) + "\n")
    return tmp_path


def test_annotations_divide_the_clips(signing, encoder, trained, annotated):
    data = opened(signing, encoder, trained, captions=str(annotated))
    assert (len(data.train), len(data.test)) == (72, 24)
    assert not set(data.train.names) & set(data.test.names)
    one, other = (str(annotated / f"PHOENIX-2014-T.{split}.corpus.csv") for split in ("train", "test"))
    files = opened(signing, encoder, trained, captions=one, test_captions=other)
    assert (files.train.names, files.test.names) == (data.train.names, data.test.names)


def test_test_clips_from_another_folder(signing, encoder, trained, tmp_path):
    (tmp_path / "other").symlink_to(signing / "poses" / "signer0")
    data = opened(signing, encoder, trained, test_data=str(tmp_path / "other"))
    assert (len(data.train), len(data.test)) == (96, 32)
    with pytest.raises(SlrfastError, match="--test_data names the clips of --data"):
        opened(signing, encoder, trained, test_data=str(signing / "poses" / ".." / "poses"))


def test_made_up_sentences_need_no_captions(encoder, trained, signing, monkeypatch):
    monkeypatch.setattr(finetune, "SyntheticSentences", lambda *_, **given: SyntheticSentences(8, 3, **given))
    data = opened(signing, encoder, trained, data="synthetic", captions=None)
    assert len(data.train) + len(data.test) == 8 and not set(data.train.groups) & set(data.test.groups)
    assert all(set(text.split()) <= {"sign00", "sign01", "sign02"} for text in data.test.sentences)


def test_files_that_are_no_clips_are_told(signing, encoder, trained, tmp_path):
    shutil.copytree(signing / "poses", tmp_path / "poses")
    (tmp_path / "poses" / "signer1" / "broken.npz").write_bytes(b"no archive")
    data = opened(signing, encoder, trained, data=str(tmp_path / "poses"))
    assert [name.rpartition("/")[2] for name, _ in data.skipped] == ["broken.npz"]


def test_no_more_parts_than_signers():
    signs = SyntheticSigns(2, 6, 3)
    train, test, note = hold_out(signs, 5)
    assert (len(train), len(test)) == (8, 4) and note == "held out for the test: 'signer0'"
    assert not set(train.groups) & set(test.groups)
    with pytest.raises(SlrfastError, match="there is 1 clip, too few"):
        hold_out(signs.subset([0]), 2)


def test_the_part_held_out_is_an_equal_share_where_one_signer_has_most():
    signs = SyntheticSigns(2, 24, 12)
    few, others = {"signer0", "signer1", "signer2"}, lambda group: "anna" if group not in few else group
    signs.clips = [replace(clip, group=others(clip.group)) for clip in signs.clips]
    train, test, note = hold_out(signs, 4)
    assert (len(train), len(test)) == (44, 4) and "signer" in note
    signs.clips = [replace(clip, group=clip.group if clip.group in few else "") for clip in signs.clips]
    train, test, note = hold_out(signs, 4)
    assert len(test) == 12 and "''" not in note
    assert not set(train.groups) & set(test.groups) - {""}


def test_chinese_is_scored_by_characters():
    assert finetune_slt.tokenizer_for(["我爱吃苹果", "abc", "你好"]) == "zh"
    assert finetune_slt.tokenizer_for(["regen", "sonne", "风"]) == "13a"


def test_a_vocabulary_without_room_for_all_characters_is_pointed_out(signing, encoder, trained):
    notes = opened(signing, encoder, trained, vocabulary=9).notes
    assert any("training tokens are <unk>: --vocabulary has no room" in note for note in notes)
    assert not any("<unk>" in note for note in opened(signing, encoder, trained).notes)


def test_names_that_are_no_text_do_not_stop_the_report(signing, encoder, trained, tmp_path):
    data = opened(signing, encoder, trained, folds=32)
    data.test.dataset.clips[0].name = "caf\udce9"
    finetune_slt.TASK.test(load_finetuned(trained), data, RunFolder(tmp_path))
    assert written(tmp_path)[0]["name"] == "caf\udce9"


# --- what it refuses ----------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    code = translate(*arguments[:2], arguments[2] / "run", *arguments[3:])
    told = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and not (arguments[2] / "run").exists()
    return told[-1]


@pytest.mark.parametrize(
    ("system", "changes", "message"),
    [
        ("stc:small", (), "encoder must have features of single frames, got STC; use MASA"),
        ("masa:legacy", (), "MASA: config.masking must be 'frame' for features of frames, got part"),
        ("masa:small", ("--preprocess.layout", "79"), "masa takes clips of 49 keypoints, these have 79"),
        ("", ("--captions", "missing.csv"), "missing.csv: cannot be read (No such file or directory)"),
        ("", ("--folds", "1"), "--folds must be at least 2, got 1"),
        ("", ("--vocabulary", "0"), "vocabulary must be in [1, 1000000000], got 0"),
        ("", ("--vocabulary", "4"), "Subwords.train: size must be in [5, 1048576], got 4"),
        ("", ("--task.beams", "0"), "TranslatorConfig: beams must be in [1, 65536], got 0"),
        ("", ("--test_split", "test"), "--train_split and --test_split belong together"),
    ],
)
def test_wrong_options(signing, encoder, tmp_path, capsys, system, changes, message):
    assert message in refused(capsys, signing, system or encoder, tmp_path, *changes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda rows: [(name, "") for name, _ in rows], "every training sentence is empty"),
        (
            lambda rows: [("elsewhere", "regen")],
            "training clips: no caption belongs to any clip; captions are of 'else",
        ),
        (lambda rows: rows[1:2], "test clips: no caption belongs to any clip"),
        (
            lambda rows: [(name, "" if i in HELD_OUT else text) for i, (name, text) in enumerate(sorted(rows))],
            "test clips: eve",
        ),
        (lambda rows: [*rows, (rows[0][0], "anders")], "is a second, other sentence for 'signer0/000'"),
    ],
)
def test_wrong_captions(signing, encoder, tmp_path, capsys, rows, message):
    captions = write_captions(tmp_path / "captions.csv", rows(read_captions(signing)))
    assert message in refused(capsys, signing, encoder, tmp_path, "--captions", captions)


def test_a_run_does_not_go_on_with_other_sentences(signing, trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    rows = read_captions(signing)
    captions = write_captions(tmp_path / "captions.csv", [rows[0], (rows[1][0], "wind und wind ."), *rows[2:]])
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(settings.replace(str(signing / "captions.csv"), str(captions)))
    assert main(["finetune", "slt", "--resume", str(run)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the run had" in told and "and cannot go on with" in told
    (run / "config.yaml").write_text(settings)
    assert main(["finetune", "slt", "--resume", str(run)]) == 0
    assert written(run) == written(trained)


def test_clips_without_labels_have_no_glosses(signing, encoder, tmp_path, capsys):
    told = refused(capsys, signing, encoder, tmp_path, "--captions", "glosses", "--data", unlabelled(signing, tmp_path))
    assert "--captions glosses: there is no sentence for any clip" in told


def unlabelled(signing, folder):
    for path in sorted((signing / "poses" / "signer0").iterdir())[:4]:
        (folder / "flat").mkdir(exist_ok=True)
        shutil.copy(path, folder / "flat" / path.name)
    return folder / "flat"


def test_the_same_clips_to_train_and_to_test_on(signing, encoder, tmp_path, capsys):
    told = refused(capsys, signing, encoder, tmp_path, "--test_captions", signing / "captions.csv")
    assert "96 clips have sentences to train on and to test on: 'signer0/000.npz'" in told


def test_lists_of_glosses_alone(signing, encoder, tmp_path, capsys):
    (tmp_path / "train.corpus.csv").write_text("id|folder|signer|annotation\nsigner0/000|x|Signer01|REGEN SONNE\n")
    told = refused(capsys, signing, encoder, tmp_path, "--captions", tmp_path / "train.corpus.csv")
    assert "lists of Phoenix14 have glosses but no sentences" in told


@pytest.mark.parametrize(("package", "extra"), [("sacrebleu.metrics", "metrics"), ("tokenizers", "text")])
def test_missing_packages_are_missed_before_training(signing, encoder, tmp_path, capsys, monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install 'slrfast[{extra}]'" in refused(capsys, signing, encoder, tmp_path)


def test_a_damaged_vocabulary(trained, tmp_path):
    shutil.copytree(trained / "model", tmp_path / "model")
    path = tmp_path / "model" / "task.json"
    values = json.loads(path.read_text())
    for change, message in (
        ({"pieces": ["a", "a"], "merges": [], "lowercase": False, "max_tokens": 8}, "pieces must be different"),
        ({"pieces": ["a"]}, "value must be an object"),
        (None, "value must be an object"),
        ({"pieces": ["a"], "merges": [], "lowercase": False, "max_tokens": 8}, "head.safetensors: cannot be read as"),
    ):
        path.write_text(json.dumps(values | {"extra": {"vocabulary": change}}))
        with pytest.raises(SlrfastError, match=message):
            load_finetuned(tmp_path)
