"""Pickled arrays of one person a frame are read at once; lists of the same frames one by one; both give one pose."""

import numpy as np
import pytest

from slrfast.data.formats.base import Asked
from slrfast.data.formats.mmpose_pickle import _alone, from_video
from slrfast.errors import PoseFileError

KEYPOINTS = np.random.default_rng(0).uniform(-5, 600, (6, 1, 133, 3))
KEYPOINTS[..., 2] = np.random.default_rng(1).choice([-0.1, 0, 0.5, 1.3], (6, 1, 133))
XY, SCORES = KEYPOINTS[..., :2], KEYPOINTS[..., 2]
SHAPES = [
    {"keypoints": KEYPOINTS},
    {"keypoints": KEYPOINTS[:, 0]},
    {"keypoints": KEYPOINTS[:, 0].astype(np.float32)},
    {"keypoints": np.asfortranarray(KEYPOINTS[:, 0])[::-1]},
    {"keypoints": KEYPOINTS.astype(np.int16)},
    {"keypoints": XY, "scores": SCORES},
    {"keypoints": XY[:, 0], "scores": SCORES[:, 0]},
    {"keypoints": XY[:, 0], "scores": SCORES},
    {"keypoints": XY, "scores": SCORES[:, 0], "start": 1, "end": 4},
    {"keypoints": KEYPOINTS[:, 0], "scores": SCORES[:, 0], "img_list": [f"a_{i}.jpg" for i in range(4)]},
]


@pytest.mark.parametrize("content", SHAPES)
def test_arrays_and_lists_of_frames_are_the_same_pose(content):
    assert _alone(content["keypoints"], content.get("scores"), 0, 6) is not None
    fast = from_video("clip", content, Asked((640, 480)))
    slow = from_video("clip", {**content, "keypoints": list(content["keypoints"])}, Asked((640, 480)))
    assert fast.num_people == 1
    np.testing.assert_array_equal(fast.xy, slow.xy)
    np.testing.assert_array_equal(fast.confidence, slow.confidence)


@pytest.mark.parametrize(
    "content",
    [
        {"keypoints": XY},
        {"keypoints": XY[:, 0]},
        {"keypoints": KEYPOINTS[:, :, :132]},
        {"keypoints": XY, "scores": SCORES[:, :, :132]},
        {"keypoints": KEYPOINTS.astype("S3")},
        {"keypoints": KEYPOINTS > 0},
    ],
)
def test_other_arrays_are_refused_as_their_frames_are(content):
    said = []
    for keypoints in (content["keypoints"], list(content["keypoints"])):
        with pytest.raises(PoseFileError) as error:
            from_video("clip", {**content, "keypoints": keypoints}, Asked((640, 480)))
        said.append(str(error.value))
    assert said[0] == said[1] and "frame 0" in said[0]


def test_several_people_are_not_taken_for_one():
    pose = from_video("clip", {"keypoints": KEYPOINTS.repeat(3, 1)}, Asked((640, 480)))
    assert pose.num_people == 3


@pytest.mark.parametrize(
    ("name", "numbered"),
    [
        *(("a/img_00001.jpg", True), ("_1", True), ("img_1", True), ("img_1.tar.gz", False), ("img_1.", False)),
        *(("img_1/cover.jpg", False), ("img1.jpg", False), ("a.b/img_7.png", True), ("img_1.jpg\n", True)),
    ],
)
def test_which_names_count_as_frames(name, numbered):
    content = {"keypoints": KEYPOINTS, "img_list": [name, "img_2.jpg"]}
    assert from_video("clip", content, Asked((640, 480))).num_frames == 1 + numbered
