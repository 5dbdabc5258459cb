"""Thousands of damaged files for every reader, in a process with limits of its own: see fuzz.py."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from slrfast.data import FORMATS, PoseDataset, load_pose, save_npz
from slrfast.errors import PoseFileError


def fuzz(folder, count, seed, timeout):
    script = Path(__file__).with_name("fuzz.py")
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(script), "--count", str(count), "--seed", str(seed), "--folder", str(folder)],
        capture_output=True, text=True, timeout=timeout, env=environment, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(results, count):
    assert set(results) >= {"npz", "mmpose_json", "mmpose_pickle", "data set"}
    for name, found in results.items():
        assert found["read"] + found["refused"] == count
        assert found["read"] > count / 50 and found["refused"] > count / 3, (name, found)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux for the limit of memory")
def test_damaged_files_are_read_or_refused(tmp_path):
    check(fuzz(tmp_path, 500, seed=0, timeout=200), 500)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux for the limit of memory")
def test_many_damaged_files_are_read_or_refused(tmp_path):
    check(fuzz(tmp_path, 4000, seed=1, timeout=280), 4000)


@pytest.mark.parametrize("name", FORMATS)
def test_empty_files_and_links_in_every_format(tmp_path, name):
    suffix = FORMATS[name].suffixes[0]
    path = tmp_path / f"empty{suffix}"
    path.write_bytes(b"")
    with pytest.raises(PoseFileError, match="is empty"):
        load_pose(path)
    with pytest.raises(PoseFileError):
        load_pose(path, name)
    circle = tmp_path / f"circle{suffix}"
    circle.symlink_to(circle)
    with pytest.raises(PoseFileError, match="cannot be opened: Too many levels of symbolic links"):
        load_pose(circle)
    broken = tmp_path / f"broken{suffix}"
    broken.symlink_to(tmp_path / "nothing")
    with pytest.raises(PoseFileError, match="cannot be opened: No such file"):
        load_pose(broken)


def test_names_that_are_no_text_are_read_and_reported(tmp_path, make_pose):
    folder = tmp_path / "poses"
    folder.mkdir()
    good, bad = (folder / os.fsdecode(name) for name in (b"good\xff.npz", b"bad\xfe\n.npz"))
    save_npz(good, make_pose(frames=2))
    bad.write_bytes(b"PK\x03\x04")
    assert load_pose(good).num_frames == 2
    with pytest.warns(UserWarning, match="1 file skipped"):
        data = PoseDataset(folder)
    assert [clip.name for clip in data] == [good.name] and data.skipped[0][0] == bad.name


def test_an_array_may_not_claim_more_than_it_has(tmp_path, make_pose):
    path = tmp_path / "clip.npz"
    save_npz(path, make_pose(frames=2))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for change, reason in (
        ((b"(2, 1, 133, 2)", b"(9999999999,) "), "the array 'xy' has 2128 bytes, which do not fit its shape"),
        ((b"(2, 1, 133, 2)", b"(-2,-1,133, 2)"), "the array 'xy' has 2128 bytes, which do not fit its shape"),
        ((b"<f4", b"<c8"), "the array 'xy' must be numbers or text, got complex64"),
        ((b"NUMPY\x01", b"NUMPY\x09"), "is damaged (ValueError: "),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data.replace(*change) if name == "xy.npy" else data)
        with pytest.raises(PoseFileError) as raised:
            load_pose(path)
        assert raised.value.reason.startswith(reason)


def test_small_members_of_an_archive_are_small(tmp_path):
    path = tmp_path / "clip.npz"
    np.savez(path, xy=np.ones((2, 1, 133, 2)), confidence=np.ones((2, 1, 133)), fps=np.ones(1000), size=0, layout="x")
    with pytest.raises(PoseFileError, match="the array 'fps' unpacks to 8128 bytes, too much for one clip"):
        load_pose(path)


def test_what_a_file_says_reaches_no_terminal_unescaped(tmp_path):
    path = tmp_path / "clip.pkl"
    path.write_bytes(b"\x80\x02c\x1b[31mred\x07\nname\n.")
    with pytest.raises(PoseFileError) as raised:
        load_pose(path)
    assert raised.value.reason == r"refused: the pickle asks for \x1b[31mred\x07.name"
    path.write_text('{"\\u001b[2J": 1}')
    with pytest.raises(PoseFileError, match=r"found '\\x1b\[2J'"):
        load_pose(path)


def test_positions_far_beyond_any_image_are_refused_without_a_warning(recwarn, tmp_path):
    people = [{"keypoints": [[s * 1e300, -1e300]] * 133, "keypoint_scores": [1.0] * 133} for s in (1, -1)]
    path = tmp_path / "clip.json"
    path.write_text(json.dumps([people, people]))
    with pytest.raises(PoseFileError, match="frame 0: keypoint 0 .nose. is at"):
        load_pose(path)
    assert not recwarn.list
