"""``slrfast extract`` on fake videos and fake detectors; tests/data/extract has the detectors themselves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from slrfast.data import PoseDataset, load_pose
from slrfast.data.extract import ExtractionError, Extractor
from slrfast.train.config import RunError
from slrfast.train.extract import extract

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "extract"))
from fake_detectors import install, video  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of fake videos in two classes, with every detector installed."""
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "modules")))
    for name in ("videos/a/one.mp4", "videos/a/two.MOV", "videos/b/one.mp4"):
        video(tmp_path / name, frames=7)
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    video(tmp_path / "videos" / ".hidden" / "no.mp4")
    return tmp_path


def run(folder, *more, videos="videos", out="poses"):
    return extract([str(folder / videos), "--out", str(folder / out), *more])


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("form", ["npz", "json"])
def test_a_folder_of_videos_becomes_a_data_set(folder, form, capsys):
    assert run(folder, "--format", form) == 0
    stems = ("a/one", "a/two", "b/one")
    assert names(folder / "poses") == sorted(f"{stem}.{end}" for stem in stems for end in (form, "png"))
    pose = load_pose(folder / "poses" / "a" / f"two.{form}")
    assert pose.xy.shape == (7, 2, 133, 2) and pose.size == (640, 480) and pose.fps == 25
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "extract: 3 videos to go, 0 there already; rtmlib 9.9, onnxruntime 8.8"
    assert said[-1].startswith("done: 3 videos, 21 frames in ") and said[-1].endswith(
        f"; 0 were there already, 0 failed; pose files are in {folder / 'poses'}"
    )
    data = PoseDataset(folder / "poses")
    assert data.class_names == ["a", "b"] and data.labels == [0, 0, 1]
    assert "3 files show several people" in data.notes[0]


def test_the_picture_shows_the_skeleton_over_the_frames(folder):
    assert run(folder) == 0
    picture = matplotlib.image.imread(folder / "poses" / "a" / "one.png")[..., :3]
    height, width = picture.shape[:2]
    assert width == 1600 and height > 300
    dark = (picture.max(-1) < 0.1).mean()
    assert 0.5 < dark < 0.999  # frames are black, and something is drawn on them
    yellow = (abs(picture - (1, 0.82, 0.25)).max(-1) < 0.2).any(0)
    assert all(part.any() for part in np.array_split(yellow, 4))
    assert run(folder, "--preview", "false", out="plain") == 0
    assert names(folder / "plain") == ["a/one.npz", "a/two.npz", "b/one.npz"]


def test_what_is_there_is_left_alone(folder, capsys):
    run(folder)
    target = folder / "poses" / "a" / "one.npz"
    target.write_bytes(b"mine")
    (folder / "poses" / "b" / "one.npz").unlink()
    assert run(folder) == 0
    assert target.read_bytes() == b"mine" and load_pose(folder / "poses" / "b" / "one.npz").num_frames == 7
    assert "done: 1 videos, 7 frames" in (text := capsys.readouterr().out) and "; 2 were there already" in text
    assert run(folder, "--python", "/bin/false") == 0  # nothing to do, so nothing is started
    assert "done: 0 videos, 0 frames" in capsys.readouterr().out
    assert run(folder, "--overwrite") == 0
    assert load_pose(target).num_frames == 7


