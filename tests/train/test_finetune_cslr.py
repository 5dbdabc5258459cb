"""slrfast finetune cslr: it learns to tell sentences, and says what it cannot use."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from slrfast.data import PoseDataset, PreprocessOptions, pack
from slrfast.data.glosses import GlossedDataset, GlossVocabulary
from slrfast.data.synthetic_sentences import SyntheticSentences
from slrfast.errors import CheckpointError, DatasetError
from slrfast.systems import MASA, STC
from slrfast.systems.masa_config import MASAConfig
from slrfast.systems.stc_config import STCConfig
from slrfast.tasks.word_errors import word_errors
from slrfast.train import finetune
from slrfast.train.config import RunError
from slrfast.train.finetune_cslr import TASK, open_data, recognised, too_short

pytest.importorskip("jiwer")
SMALL = ["--encoder", "masa:small", "--preset", "small", "--task.channels", "32", "--task.units", "32"]


@pytest.fixture(scope="module")
def sentences():
    return SyntheticSentences(40, 4, least=1, most=3, step=3, noise=0.3, variation=0.3)


@pytest.fixture
def small_synthetic(monkeypatch, sentences):
    monkeypatch.setattr(finetune, "SyntheticSentences", lambda *_, **__: sentences)


@pytest.fixture(scope="module")
def store(sentences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("poses") / "store"
    pack(sentences, folder)
    return folder


@pytest.fixture
def write(tmp_path, sentences):
    """Lists in Phoenix14's format: 30 sentences to train on, the others to test on; rows may be put in their place."""

    def make(train=None, dev=None):
        rows = [f"{name}|{name}/*.png|{s.signer}|{' '.join(s.glosses)}" for name, s in sentences.sentences.items()]
        for name, lines in (
            ("train", rows[:30] if train is None else train),
            ("dev", rows[30:] if dev is None else dev),
        ):
            (tmp_path / f"{name}.corpus.csv").write_text("\n".join(["id|folder|signer|annotation", *lines]) + "\n")
        return tmp_path

    return make


def values(**changes):
    plain = dict.fromkeys(("data", "test_data", "train_split", "test_split", "sentences"))
    return {**plain, "train_list": "train", "test_list": "dev", "preprocess": {"layout": 49}, **changes}


@pytest.fixture(scope="module")
def masa():
    torch.manual_seed(0)
    return MASA(MASAConfig.small(bank_size=16))


def opened(store, folder, masa, **changes):
    return open_data(values(data=str(store), sentences=str(folder), **changes), masa, print)


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_training_brings_the_word_error_rate_down(small_synthetic, tmp_path, monkeypatch, capsys):
    """Held-out sentences of signs that are known: from more errors than words to less than two in three."""
    monkeypatch.setattr(finetune, "tasks", lambda: {"cslr": TASK})
    run = tmp_path / "run"
    rest = ["--data", "synthetic", "--run", str(run), "--task.epochs", "8", "--task.milestones", "[7]"]
    rates = ["--task.batch_size", "4", "--task.learning_rate", "5e-3", "--task.encoder_rate", "0.1"]
    assert finetune._finetune(TASK, [*SMALL, *rest, *rates, "--train.device", "cpu"]) == 0
    results = json.loads((run / "results.json").read_text())
    found = results["metrics"]["beam"]
    assert results["glosses"] == 4 and found["sentences"] == results["test_clips"] == 10
    assert found["wer"] == (found["substitutions"] + found["deletions"] + found["insertions"]) / found["words"]
    said = capsys.readouterr().out
    assert "held out for the test: 'signer0'" in said and "prefix beam search, 10" in said

    model = finetune.load_finetuned(run).eval()
    data = open_data(values(data="synthetic"), model.encoder, print)
    lines = [json.loads(line) for line in (run / "sentences.jsonl").read_text().splitlines()]
    assert [line["hypothesis"] for line in lines] == recognised(model, data.test, [model.config.beam])[0]
    assert [tuple(line["reference"]) for line in lines] == data.test.references

    torch.manual_seed(0)
    untrained = finetune.build_task(TASK.kind, model.config, model.encoder, data.extra, 0)
    before = word_errors(data.test.references, recognised(untrained, data.test, [10])[0]).rate
    assert found["wer"] < 0.65 and found["wer"] < before - 0.3, (found["wer"], before)


