import json
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

from slrfast.data import FORMATS, Pose, load_pose, save_npz
from slrfast.data.formats import detect, suffixes
from slrfast.data.formats.base import numbers, people, stack
from slrfast.errors import CheckpointError, PoseFileError

WITHOUT_SIZE = ("mmpose_pickle",)


def write(tmp_path, name, pose, suffix=None):
    if name == "pose":
        pytest.importorskip("pose_format")
    path = tmp_path / f"clip{suffix or FORMATS[name].suffixes[0]}"
    FORMATS[name].write(path, pose)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_back(tmp_path, name, make_pose):
    pose = make_pose(frames=7)
    pose.confidence[:] = np.random.default_rng(1).uniform(0.01, 1, pose.confidence.shape)
    path = write(tmp_path, name, pose)
    for format in ("auto", name):
        got = load_pose(path, format, size=(640, 480))
        np.testing.assert_array_equal(got.xy, pose.xy)
        np.testing.assert_array_equal(got.confidence, pose.confidence)
        assert (got.size, got.layout, got.path) == ((640, 480), "coco133", str(path))
        assert got.fps == (0 if name in WITHOUT_SIZE else 25)
    assert load_pose(path).size == (None if name in WITHOUT_SIZE else (640, 480))


@pytest.mark.parametrize("name", ["npz", "pose"])
@pytest.mark.parametrize(("layout", "count"), [("holistic", 75), ("holistic_face", 143), ("sign49", 49)])
def test_other_layouts_survive(tmp_path, name, layout, count, make_pose):
    if (name, layout) == ("pose", "sign49"):
        pytest.skip(".pose has no such layout")
    pose = make_pose(layout=layout, count=count, people=2)
    got = load_pose(write(tmp_path, name, pose))
    np.testing.assert_array_equal(got.xy, pose.xy)
    assert (got.layout, got.num_people) == (layout, 2)


@pytest.mark.parametrize("name", FORMATS)
def test_content_decides_before_the_extension(tmp_path, name, make_pose):
    for suffix in (".dat", ".npz", ".json", ".pkl"):
        path = write(tmp_path, name, make_pose(frames=2), suffix)
        assert detect(path) == name
        assert load_pose(path, size=(640, 480)).num_frames == 2


def test_folders_are_searched_for_every_extension():
    assert suffixes() == {".npz", ".json", ".pkl", ".pickle", ".pose"}
    assert suffixes("mmpose_pickle") == {".pkl", ".pickle"}


def save(tmp_path, content, suffix=".pkl"):
    path = tmp_path / f"clip{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def keypoints(frames, count=133, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(100, 300, (frames, count, channels)).astype(np.float32)


def names(count):
    return [f"img_{i:05d}.jpg" for i in range(count)]


@pytest.mark.parametrize(
    ("img_list", "drop_last", "frames"),
    [
        (names(5), False, 5),
        (names(5), True, 4),
        (names(3), False, 3),
        (names(9), False, 5),
        ([*names(5), "thumbs.db"], True, 5),
        ([*names(4), "thumbs.db"], False, 4),
        (["folder_1/frame.jpg", *names(2)], False, 2),
        (np.array(names(4)), False, 4),
        (None, True, 5),
    ],
)
def test_author_pickles_have_as_many_frames_as_numbered_names(tmp_path, img_list, drop_last, frames):
    content = {"keypoints": keypoints(5), "other": "ignored"} | ({} if img_list is None else {"img_list": img_list})
    pose = load_pose(save(tmp_path, content), drop_last=drop_last)
    np.testing.assert_array_equal(pose.xy[:, 0], content["keypoints"][:frames, :, :2])
    np.testing.assert_array_equal(pose.confidence[:, 0], content["keypoints"][:frames, :, 2])


def test_bare_arrays_and_nested_lists_are_keypoints_too(tmp_path):
    array = keypoints(3)
    for content in (array, {"keypoints": array.tolist()}, {"keypoints": [array[:1], array[1:2], array[2:]]}):
        np.testing.assert_array_equal(load_pose(save(tmp_path, content)).xy[:, 0], array[..., :2])


