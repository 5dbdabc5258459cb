"""Writing a packed store: every source, interrupted anywhere, on a full disk, and from hostile folders."""

import csv
import gc
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slrfast.data import (
    Clip,
    ClipDataset,
    PoseDataset,
    PoseStore,
    PreprocessOptions,
    SyntheticSigns,
    load_pose,
    pack,
    save_npz,
)
from slrfast.data.store import JOURNAL, METADATA
from slrfast.errors import DatasetError


@pytest.fixture(scope="module")
def signs():
    return SyntheticSigns(num_classes=3, clips_per_class=4, num_signers=2)


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def same_clips(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.xy, b.xy) and torch.equal(a.confidence, b.confidence)
        assert (a.label, a.name, a.group, a.split, a.index) == (b.label, b.name, b.group, b.split, b.index)
    assert list(got.class_names) == list(want.class_names) and got.skipped == want.skipped


class Stopping(ClipDataset):
    """The synthetic clips, until ``stop`` is called for the clip at a position."""

    def __init__(self, clips, at, stop):
        super().__init__(clips.clips, clips.class_names)
        self.options = clips.options
        self.at, self.stop, self.reads = at, stop, 0

    def __getitem__(self, i):
        self.reads += 1
        if self.reads > len(self) and i == self.at:  # the first pass takes checksums
            self.stop()
        return super().__getitem__(i)


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(work):
    """Run ``work`` in a forked process and return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


# ---- sources


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_is_packed_as_it_is_read(tmp_path, signs, workers):
    paths = signs.save(tmp_path / "poses")
    paths[2].write_bytes(b"junk")
    with pytest.warns(UserWarning, match="1 file skipped"):
        want = PoseDataset(tmp_path / "poses")
    with pytest.warns(UserWarning, match="poses: 1 file skipped:\n  sign00/002.npz: is damaged .BadZipFile"):
        store = pack(tmp_path / "poses", tmp_path / "store", workers=workers)
    same_clips(store, want)
    assert store.metadata["source"] == "poses" and store.metadata["skipped"] == 1
    assert [file.name for file in tmp_path.iterdir() if "pack" in file.name] == []


def test_an_index_keeps_splits_and_groups(tmp_path, signs):
    signs.save(tmp_path)
    rows = [
        (f"{clip.name}.npz", f"class{clip.label}", ("train", "test")[i % 2], clip.group) for i, clip in enumerate(signs)
    ]
    rows[3] = (rows[3][0], "", "train", "")
    with open(tmp_path / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "fold", "signer"), *rows])
    columns = {"path_column": "file", "split_column": "fold", "group_column": "signer"}
    store = pack(tmp_path / "index.csv", tmp_path / "store", **columns)
    same_clips(store, PoseDataset(tmp_path / "index.csv", **columns))
    assert store.labels[3] == -1 and store.splits[:4] == ["train", "test", "train", "train"]
    same_clips(PoseDataset(store.path, split="test"), PoseDataset(tmp_path / "index.csv", split="test", **columns))
    test = pack(tmp_path / "index.csv", tmp_path / "test", split="test", **columns)
    assert set(test.splits) == {"test"} and len(test) == 5


def test_notes_on_several_people_are_kept(tmp_path, signs):
    poses = tmp_path / "poses"
    for path in signs.save(poses)[:2]:
        pose = load_pose(path)
        save_npz(path, replace(pose, xy=pose.xy.repeat(2, 1), confidence=pose.confidence.repeat(2, 1)))
    want = PoseDataset(poses)
    assert len(want.notes) == 1 and "2 files show several people" in want.notes[0]
    store = pack(poses, tmp_path / "store")
    assert store.notes == want.notes == pack(store, tmp_path / "again").notes and store.subset([0]).notes == []


def test_an_author_cache(tmp_path, signs):
    cache = {}
    for i in range(4):
        pose = signs.pose(i)
        keypoints = np.concatenate((pose.xy[:, 0], pose.confidence[:, 0, :, None]), -1)
        video = {"keypoints": keypoints, "img_list": [f"v/img_{t:05d}.jpg" for t in range(len(keypoints))]}
        cache[f"video{i}"] = {"video_data": video, "label": i % 2, "img_size": np.array([[640, 480]])}
    path = tmp_path / "WLASL_train.pkl"
    path.write_bytes(pickle.dumps(cache, protocol=4))
    same_clips(pack(path, tmp_path / "store"), PoseDataset(path))


def test_a_store_is_a_source(tmp_path, signs):
    first = pack(signs, tmp_path / "first")
    half = pack(tmp_path / "first", tmp_path / "half", dtype="float16")
    assert torch.equal(half[3].xy, first[3].xy.half()) and half.options == first.options
    assert half.metadata["source"] == "first" and half.names == first.names
    few = pack(first.subset([4, 2]), tmp_path / "few")
    assert few.names == [first.names[4], first.names[2]]
    with pytest.raises(ValueError, match="pack: format must be left out for a packed store, got npz"):
        pack(tmp_path / "first", tmp_path / "other", format="npz")
    with pytest.raises(
        ValueError, match="pack: options, split and format must be left out, the clips of a data set are"
    ):
        pack(first, tmp_path / "other", options=PreprocessOptions())


def test_damaged_clips_of_a_source_store_are_skipped(tmp_path, signs):
    first = pack(signs, tmp_path / "first")
    data = bytearray((first.path / "xy.npy").read_bytes())
    data[200] ^= 1
    (first.path / "xy.npy").write_bytes(data)
    with pytest.warns(UserWarning, match="1 file skipped:\n  sign00/000: .*checksum is wrong"):
        second = pack(PoseStore(first.path), tmp_path / "second")
    assert second.names == first.names[1:]


def test_labels_without_class_names_get_their_numbers(tmp_path, signs):
    store = pack(ClipDataset(signs.clips, ["a"]), tmp_path / "store")
    assert store.class_names == ["a", "1", "2"] and store.labels == signs.labels
    with pytest.raises(DatasetError, match="a clip has the label 1000000000, more than 1000000 classes"):
        pack(ClipDataset([replace(signs[0], label=10**9)]), tmp_path / "other")


def test_only_a_few_clips_are_held_at_once(tmp_path):
    alive = weakref.WeakSet()
    most = 0

    class Endless(ClipDataset):
        """Clips that exist only while somebody holds them."""

        def __getitem__(self, i):
            nonlocal most
            if not 0 <= i < 300:
                raise IndexError(i)
            generator = torch.Generator().manual_seed(i)
            xy = torch.rand(5, 49, 2, generator=generator)
            alive.add(xy)
            gc.collect(0)
            most = max(most, len(alive))
            return Clip(xy, torch.ones(5, 49), 0, f"clip {i}", index=i)

        def __len__(self):
            return 300

        names = property(lambda self: [f"clip {i}" for i in range(300)])
        labels = property(lambda self: [0] * 300)
        groups = splits = property(lambda self: [""] * 300)

    store = pack(Endless([]), tmp_path / "store")
    assert most <= 4
    assert torch.equal(store[299].xy, Endless([])[299].xy) and len(store) == 300


# ---- interruptions


@pytest.mark.parametrize(("stop", "code"), [(kill, -signal.SIGKILL), (interrupt, 1)])
def test_an_interrupted_call_goes_on(tmp_path, signs, stop, code):
    whole = contents(pack(signs, tmp_path / "whole").path)
    for at in (0, 1, 7, 11):
        out = tmp_path / f"{at}"
        assert in_a_process(lambda: pack(Stopping(signs, at, stop), out)) == code  # noqa: B023
        partial = tmp_path / f"{at}.packing"
        assert not out.exists() and len((partial / JOURNAL).read_bytes().splitlines()) == at + 1
        with pytest.raises(DatasetError, match="is an unfinished store; run the same slrfast pack again to finish it"):
            PoseDataset(partial)
        again = Stopping(signs, -1, None)
        store = pack(again, out)
        assert again.reads == 12 + 12 - at  # checksums, then the clips that were missing
        assert len(store) == 12 and not partial.exists()
        files = contents(out)
        for name in (METADATA,):
            files[name] = json.loads(files[name])
        told = json.loads(whole[METADATA])
        assert {**files[METADATA], "source": "", "digest": ""} == {**told, "source": "", "digest": ""}
        assert all(files[name] == data for name, data in whole.items() if name != METADATA)


def test_whatever_a_power_cut_leaves_is_taken_up_or_done_again(tmp_path, signs):
    whole = contents(pack(signs, tmp_path / "whole").path)
    with pytest.raises(KeyboardInterrupt):
        pack(Stopping(signs, 9, interrupt), tmp_path / "out")
    partial = contents(tmp_path / "out.packing")
    rng = np.random.default_rng(0)
    for trial in range(40):
        folder = tmp_path / f"{trial}.packing"
        folder.mkdir()
        for name, data in partial.items():
            cut = (
                data[: rng.integers(0, len(data) + 1)] if rng.random() < 0.5 else data + rng.bytes(rng.integers(0, 999))
            )
            if rng.random() < 0.3:
                at = int(rng.integers(0, len(data)))
                cut = cut[:at] + bytes(9) + cut[at + 9 :]
            (folder / name).write_bytes(cut)
        try:
            store = pack(Stopping(signs, -1, None), tmp_path / f"{trial}")
        except DatasetError as error:
            assert "delete this folder to start anew" in str(error)  # the journal's first line is hit
            continue
        files = contents(store.path)
        assert all(files[name] == data for name, data in whole.items() if name != METADATA), trial


def test_a_finished_store_is_opened_and_not_written_again(tmp_path, signs):
    first = pack(signs, tmp_path / "store")
    before = {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()}
    again = pack(signs, tmp_path / "store")
    assert again.names == first.names
    assert {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()} == before
    for other, options in ((signs, {"dtype": "float16"}), (signs.subset([1, 2]), {})):
        with pytest.raises(DatasetError, match="store: is a store of another source or with other options; delete it"):
            pack(other, tmp_path / "store", **options)


def test_killed_between_the_last_clip_and_the_end(tmp_path, signs, monkeypatch):
    monkeypatch.setattr("slrfast.data.packing.Path.rename", lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        pack(signs, tmp_path / "store")
    monkeypatch.undo()
    assert not (tmp_path / "store").exists()
    same_clips(pack(signs, tmp_path / "store"), signs)
    assert not (tmp_path / "store.packing").exists()


def test_going_on_with_other_options_or_files_is_refused(tmp_path, signs, monkeypatch):
    paths = signs.save(tmp_path / "poses")
    source, out = tmp_path / "poses", tmp_path / "store"
    monkeypatch.setattr("slrfast.data.packing._Growing.finish", lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        pack(source, out)
    monkeypatch.undo()
    start = "store.packing: packing began with "
    end = "; delete this folder to start anew"
    for changed, message in (
        ({"dtype": "float16"}, "dtype float32, not float16"),
        ({"options": PreprocessOptions(max_frames=99)}, "max_frames 150, not 99"),
        ({"options": PreprocessOptions(size=(640, 480))}, r"size None, not \[640, 480\]"),
    ):
        with pytest.raises(DatasetError, match=start + message + end):
            pack(source, out, **changed)
    status = paths[3].stat()
    for change in (
        lambda: os.utime(paths[3], ns=(status.st_atime_ns, status.st_mtime_ns + 1)),
        lambda: shutil.copy(paths[3], source / "sign00" / "new.npz"),
        lambda: paths[5].unlink(),
    ):
        change()
        with pytest.raises(DatasetError, match="store.packing: the source has changed since packing began" + end):
            pack(source, out)
    shutil.rmtree(tmp_path / "store.packing")
    assert len(pack(source, out)) == 12


def test_two_processes_do_not_pack_into_one_store(tmp_path, signs):
    inside = {}

    def meanwhile():
        def work():
            try:
                pack(signs, tmp_path / "store")
            except DatasetError as error:
                os._exit(7 if "another process is packing into it; wait or stop it" in str(error) else 8)

        inside["code"] = in_a_process(work)

    assert len(pack(Stopping(signs, 5, meanwhile), tmp_path / "store")) == 12
    assert inside == {"code": 7}


def test_a_full_disk_is_one_sentence_and_packing_goes_on_when_there_is_room(tmp_path, signs):
    out = tmp_path / "store"

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            pack(signs, out)
        except DatasetError as error:
            (tmp_path / "said").write_text(str(error))

    assert in_a_process(work) == 0
    said = (tmp_path / "said").read_text()
    assert said == f"{out}: cannot be written (File too large); the same call goes on where this one stopped"
    assert 1 < len((tmp_path / "store.packing" / JOURNAL).read_bytes().splitlines()) < 12
    same_clips(pack(signs, out), signs)


def test_folders_that_cannot_be_written(tmp_path, signs):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written .Not a directory"):
        pack(signs, tmp_path / "file" / "store")
    for name in ("file", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(DatasetError, match=f"{name}: exists and is no packed store; choose another name"):
            pack(signs, tmp_path / name)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DatasetError, match="link: exists and is no packed store"):
        pack(signs, tmp_path / "link")


# ---- sources that make trouble


def test_nothing_usable_leaves_nothing_behind(tmp_path, signs):
    for path in signs.save(tmp_path / "poses"):
        path.write_bytes(b"")
    with pytest.raises(
        DatasetError, match="none of the 12 pose files can be used; the first, sign00/000.npz: is empty"
    ):
        pack(tmp_path / "poses", tmp_path / "store")
    assert [file.name for file in tmp_path.iterdir()] == ["poses"]
    with pytest.raises(DatasetError, match="there are no clips"):
        pack(ClipDataset([]), tmp_path / "store")
    with pytest.raises(DatasetError, match="there is no such file or folder"):
        pack(tmp_path / "nowhere", tmp_path / "store")


def test_two_clips_with_one_name(tmp_path, signs):
    signs.save(tmp_path)
    (tmp_path / "index.csv").write_text("path,label\nsign00/000.npz,a\nsign01/000.npz,b\nsign00/000.npz,c\n")
    with pytest.raises(
        DatasetError, match="index.csv: two clips have the name 'sign00/000.npz'; names must differ in a store"
    ):
        pack(tmp_path / "index.csv", tmp_path / "store")


def test_names_that_are_no_utf_8(tmp_path, signs):
    folder = tmp_path / os.fsdecode(b"cl\xe9")
    path = signs.save(tmp_path / "poses")[0]
    folder.mkdir()
    path.rename(folder / os.fsdecode(b"caf\xe9\n.npz"))
    store = pack(folder, tmp_path / os.fsdecode(b"stor\xe9"))
    assert [os.fsencode(name) for name in store.names] == [b"caf\xe9\n.npz"]
    assert os.fsencode(PoseDataset(store.path)[0].name) == b"caf\xe9\n.npz"


def test_symbolic_links_that_lead_out_are_refused(tmp_path, signs):
    signs.save(tmp_path / "elsewhere")
    inside = tmp_path / "poses"
    shutil.copytree(tmp_path / "elsewhere" / "sign00", inside / "sign00")
    for name, target in (
        ("out.npz", "../elsewhere/sign01/000.npz"),
        ("absolute.npz", tmp_path / "elsewhere/sign01/000.npz"),
        ("within.npz", "sign00/001.npz"),
        ("dangling.npz", "sign00/nothing.npz"),
        ("circle.npz", "circle.npz"),
        ("folder", "../elsewhere/sign02"),
        ("up", ".."),
    ):
        (inside / name).symlink_to(target)
    with pytest.warns(UserWarning, match="6 files skipped"):
        store = pack(inside, tmp_path / "store")
    assert store.names == [*(f"sign00/{i:03d}.npz" for i in range(4)), "within.npz"]
    assert dict(store.skipped) == {
        "absolute.npz": "is a symbolic link that leads out of the folder",
        "circle.npz": "cannot be opened: Too many levels of symbolic links",
        "dangling.npz": "cannot be opened: No such file or directory",
        "folder": "is a symbolic link to a folder, and such are not followed",
        "out.npz": "is a symbolic link that leads out of the folder",
        "up": "is a symbolic link to a folder, and such are not followed",
    }
    (tmp_path / "door").symlink_to(inside)
    with pytest.warns(UserWarning, match="6 files skipped"):
        assert PoseDataset(tmp_path / "door").names == store.names


def test_a_store_inside_its_source_is_refused(tmp_path, signs):
    signs.save(tmp_path)
    for out in (tmp_path / "store", tmp_path, tmp_path / "sign00" / ".." / "store"):
        with pytest.raises(DatasetError, match="lies inside the source .*, which would then hold its own store"):
            pack(tmp_path, out)
    store = pack(signs, tmp_path / "store")
    with pytest.raises(DatasetError, match="lies inside the source .*store, which would then hold"):
        pack(store.path, store.path / "again")


def test_clips_that_fit_no_store(tmp_path, signs):
    clip = signs[0]
    long = replace(clip, xy=clip.xy + 1e5, name="far")
    with pytest.raises(DatasetError, match="clip 'far' has values that float16 cannot hold; use float32"):
        pack(ClipDataset([clip, long], ["a", "b", "c"]), tmp_path / "half", dtype="float16")
    broken = replace(clip, confidence=clip.confidence * float("nan"), name="nan")
    with pytest.raises(DatasetError, match="clip 'nan' has values that float32 cannot hold$"):
        pack(ClipDataset([broken]), tmp_path / "nan")
    wide = Clip(torch.zeros(2, 75, 2), torch.zeros(2, 75), name="wide")
    with pytest.raises(DatasetError, match="clip 'wide' has 75 keypoints, not 49 as those before"):
        pack(ClipDataset([clip, wide]), tmp_path / "mixed")
    assert pack(ClipDataset([wide]), tmp_path / "wide").batch([0]).xy.shape == (2, 75, 2)
    hand = Clip(torch.zeros(2, 21, 2), torch.zeros(2, 21), name="hand")
    with pytest.raises(DatasetError, match="clip 'hand' has 21 keypoints, which is no layout"):
        pack(ClipDataset([hand]), tmp_path / "hand")
    empty = Clip(torch.zeros(0, 49, 2), torch.zeros(0, 49), name="empty")
    with pytest.warns(UserWarning, match="empty: has no frames"):
        assert pack(ClipDataset([empty, clip]), tmp_path / "empty").names == [clip.name]


def test_a_killed_reader_is_one_sentence(tmp_path, signs):
    main = os.getpid()
    stopping = Stopping(signs, 3, lambda: os.getpid() != main and kill())
    stopping.reads = len(signs)
    stopping.at = 3
    with pytest.raises(DatasetError, match=r"Stopping: a reading process ended \(DataLoader worker .*pid"):
        pack(stopping, tmp_path / "store", workers=1)
    same_clips(pack(Stopping(signs, -1, None), tmp_path / "store"), signs)


@pytest.mark.parametrize("column", ["label", "split", "group"])
def test_a_column_that_was_named_must_be_there(tmp_path, signs, column):
    signs.save(tmp_path / "poses")
    (tmp_path / "index.csv").write_text("path,kind\nposes/sign00/000.npz,a\n")
    with pytest.raises(DatasetError, match="index.csv: the column 'knid' is missing, found 'path', 'kind'"):
        pack(tmp_path / "index.csv", tmp_path / "store", **{f"{column}_column": "knid"})
    assert len(pack(tmp_path / "index.csv", tmp_path / "store", **{f"{column}_column": "kind"})) == 1


def test_unknown_values_are_refused(tmp_path, signs):
    with pytest.raises(ValueError, match="pack: dtype must be one of 'float32', 'float16', got 'float64'"):
        pack(signs, tmp_path / "store", dtype="float64")
    with pytest.raises(ValueError, match="pack: format must be one of 'auto', .*, got 'bvh'"):
        pack(tmp_path, tmp_path / "store", format="bvh")
