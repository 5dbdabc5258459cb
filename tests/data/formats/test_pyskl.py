"""PYSKL's data sets, as one pickle for all clips."""

import pickle

import numpy as np
import pytest
import torch

from slrfast.data import Pose, PoseDataset, PreprocessOptions, SyntheticSigns, load_pose, preprocess
from slrfast.errors import DatasetError, PoseFileError


@pytest.fixture(scope="module")
def signs():
    return SyntheticSigns(num_classes=3, clips_per_class=2, num_signers=2)


def annotation(pose, **changes):
    content = {
        "frame_dir": "clip",
        "label": 2,
        "img_shape": (480, 640),
        "original_shape": (480, 640),
        "total_frames": pose.num_frames,
        "keypoint": pose.xy.swapaxes(0, 1),
        "keypoint_score": pose.confidence.swapaxes(0, 1),
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def save(tmp_path, content):
    path = tmp_path / "set.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def test_one_annotation_is_a_clip(tmp_path, make_pose):
    pose = make_pose(frames=5, people=2)
    pose.confidence[2, 1], pose.confidence[3, :, 7] = 0, 0
    got = load_pose(save(tmp_path, annotation(pose)))
    want = Pose(pose.xy, pose.confidence)
    np.testing.assert_array_equal(got.xy, want.xy)  # zeros where the confidence is
    np.testing.assert_array_equal(got.confidence, pose.confidence)
    assert got.size == (640, 480) and got.num_people == 2
    half = annotation(pose, keypoint=pose.xy.swapaxes(0, 1).astype(np.float16), img_shape=None, original_shape=None)
    got = load_pose(save(tmp_path, half), size=(320, 240))
    assert got.size == (320, 240)
    np.testing.assert_allclose(got.xy, want.xy, rtol=1e-3)
    fractions = annotation(pose, keypoint=pose.xy.swapaxes(0, 1) / np.float32((640, 480)))
    np.testing.assert_allclose(load_pose(save(tmp_path, fractions), units="fractions").xy, want.xy, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            dict(keypoint=np.ones((1, 5, 17, 2))),
            "there are 17 keypoints, COCO-WholeBody's 133 are needed; the 17 of COCO have no hands",
        ),
        (
            dict(keypoint=np.ones((1, 5, 25, 3))),
            "there are 25 keypoints, COCO-WholeBody's 133 are needed; other skeletons are not read",
        ),
        (dict(keypoint=np.ones((1, 5, 133, 3))), "keypoints must have 2 coordinates, got 3"),
        (dict(keypoint=np.ones((5, 133, 2))), "keypoint must have shape [M, T, V, 2], got [5, 133, 2]"),
        (dict(keypoint=[1, 2]), "keypoint must be an array of numbers, got a list"),
        (dict(keypoint=np.array(["x"])), "keypoint must be an array of numbers, got an array of <U1"),
        (dict(keypoint_score=None), "the key 'keypoint_score' is missing"),
        (dict(keypoint_score=np.ones((5, 133))), "keypoint_score must have shape [1, 5, 133], got [5, 133]"),
        (dict(total_frames=9), "total_frames is 9, but there are 5 frames"),
        (dict(img_shape=480), "img_shape must be (height, width)"),
        (dict(img_shape=(480, 0)), "the image size must be two whole numbers (width, height), got (0, 480)"),
        (dict(keypoint=np.full((1, 5, 133, 2), np.nan)), "frame 0: keypoint 0 (nose) is at (nan, nan)"),
        (dict(keypoint=np.ones((0, 5, 133, 2)), keypoint_score=np.ones((0, 5, 133))), "there is nobody in any frame"),
    ],
)
def test_what_is_wrong_with_an_annotation_is_named(tmp_path, make_pose, changes, reason):
    path = save(tmp_path, annotation(make_pose(frames=5), **changes))
    with pytest.raises(PoseFileError) as raised:
        load_pose(path)
    assert str(raised.value) == f"{path}: {reason}"


