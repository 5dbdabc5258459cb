"""``slrfast finetune islr`` from the command line: what it trains, what it writes, what it refuses."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch

from slrfast.data import SyntheticSigns
from slrfast.systems import CCL, SLP
from slrfast.systems.ccl_config import CCLConfig
from slrfast.systems.slp_config import SLPConfig
from slrfast.tasks.score_files import Scores, read_scores, write_scores
from slrfast.train.cli import main
from slrfast.train.finetune import load_finetuned

TINY = ["--encoder", "stc:small", "--task.batch_size", "8", "--task.epochs", "2"]


@pytest.fixture(scope="module")
def signs(tmp_path_factory):
    """48 clips of 4 classes and 6 signers as an index file with splits."""
    folder = tmp_path_factory.mktemp("signs")
    clips = SyntheticSigns(num_classes=4, clips_per_class=12, num_signers=6, seed=1)
    clips.save(folder, "npz")
    with open(folder / "index.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "group"])
        for clip in clips:
            split = "test" if clip.group in ("signer0", "signer3") else "train"
            writer.writerow([f"{clip.name}.npz", clips.class_names[clip.label], split, clip.group])
    return folder


@pytest.fixture(scope="module")
def run(signs, tmp_path_factory):
    """A pre-trained run."""
    path = tmp_path_factory.mktemp("runs") / "stc"
    argv = ["pretrain", "stc", "--preset", "small", "--data", str(signs), "--run", str(path), "--system.epochs", "1"]
    assert main([*argv, "--system.batch_size", "16", "--system.frames", "4"]) == 0
    return path


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_splits_of_an_index_file(signs, tmp_path, capsys):
    argv = ["finetune", "islr", *TINY, "--data", str(signs / "index.csv"), "--run", str(tmp_path / "r")]
    assert main([*argv, "--train_split", "train", "--test_split", "test"]) == 0
    out = capsys.readouterr().out
    found = results_of(tmp_path / "r")
    tested = sum(row["split"] == "test" for row in csv.DictReader(open(signs / "index.csv")))
    assert found["test_clips"] == tested and found["train_clips"] == 48 - tested
    assert f"{found['train_clips']} clips to train on, {tested} to test on" in out
    assert {"top1_instance", "top5_class", "mean_rank"} <= found["metrics"].keys()
    for name in ("scores.npz", "classes.csv", "confusions.csv", "confusion.png", "metrics.jsonl", "config.yaml"):
        assert (tmp_path / "r" / name).stat().st_size > 0
    scores = read_scores(tmp_path / "r" / "scores.npz")
    model = load_finetuned(tmp_path / "r")
    assert scores.class_names == tuple(model.class_names)
    assert len(scores.names) == tested


def test_resumed_run_equals_one_that_was_not_stopped(signs, tmp_path):
    argv = ["finetune", "islr", *TINY, "--data", str(signs / "index.csv"), "--folds", "3"]
    assert main([*argv, "--run", str(tmp_path / "whole")]) == 0
    assert main([*argv, "--run", str(tmp_path / "half"), "--task.epochs", "1"]) == 0
    config = (tmp_path / "half" / "config.yaml").read_text()
    (tmp_path / "half" / "config.yaml").write_text(config.replace("epochs: 1\n", "epochs: 2\n"))
    assert main(["finetune", "islr", "--resume", str(tmp_path / "half")]) == 0
    whole, half = (load_finetuned(tmp_path / name).state_dict() for name in ("whole", "half"))
    assert all(torch.equal(value, half[name]) for name, value in whole.items())


def test_a_run_is_the_encoder_and_frozen_features_are_those_of_evaluate(run, signs, tmp_path):
    argv = ["finetune", "islr", "--encoder", str(run), "--data", str(signs), "--folds", "3"]
    for classifier in ("knn", "probe"):
        path = tmp_path / classifier
        assert main([*argv, "--classifier", classifier, "--run", str(path), "--votes", "3"]) == 0
        assert not (path / "model").exists()
        assert results_of(path)["classifier"] == classifier
    assert results_of(tmp_path / "knn")["votes"] == 3
    linear = tmp_path / "linear"
    assert (
        main([*argv, "--preset", "linear", "--task.epochs", "1", "--task.batch_size", "8", "--run", str(linear)]) == 0
    )
    before = (run / "model" / "model.safetensors").read_bytes()
    assert (linear / "model" / "encoder" / "model.safetensors").read_bytes() == before


def test_score_files_of_another_model_are_added(signs, tmp_path):
    argv = ["finetune", "islr", *TINY, "--data", str(signs / "index.csv"), "--train_split", "train"]
    argv += ["--test_split", "test", "--classifier", "knn"]
    rows = [row for row in csv.DictReader(open(signs / "index.csv")) if row["split"] == "test"]
    names = sorted({row["label"] for row in rows})
    perfect = torch.tensor([[float(row["label"] == name) for name in names] for row in rows])
    write_scores(tmp_path / "other.json", Scores.of([row["path"] for row in rows], perfect, names))
    argv += ["--fuse", f"[{tmp_path / 'other.json'}]", "--fuse_weights", "[0.1, 5.0]", "--run", str(tmp_path / "r")]
    assert main(argv) == 0
    found = results_of(tmp_path / "r")
    assert found["metrics"]["top1_instance"] == 1.0 > found["alone"]["top1_instance"]


def test_a_share_of_the_labels_keeps_every_class(signs, tmp_path, capsys):
    argv = ["finetune", "islr", *TINY, "--data", str(signs / "index.csv"), "--train_split", "train"]
    argv += ["--test_split", "test", "--labels", "0.25", "--classifier", "knn", "--run", str(tmp_path / "r")]
    assert main(argv) == 0
    assert results_of(tmp_path / "r")["train_clips"] == 8
    assert "25 % of the labels: 8 clips" in capsys.readouterr().out


def test_class_without_a_test_clip_is_left_out_of_the_mean_and_named(signs, tmp_path, capsys):
    rows = list(csv.DictReader(open(signs / "index.csv")))
    kept = [row for row in rows if not (row["split"] == "test" and row["label"] == "sign02")]
    path = signs / "three.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(kept)
    argv = ["finetune", "islr", *TINY, "--data", str(path), "--train_split", "train", "--test_split", "test"]
    assert main([*argv, "--classifier", "knn", "--run", str(tmp_path / "r")]) == 0
    assert results_of(tmp_path / "r")["classes_without_test_clip"] == ["sign02"]
    assert "1 classes have no test clip and do not count per class, such as 'sign02'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--encoder", "stc:huge"], "--encoder stc:huge: stc has the presets paper, legacy, small"),
        (["--encoder", "nowhere"], "--encoder nowhere is neither the folder of a run nor SYSTEM:PRESET"),
        (["--encoder", "slp:small"], "slp takes clips of 79 keypoints"),
        (["--classifier", "svm"], "--classifier must be one of trained, probe, knn, got 'svm'"),
        (["--labels", "0"], "--labels must be in (0, 1], got 0"),
        (["--folds", "1"], "--folds must be at least 2, got 1"),
        (["--train_split", "train"], "--train_split and --test_split belong together"),
        (["--train_split", "train", "--test_split", "train"], "are both 'train'; test on other clips"),
        (["--train_split", "train", "--test_split", "dev"], "no row has the split 'dev'"),
        (["--dataset", "wlasl100"], "--dataset and --lists belong together"),
        (["--dataset", "wlasl7", "--lists", "x"], "--dataset must be one of wlasl100"),
        (["--task.streams", "[pose]"], "config.streams must be among joint, motion"),
        (["--task.optimizer", "lion"], "optimizer must be one of"),
        (["--fuse", "[missing.json]"], "missing.json"),
        (["--fuse_weights", "[1, 2]"], "--fuse_weights weighs the score files of --fuse, and there are none"),
        (["--classifier", "knn", "--task.parts", "[hand]"], "--classifier knn reads all streams"),
        (["--videos", "rendered"], "--videos: this encoder sees poses alone"),
        (["--task.fusion", "sum", "--task.streams", "[joint]"], "config.fusion must be 'late' for one stream"),
        (["--task.label_smoothing", ".nan"], "label_smoothing must be in [0, 1), got nan"),
        (["--task.warmup", ".inf"], "warmup must be finite and >= 0, got inf"),
        (["--task.milestones", "[-1]"], "milestones must be epochs >= 0"),
        (["--task.batch_size", "1000"], "fewer than one batch of 1000"),
        (["--labels", ".nan"], "--labels must be in (0, 1], got nan"),
        (["--preset", "papers"], "--preset must be one of stc, stc_code, linear, masa, ccl, slp, got 'papers'"),
    ],
)
def test_one_sentence_and_exit_code_2(extra, sentence, signs, tmp_path, capsys):
    argv = ["finetune", "islr", *TINY, "--data", str(signs / "index.csv"), "--run", str(tmp_path / "r"), *extra]
    argv += ["--preprocess.layout", "49"] if "slp:small" in extra else []
    assert main(argv) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("slrfast: ")]
    assert len(said) == 1 and sentence in said[0]
    assert not (tmp_path / "r").exists()


def test_test_clips_of_a_class_that_training_lacks(signs, tmp_path, capsys):
    SyntheticSigns(num_classes=6, clips_per_class=1, num_signers=1).save(tmp_path / "more", "npz")
    argv = ["finetune", "islr", *TINY, "--data", str(signs / "index.csv"), "--test_data", str(tmp_path / "more")]
    assert main([*argv, "--run", str(tmp_path / "r")]) == 2
    assert "2 classes of the test clips are none of training's, such as 'sign04'" in capsys.readouterr().err


def said_by(argv, capsys):
    """The one sentence with which a command refuses."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("slrfast: ")]
    assert len(said) == 1
    return said[0]