def test_lists_of_a_data_set(store, write, masa):
    data = opened(store, write(), masa)
    assert isinstance(data.train, GlossedDataset) and len(data.train) == 30 and len(data.test) == 10
    assert data.extra == {"glosses": ["sign00", "sign01", "sign02", "sign03"]}
    assert data.notes[-1] == "4 glosses in the vocabulary"
    batch = data.train.batch([0, 7])
    names = GlossVocabulary(data.extra["glosses"]).glosses_of(batch.tokens[1, : batch.token_lengths[1]].tolist())
    assert tuple(names) == data.train.references[7]


def test_lists_of_other_clips(store, write, masa, tmp_path, sentences):
    test = pack(sentences.subset(range(30, 40)), tmp_path / "test")
    data = opened(store, write(), masa, test_data=str(tmp_path / "test"))
    assert len(data.train) == 30 and data.test.names == test.names


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_glosses_outside_the_vocabulary_count_as_errors_and_are_said(store, write, masa):
    data = opened(store, write(dev=["sentence030|x|s|sign00 SCHNEE", "sentence031|x|s|HAGEL SCHNEE"]), masa)
    assert any(
        "test: 3 of 4 glosses are outside the vocabulary, 2 different: 'SCHNEE', 'HAGEL'" in n for n in data.notes
    )
    assert data.test.references == [("sign00", "SCHNEE"), ("HAGEL", "SCHNEE")]
    model = SimpleNamespace(
        config=SimpleNamespace(batch_size=2, beam=3),
        vocabulary=range(4),
        parameters=lambda: iter([torch.zeros(1)]),
        decode_each=lambda batch, beams: [[["sign00"]] * batch.size for _ in beams],
    )
    found, _ = TASK.test(model, data, None)
    assert found["metrics"]["beam"]["wer"] == 3 / 4


def test_empty_references(store, write, masa):
    """In training they are left out; in testing what is recognised there is inserted."""
    train = ["sentence000|x|s|", "sentence001|x|s|sign01"]
    data = opened(store, write(train, ["sentence030|x|s|", "sentence031|x|s|sign01"]), masa)
    assert data.train.names == ["sentence001"] and len(data.test) == 2
    assert "training: 1 clips without glosses are left out" in data.notes
    model = SimpleNamespace(
        config=SimpleNamespace(batch_size=8, beam=3),
        vocabulary=range(1),
        parameters=lambda: iter([torch.zeros(1)]),
        decode_each=lambda batch, beams: [[["sign01"]] * batch.size for _ in beams],
    )
    found, text = TASK.test(model, data, None)
    assert found["metrics"]["greedy"]["insertions"] == 1 and found["metrics"]["greedy"]["wer"] == 1.0
    assert "1 of 2 references have no glosses" in text


