import csv
import pickle

import numpy as np
import pytest
import torch

from slrfast.data import FORMATS, PoseDataset, PreprocessOptions, SyntheticSigns, preprocess
from slrfast.data.sources import number_labels
from slrfast.errors import DatasetError


@pytest.fixture(scope="module")
def signs():
    return SyntheticSigns(num_classes=3, clips_per_class=2, num_signers=2)


def same_clips(got, want):
    assert len(got) == len(want)
    for a, b in zip(got.clips, want.clips, strict=True):
        assert torch.equal(a.xy, b.xy) and torch.equal(a.confidence, b.confidence)
        assert a.label == b.label


@pytest.mark.parametrize("format", FORMATS)
def test_folders_of_every_format_give_the_same_clips(tmp_path, format, signs):
    if format == "pose":
        pytest.importorskip("pose_format")
    signs.save(tmp_path, format)
    data = PoseDataset(tmp_path, options=PreprocessOptions(size=(640, 480)))
    same_clips(data, signs)
    assert data.class_names == ["sign00", "sign01", "sign02"] and data.skipped == []
    assert data.labels == [0, 0, 1, 1, 2, 2] and data.groups == [""] * 6
    assert [clip.index for clip in data] == list(range(6))
    assert data[3].name == f"sign01/001{FORMATS[format].suffixes[0]}"


def test_workers_read_the_same_in_the_same_order(tmp_path, signs):
    signs.save(tmp_path)
    (tmp_path / "sign01" / "000.npz").write_bytes(b"junk")
    with pytest.warns(UserWarning, match="1 file skipped"):
        serial = PoseDataset(tmp_path)
    with pytest.warns(UserWarning, match="1 file skipped"):
        parallel = PoseDataset(tmp_path, workers=2)
    same_clips(serial, parallel)
    assert serial.skipped == parallel.skipped