def test_unisign_pickles_are_fractions_or_pixels_with_start_and_end(tmp_path):
    xy = keypoints(6, channels=2)
    content = {"keypoints": list(xy[:, None] / (640, 480)), "scores": list(np.ones((6, 1, 133))), "start": 1, "end": 4}
    pose = load_pose(save(tmp_path, content), size=(640, 480))
    np.testing.assert_allclose(pose.xy[:, 0], xy[1:4], rtol=1e-6)
    with pytest.raises(
        PoseFileError,
        match="positions are fractions of the image, whose size is unknown; give it: --prep",
    ):
        load_pose(tmp_path / "clip.pkl")
    content = {"keypoints": list(xy[:, None]), "scores": list(np.ones((6, 1, 133)))}
    np.testing.assert_array_equal(load_pose(save(tmp_path, content)).xy[:, 0], xy)


def test_units_can_be_said_and_what_is_neither_is_refused(tmp_path):
    xy = keypoints(6, channels=2)
    fractions = {"keypoints": list(xy[:, None] / (640, 480)), "scores": list(np.ones((6, 1, 133)))}
    path = save(tmp_path, fractions)
    np.testing.assert_allclose(load_pose(path, size=(640, 480), units="fractions").xy[:, 0], xy, rtol=1e-6)
    assert load_pose(path, size=(640, 480), units="pixels").xy.max() < 1
    with pytest.raises(ValueError, match="load_pose: units must be one of 'auto', 'pixels', 'fractions', got 'cm'"):
        load_pose(path, units="cm")
    mixed = np.stack([frame / (640, 480) for frame in xy])
    mixed[:, 5] *= 400
    path = save(tmp_path, fractions | {"keypoints": list(mixed[:, None])})
    with pytest.raises(PoseFileError, match="positions are neither all fractions .* say units='fractions'"):
        load_pose(path, size=(640, 480))
    assert load_pose(path, size=(640, 480), units="fractions").num_frames == 6


@pytest.mark.parametrize("name", FORMATS)
def test_fractions_in_any_format_become_pixels_when_they_are_said_to_be(tmp_path, name, make_pose):
    pose = make_pose(frames=2)
    part = Pose(pose.xy / np.float32((640, 480)), pose.confidence, size=(640, 480))
    got = load_pose(write(tmp_path, name, part), units="fractions", size=(640, 480))
    np.testing.assert_allclose(got.xy, pose.xy, rtol=1e-6)


def test_frames_without_anybody_are_missing(tmp_path):
    xy, nobody = keypoints(5, channels=2)[:, None], np.zeros((0, 133, 2))
    frames = [xy[0], nobody, None, [], xy[4]]
    scores = [np.ones((1, 133)), np.zeros((0, 133)), None, [], np.ones((1, 133))]
    unisign = save(tmp_path, {"keypoints": frames, "scores": scores})
    array = keypoints(5)
    people = [[instance(array[0])], [], [{"keypoints": [], "keypoint_scores": []}], {"instances": []}]
    for pose in (load_pose(unisign), load_pose(save(tmp_path, [*people, [instance(array[4])]], ".json"))):
        assert pose.confidence.any((1, 2)).tolist() == [True, False, False, False, True]
        assert not pose.xy[1:4].any()


def instance(array, scores=None):
    out = {"keypoints": array[:, :2].tolist(), "bbox": [[0, 0, 9, 9]]}
    return out | {"keypoint_scores": (array[:, 2] if scores is None else scores).tolist()}


def test_mmpose_json_in_all_its_shapes(tmp_path):
    array = keypoints(3)
    frames = [[instance(frame)] for frame in array]
    shapes = [
        {"meta_info": {}, "instance_info": [{"frame_id": i + 1, "instances": f} for i, f in enumerate(frames)]},
        {"instance_info": frames},
        frames,
        [[{"keypoints": [frame.tolist()]}] for frame in array],
    ]
    for content in shapes:
        pose = load_pose(save(tmp_path, content, ".json"))
        np.testing.assert_array_equal(pose.xy[:, 0], array[..., :2])
        np.testing.assert_array_equal(pose.confidence[:, 0], array[..., 2])
    image = {"meta_info": {}, "instance_info": [instance(array[0]), instance(array[1])]}
    assert load_pose(save(tmp_path, image, ".json")).xy.shape == (1, 2, 133, 2)


