"""Detectors in processes of their own: what they give, and what is said when they do not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_detectors import install, video

from slrfast import graphs
from slrfast.data import holistic
from slrfast.data.extract import ExtractionError, Extractor
from slrfast.errors import PoseFileError


@pytest.fixture
def detectors(tmp_path, monkeypatch):
    """Makes the named fakes, all by default, importable for workers."""

    def make(*names):
        monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "modules", *names)))

    make()
    return make


@pytest.mark.parametrize("backend", ["rtmlib", "mmpose"])
def test_whole_body_models_give_their_keypoints(tmp_path, detectors, backend):
    clip = video(tmp_path / "clip.mp4", frames=30, size=(1000, 500))
    seen = []
    with Extractor(backend) as extractor:
        found = extractor.read(clip, lambda *counts: seen.append(counts))
        again = extractor.read(clip)
    pose = found.pose
    assert pose.xy.shape == (30, 2, 133, 2) and (pose.size, pose.fps, pose.layout) == ((1000, 500), 25, "coco133")
    assert pose.path == str(clip) and found.expected == 30
    want = 100 * np.arange(2)[:, None] + np.arange(30)[:, None, None] + np.arange(133) / 1000
    np.testing.assert_allclose(pose.xy[..., 0], want, rtol=1e-6)
    second = 0.75 if backend == "rtmlib" else 0.5  # responses of 1.5 count 1
    assert (pose.confidence[:, 0] == 1).all() and (pose.confidence[:, 1] == second).all()
    assert seen[0] == (1, 30) and found.images.shape == (4, 240, 480, 3)
    assert found.image_frames.tolist() == sorted(found.image_frames.tolist()) and found.image_frames[0] == 0
    np.testing.assert_array_equal(again.pose.xy, pose.xy)
    assert "rtmlib" in extractor.versions or "mmpose" in extractor.versions


def test_mediapipe_gives_coco_wholebody_joint_by_joint(tmp_path, detectors):
    with Extractor("mediapipe") as extractor:
        pose = extractor.read(video(tmp_path / "clip.mp4", frames=2)).pose
    assert pose.layout == "coco133" and pose.num_people == 1
    landmark = np.round(1000 * (pose.xy[0, 0, :, 0] % 1)).astype(int)
    names = graphs.layout(133).names
    for i, name in enumerate(names):
        if name in holistic.BODY:
            assert landmark[i] == holistic.BODY.index(name) and pose.confidence[0, 0, i] == 0.75
        elif name.startswith("face_"):
            assert landmark[i] == 75 + holistic.FACE_MESH[int(name[5:])] and pose.confidence[0, 0, i] == 1
        elif "_hand_" in name:
            assert landmark[i] == 33 + holistic.HANDS.index(name) and pose.confidence[0, 0, i] == 1
        else:
            assert name in ("left_small_toe", "right_small_toe") and pose.confidence[0, 0, i] == 0
    left = graphs.layout(133).parts["left_hand"]
    assert not pose.confidence[1, 0, left].any() and not pose.xy[1, 0, left].any()  # lost, so missing


@pytest.mark.parametrize(
    ("frames", "event", "reason"),
    [
        (0, "", "has no frame that can be decoded"),
        (3, "nobody", "shows nobody in any of its 3 frames"),
        (3, "grow", "frame 1 has another size than the first"),
        (3, "crash", "the detector's process ended by signal 11 (this goes to stderr)"),
        (3, "raise", "the detector stopped with ValueError: a network that fails"),
    ],
)
def test_videos_that_give_nothing_are_named_and_the_next_one_is_read(tmp_path, detectors, frames, event, reason):
    with Extractor() as extractor:
        for _ in range(2):
            with pytest.raises(PoseFileError) as raised:
                extractor.read(video(tmp_path / "bad.mp4", frames, event=event))
            assert str(raised.value) == f"{tmp_path / 'bad.mp4'}: {reason}"
        assert extractor.read(video(tmp_path / "good.mp4")).pose.num_frames == 3


@pytest.mark.parametrize("event", ["hang", "stall"])
def test_what_hangs_is_ended_and_named_and_the_next_one_is_read(tmp_path, detectors, event):
    with Extractor(timeout=1) as extractor:
        assert extractor._process is not None
        process = extractor._process.pid
        with pytest.raises(PoseFileError) as raised:
            extractor.read(video(tmp_path / "bad.mp4", event=event))
        assert raised.value.reason == (
            "the decoder or detector hangs after frame 1: nothing came from it for 1 s (--timeout)"
        )
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
        extractor.timeout = 60
        assert extractor.read(video(tmp_path / "good.mp4")).pose.num_frames == 3


def test_a_detector_that_hangs_while_it_starts(detectors, monkeypatch):
    monkeypatch.setenv("FAKE", "hang")
    with pytest.raises(ExtractionError, match="^rtmlib hangs while it starts: nothing came from it for 1 s"):
        Extractor(timeout=1).__enter__()


def test_a_download_that_goes_on_is_no_hang(detectors, monkeypatch):
    monkeypatch.setenv("FAKE", "download")
    with Extractor(timeout=2.2) as extractor:  # of 2.8 s, with a line every 0.7 s
        assert extractor.versions


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), 1e12, "1"])
def test_time_limits_that_are_none(timeout):
    with pytest.raises((TypeError, ValueError), match="^Extractor: timeout must "):
        Extractor(timeout=timeout)


def _gone(pid):
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_a_detector_has_started_ends_with_it(tmp_path, detectors, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", str(tmp_path / "child"))
    with Extractor():
        child = int((tmp_path / "child").read_text())
        os.kill(child, 0)
    assert _gone(child)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_hanging_detector_ends_when_its_extractor_is_killed(tmp_path, detectors):
    clip = video(tmp_path / "clip.mp4", event="hang")
    code = (
        "import sys; from slrfast.data.extract import Extractor; extractor = Extractor().__enter__();"
        "print(extractor._process.pid, flush=True); extractor.read(sys.argv[1])"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(clip)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.kill()
    assert _gone(worker)


def test_files_that_are_no_videos(tmp_path, detectors):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    with Extractor() as extractor:
        for name, reason in {
            "empty.mp4": "is empty",
            "text.mp4": "cannot be decoded as a video",
            "folder.mp4": "is not a file",
            "pipe.mp4": "is not a file",
            "none.mp4": "cannot be opened: No such file or directory",
        }.items():
            with pytest.raises(PoseFileError) as raised:
                extractor.read(tmp_path / name)
            assert raised.value.reason == reason


def test_names_that_are_no_text_and_names_with_patterns(tmp_path, detectors):
    with Extractor() as extractor:
        for name in (b"\xff\xfe%03d.mp4", b"a?b&c=%d.mp4", b"line\nbreak.m\np4", "ö.mp4".encode()):
            path = tmp_path / os.fsdecode(name)
            video(path)
            assert extractor.read(path).pose.num_frames == 3


def test_models_of_ones_own(tmp_path, detectors):
    for name in ("det.onnx", "pose.onnx", "any.size"):
        (tmp_path / name).write_text("model")
    clip = video(tmp_path / "clip.mp4")
    with Extractor(det=str(tmp_path / "det.onnx"), pose=str(tmp_path / "pose.onnx")) as extractor:
        assert extractor.read(clip).pose.num_frames == 3
    with Extractor(det=str(tmp_path / "any.size"), pose=str(tmp_path / "any.size")) as extractor:
        assert extractor.read(clip).pose.num_frames == 3
    with Extractor("mmpose", pose="p.py", det="d.py", device="cpu") as extractor:
        assert extractor.read(clip).pose.num_frames == 3


def test_a_model_of_another_skeleton_is_refused(tmp_path, detectors, monkeypatch):
    monkeypatch.setenv("FAKE_KEYPOINTS", "17")
    with Extractor() as extractor, pytest.raises(PoseFileError) as raised:
        extractor.read(video(tmp_path / "clip.mp4"))
    assert raised.value.reason == "the model finds 17 keypoints, 133 are needed: take a whole-body model"


def refusal(*args, **kwargs):
    with pytest.raises(ExtractionError) as raised, Extractor(*args, **kwargs):
        raise AssertionError("it started")
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_being_offline_names_the_options(tmp_path, detectors, monkeypatch):
    monkeypatch.setenv("FAKE", "offline")
    assert refusal() == (
        "rtmlib cannot download its weights (URLError: <urlopen error no route to host>); "
        "give local ONNX files with --det and --pose"
    )
    (tmp_path / "model.onnx").write_text("model")
    local = str(tmp_path / "model.onnx")
    with Extractor(det=local, pose=local) as extractor:
        assert extractor.read(video(tmp_path / "clip.mp4")).pose.num_frames == 3
    (tmp_path / "broken.onnx").write_text("")
    assert refusal(det=str(tmp_path / "broken.onnx")) == "rtmlib cannot load its models (RuntimeError: no ONNX model)"


def test_a_backend_that_is_not_installed_says_how_to_get_it(detectors):
    detectors("cv2")
    here = sys.executable
    assert refusal("rtmlib") == (
        f"rtmlib cannot be used: {here} has no module rtmlib; {here} -m pip install rtmlib onnxruntime, "
        "or name another environment's Python with --python"
    )
    assert refusal("mediapipe") == (
        f"mediapipe cannot be used: {here} has no module mediapipe; it wants numpy < 2 and so an environment of its "
        "own: python3.11 -m venv mp && mp/bin/pip install mediapipe==0.10.21, then pass --python mp/bin/python"
    )
    text = refusal("mmpose")
    assert text.startswith(f"mmpose cannot be used: {here} has no module mmpose; its pins, mmcv < 2.2 and chumpy, ")
    for word in ("python3.10 -m venv mm", "mmcv==2.1.0", "--no-deps mmpose==1.3.2", "--python mm/bin/python"):
        assert word in text
    assert text.endswith("or run MMPose there yourself and hand its JSON to slrfast")
    detectors("rtmlib")
    assert "has no module cv2; " in refusal("rtmlib")


def test_a_mediapipe_without_its_models_is_as_good_as_none(tmp_path, detectors):
    path = tmp_path / "modules" / "mediapipe.py"
    path.write_text('__version__ = "0.11"\n')
    assert "has no module mediapipe.solutions; it wants numpy < 2" in refusal("mediapipe")


def test_what_is_no_python(tmp_path, detectors):
    none = tmp_path / "none"
    assert refusal(python=none) == f"--python {none}: cannot be run (No such file or directory)"
    assert refusal(python=tmp_path) == f"--python {tmp_path}: cannot be run (Permission denied)"
    assert refusal(python="/bin/false") == ("rtmlib does not start with /bin/false: its process ended with exit code 1")
    script = tmp_path / "chatty"
    script.write_text("#!/bin/sh\necho hello\necho '\x1b[31mbroken' >&2\nexit 7\n")
    script.chmod(0o755)
    assert refusal(python=script) == (
        f"rtmlib does not start with {script}: its process ended with exit code 7 (?[31mbroken)"
    )


def test_options_are_checked_first(tmp_path):
    assert refusal(pose="nowhere.onnx") == "--pose nowhere.onnx: there is no such file"
    assert refusal("mmpose", det_weights="nowhere.pth") == "--det_weights nowhere.pth: there is no such file"
    with pytest.raises(ValueError, match="Extractor: backend must be one of 'rtmlib', 'mmpose', 'mediapipe', got 'x'"):
        Extractor("x")
    with pytest.raises(ValueError, match="Extractor: mode must be one of 'lightweight'"):
        Extractor(mode="x")


def test_the_process_ends_with_its_extractor(tmp_path, detectors):
    with Extractor() as extractor:
        process, scratch = extractor._process, extractor._scratch.name
        extractor.read(video(tmp_path / "clip.mp4"))
        assert process.poll() is None
    assert process.poll() is not None and not os.path.exists(scratch)
    with pytest.raises(KeyboardInterrupt), Extractor() as extractor:
        process = extractor._process
        raise KeyboardInterrupt
    assert process.poll() is not None


def test_other_environments_do_not_see_this_ones_modules(tmp_path, detectors):
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    assert "cannot be used" in refusal(python=other)  # the fakes are on this environment's PYTHONPATH only


@pytest.fixture(scope="module")
def mediapipe_python():
    python = os.environ.get("SLRFAST_MEDIAPIPE_PYTHON")
    if not python:
        pytest.skip("SLRFAST_MEDIAPIPE_PYTHON is not set: the Python of an environment with mediapipe==0.10.21")
    return python


@pytest.mark.slow
def test_real_clips_through_mediapipe(shared_data, mediapipe_python):
    layout = graphs.layout(133)
    with Extractor("mediapipe", python=mediapipe_python) as extractor:
        for name in ("pose_test_video.mp4", "wlasl_01377_afraid.mp4"):
            pose = extractor.read(shared_data / "clips" / name).pose
            assert pose.num_frames > 10 and pose.num_people == 1 and pose.size is not None and pose.fps > 5
            place = {n: i for i, n in enumerate(layout.names)}
            seen = pose.confidence[:, 0] > 0.5
            x, y = np.moveaxis(np.where(seen[..., None], pose.xy[:, 0], np.nan), -1, 0)
            mean = {n: (np.nanmean(x[:, i]), np.nanmean(y[:, i])) for n, i in place.items() if seen[:, i].any()}
            # a person who faces the camera: the right side is left in the image, the chin below the brows
            assert mean["right_shoulder"][0] < mean["nose"][0] < mean["left_shoulder"][0]
            face = [mean[f"face_{i}"] for i in range(68)]
            assert face[0][0] < face[36][0] < face[39][0] < face[30][0] < face[42][0] < face[45][0] < face[16][0]
            assert face[19][1] < face[37][1] < face[41][1] < face[30][1] < face[33][1] < face[51][1] < face[57][1]
            assert face[57][1] < face[8][1] and face[48][0] < face[51][0] < face[54][0]
            assert face[51][1] < face[62][1] <= face[66][1] < face[57][1]
            middle, wide = face[30][0], face[16][0] - face[0][0]
            partners = [(i, layout.flip[23 + i] - 23) for i in range(68)]
            # partners lie at about the same height, on either side of the nose
            assert max(abs(face[a][1] - face[b][1]) for a, b in partners) < 0.3 * wide
            assert max(abs((face[a][0] + face[b][0]) / 2 - middle) for a, b in partners) < 0.4 * wide
            hands = pose.confidence[:, 0, 91:133].reshape(len(x), 2, 21).any(2)
            assert hands.any(0).any()