def test_unreadable_files_are_skipped_counted_and_listed(tmp_path, signs):
    paths = signs.save(tmp_path)
    paths[0].write_bytes(b"")
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    (tmp_path / "sign02" / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.warns(UserWarning, match="3 files skipped:"):
        data = PoseDataset(tmp_path)
    assert len(data) == 4 and data.labels == [0, 1, 2, 2] and [clip.index for clip in data] == [0, 1, 2, 3]
    assert [name for name, _ in data.skipped] == ["sign00/000.npz", "sign01/001.npz", "sign02/evil.pkl"]
    assert data.skipped[0][1] == "is empty"
    assert data.skipped[1][1].startswith("is damaged (BadZipFile")
    assert data.skipped[2][1] == "refused: the pickle asks for os.system"
    lines = data.summary().splitlines()
    assert lines[0].startswith("4 clips, ") and lines[0].endswith("4 labelled with 3 classes")
    assert lines[1:3] == ["3 files skipped:", "  sign00/000.npz: is empty"] and len(lines) == 5


def test_a_long_list_of_skipped_files_is_cut(tmp_path, signs):
    signs.save(tmp_path)
    for i in range(13):
        (tmp_path / f"{i:02d}.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match="and 3 more"):
        data = PoseDataset(tmp_path)
    assert len(data.skipped) == 13 and len(data) == 6


def test_nothing_usable_is_fatal(tmp_path, signs):
    with pytest.raises(DatasetError, match="there are no pose files"):
        PoseDataset(tmp_path)
    for path in signs.save(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(DatasetError) as raised:
        PoseDataset(tmp_path)
    text = f"{tmp_path}: none of the 6 pose files can be used; the first, sign00/000.npz: is empty"
    assert str(raised.value) == text
    (tmp_path / "sign00" / "000.npz").write_bytes(b"rubbish")  # one of its own kind does not hide the others
    with pytest.raises(DatasetError, match="can be used; 5 of them like sign00/001.npz: is empty"):
        PoseDataset(tmp_path)
    with pytest.raises(DatasetError, match="there is no such file or folder"):
        PoseDataset(tmp_path / "nowhere")


def test_flat_folders_have_no_labels_and_other_files_are_ignored(tmp_path, signs):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(signs.save(tmp_path / "deep")):
        path.rename(flat / f"{9 - i}.npz")
    (flat / "README.md").write_text("not a pose")
    (flat / ".hidden.npz").write_bytes(b"")
    data = PoseDataset(flat)
    assert data.labels == [-1] * 6 and data.class_names == [] and data.skipped == []
    assert [clip.name for clip in data] == [f"{i}.npz" for i in range(4, 10)]


def index(tmp_path, signs, header, rows):
    signs.save(tmp_path / "files")
    path = tmp_path / "index.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_index_files_name_paths_labels_splits_and_groups(tmp_path, signs):
    rows = [
        ("files/sign02/001.npz", "zebra", "train", "anna"),
        ("files/sign00/000.npz", "apple", "test", "bela"),
        ("files/sign01/000.npz", "", "train", ""),
    ]
    path = index(tmp_path, signs, ("path", "label", "split", "group"), rows)
    data = PoseDataset(path)
    assert data.class_names == ["apple", "zebra"] and data.labels == [1, 0, -1] and data.groups == ["anna", "bela", ""]
    assert torch.equal(data[0].xy, signs[5].xy) and data[0].name == "files/sign02/001.npz"
    train = PoseDataset(path, split="train")
    assert train.class_names == ["apple", "zebra"] and train.labels == [1, -1]
    assert train.summary().endswith("1 labelled with 1 classes, 1 groups")
    with pytest.raises(DatasetError, match="no row has the split 'val'; there are 'test', 'train'"):
        PoseDataset(path, split="val")
    other = PoseDataset(path, label_column="group", group_column="split")
    assert other.class_names == ["anna", "bela"] and other.groups == ["train", "test", "train"]


def test_index_files_with_paths_only(tmp_path, signs):
    data = PoseDataset(index(tmp_path, signs, ("path",), [("files/sign00/000.npz",), ("files/sign00/001.npz",)]))
    assert data.labels == [-1, -1] and data.class_names == []


@pytest.mark.parametrize(
    ("header", "rows", "split", "message"),
    [
        (("file", "label"), [("a.npz", "1")], None, "the column 'path' is missing, found 'file', 'label'"),
        (("path",), [("a.npz",)], "train", "the column 'split' is missing, found 'path'"),
        (("path", "label"), [("a.npz", "1"), ("", "2")], None, "row 2 has nothing in column 'path'"),
        (("path",), [], None, "there are no pose files"),
        (
            ("path",),
            [("nowhere.npz",)],
            None,
            "none of the 1 pose files can be used; .* cannot be opened: No such file",
        ),
    ],
)
def test_bad_index_files(tmp_path, signs, header, rows, split, message):
    with pytest.raises(DatasetError, match=message):
        PoseDataset(index(tmp_path, signs, header, rows), split=split)


def test_index_files_that_are_no_text(tmp_path):
    path = tmp_path / "index.csv"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(DatasetError, match="is no index file of comma-separated values"):
        PoseDataset(path)


def test_reading_leaves_the_random_state_alone(tmp_path, signs):
    signs.save(tmp_path)
    before = torch.get_rng_state()
    PoseDataset(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="PoseDataset: format must be one of 'auto', 'npz'.*, got 'bvh'"):
        PoseDataset(tmp_path, format="bvh")


def test_split_needs_an_index(tmp_path, signs):
    signs.save(tmp_path)
    with pytest.raises(DatasetError, match="split='train' needs an index file with a column 'split'"):
        PoseDataset(tmp_path, split="train")


def test_author_caches_of_a_split(tmp_path, signs):
    cache = {}
    for i in range(6):
        pose = signs.pose(i)
        keypoints = np.concatenate((pose.xy[:, 0], pose.confidence[:, 0, :, None]), -1)
        names = [f"v/img_{t:05d}.jpg" for t in range(len(keypoints) + 1)]
        cache[f"video{9 - i}"] = {
            "video_name": f"video{9 - i}",
            "video_data": {"keypoints": keypoints, "img_list": names},
            "label": np.int64(i),
            "img_size": np.array([[640, 480]], np.float32),
        }
    cache["broken"] = {"video_data": {"keypoints": 3}, "label": 1, "img_size": np.array([[640, 480]])}
    cache["strange"] = 3
    cache["sizeless"] = {"video_data": cache["video9"]["video_data"], "img_size": [640, [480] * 9], "label": 10**18}
    path = tmp_path / "WLASL_train.pkl"
    path.write_bytes(pickle.dumps(cache, protocol=4))
    options = PreprocessOptions.legacy("wlasl")
    with pytest.warns(UserWarning, match="3 files skipped"):
        data = PoseDataset(path, options=options)
    assert [clip.name for clip in data] == [f"video{9 - i}" for i in range(6)] and data.labels == list(range(6))
    assert data.skipped[0] == ("broken", "keypoints must have one entry per frame, got a int")
    assert data.skipped[1] == ("strange", "the key 'keypoints' is missing, found a NoneType")
    assert data.skipped[2][0] == "sizeless" and "does not name the image size" in data.skipped[2][1]
    assert torch.equal(data[4].xy, preprocess(signs.pose(4), options).xy)


def test_bad_caches(tmp_path):
    path = tmp_path / "WLASL_train.pkl"
    for content, message in (
        (b"cos\nsystem\n(S'true'\ntR.", "refused: the pickle asks for os.system"),
        (pickle.dumps({"keypoints": 1}), "is no cache of videos"),
        (pickle.dumps({"a": {"video_data": 1}})[:-9], "is damaged"),
        (b"", "is damaged .EOFError"),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=message):
            PoseDataset(path)


def test_labels_that_are_numbers_stay_numbers():
    assert number_labels(["3", "0", "", "-1"])[0] == {"3": 3, "0": 0, "": -1, "-1": -1}
    assert number_labels(["3", "0"])[1] == ["0", "1", "2", "3"]
    assert number_labels(["10", "b", "a"]) == ({"": -1, "-1": -1, "10": 0, "a": 1, "b": 2}, ["10", "a", "b"])


def test_subsets_keep_class_names_and_number_their_clips(signs):
    subset = signs.subset([4, 1])
    assert subset.labels == [2, 0] and subset.class_names == signs.class_names
    assert [clip.index for clip in subset] == [0, 1] and [signs[4].index, signs[1].index] == [4, 1]
    assert subset[0].xy is signs[4].xy
