import numpy as np
import pytest

from slrfast.data import Pose
from slrfast.data.pose import LAYOUTS, MAX_FRAMES
from slrfast.errors import PoseFileError


def build(frames=4, people=1, count=133, **kwargs):
    xy = kwargs.pop("xy", np.full((frames, people, count, 2), 10.0))
    confidence = kwargs.pop("confidence", np.ones((frames, people, count)))
    return Pose(xy, confidence, path="clip.npz", **kwargs)


def test_numbers_become_float32_and_missing_joints_become_zero():
    confidence = np.ones((4, 1, 133))
    confidence[1, 0, 5], confidence[2, 0, 6] = 0, -0.5
    xy = np.full((4, 1, 133, 2), 10.0)
    xy[1, 0, 5] = np.nan, np.inf
    pose = build(xy=xy, confidence=confidence)
    assert pose.xy.dtype == pose.confidence.dtype == np.float32
    assert (pose.xy[1, 0, 5] == 0).all() and (pose.xy[2, 0, 6] == 0).all()
    assert pose.confidence[2, 0, 6] == 0 and pose.confidence.sum() == 4 * 133 - 2
    assert np.isnan(xy[1, 0, 5, 0])  # the argument is left alone


def test_layouts_have_their_number_of_names():
    counts = {"coco133": 133, "holistic": 75, "holistic_face": 143, "sign49": 49}
    assert {name: len(names) for name, names in LAYOUTS.items()} == counts
    assert all(len(set(names)) == len(names) for names in LAYOUTS.values())


def with_value(shape, where, value, fill=10.0):
    array = np.full(shape, fill)
    array[where] = value
    return array


XY, CONFIDENCE = (4, 1, 133, 2), (4, 1, 133)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(xy=with_value(XY, (3, 0, 96, 1), np.nan)),
            "clip.npz: frame 3: keypoint 96 (left_hand_index_1) is at (10, nan)",
        ),
        (
            dict(xy=with_value(XY, (2, 0, 0, 0), -np.inf)),
            "clip.npz: frame 2: keypoint 0 (nose) is at (-inf, 10)",
        ),
        (
            dict(xy=with_value(XY, (0, 0, 132, 0), 1e300)),
            "clip.npz: frame 0: keypoint 132 (right_hand_little_4) is at (inf, 10)",
        ),
        (
            dict(xy=with_value(XY, (0, 0, 9, 0), 1e7)),
            "clip.npz: frame 0: keypoint 9 (left_wrist) is at (1e+07, 10)",
        ),
        (
            dict(confidence=with_value(CONFIDENCE, (1, 0, 9), np.nan, 1.0)),
            "clip.npz: frame 1: keypoint 9 (left_wrist) has the confidence nan",
        ),
        (dict(xy=np.zeros((4, 133, 2))), "clip.npz: positions must have shape [T, P, V, 2], got [4, 133, 2]"),
        (dict(xy=np.zeros((4, 1, 133, 3))), "clip.npz: positions must have shape [T, P, V, 2], got [4, 1, 133, 3]"),
        (
            dict(confidence=np.ones((3, 1, 133))),
            "clip.npz: confidences must have shape [4, 1, 133], got [3, 1, 133]",
        ),
        (dict(xy=np.ones(XY, complex)), "clip.npz: positions must be numbers, got complex128"),
        (dict(confidence=np.full(CONFIDENCE, "1")), "clip.npz: confidences must be numbers, got <U1"),
        (dict(count=17), "clip.npz: layout coco133 has 133 keypoints, got 17"),
        (dict(frames=0), "clip.npz: there are no frames"),
        (dict(people=0), "clip.npz: there is nobody in any frame"),
        (
            dict(layout="openpose"),
            "clip.npz: layout 'openpose' is unknown; known are coco133, holistic, holistic_face, sign49",
        ),
        (dict(fps=np.nan), "clip.npz: the frame rate is nan"),
        (
            dict(size=(0, 480)),
            "clip.npz: the image size must be two whole numbers (width, height), got (0, 480)",
        ),
        (
            dict(size=(640.5, 480)),
            "clip.npz: the image size must be two whole numbers (width, height), got (640.5, 480)",
        ),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    with pytest.raises(PoseFileError) as raised:
        build(**arguments)
    assert str(raised.value) == message


def test_a_clip_of_hours_is_refused_before_anything_is_copied():
    endless = np.broadcast_to(np.float32(1), (MAX_FRAMES + 1, 1, 133))
    with pytest.raises(PoseFileError, match="100001 frames are more than"):
        Pose(np.broadcast_to(np.float32(1), (*endless.shape, 2)), endless)
    crowd = np.broadcast_to(np.float32(1), (10_000, 16, 133))
    with pytest.raises(PoseFileError, match="too much for one clip"):
        Pose(np.broadcast_to(np.float32(1), (*crowd.shape, 2)), crowd)