def test_clips_too_short_for_their_glosses_are_said(store, write, masa, sentences):
    many = " ".join(["sign00"] * 40)
    data = opened(store, write(train=[f"sentence000|x|s|{many}", "sentence001|x|s|sign01"]), masa)
    assert any("1 clips are too short for their glosses and teach nothing: 'sentence000'" in n for n in data.notes)
    assert too_short(data.train, 4) == ["sentence000"] and too_short(data.train.subset([1]), 1) == []


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_lists_that_cannot_be_used(store, write, masa):
    with pytest.raises(RunError, match="--sentences is needed"):
        open_data(values(data=str(store)), masa, print)
    for option in ("test_data", "sentences"):
        with pytest.raises(RunError, match="bring their own glosses and test; leave out --test_data and --sentences"):
            open_data(values(data="synthetic", **{option: str(store)}), masa, print)
    with pytest.raises(DatasetError, match="holds no list of the split 'test'"):
        opened(store, write(), masa, test_list="test")
    with pytest.raises(RunError, match="30 sentences are in the lists of training and of the test: 'sentence000'"):
        opened(store, write(), masa, test_list="train")
    with pytest.raises(RunError, match=r"the training list has no glosses \(GlossVocabulary: glosses must hold"):
        opened(store, write(train=["sentence000|x|s|"]), masa)
    with pytest.raises(RunError, match="no test clip has a gloss"):
        opened(store, write(dev=["sentence030|x|s|"]), masa)
    with pytest.raises(DatasetError, match="no sentence belongs to any clip; sentences are of 'other', clips are"):
        opened(store, write(dev=["other|x|s|sign00"]), masa)
    with pytest.raises(RunError, match="no training clip has a gloss"):
        opened(store, write(train=["sentence000|x|s|", "other|x|s|sign00"]), masa)


def test_encoders_that_cannot_be_used(store, write, small_synthetic):
    with pytest.raises(RunError, match="encoder must have features of single frames, got STC; use MASA"):
        opened(store, write(), STC(STCConfig.small(bank_size=16, neighbors=8)))
    legacy = MASA(MASAConfig.small(bank_size=16, masking="part"))
    with pytest.raises(RunError, match="features of single frames, got MASA .*be 'frame'"):
        opened(store, write(), legacy)
    for name in ("stc:small", "ccl:small"):
        with pytest.raises(RunError, match="encoder must have features of single frames, got"):
            finetune._finetune(TASK, ["--encoder", name, "--data", "synthetic", "--run", "never"])


def test_another_layout(store, write, masa, tmp_path):
    with pytest.raises(RunError, match="masa takes clips of 49 keypoints, these have 79; use --preprocess.layout 49"):
        open_data(values(data="synthetic", preprocess={"layout": 79}), masa, print)
    with pytest.raises(RunError, match="layout must"):
        open_data(values(data="synthetic", preprocess={"layout": 50}), masa, print)
    other = SyntheticSentences(3, 2, options=PreprocessOptions(layout=79))
    pack(other, tmp_path / "other")
    with pytest.raises((RunError, DatasetError), match="49|layout"):
        opened(tmp_path / "other", write(), masa)


def test_a_model_of_another_task_or_with_another_head(tmp_path, masa, monkeypatch):
    monkeypatch.setattr(finetune, "tasks", lambda: {"cslr": TASK})
    config = TASK.kind.Config.small(channels=8, units=8)
    finetune.build_task(TASK.kind, config, masa, {"glosses": ["a", "b"]}, 0).save_pretrained(tmp_path)
    loaded = finetune.load_finetuned(tmp_path)
    assert loaded.vocabulary.glosses == ["a", "b"] and loaded.config == config
    told = json.loads((tmp_path / "task.json").read_text())
    for change, message in (
        ({"extra": {"glosses": ["a"]}}, "cannot be read as this head"),
        ({"task": "islr"}, "cannot be read as a fine-tuned model"),
        ({"extra": {"class_names": ["a"]}}, "unexpected keyword argument 'class_names'"),
        ({"extra": {"glosses": ["a", "a"]}}, "be different and not empty"),
    ):
        (tmp_path / "task.json").write_text(json.dumps(told | change))
        with pytest.raises((CheckpointError, RunError), match=message):
            finetune.load_finetuned(tmp_path)


def test_without_jiwer_nothing_is_trained(store, write, masa, monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(RunError, match="need the package jiwer"):
        opened(store, write(), masa)


def test_a_store_reads_as_poses(store, sentences):
    assert PoseDataset(store).names == sentences.names
