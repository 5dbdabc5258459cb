"""Pictures for CCL-SLR and texts for SLP, from the command line."""

import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from slrfast.data import PreprocessOptions, SyntheticSigns
from slrfast.data.text import tiny_text_encoder
from slrfast.systems import SYSTEMS
from slrfast.train.cli import main
from slrfast.train.inputs import cache_folder

CCL = "--preset small --videos rendered --flow identity --system.frames 4 --system.image_size 16 --system.rgb_width 2"
SLP = "--preset small --captions glosses --text_encoder tiny --system.layers 1"
FLAGS = {"ccl": CCL, "slp": SLP}
SHORT = "--system.batch_size 12 --system.epochs 1"


@pytest.fixture(scope="module")
def poses(tmp_path_factory, signs):
    folder = tmp_path_factory.mktemp("inputs") / "poses"
    signs.save(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLRFAST_CACHE", str(tmp_path / "cache"))


def run(name, poses, folder, *flags):
    return main(
        ["pretrain", name, "--data", str(poses), *FLAGS[name].split(), *SHORT.split(), "--run", str(folder), *flags]
    )


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "terms", "width"), [
    ("ccl", {"rgb/contrast", "pose/mining", "rgb_to_pose"}, 64 + 128), ("slp", {"reconstruction", "contrast"}, 128),
])  # fmt: skip
def test_pretrained_stopped_resumed_and_evaluated(name, terms, width, poses, tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(name, poses, whole) == 0
    assert terms <= records(whole)[-1].keys() and (whole / "rgb.png").exists() == (name == "ccl")
    step, calls = SYSTEMS[name].training_step, []

    def interrupted(self, batch, generator=None):
        calls.append(batch)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, generator)

    monkeypatch.setattr(SYSTEMS[name], "training_step", interrupted)
    assert run(name, poses, parts) == 130
    assert main(["pretrain", name, "--resume", str(parts)]) == 0
    one, two = (load_file(folder / "checkpoint.safetensors") for folder in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert (calls[0].rgb is None) == (name == "slp") and (calls[0].tokens is None) == (name == "ccl")
    capsys.readouterr()
    assert main(["evaluate", "--run", str(whole), "--folds", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 36
    system = SYSTEMS[name].from_pretrained(whole)
    assert system.encode(calls[0]).shape == (12, width)


def test_pictures_of_videos(poses, tmp_path, capsys):
    av = pytest.importorskip("av")
    for path in sorted(poses.rglob("*.npz"))[:-1]:
        video = (tmp_path / "videos" / path.relative_to(poses)).with_suffix(".mp4")
        video.parent.mkdir(parents=True, exist_ok=True)
        with np.load(path) as arrays:
            frames = len(next(iter(arrays.values())))
        with av.open(str(video), "w") as file:
            stream = file.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
            for t in range(frames):
                picture = np.full((32, 32, 3), 4 * t % 255, np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
    folder = tmp_path / "run"
    flags = ["--videos", str(tmp_path / "videos"), "--system.mask_probability", "0"]
    assert run("ccl", poses, folder, *flags) == 0
    said = capsys.readouterr().out
    assert "35 clips" in said and "there is no video of this name" in said


def test_what_is_missing_is_named(poses, tmp_path, capsys):
    for name, flags, sentence in (
        ("ccl", "", "--videos must name the folder of the clips' videos, or 'rendered'"),
        ("ccl", "--videos rendered", "--flow must name what slrfast fit-flow wrote, or 'identity'"),
        ("ccl", "--videos nowhere --flow identity", "nowhere"),
        ("ccl", "--videos rendered --flow nowhere", "nowhere"),
        ("ccl", "--preset legacy", "--preset must be one of paper, small, got 'legacy'"),
        ("ccl", "--preprocess.layout 49", "ccl takes clips of 75 keypoints, these have 49; use --preprocess.layout 75"),
        ("slp", "--text_encoder tiny", "--captions is needed; or reconstruct poses alone"),
        ("slp", "--captions glosses", "--text_encoder is needed; or reconstruct poses alone"),
        ("slp", "--captions glosses --text_encoder nowhere", "nowhere"),
        ("slp", "--captions glosses --text_encoder tiny --language xx", "'xx'"),
        ("slp", "--captions nowhere.csv --text_encoder tiny", "nowhere.csv"),
        ("stc", "--videos rendered", "--videos"),
        ("stc", "--preprocess.layout 75", "stc takes clips of 49 keypoints, these have 75; use --preprocess.layout 49"),
    ):
        preset = [] if "--preset" in flags else ["--preset", "small"]
        command = ["pretrain", name, "--data", str(poses), *flags.split(), *preset, "--run", str(tmp_path / "run")]
        assert main(command) == 2, flags
        error = capsys.readouterr().err
        last = error.strip().splitlines()[-1]
        assert last.startswith("slrfast: ") and sentence in last and "Traceback" not in error, error
        assert not (tmp_path / "run").exists()


def test_poses_alone_need_neither(poses, tmp_path, capsys):
    flags = {"ccl": ["--system.modalities", "[pose]"], "slp": ["--system.tasks", "[reconstruction]"]}
    for name, own in flags.items():
        command = ["pretrain", name, "--data", str(poses), "--preset", "small", *SHORT.split(), *own]
        assert main([*command, "--run", str(tmp_path / name)]) == 0


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    assert cache_folder("masks") == tmp_path / "cache" / "masks"
    monkeypatch.delenv("SLRFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("a", "b") == tmp_path / "slrfast" / "a" / "b"


def test_a_demo_is_evaluated_on_its_own_clips(tmp_path, monkeypatch, capsys):
    small = "--system.frames 2 --system.image_size 16 --system.rgb_width 2 --system.batch_size 8"
    clips = SyntheticSigns(3, 6, 3, options=PreprocessOptions(layout=75))
    for module in ("demo", "evaluate"):
        monkeypatch.setattr(f"slrfast.train.{module}.open_dataset", lambda *_, **__: clips)
    run = ["--run", str(tmp_path / "run")]
    assert main(["demo", "--system", "ccl", "--synthetic", "--epochs", "1", *small.split(), *run]) == 0
    assert main(["evaluate", "--folds", "2", *run]) == 0, capsys.readouterr().err


def test_paths_of_inputs_are_kept_whole(poses, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [f"{path.relative_to(poses).with_suffix('')},ein Satz,de" for path in sorted(poses.rglob("*.npz"))]
    (tmp_path / "captions.csv").write_text("\n".join(["name,text,language", *lines]))
    assert run("slp", poses, tmp_path / "run", "--captions", "captions.csv") == 0
    monkeypatch.chdir(poses)
    assert main(["pretrain", "slp", "--resume", str(tmp_path / "run")]) == 0, capsys.readouterr().err


def test_texts_that_cannot_be_used_are_named(poses, tmp_path, capsys):
    tiny_text_encoder(tmp_path / "wide", ["a sentence of words"], dim=64)
    (tmp_path / "empty.csv").write_text("name,text\nsign00/000,\n")
    for flags, sentence in (
        (["--text_encoder", str(tmp_path / "wide")], "use --system.text_dim 64"),
        (["--captions", str(tmp_path / "empty.csv")], "every text is empty"),
        (["--captions", ""], "--captions is needed"),
    ):
        assert run("slp", poses, tmp_path / "run", *flags) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_examples_name_the_inputs(capsys):
    for name, wanted in (("ccl", ("videos", "flow")), ("slp", ("captions", "text_encoder"))):
        main(["pretrain", name, "--help"])
        shown = capsys.readouterr().out
        assert all(f"--{option}" in shown.split("examples:")[1] for option in wanted)


def test_resumed_with_the_same_texts_only(poses, tmp_path, capsys):
    captions, folder = tmp_path / "captions.csv", tmp_path / "run"
    captions.write_text("name,text\nsign00/000,one house\nsign01/000,a tree\n")
    flags = ["--captions", str(captions), "--language", "en_XX", "--train.precision", "bf16"]
    assert run("slp", poses, folder, *flags) == 0
    captions.write_text("name,text\nsign00/000,a tree\nsign01/000,one house\n")  # the same words, so the same encoder
    assert main(["pretrain", "slp", "--resume", str(folder)]) == 2
    assert "the run had texts " in capsys.readouterr().err.splitlines()[-1]