def test_people_keep_their_track_when_the_detector_changes_their_order():
    rng = np.random.default_rng(0)
    places = np.array([(100.0, 100.0), (400.0, 120.0), (250.0, 400.0)])
    frames, order = [], []
    for t in range(40):
        shuffled = rng.permutation(3)[: 3 if t == 0 or rng.random() < 0.7 else 2]
        order.append(shuffled)
        drift = t * np.array([1.0, 0.5])
        frames.append(
            [(places[p] + drift + rng.normal(0, 20, (133, 2)), np.full(133, 0.9 - 0.2 * p)) for p in shuffled]
        )
    xy, confidence = stack("clip", frames)
    assert xy.shape == (40, 3, 133, 2)
    for track in range(3):
        seen = confidence[:, track].any(1)
        assert seen.sum() == sum(track in shuffled for shuffled in order)
        assert (confidence[seen, track] == confidence[0, track]).all()


def test_two_detections_never_share_a_track():
    def at(*places):
        return [(np.linspace(p, p + 1, 133)[:, None] * np.ones(2), np.full(133, 0.9 - 0.1 * i)) for i, p in places]

    xy, confidence = stack("clip", [at((0, 0), (1, 10)), at((0, 1), (1, 2)), at((0, 9))])
    assert xy[:, :, 0, 0].tolist() == [[0, 10], [1, 2], [0, 9]]
    assert (confidence.any(-1) == [[True, True], [True, True], [False, True]]).all()


def test_only_the_most_prominent_people_are_kept():
    crowd = [(np.random.default_rng(p).uniform(0, 10 + p, (133, 2)), np.ones(133)) for p in range(40)]
    xy, _ = stack("clip", [crowd, crowd[::-1]])
    assert xy.shape[1] == 16
    assert np.ptp(xy[0], axis=1).min() > 20


def person(array):
    return {"keypoints": array.tolist(), "keypoint_scores": [1.0] * len(array)}


GOOD = np.full((133, 2), 9.0)
RAGGED = [[1.0, 2.0]] * 132 + [[1.0]]


