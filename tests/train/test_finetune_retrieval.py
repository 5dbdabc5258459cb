"""Fine-tuning for retrieval: it learns, from the command line too, and says in one sentence what it cannot use."""

import csv
import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from slrfast.data import PreprocessOptions, SyntheticSigns
from slrfast.data.text import gloss_captions, tiny_text_encoder
from slrfast.systems.slp import SLP, SLPConfig
from slrfast.tasks.retriever import Retriever, RetrieverConfig
from slrfast.train import finetune, finetune_retrieval
from slrfast.train.cli import main
from slrfast.train.config import TrainConfig
from slrfast.train.finetune import load_finetuned
from slrfast.train.inputs import captioned
from slrfast.train.loading import load_batches
from slrfast.train.loop import pretrain
from slrfast.train.runs import RunFolder

SMALL = "--encoder slp:small --text_encoder tiny --task.batch_size 12"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SLRFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def retrieval_is_a_task(monkeypatch):
    known = {**finetune.tasks(), "retrieval": finetune_retrieval.TASK}
    monkeypatch.setattr(finetune, "tasks", lambda: known)


@pytest.fixture(scope="module")
def poses(tmp_path_factory, signs):
    folder = tmp_path_factory.mktemp("retrieval") / "poses"
    signs.save(folder)
    return folder


@pytest.fixture(scope="module")
def index(poses):
    """A table of the clips: half for training, half for the test."""
    files = sorted(poses.rglob("*.npz"))
    with open(poses / "index.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split", "group"])
        for i, path in enumerate(files):
            table.writerow([path.relative_to(poses), path.parent.name, ("train", "test")[i % 2], f"signer{i % 3}"])
    return poses / "index.csv"


@pytest.fixture
def captions(poses, tmp_path):
    def write(text):
        """A file with ``text(i, path)`` for every clip."""
        with open(tmp_path / "captions.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["name", "text", "language"])
            for i, path in enumerate(sorted(poses.rglob("*.npz"))):
                table.writerow([path.relative_to(poses), text(i, path), "en_XX"])
        return tmp_path / "captions.csv"

    return write


def complaint(capsys):
    """The one sentence that a command ends with."""
    last = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    assert last.startswith("slrfast: ")
    return last


def run(*flags, folder):
    words = f"finetune retrieval {SMALL} --run {folder}".split()
    return main([*words, *(str(flag) for flag in flags), "--task.epochs", "1"])


@pytest.mark.slow
def test_an_unseen_signer_is_found_by_texts_and_finds_them(tmp_path):
    """R@1 of 8 sentences and of 24 clips that training never saw."""
    pytest.importorskip("sentencepiece")
    data = SyntheticSigns(8, 12, 4, options=PreprocessOptions(layout=79))
    texts = gloss_captions(data)
    torch.manual_seed(0)
    encoder = SLP(SLPConfig.small(tasks=("contrast",), branches=("manual",), layers=1, max_frames=16))
    encoder.text = tiny_text_encoder(tmp_path / "text", sorted({caption.text for caption in texts.values()}))
    told = captioned(data, texts, encoder.text)
    seen = [i for i, group in enumerate(data.groups) if group != "signer0"]
    test = told.subset(sorted(set(range(len(data))) - set(seen)))
    model = Retriever(RetrieverConfig.slp(learning_rate=4e-3, batch_size=16, epochs=12), encoder)

    def metrics():
        return model.test(load_batches(test, [list(range(len(test)))]), test.tokens)

    before = metrics()
    pretrain(model, told.subset(seen), TrainConfig(), RunFolder(tmp_path / "run").create(), progress=False)
    after = metrics()
    for way in ("t2v", "v2t"):
        assert after[f"{way}_r1"] > before[f"{way}_r1"] + 0.4, (before, after)
    assert after["v2t_median_rank"] < before["v2t_median_rank"]


def test_trained_tested_saved_and_loaded(poses, tmp_path, capsys):
    assert run("--data", poses, "--captions", "glosses", "--json", folder=tmp_path / "run") == 0
    told = capsys.readouterr()
    results = json.loads(told.out)
    assert "text to clip" in told.err and "held out for the test: single clips" in told.err
    assert results["test_clips"] == 9 and results["train_clips"] == 27 and results["texts"] == 4
    assert results["metrics"].keys() == {
        f"{way}_{name}" for way in ("t2v", "v2t") for name in ("r1", "r5", "r10", "median_rank")
    }
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    model = load_finetuned(tmp_path / "run")
    assert isinstance(model, Retriever) and model.config.batch_size == 12
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    name = next(key for key in saved if key.endswith("encoder.log_scale"))
    assert torch.equal(saved[name], model.encoder.log_scale.detach())


def test_stopped_and_resumed(poses, tmp_path, monkeypatch):
    flags = "--data", poses, "--captions", "glosses"
    assert run(*flags, folder=tmp_path / "whole") == 0
    step, calls = Retriever.training_step, []

    def interrupted(self, batch, generator=None):
        calls.append(batch)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, generator)

    monkeypatch.setattr(Retriever, "training_step", interrupted)
    assert run(*flags, folder=tmp_path / "parts") == 130
    assert main(["finetune", "retrieval", "--resume", str(tmp_path / "parts")]) == 0
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_by_split_with_some_texts_missing(index, captions, tmp_path, capsys):
    file = captions(lambda i, path: "" if i in (0, 3) else f"the sentence {i // 4}")
    flags = "--train_split", "train", "--test_split", "test"
    assert run("--data", index, *flags, "--captions", file, "--json", folder=tmp_path / "run") == 0
    told = capsys.readouterr()
    assert "1 of 18 training clips have no text and are left out" in told.err
    assert "1 of 18 test clips have no text and are left out" in told.err
    results = json.loads(told.out)
    assert (results["train_clips"], results["test_clips"], results["texts"]) == (17, 17, 9)


