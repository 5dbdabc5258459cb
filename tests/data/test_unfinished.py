"""Taking up an unfinished store that somebody has altered, and readers whose process or parent is killed."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from slrfast.data import SyntheticSigns, load_pose, pack, packing
from slrfast.data.store import JOURNAL, METADATA
from slrfast.errors import DatasetError


@pytest.fixture(scope="module")
def signs():
    return SyntheticSigns(num_classes=3, clips_per_class=4, num_signers=2)


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def same_clips(got, want):
    assert len(got) == len(want) and got.names == want.names and got.labels == want.labels
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.xy, b.xy) and torch.equal(a.confidence, b.confidence)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "line",
    [
        '{"frames": 1' + "0" * 20 + ', "keypoints": 49, "crc32": [0, 0]}',
        '{"frames": 1' + "0" * 12 + ', "keypoints": 49, "crc32": [0, 0]}',
        '{"frames": -1, "keypoints": 49, "crc32": [0, 0]}',
        '{"frames": 0, "keypoints": 49, "crc32": [0, 0]}',
        '{"frames": 1.0, "keypoints": 49, "crc32": [0, 0]}',
        '{"frames": 1, "keypoints": 75, "crc32": [0, 0]}',
        '{"frames": NaN, "keypoints": NaN, "crc32": []}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "[]",
        "3",
    ],
)
def test_journals_that_lie_are_done_again(tmp_path, signs, monkeypatch, line):
    whole = contents(pack(signs, tmp_path / "whole").path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("slrfast.data.packing._Growing.finish", lambda *_: interrupt())
        pack(signs, tmp_path / "out")
    journal = tmp_path / "out.packing" / JOURNAL
    lines = journal.read_bytes().split(b"\n")
    lines[5] = line.encode()
    journal.write_bytes(b"\n".join(lines))
    files = contents(pack(signs, tmp_path / "out").path)
    assert all(files[name] == data for name, data in whole.items() if name != METADATA)


def test_a_journal_of_more_clips_than_there_are(tmp_path, signs, monkeypatch):
    monkeypatch.setattr("slrfast.data.packing._Growing.finish", lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        pack(signs, tmp_path / "store")
    monkeypatch.undo()
    with open(tmp_path / "store.packing" / JOURNAL, "ab") as journal:
        journal.write(b'{"skipped": "not there"}\n' * 3)
    store = pack(signs, tmp_path / "store")
    same_clips(store, signs)
    assert not store.skipped


def test_links_in_an_unfinished_store_are_not_written_through(tmp_path, signs):
    (tmp_path / "mine").write_bytes(b"precious")
    (tmp_path / "store.packing").mkdir()
    for name in ("xy.npy", JOURNAL):
        (tmp_path / "store.packing" / name).symlink_to(tmp_path / "mine")
        with pytest.raises(DatasetError, match=f"{name}: cannot be written .Too many levels of symbolic links"):
            pack(signs, tmp_path / "store")
        (tmp_path / "store.packing" / name).unlink()
    assert (tmp_path / "mine").read_bytes() == b"precious"


def test_a_call_that_comes_in_just_as_another_ends_takes_its_store(tmp_path, signs, monkeypatch):
    first = pack(signs, tmp_path / "store")
    looked = []
    exists = os.path.lexists
    monkeypatch.setattr("slrfast.data.packing.os.path.lexists", lambda path: bool(looked) and exists(path))
    monkeypatch.setattr("slrfast.data.packing._write", lambda *a, _write=packing._write: looked.append(1) or _write(*a))
    before = contents(first.path)
    same_clips(pack(signs, tmp_path / "store"), signs)
    assert looked and contents(first.path) == before and not (tmp_path / "store.packing").exists()


def test_the_death_of_a_reader_is_told_wherever_this_process_is(tmp_path, signs, monkeypatch):
    def add(*_):  # the loader raises from a signal handler
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("slrfast.data.packing._Growing.add", add)
    with pytest.raises(DatasetError, match=r": a reading process ended \(DataLoader worker \(pid 7\) is killed by"):
        pack(signs, tmp_path / "store", workers=1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_readers_end_when_the_process_is_killed(tmp_path, signs):
    paths = signs.save(tmp_path / "poses")
    for path in paths[2:]:
        path.unlink()
        shutil.copy(paths[0], path)
    told = tmp_path / "pids"

    def work():
        from slrfast.data import sources

        def slow(self, entry):
            with open(told, "a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.3)
            return load_pose(entry.path)

        sources._Reader.pose = slow
        pack(tmp_path / "poses", tmp_path / "store", workers=1)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    for _ in range(300):
        if told.exists() and told.read_text().endswith("\n"):
            break
        time.sleep(0.1)
    process.kill()
    process.join()
    reader = int(told.read_text().split()[0])
    assert reader not in (os.getpid(), process.pid)
    for _ in range(150):  # it looks after its parent every 5 seconds
        if not _runs(reader):
            break
        time.sleep(0.1)
    assert not _runs(reader)


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