def test_an_interrupted_run_goes_on(folder, monkeypatch, capsys):
    read, calls = Extractor.read, []

    def interrupted(self, path, on_frame=None):
        calls.append(path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(self, path, on_frame)

    monkeypatch.setattr(Extractor, "read", interrupted)
    assert run(folder) == 130
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("interrupted: 1 videos, 7 frames")
    assert said[-1] == "the same command goes on where this one stopped"
    assert names(folder / "poses") == ["a/one.npz", "a/one.png"]
    assert run(folder) == 0
    assert len(names(folder / "poses")) == 6 and len(calls) == 4


def test_bad_videos_are_named_and_do_not_stop_the_others(folder, capsys):
    (folder / "videos" / "a" / "empty.mp4").write_bytes(b"")
    video(folder / "videos" / "b" / "crash.mp4", event="crash")
    video(folder / "videos" / "b" / "short.mp4", frames=2, claimed=50)
    (folder / "videos" / "leads-out.mp4").symlink_to(folder / "modules" / "cv2.py")
    (folder / "videos" / "circle.mp4").symlink_to(folder / "videos" / "circle.mp4")
    bad = folder / "videos" / os.fsdecode(b"\xff\x1b[31m.mp4")
    bad.write_bytes(b"junk")
    assert run(folder, "--json") == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    assert (results["videos"], results["there"], results["interrupted"]) == (4, 0, False)
    reasons = {Path(name).name: reason for name, reason in results["failed"]}
    assert reasons == {
        "empty.mp4": "is empty",
        "crash.mp4": "the detector's process ended by signal 11 (this goes to stderr)",
        "leads-out.mp4": "is a symbolic link that leads out of the folder or nowhere",
        "circle.mp4": "is a symbolic link that leads out of the folder or nowhere",
        bad.name: "cannot be decoded as a video",
    }
    lines = captured.err.splitlines()
    assert f"failed: {folder}/videos/\\udcff\\x1b[31m.mp4: cannot be decoded as a video" in captured.err
    assert f"warning: {folder}/videos/b/short.mp4: only 2 of 50 frames could be decoded" in lines


def test_a_video_that_hangs_is_named_and_the_others_are_read(folder, capsys):
    video(folder / "videos" / "a" / "hang.mp4", event="hang")
    assert run(folder, "--timeout", "2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    reason = "the decoder or detector hangs after frame 1: nothing came from it for 2 s (--timeout)"
    assert told["failed"] == [[f"{folder}/videos/a/hang.mp4", reason]] and told["videos"] == 3
    for wrong in ("-1", "1e9"):
        with pytest.raises(RunError, match="--timeout must be 0 or more seconds"):
            run(folder, f"--timeout={wrong}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.mp4"], "none.mp4: there is no such file or folder"),
        (["modules"], "modules: there are no videos in this folder"),
        (
            ["videos/a/one.mp4", "videos/b/one.mp4"],
            "videos/a/one.mp4 and videos/b/one.mp4 would both give poses/one.npz; extract them into two folders",
        ),
        (["junk.mp4"], "none of the 1 videos could be used; the first, junk.mp4: cannot be decoded as a video"),
    ],
)
def test_wrong_input_is_one_sentence(folder, monkeypatch, arguments, sentence):
    monkeypatch.chdir(folder)
    (folder / "junk.mp4").write_bytes(b"junk")
    with pytest.raises(RunError) as raised:
        extract([*arguments, "--out", "poses"])
    assert str(raised.value).startswith(sentence)


def test_options(folder, tmp_path):
    for arguments, sentence in {
        ("--backend", "openpose"): "backend",
        ("--format", "csv"): "format",
        ("--mode", "tiny"): "mode",
    }.items():
        with pytest.raises(RunError, match=sentence):
            run(folder, *arguments)
    with pytest.raises(RunError, match="out"):
        extract([str(folder / "videos")])
    with pytest.raises(ExtractionError, match="--pose none.onnx: there is no such file"):
        run(folder, "--pose", "none.onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="this folder cannot be made"):
        run(folder, out="file")
    clip = str(folder / "videos" / "a" / "one.mp4")
    assert extract([clip, clip, "--out", str(folder / "one")]) == 0  # the same video twice is one video
    assert names(folder / "one") == ["one.npz", "one.png"]


def test_ctrl_c_ends_the_detector_too(folder):
    video(folder / "videos" / "a" / "long.mp4", frames=200_000)
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have ignored it
        "from slrfast.train.extract import extract; sys.exit(extract(sys.argv[1:]))"
    )
    path = os.pathsep.join((str(folder / "modules"), *filter(None, sys.path)))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "videos"), "--out", str(folder / "poses")],
        env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("extract: 4 videos"):
            break
    time.sleep(0.1)  # into the long video
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on where this one stopped" in out
    if (folder / "poses").exists():  # nothing is left of the video that was interrupted
        assert [name for name in names(folder / "poses") if "long" in name or not name.endswith((".npz", ".png"))] == []