def data_set(signs, **changes):
    clips = [annotation(signs.pose(i), frame_dir=f"video{9 - i}", label=signs.labels[i]) for i in range(6)]
    split = {"train": ["video9", "video8", "video6"], "test": ["video7", "video5"], "all": ["video9"]}
    return {"split": split, "annotations": clips} | changes


def test_data_sets_with_their_splits(tmp_path, signs):
    path = save(tmp_path, data_set(signs))
    data = PoseDataset(path)
    assert data.labels == signs.labels and [clip.name for clip in data] == [f"video{9 - i}" for i in range(6)]
    assert data.splits == ["", "train", "test", "train", "test", ""]  # video9 is in two of them, video4 in none
    for got, i in zip(data, range(6), strict=True):
        assert torch.equal(got.xy, preprocess(signs.pose(i)).xy)
    train = PoseDataset(path, split="train", options=PreprocessOptions(layout=79))
    assert [clip.name for clip in train] == ["video9", "video8", "video6"] and train.splits == ["train"] * 3
    assert train[0].xy.shape[1:] == (79, 2)
    with pytest.raises(DatasetError, match="there is no split 'val'; there are 'train', 'test', 'all'"):
        PoseDataset(path, split="val")


def test_clips_that_cannot_be_used_are_skipped_by_name(tmp_path, signs):
    content = data_set(signs)
    content["split"]["train"] += ["lost"]
    content["annotations"][1]["keypoint"] = np.ones((1, 3, 17, 2))
    content["annotations"][2] = 3
    content["annotations"][3]["label"] = "seven"
    content["annotations"][4]["label"] = 10**18
    with pytest.warns(UserWarning, match="4 files skipped"):
        data = PoseDataset(save(tmp_path, content))
    reasons = dict(data.skipped)
    assert reasons["video8"].startswith("there are 17 keypoints")
    assert reasons["annotation 2"] == "the key 'keypoints' is missing, found an empty dict"
    assert reasons["lost"] == reasons["video7"] == "a split names it, but it has no annotation"
    assert data.labels == [0, -1, -1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(split=[1]), "split must be a dict of names, got a list"),
        (dict(split={"train": "video1"}), "the split 'train' must be a list of names"),
        (dict(split={"train": [1, 2]}), "the split 'train' must be a list of names"),
        (dict(annotations=[]), "there are no pose files"),
    ],
)
def test_bad_data_sets(tmp_path, signs, changes, message):
    content = data_set(signs, **changes) if "split" in changes else {"split": {}, **changes}
    with pytest.raises(DatasetError, match=message):
        PoseDataset(save(tmp_path, content))


def test_caches_of_the_authors_have_no_splits(tmp_path):
    with pytest.raises(DatasetError, match="split='train' needs a PYSKL data set or an index file with such a column"):
        PoseDataset(save(tmp_path, {"a": {"video_data": {}}}), split="train")


def test_files_with_several_people_are_counted_with_the_rule_that_chose(tmp_path, make_pose):
    content = {"annotations": [annotation(make_pose(frames=3, people=p), frame_dir=str(p)) for p in (1, 2, 3)]}
    path = save(tmp_path, content)
    line = (
        "2 files show several people, of whom the largest and most certain one over the clip was taken; "
        "PreprocessOptions(person=...) chooses another"
    )
    data = PoseDataset(path)
    assert data.notes == [line] and data.summary().splitlines()[1] == line
    del content["annotations"][2]
    data = PoseDataset(save(tmp_path, content), options=PreprocessOptions(person=0))
    assert data.notes[0].startswith("1 file shows several people, of whom person 0 was taken;")


def test_names_out_of_a_file_reach_no_terminal_unescaped(tmp_path, make_pose):
    content = {"annotations": [annotation(make_pose(frames=2), frame_dir="\x1b[31m\n")]}
    assert PoseDataset(save(tmp_path, content))[0].name == r"\x1b[31m\n"
    with pytest.raises(DatasetError, match=r"the first, \\x07: the key 'keypoints' is missing"):
        PoseDataset(save(tmp_path, {"\x07": {"video_data": {}}}))
