import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import slrfast
from slrfast.data import SyntheticSigns
from slrfast.kernels import native
from slrfast.systems import SYSTEMS
from slrfast.train import config
from slrfast.train.cli import main
from slrfast.train.config import TrainConfig
from slrfast.train.loop import pretrain
from slrfast.train.runs import RunFolder

TINY, STC = ("pretrain tiny --data synthetic", "pretrain stc --data synthetic")
CONFTEST = str(Path(__file__).with_name("conftest.py"))
RUN_FILES = {
    "config.yaml", "metrics.jsonl", "tensorboard", "checkpoint.safetensors", "model", "results.json",
    "loss.png", "views.png", "embedding.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory, signs):
    """A finished run, pictures and all."""
    run = tmp_path_factory.mktemp("template") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "SyntheticSigns", lambda **_: signs)
        patch.setitem(SYSTEMS, "tiny", runpy.run_path(CONFTEST)["Tiny"])
        assert main(["pretrain", "tiny", "--data", "synthetic", "--preset", "small", "--run", str(run)]) == 0
    return run


@pytest.fixture
def pretrained(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "pretrained"))


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longer than all the rest of a tiny run."""
    for name in ("draw_training", "draw_embedding"):
        monkeypatch.setattr(f"slrfast.train.cli.{name}", lambda *_: None)


def complaint(capsys):
    """The one sentence on stderr."""
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.count("\n") == 1, err
    return err


class TestHelp:
    @pytest.mark.parametrize("argv", [[], ["--help"]])
    def test_overview(self, capsys, argv):
        assert main(argv) == (0 if argv else 2)
        out = capsys.readouterr().out
        assert all(word in out for word in ("demo", "pretrain SYSTEM", "evaluate", "info", "examples:"))

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"slrfast {slrfast.__version__}\n"

    @pytest.mark.parametrize("command", ["pretrain stc", "evaluate", "demo", "pretrain"])
    def test_every_command_has_examples(self, capsys, command):
        assert main([*command.split(), "--help"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: slrfast") and f"\n  slrfast {command}" in out.partition("examples:")[2]

    def test_the_examples_of_pretrain_name_real_options(self, capsys):
        main(["pretrain", "stc", "--help"])
        options, examples = capsys.readouterr().out.split("examples:")
        for flag in re.findall(r"--[\w.]+", examples):
            assert re.search(rf"^\s+{re.escape(flag)}\b", options, re.M), flag

    def test_preset_decides_the_defaults_that_help_shows(self, capsys):
        main(["pretrain", "stc", "--preset", "legacy", "--help"])
        assert re.search(r"--system.momentum MOMENTUM\s+\(type: float, default: 0.999\)", capsys.readouterr().out)


@pytest.mark.usefixtures("no_pictures")
class TestPretrain:
    def test_run_folder(self, pretrained):
        assert {entry.name for entry in pretrained.iterdir()} == RUN_FILES
        values = yaml.safe_load((pretrained / "config.yaml").read_text())
        assert values["name"] == "tiny" and values["system"]["dim"] == 8 and values["train"]["seed"] == 0
        results = json.loads((pretrained / "results.json").read_text())
        assert results["step"] == 12 and results["last"]["step"] == 12

    def test_preset_file_and_flags_in_this_order(self, tmp_path, capsys):
        file = tmp_path / "mine.yaml"
        file.write_text(
            "data: synthetic\npreset: paper\nsystem:\n  learning_rate: 0.5\n  epochs: 2\ntrain: {seed: 4}\n"
        )
        run = tmp_path / "run"
        assert main(["pretrain", "tiny", "--config", str(file), "--run", str(run), "--system.epochs", "1"]) == 0
        values = yaml.safe_load((run / "config.yaml").read_text())
        assert values["system"]["dim"] == 16  # preset
        assert values["system"]["learning_rate"] == 0.5 and values["train"]["seed"] == 4  # file
        assert values["system"]["epochs"] == 1  # flag

    def test_its_config_makes_the_same_run_again(self, pretrained, tmp_path):
        again = tmp_path / "again"
        assert main(["pretrain", "tiny", "--config", str(pretrained / "config.yaml"), "--run", str(again)]) == 0
        first, second = (load_file(run / "model" / "model.safetensors") for run in (pretrained, again))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_json(self, tmp_path, capsys):
        run = tmp_path / "run"
        assert main(["pretrain", "tiny", "--data", "synthetic", "--run", str(run), "--json"]) == 0
        captured = capsys.readouterr()
        result = json.loads(captured.out)
        assert (result["step"], result["steps"], result["stopped_by"], result["clips"]) == (12, 12, None, 36)
        assert result["last"]["loss"] > 0 and "done: 12 steps" in captured.err

    def test_an_existing_folder(self, pretrained, capsys):
        (pretrained / "notes.txt").write_text("mine")
        argv = ["pretrain", "tiny", "--data", "synthetic", "--run", str(pretrained)]
        before = (pretrained / "checkpoint.safetensors").read_bytes()
        assert main(argv) == 2
        expected = f"{pretrained} exists and is not empty; choose another --run, or use --resume or --overwrite\n"
        assert complaint(capsys) == f"slrfast: {expected}"
        assert (pretrained / "checkpoint.safetensors").read_bytes() == before
        assert main([*argv, "--system.epochs", "1", "--overwrite"]) == 0
        assert len((pretrained / "metrics.jsonl").read_text().splitlines()) == 4
        assert (pretrained / "notes.txt").read_text() == "mine"

    def test_a_failed_start_leaves_no_folder_behind(self, tmp_path, capsys):
        run = tmp_path / "run"
        assert main(["pretrain", "tiny", "--data", str(tmp_path / "nowhere"), "--run", str(run)]) == 2
        assert "there is no such file or folder" in complaint(capsys)
        assert not run.exists()

    def test_skipped_files_are_counted_and_listed(self, tmp_path, capsys, signs):
        poses, run = tmp_path / "poses", tmp_path / "run"
        signs.save(poses, "npz")
        (poses / "broken.npz").write_bytes(b"PK")
        assert main(["pretrain", "tiny", "--data", str(poses), "--run", str(run), "--system.epochs", "1"]) == 0
        assert "skipped 1 unusable files" in capsys.readouterr().out
        assert (run / "skipped.txt").read_text().startswith("broken.npz: ")

    def test_resume_of_a_finished_run_changes_nothing(self, pretrained, capsys):
        before = load_file(pretrained / "checkpoint.safetensors")
        assert main(["pretrain", "tiny", "--resume", str(pretrained)]) == 0
        after = load_file(pretrained / "checkpoint.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_resume_can_add_epochs(self, pretrained):
        assert main(["pretrain", "tiny", "--resume", str(pretrained), "--system.epochs", "4"]) == 0
        assert json.loads((pretrained / "results.json").read_text())["steps"] == 16


@pytest.mark.usefixtures("no_pictures")
class TestWrongInput:
    @pytest.mark.parametrize(
        ("argv", "sentence"),
        [
            (
                "dance",
                "'dance' is no command; there are demo, pretrain, evaluate, bench, embed, extract, finetune, "
                "fit-flow, info, pack, search, view",
            ),
            ("pretrain stcc", "'stcc' is no system; there are ccl, masa, slp, stc, tiny"),
            ("pretrain tiny", "the following arguments are required: data"),
            (f"{TINY} --sistem 1", "unrecognized arguments: --sistem 1"),
            (f"{STC} --system.learning_rate fast", "Got value: fast"),
            (f"{STC} --system.neighbors 99999", "STCConfig: neighbors must be in"),
            (f"{STC} --preprocess.min_visible 22", "PreprocessOptions: min_visible must be in [1, 21], got 22"),
            (f"{TINY} --preset huge", "--preset must be one of paper, legacy, small, got 'huge'"),
            (f"{TINY} --train.workers -1", "train: workers must be in [0, 1024], got -1"),
            (f"{TINY} --train.device cuda:77", "device 'cuda:77' was asked for, but this machine has"),
            (f"{TINY} --config no.yaml", "no.yaml"),
            (f"{TINY} --system.batch_size 99", "36 usable clips, fewer than one batch of 99"),
            ("pretrain tiny --resume nowhere", "nowhere is not a run folder: it has no config.yaml"),
            ("evaluate --run nowhere", "nowhere is not a run folder: it has no config.yaml"),
            ("evaluate", "the following arguments are required: run"),
            (f"{TINY} --train.device mps", "'mps' is no device; use auto, cpu, cuda or cuda:<number>"),
            (f"{TINY} --system.batch_size 0", "pretrain: batch_size must be in"),
            (f"{TINY} --system.epochs 0", "pretrain: epochs must be in"),
            (f"{TINY} --system.dim -3", "tiny cannot be built with these --system options"),
            (f"{TINY} --run {'x' * 300}", "x: cannot be used (File name too long)"),
            (f"{TINY} --run bad\udcff", "--run must be valid UTF-8"),
            (f"{TINY} --preprocess.size [0,0]", "the image size must be two whole numbers"),
            (
                f"{TINY} --preprocess.size 0x480",
                "two whole numbers (width, height), got (0, 480)",
            ),
            (
                f"{TINY} --preprocess.size=640,0",
                "two whole numbers (width, height), got (640, 0)",
            ),
            ("pretrain tiny --data=", "--data is empty"),
            ("demo --synthetic --folds 1", "--folds must be at least 2"),
            ("demo --synthetic --minutes 0", "--minutes, --epochs and --votes must be positive"),
        ],
    )
    def test_one_sentence_and_exit_code_2(self, capsys, tmp_path, monkeypatch, argv, sentence):
        monkeypatch.chdir(tmp_path)
        assert main(argv.split()) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("slrfast: ") and sentence in lines[-1] and not any("Traceback" in x for x in lines)

    def test_a_config_of_another_system(self, pretrained, tmp_path, capsys):
        file = str(pretrained / "config.yaml")
        assert main(["pretrain", "stc", "--config", file, "--run", str(tmp_path / "other")]) == 2
        assert "Got value: tiny" in complaint(capsys)

    def test_a_broken_config_of_a_run(self, pretrained, capsys):
        (pretrained / "config.yaml").write_text("- a\n- b\n")
        assert main(["pretrain", "tiny", "--resume", str(pretrained)]) == 2
        assert "must hold a mapping of options, got list" in complaint(capsys)

    def test_resume_and_run_together(self, pretrained, capsys):
        assert main(["pretrain", "tiny", "--resume", str(pretrained), "--run", "x"]) == 2
        assert "leave out --run and --overwrite" in complaint(capsys)

    def test_resume_with_another_model(self, pretrained, capsys):
        assert main(["pretrain", "tiny", "--resume", str(pretrained), "--system.dim", "5"]) == 2
        err = capsys.readouterr().err
        assert "is of another configuration than this run" in err and "Traceback" not in err

    def test_resume_with_another_batch_size(self, pretrained, capsys):
        assert main(["pretrain", "tiny", "--resume", str(pretrained), "--system.batch_size", "4"]) == 2
        assert "the run had batch_size 8 and cannot go on with 4" in capsys.readouterr().err

    def test_the_run_is_a_file(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert main(["pretrain", "tiny", "--data", "synthetic", "--run", str(tmp_path / "file")]) == 2
        assert "is a file, not a folder" in complaint(capsys)

    def test_an_unexpected_error_keeps_its_traceback(self, tmp_path, monkeypatch):
        monkeypatch.setattr("slrfast.train.cli.build_system", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["pretrain", "tiny", "--data", "synthetic", "--run", str(tmp_path / "run")])

    def test_a_refused_resume_leaves_the_run_as_it_was(self, pretrained, capsys):
        before = (pretrained / "config.yaml").read_text()
        assert main(["pretrain", "tiny", "--resume", str(pretrained), "--system.dim", "5"]) == 2
        assert (pretrained / "config.yaml").read_text() == before
        assert main(["pretrain", "tiny", "--resume", str(pretrained)]) == 0

    @pytest.mark.parametrize("flags", ["--system.batch_size 99", "--train.device cuda:77", "--system.dim -3"])
    def test_what_cannot_start_makes_no_folder(self, tmp_path, capsys, flags):
        run = tmp_path / "run"
        assert main([*TINY.split(), "--run", str(run), *flags.split()]) == 2
        assert not run.exists()

    def test_the_parent_of_the_run_is_a_file(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert main([*TINY.split(), "--run", str(tmp_path / "file" / "run")]) == 2
        assert "the run folder cannot be made (Not a directory)" in complaint(capsys)

    @pytest.mark.parametrize("flag", ["--resume", "--overwrite --run"])
    def test_two_processes_in_one_folder(self, pretrained, capsys, flag):
        argv = ["pretrain", "tiny", *flag.split(), str(pretrained), "--data", "synthetic"]
        before = (pretrained / "checkpoint.safetensors").read_bytes()
        with RunFolder(pretrained).locked():
            assert main(argv) == 2
        assert "another process is training in this folder" in complaint(capsys)
        assert (pretrained / "checkpoint.safetensors").read_bytes() == before
        assert main(argv) == 0

    @pytest.mark.parametrize("change", [{"step": -5}, {"step": "x"}, {"seconds": None}, {"clips": None}])
    def test_resume_of_impossible_progress(self, pretrained, capsys, change):
        path = pretrained / "checkpoint.safetensors"
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["slrfast"])
        header["progress"].update(change)
        save_file(load_file(path), path, metadata={"slrfast": json.dumps(header)})
        assert main(["pretrain", "tiny", "--resume", str(pretrained)]) == 2
        assert "checkpoint.safetensors: " in complaint(capsys)

    @pytest.mark.parametrize("lines", ["", '{"a": 1}\n[1]\n3\n{"step": "x"}\n', "\ufffe\x00"])
    def test_resume_with_a_damaged_log(self, pretrained, lines):
        (pretrained / "metrics.jsonl").write_text(lines, encoding="utf-16")
        assert main(["pretrain", "tiny", "--resume", str(pretrained)]) == 0

    @pytest.mark.parametrize(
        "text", ["[" * 20_000, "train: [1]\ndata: synthetic\n", "preprocess: [1]\ndata: synthetic\n"]
    )
    def test_a_config_of_the_wrong_shape(self, tmp_path, capsys, text):
        (tmp_path / "c.yaml").write_text(text)
        assert main(["pretrain", "tiny", "--config", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run")]) == 2
        complaint(capsys)

    def test_names_that_no_terminal_shows(self, tmp_path, capsys, signs):
        poses, run = tmp_path / "poses", tmp_path / "run"
        signs.save(poses, "npz")
        Path(f"{poses}/bad\udcff\n\x1b[31m.npz").write_bytes(b"PK")
        assert main(["pretrain", "tiny", "--data", str(poses), "--run", str(run), "--system.epochs", "1"]) == 0
        assert (run / "skipped.txt").read_text().startswith("bad\\udcff\\n\\x1b[31m.npz: ")

    def test_divergence_has_its_own_code(self, tmp_path, capsys):
        argv = ["pretrain", "tiny", "--data", "synthetic", "--run", str(tmp_path / "run"), "--system.nan_at", "2"]
        assert main(argv) == 3
        assert "step 2 (epoch 0.25): contrast is nan; the last good state is kept in" in capsys.readouterr().err

    def test_full_disk(self, tmp_path, capsys):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            code = main(["pretrain", "tiny", "--data", "synthetic", "--run", str(tmp_path / "run")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert code == 2 and "checkpoint.safetensors: cannot be written" in capsys.readouterr().err
        assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["config.yaml"]


class TestEvaluate:
    def test_table_and_file(self, pretrained, capsys):
        assert main(["evaluate", "--run", str(pretrained), "--folds", "2", "--votes", "3"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"^network +classifier +top-1 +top-5 +top-1/class +top-5/class +mean rank$", out, re.M)
        assert len(re.findall(r"^(?:pre-trained|untrained) +(?:kNN|linear probe) +\d", out, re.M)) == 4
        assert re.search(r"^chance +25\.0 +100\.0 +25\.0", out, re.M)
        assert "Pre-training drew on the same clips without labels" in out
        results = json.loads((pretrained / "evaluation.json").read_text())
        assert results["folds"] == 2 and results["held_out"] == "groups" and len(results["rows"]) == 5
        assert (pretrained / "evaluation.png").stat().st_size > 10_000

    def test_json(self, pretrained, capsys):
        assert main(["evaluate", "--run", str(pretrained), "--json"]) == 0
        results = json.loads(capsys.readouterr().out)
        assert {row["network"] for row in results["rows"]} == {"pre-trained", "untrained", "chance"}

    def test_clips_that_do_not_say_how_large_their_images_are(self, pretrained, capsys, tmp_path):
        signs = SyntheticSigns(2, 4, 2)
        for i, clip in enumerate(signs.clips):
            pose = signs.pose(i)
            frames = [
                {"frame_id": t + 1, "instances": [{"keypoints": xy[0].tolist(), "keypoint_scores": c[0].tolist()}]}
                for t, (xy, c) in enumerate(zip(pose.xy, pose.confidence, strict=True))
            ]
            path = tmp_path / "labelled" / signs.class_names[clip.label] / f"{i}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"meta_info": {}, "instance_info": frames}))
        argv = ["evaluate", "--run", str(pretrained), "--data", str(tmp_path / "labelled"), "--folds", "2"]
        assert main(argv) == 2
        assert "(evaluate: --size)" in capsys.readouterr().err
        assert main([*argv, "--size", "640x480"]) == 0
        assert json.loads((pretrained / "evaluation.json").read_text())["clips"] == 8

    def test_the_config_of_something_else(self, pretrained, capsys):
        (pretrained / "config.yaml").write_text("name: tiny\n")
        assert main(["evaluate", "--run", str(pretrained)]) == 2
        assert "config.yaml: has no 'system', so it is not the config of a run" in complaint(capsys)

    @pytest.mark.parametrize(
        ("key", "value", "sentence"),
        [
            ("name", ["tiny"], "['tiny'] is no system; there are"),
            ("system", "small", "'system' must be a mapping of options, got str"),
            ("system", {"dim": "wide"}, "tiny cannot be built"),
            ("train", None, "'train' must be a mapping of options, got NoneType"),
            ("train", {"seed": "x"}, "seed must be an integer"),
            ("data", 3, "'data' must be a text, got int"),
            ("preprocess", [1], "'preprocess' must be a mapping of options, got list"),
            ("preprocess", {"hand_threshold": "q"}, "hand_threshold must be a number, got str"),
            ("preprocess", {"size": "q"}, "the image size must be two whole numbers"),
        ],
    )
    def test_an_edited_config(self, pretrained, capsys, key, value, sentence):
        values = yaml.safe_load((pretrained / "config.yaml").read_text())
        (pretrained / "config.yaml").write_text(yaml.safe_dump({**values, key: value}))
        assert main(["evaluate", "--run", str(pretrained)]) == 2
        assert sentence in complaint(capsys)

    def test_an_unfinished_run(self, pretrained, capsys):
        for file in (pretrained / "model").iterdir():
            file.unlink()
        (pretrained / "model").rmdir()
        assert main(["evaluate", "--run", str(pretrained)]) == 2
        assert "so there is no finished tiny run in" in complaint(capsys)


DRIVER = """
import runpy, sys
tests = runpy.run_path(sys.argv.pop(1))
from slrfast.systems import SYSTEMS
from slrfast.train import config
from slrfast.systems import SYSTEMS
from slrfast.train import config
from slrfast.train.cli import main
SYSTEMS["tiny"] = tests["Tiny"]
signs = tests["SyntheticSigns"](num_classes=4, clips_per_class=9, num_signers=4)
config.SyntheticSigns = lambda **_: signs
sys.exit(main())
"""


def start(*argv):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, CONFTEST, *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_ctrl_c_saves_says_how_to_go_on_and_loses_nothing(tmp_path, tiny, signs):
    run = tmp_path / "my run"
    command = [
        "pretrain",
        "tiny",
        "--data",
        "synthetic",
        "--preset",
        "small",
        "--run",
        str(run),
        "--train.workers",
        "1",
    ]
    process = start(*command, "--system.epochs", "100000")
    try:
        deadline = time.monotonic() + 120
        while not ((run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) > 5):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err
    stop = re.search(r"stopped by SIGINT after step (\d+) of 400000, all saved; go on with:\n  (.+)\n", out)
    assert stop and stop[2] == f"slrfast pretrain tiny --resume '{run}'"
    epochs = int(stop[1]) // 4 + 2

    process = start("pretrain", "tiny", "--resume", str(run), "--system.epochs", str(epochs))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    whole = RunFolder(tmp_path / "whole").create()
    pretrain(tiny(epochs=epochs), signs, TrainConfig(), whole, progress=False)
    first, second = load_file(run / "checkpoint.safetensors"), load_file(whole.checkpoint)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in second)


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "slrfast.train.cli", "dance"], capture_output=True, text=True)
    known = "there are demo, pretrain, evaluate, bench, embed, extract, finetune, fit-flow, info, pack, search, view"
    assert done.returncode == 2 and done.stderr.strip().endswith(known)


def test_lists_of_a_config_file_become_tuples():
    assert config.system_config("tiny", {"milestones": [1, 2]}).milestones == (1, 2)


def test_a_reader_that_goes_away():
    done = subprocess.run(
        f"{sys.executable} -m slrfast.train.cli info | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 141) and "Traceback" not in done.stderr


@pytest.mark.parametrize("variable", ["SLRFAST_BACKEND", "SLRFAST_CPU_ISA"])
def test_a_variable_that_names_no_kernels(variable):
    if variable == "SLRFAST_CPU_ISA" and native.LIBRARY is None:
        pytest.skip("there is no compiled module")

    def done(*words):  # in a process of its own, which chooses its instruction set once
        command = [sys.executable, "-m", "slrfast.train.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, variable: "fastest"})

    refused = done("evaluate", "--run", "nothing")
    assert refused.returncode == 2 and refused.stdout == ""
    assert re.fullmatch(rf"slrfast: {variable}\b.* must be one of .*, got 'fastest'\n", refused.stderr)
    assert done("info").returncode == 0  # which shows it