def rewritten(signs, name, change):
    """The index file with its rows changed."""
    rows = [change(dict(row)) for row in csv.DictReader(open(signs / "index.csv"))]
    with open(signs / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return signs / name


def test_splits_that_are_empty_or_unlabelled_and_a_single_class(signs, tmp_path, capsys):
    for change, sentence in (
        (lambda row: {**row, "split": "train"}, "no row has the split 'test'; there are 'train'"),
        (lambda row: {**row, "label": row["label"] * (row["split"] == "train")}, "no test clip has a label"),
        (lambda row: {**row, "label": "one"}, "all training clips are of one class, 'one'"),
    ):
        argv = ["finetune", "islr", *TINY, "--data", rewritten(signs, "odd.csv", change), "--run", tmp_path / "r"]
        assert sentence in said_by([*argv, "--train_split", "train", "--test_split", "test"], capsys)
        assert not (tmp_path / "r").exists()


def test_weights_of_fusion_are_checked_before_the_training(signs, tmp_path, capsys):
    rows = list(csv.DictReader(open(signs / "index.csv")))
    write_scores(tmp_path / "other.json", Scores.of([row["path"] for row in rows], torch.rand(len(rows), 4)))
    argv = ["finetune", "islr", *TINY, "--data", signs / "index.csv", "--train_split", "train", "--test_split", "test"]
    argv += ["--fuse", f"[{tmp_path / 'other.json'}]", "--run", tmp_path / "r"]
    assert "weights must be 2 numbers, got [1.0]" in said_by([*argv, "--fuse_weights", "[1]"], capsys)
    assert "weights must not all be 0" in said_by([*argv, "--fuse_weights", "[0, 0]"], capsys)
    assert not (tmp_path / "r").exists()


def test_a_test_clip_that_is_named_twice_is_refused_before_the_training(signs, tmp_path, capsys):
    lines = (signs / "index.csv").read_text().splitlines()
    twice = next(line for line in lines if ",test," in line)
    (signs / "twice.csv").write_text("\n".join([*lines, twice]) + "\n")
    argv = ["finetune", "islr", *TINY, "--data", signs / "twice.csv", "--train_split", "train", "--test_split", "test"]
    assert "names a clip more than once" in said_by([*argv, "--run", tmp_path / "r"], capsys)
    assert not (tmp_path / "r").exists()


def test_knn_of_the_encoder_during_training(signs, tmp_path):
    argv = ["finetune", "islr", *TINY, "--data", str(signs / "index.csv"), "--run", str(tmp_path / "r")]
    assert main([*argv, "--train_split", "train", "--test_split", "test", "--train.knn_every", "1"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert sum("knn_top1" in line for line in lines) == 2


def test_checkpoint_of_another_system_or_layout(run, signs, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("name: stc", "name: masa"))
    argv = ["finetune", "islr", "--encoder", other, "--data", signs / "index.csv", "--run", tmp_path / "r"]
    assert "config.json: does not describe a MASA" in said_by(argv, capsys)
    SLP(SLPConfig.small(tasks=("reconstruction",))).save_pretrained(other / "model")
    (other / "config.yaml").write_text(text.replace("name: stc", "name: slp"))
    sentence = "slp takes clips of 79 keypoints, these have 49; use --preprocess.layout 79"
    assert sentence in said_by([*argv, "--preprocess.layout", "49"], capsys)
    assert not (tmp_path / "r").exists()


def test_a_fine_tuned_run_is_tested_on_other_clips_and_is_an_encoder(run, signs, tmp_path, capsys):
    """The classes are found by name: the other index file has them in another order, and not all of them."""
    path = tmp_path / "r"
    argv = ["finetune", "islr", *TINY[2:], "--encoder", run, "--data", signs / "index.csv", "--run", path]
    assert main([str(word) for word in [*argv, "--train_split", "train", "--test_split", "test"]]) == 0
    before = {name: (path / name).read_bytes() for name in ("results.json", "scores.npz", "classes.csv")}
    few = rewritten(signs, "few.csv", lambda row: {**row, "split": row["split"] + row["label"][-1]})
    capsys.readouterr()
    for split in ("train", "test"):
        assert main(["evaluate", "--run", str(path), "--data", str(signs / "index.csv"), "--split", split]) == 0
        told = json.loads((path / "evaluation.json").read_text())
        assert told["training_may_have_seen_these_clips"] == (split == "train")
    assert told["metrics"] == results_of(path)["metrics"]
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(config.replace("train_split: train", "train_split: null"))
    assert main(["evaluate", "--run", str(path), "--data", str(signs / "index.csv"), "--split", "test"]) == 0
    assert json.loads((path / "evaluation.json").read_text())["training_may_have_seen_these_clips"]  # all were open
    (path / "config.yaml").write_text(config)
    assert "this may be no test" in capsys.readouterr().out
    shuffled = rewritten(signs, "shuffled.csv", lambda row: {**row, "label": row["label"]})
    lines = shuffled.read_text().splitlines()
    shuffled.write_text("\n".join([lines[0], *(line for line in reversed(lines[1:]) if "sign00" not in line)]))
    assert main(["evaluate", "--run", str(path), "--data", str(shuffled), "--split", "test", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes_without_test_clip"] == ["sign00"] and told["classes"] == 4
    with open(path / "classes.csv") as file:
        known = [row for row in csv.DictReader(file) if row["class"] != "sign00"]
    right = sum(float(row["top1"]) * int(row["clips"]) for row in known)
    assert told["metrics"]["top1_instance"] * told["clips"] == pytest.approx(right, abs=1e-2)
    assert all((path / name).read_bytes() == content for name, content in before.items())
    assert "no row has the split 'dev'" in said_by(["evaluate", "--run", path, "--data", few, "--split", "dev"], capsys)
    assert "--data is needed to test a fine-tuned model" in said_by(["evaluate", "--run", path], capsys)
    on = ["finetune", "islr", "--encoder", path, "--data", signs / "index.csv", "--classifier", "knn"]
    assert main([str(word) for word in [*on, "--run", tmp_path / "on"]]) == 0
    again = ["finetune", "islr", "--encoder", tmp_path / "on", "--data", signs, "--run", tmp_path / "no"]
    assert "this run of finetune islr has no model" in said_by(again, capsys)
    assert "this run of finetune islr has no model" in said_by(["evaluate", "--run", tmp_path / "on"], capsys)
    (tmp_path / "on" / "config.yaml").write_text("name: cslr\n")
    assert "this is finetune cslr" in said_by(["evaluate", "--run", tmp_path / "on"], capsys)
    sentence = f"--resume {path}: is a run of islr, not of cslr"
    assert sentence in said_by(["finetune", "cslr", "--resume", path], capsys)


def test_ccl_is_fine_tuned_with_its_pictures(signs, tmp_path, capsys):
    run = tmp_path / "ccl"
    CCL(CCLConfig.small(frames=4, image_size=16, rgb_width=2, bank_size=16)).save_pretrained(run / "model")
    (run / "config.yaml").write_text("name: ccl\nsystem: {}\ntrain: {}\n")
    argv = ["finetune", "islr", *TINY[2:], "--encoder", run, "--data", signs / "index.csv", "--task.epochs", "1"]
    argv += ["--train_split", "train", "--test_split", "test", "--run", tmp_path / "r"]
    assert "--videos must name the folder of the clips' videos, or 'rendered'; or --task.streams [pose]" in said_by(
        argv, capsys
    )
    assert main([str(word) for word in [*argv, "--videos", "rendered"]]) == 0
    assert list(load_finetuned(tmp_path / "r").heads) == ["rgb", "pose"]
    assert main(["evaluate", "--run", str(tmp_path / "r"), "--data", str(signs / "index.csv"), "--split", "test"]) == 0
    told = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    assert told["metrics"] == results_of(tmp_path / "r")["metrics"]
    alone = [*argv[:-1], tmp_path / "pose", "--task.streams", "[pose]"]
    assert main([str(word) for word in alone]) == 0


def test_class_names_may_be_anything(signs, tmp_path):
    odd = {"sign00": "yes, no", "sign01": 'a"b\nc', "sign02": "手语", "sign03": "=1"}
    path = rewritten(signs, "names.csv", lambda row: {**row, "label": odd[row["label"]]})
    argv = ["finetune", "islr", *TINY, "--data", path, "--train_split", "train", "--test_split", "test"]
    assert main([str(word) for word in [*argv, "--classifier", "knn", "--run", tmp_path / "läuft 手"]]) == 0
    with open(tmp_path / "läuft 手" / "classes.csv", encoding="utf-8", newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == set(odd.values())
    assert set(read_scores(tmp_path / "läuft 手" / "scores.npz").class_names) == set(odd.values())


def test_damaged_model_is_one_sentence(signs, tmp_path, capsys):
    from slrfast.errors import CheckpointError

    argv = ["finetune", "islr", *TINY, "--data", str(signs / "index.csv"), "--task.epochs", "1"]
    assert main([*argv, "--run", str(tmp_path / "r")]) == 0
    model = tmp_path / "r" / "model"
    text = (model / "task.json").read_text()
    unnamed = json.dumps({**json.loads(text), "extra": {"class_names": None}})
    for wrong in ("{", text.replace("islr", "cooking"), text.replace('"STC"', '"XYZ"'), "[]", unnamed):
        (model / "task.json").write_text(wrong)
        with pytest.raises(CheckpointError, match="cannot be read as a fine-tuned model"):
            load_finetuned(model)
    (model / "task.json").write_text(text)
    (model / "head.safetensors").write_bytes(b"\x00" * 10)
    with pytest.raises(CheckpointError, match="cannot be read as this head"):
        load_finetuned(model)
    sentence = said_by(["evaluate", "--run", tmp_path / "r", "--data", signs / "index.csv"], capsys)
    assert "head.safetensors: cannot be read as this head" in sentence