def test_the_text_encoder_of_the_pretraining_run(poses, tmp_path, capsys):
    words = "pretrain slp --preset small --captions glosses --text_encoder tiny --system.layers 1 --system.epochs 1"
    first = tmp_path / "first"
    assert main([*words.split(), "--system.batch_size", "12", "--data", str(poses), "--run", str(first)]) == 0
    words = "finetune retrieval --captions glosses --task.epochs 1 --task.batch_size 12"
    own = "--encoder", first, "--data", poses, "--run", tmp_path / "second"
    assert main([*words.split(), *map(str, own)]) == 0
    assert "text to clip" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--encoder stc:small --captions glosses",
            "retrieval takes an encoder that slp pre-trained with texts, stc has",
        ),
        ("", "--captions is needed: CSV or JSON with the sentence of every clip"),
        ("--captions none.csv", "none.csv: cannot be read (No such file or directory)"),
        ("--captions glosses --text_encoder none", "none"),
        ("--captions glosses --language xx", "language must be one of en_XX"),
        ("--captions glosses --folds 1", "--folds must be at least 2, got 1"),
        ("--captions glosses --task.temperature 0", "temperature must be finite and > 0, got 0"),
        ("--captions glosses --task.learning_rate -1", "learning_rate must be finite and > 0, got -1"),
        ("--captions glosses --preset islr", "--preset must be one of slp, got 'islr'"),
        ("--captions glosses --train_split a", "--train_split and --test_split belong together"),
        ("--captions glosses --preprocess.layout 49", "slp takes clips of 79 keypoints, these have 49"),
    ],
)
def test_refused_in_one_sentence(flags, message, poses, tmp_path, capsys):
    words = [word for word in SMALL.split() if "--encoder" not in flags or word not in ("--encoder", "slp:small")]
    folder = tmp_path / "run"
    assert main(["finetune", "retrieval", *words, "--data", str(poses), "--run", str(folder), *flags.split()]) == 2
    assert message in complaint(capsys)
    assert not folder.exists()


def test_captions_that_cannot_be_used(index, captions, tmp_path, capsys):
    def refused(*flags):
        assert run("--data", index, *flags, folder=tmp_path / "run") == 2
        return complaint(capsys)

    assert "every text is empty" in refused("--captions", captions(lambda i, path: " "))
    split = "--train_split", "train", "--test_split", "test"
    file = captions(lambda i, path: "" if i % 2 else "word")
    assert "no test clip has a text" in refused("--captions", file, *split)
    file.write_text("name,text,language\nelse,word,en_XX\n")
    assert "no caption belongs to any clip" in refused("--captions", file)
    assert "no row" in refused("--captions", captions(lambda i, path: "a"), *split[:2], "--test_split", "x").lower()


def test_an_encoder_that_only_reconstructed(poses, tmp_path, capsys):
    SLP(SLPConfig.small(layers=1, tasks=("reconstruction",))).save_pretrained(tmp_path / "poses-alone" / "model")
    (tmp_path / "poses-alone" / "config.yaml").write_text("name: slp\nsystem: {}\ntrain: {}\n")
    words = f"finetune retrieval --encoder {tmp_path / 'poses-alone'} --captions glosses --text_encoder tiny"
    assert main([*words.split(), "--data", str(poses), "--run", str(tmp_path / "run")]) == 2
    assert "slp pre-trained with texts, this one reconstructed poses alone" in complaint(capsys)