@pytest.mark.parametrize(
    ("content", "suffix", "reason"),
    [
        (b"", ".pkl", "is empty"),
        (b"", ".json", "is empty"),
        (b"hello, world", ".txt", "is no pose file; known formats are npz, mmpose_json, mmpose_pickle, pose"),
        ({"kp": 1}, ".pkl", "the key 'keypoints' is missing, found 'kp'"),
        ({}, ".pkl", "the key 'keypoints' is missing, found an empty dict"),
        ([1], ".pkl", "the key 'keypoints' is missing, found a list"),
        ({"keypoints": 5}, ".pkl", "keypoints must have one entry per frame, got a int"),
        ({"keypoints": np.float32(5)}, ".pkl", "keypoints must have one entry per frame, got a float"),
        ({"keypoints": keypoints(3, 17)}, ".pkl", "frame 0: keypoints must have shape [133, 2], got [17, 3]"),
        ({"keypoints": keypoints(3, 133, 4)}, ".pkl", "frame 0: keypoints must have shape [133, 2], got [133, 4]"),
        (
            {"keypoints": [np.full((133, 3), 9.0).tolist(), RAGGED]},
            ".pkl",
            "frame 1: the keypoints are no [133, 2] array of numbers",
        ),
        ({"keypoints": [keypoints(1)[0], "x"]}, ".pkl", "frame 1: the keypoints are no [133, 2] array of numbers"),
        ({"keypoints": np.array([["x"] * 133] * 2)}, ".pkl", "frame 0: the keypoints are no [133, 2] array of numbers"),
        ({"keypoints": keypoints(0)}, ".pkl", "there are no frames"),
        (
            {"keypoints": keypoints(3), "img_list": []},
            ".pkl",
            "no name in img_list ends in _<number>, so there are no frames",
        ),
        (
            {"keypoints": keypoints(3), "img_list": "img_1.jpg"},
            ".pkl",
            "img_list must have one entry per frame, got a str",
        ),
        ({"keypoints": keypoints(3, channels=2)}, ".pkl", "frame 0: the keypoints have no scores"),
        ({"keypoints": [keypoints(150)] * 9000}, ".pkl", "126150 people in 841 frames are too much for one clip"),
        ({"keypoints": keypoints(3), "scores": [1]}, ".pkl", "there are 3 frames of keypoints but 1 of scores"),
        ({"keypoints": keypoints(3), "start": 2, "end": 9}, ".pkl", "start and end do not lie within the frames"),
        (
            {"keypoints": [GOOD] * 2, "scores": [np.ones(133), np.ones(132)]},
            ".pkl",
            "frame 1: scores must have shape [133], got [132]",
        ),
        ({"a": {"video_data": {}}, "b": {"video_data": {}}}, ".pkl", "is a cache of 2 videos; PoseDataset opens it"),
        ({"annotations": [{}, {}]}, ".pkl", "is a PYSKL data set of 2 clips; PoseDataset opens it"),
        ({"frames": []}, ".json", "the key 'instance_info' is missing, found 'frames'"),
        ({"instance_info": 3}, ".json", "instance_info must be a list of frames, got int"),
        ([], ".json", "there are no frames"),
        ([[], [], []], ".json", "there is nobody in any frame"),
        (
            {"meta_info": {"image_size": [0, 3]}, "instance_info": [[person(GOOD)]]},
            ".json",
            "the image size must be two whole numbers (width, height), got (0, 3)",
        ),
        ([[person(GOOD)], 3], ".json", "frame 1: instances must be a list, got int"),
        ([[person(GOOD)], {"people": []}], ".json", "frame 1: the key 'instances' is missing, found 'people'"),
        ([[person(GOOD)], [{"bbox": []}]], ".json", "frame 1: an instance has no 'keypoints'"),
        ([[person(GOOD)], [person(GOOD[:17])]], ".json", "frame 1: keypoints must have shape [133, 2], got [17, 2]"),
        (
            [[person(GOOD)], [person(np.where(np.arange(133)[:, None] == 7, np.nan, GOOD))]],
            ".json",
            "frame 1: keypoint 7 (left_elbow) is at (nan, nan)",
        ),
        (b'[[{"keypoints": ' + b"[" * 100_000, ".json", "is damaged (RecursionError"),
        (b"[" + b"9" * 5000 + b"]", ".json", "is damaged (ValueError"),
        (b'{"instance_info"', ".json", "is damaged (JSONDecodeError"),
        (b"PK\x03\x04junk", ".npz", "is damaged (BadZipFile"),
        (struct.pack("<f", 0.2) + b"\x01", ".pose", "is damaged (error"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, suffix, reason):
    path = save(tmp_path, content, suffix)
    with pytest.raises(PoseFileError) as raised:
        load_pose(path)
    assert str(raised.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(raised.value) and len(raised.value.reason) < 250


def test_missing_files_folders_and_formats(tmp_path):
    with pytest.raises(PoseFileError, match="cannot be opened: No such file or directory"):
        load_pose(tmp_path / "none.pkl")
    with pytest.raises(PoseFileError, match="cannot be opened: Is a directory"):
        load_pose(tmp_path)
    with pytest.raises(ValueError, match="load_pose: format must be 'auto' or one of 'npz', .*, got 'bvh'"):
        load_pose(tmp_path / "none.pkl", "bvh")
    with pytest.raises(PoseFileError, match="the image size must be two whole numbers"):
        load_pose(tmp_path / "none.pkl", size=(0, 3))


@pytest.mark.parametrize("name", FORMATS)
def test_every_truncated_file_is_refused(tmp_path, name, make_pose):
    data = write(tmp_path, name, make_pose(frames=2)).read_bytes()
    path = tmp_path / f"cut{FORMATS[name].suffixes[0]}"
    steps = sorted({*range(0, 200, 7), *np.linspace(0, len(data) - 1, 120).astype(int).tolist()})
    for length in steps:
        path.write_bytes(data[:length])
        with pytest.raises(PoseFileError):
            load_pose(path)


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bytes_give_a_pose_or_a_refusal_and_nothing_else(tmp_path, name, make_pose):
    data = write(tmp_path, name, make_pose(frames=2)).read_bytes()
    path = tmp_path / f"flipped{FORMATS[name].suffixes[0]}"
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(250):
        changed = bytearray(data)
        area = min(len(data), 400) if trial % 2 else len(data)
        for where in rng.integers(0, area, 1 + trial % 5):
            changed[where] = rng.integers(256)
        path.write_bytes(changed)
        try:
            assert np.isfinite(load_pose(path).xy).all()
        except PoseFileError:
            refused += 1
    assert refused > 20


def npz(tmp_path, **changes):
    path = tmp_path / "clip.npz"
    arrays = dict(xy=np.ones((2, 1, 133, 2)), confidence=np.ones((2, 1, 133)), fps=25, size=(9, 9), layout="coco133")
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


def test_npz_members_are_checked(tmp_path):
    assert load_pose(npz(tmp_path)).num_frames == 2
    for changes, reason in (
        (dict(confidence=None), "the array 'confidence' is missing"),
        (dict(xy=np.array([{}], dtype=object)), "is damaged .ValueError: Object arrays cannot be loaded"),
        (dict(xy=np.array(["x"])), "positions must have shape"),
        (dict(layout="face"), "layout 'face' is unknown"),
        (dict(size=(1, 2, 3)), "the image size must be two whole numbers .*, got .1, 2, 3."),
        (dict(xy=np.full((2, 1, 133, 2), np.nan)), r"frame 0: keypoint 0 \(nose\) is at \(nan, nan\)"),
    ):
        with pytest.raises(PoseFileError, match=reason):
            load_pose(npz(tmp_path, **changes))


def test_a_zip_bomb_is_refused_by_its_own_table(tmp_path, monkeypatch):
    path = npz(tmp_path, xy=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xy.npy", bytes(1 << 22))
    assert path.stat().st_size < 1 << 16
    monkeypatch.setattr("slrfast.data.formats.npz.MAX_VALUES", 1 << 17)
    with pytest.raises(PoseFileError, match="the array 'xy' unpacks to 4194304 bytes, too much for one clip"):
        load_pose(path)


def test_pose_files_of_other_skeletons_are_refused(tmp_path, make_pose):
    pytest.importorskip("pose_format")
    data = write(tmp_path, "pose", make_pose(frames=2)).read_bytes()
    path = tmp_path / "other.pose"
    path.write_bytes(data.replace(b"\x09\x00LEFT_HAND", b"\x09\x00LEFT_FOOT"))
    with pytest.raises(PoseFileError, match="is neither Holistic nor COCO-WholeBody; it has BODY, FACE, LEFT_FOOT"):
        load_pose(path)


def test_missing_pose_format_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pose_format", None)
    path = tmp_path / "clip.pose"
    path.write_bytes(struct.pack("<f", 0.2))
    with pytest.raises(PoseFileError) as raised:
        load_pose(path)
    assert raised.value.reason == ".pose files need the package pose-format: pip install 'slrfast[pose]'"


def test_a_failed_write_leaves_the_old_file(tmp_path, make_pose, monkeypatch):
    path = tmp_path / "clip.npz"
    save_npz(path, make_pose(frames=2))
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_npz(path, make_pose(frames=3))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_numbers_admit_numbers_only():
    assert numbers([[1, 2.5], [None, True]]).tolist()[0] == [1, 2.5]
    for value in ([["1"]], [object()], np.array(["1"]), np.array([object()]), {"a": 1}):
        with pytest.raises(TypeError):
            numbers(value)
    with pytest.raises(TypeError):
        numbers([[[[[1.0]]]]])
    with pytest.raises(ValueError, match="too many numbers"):
        numbers([[0.0] * 1000] * 1000)
    assert len(people("clip", 0, np.zeros((2, 133, 3)))) == 2
    assert isinstance(Pose(np.zeros((1, 1, 49, 2)), np.zeros((1, 1, 49)), layout="sign49"), Pose)


def test_what_has_no_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "zeros.pkl").symlink_to("/dev/zero")
    for name in ("pipe.npz", "zeros.pkl"):
        with pytest.raises(PoseFileError, match="is a pipe or a device, not a file"):
            load_pose(tmp_path / name)
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PoseFileError, match="has 1099511627776 bytes, too many for one clip"):
        load_pose(tmp_path / "huge.json")
