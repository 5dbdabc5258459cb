import math

import numpy as np
import pytest
import torch

from slrfast import graphs
from slrfast.data import Pose, PreprocessOptions, preprocess
from slrfast.data.crop import crop_normalise
from slrfast.data.pose import GIVE_SIZE, LAYOUTS
from slrfast.data.preprocess import arrays, joint_indices
from slrfast.errors import PoseFileError

OPTIONS = {
    "default": PreprocessOptions(),
    "wlasl": PreprocessOptions.legacy("wlasl"),
    "nmfs_csl": PreprocessOptions.legacy("nmfs_csl"),
    "slr500": PreprocessOptions.legacy("slr500"),
}


# The oracle: the rules as plain loops over frames and joints, in Python's own numbers.


def oracle_box(hand, scores, arm, arm_scores, width, height, options):
    seen = [p for p, c in zip(hand, scores, strict=True) if c > np.float32(options.visible_threshold)]
    if len(seen) >= options.min_visible:
        xs, ys = [p[0] for p in seen], [p[1] for p in seen]
        cx, cy = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
        side = round(options.box_scale * max(max(xs) - min(xs), max(ys) - min(ys)))

        def slide(center, last):
            low = round(max(0, center - side / 2))
            high = low + side
            if high > last:
                low, high = low - (high - last), last
            return low, high

        if side < min(width, height) - 1:
            x, y = slide(cx, width - 1), slide(cy, height - 1)
        else:
            side = min(width, height) - 1
            x, y = (0, width - 1), (0, height - 1)
            if width <= height:
                y = slide(cy, height - 1)
            if height <= width:
                x = slide(cx, width - 1)
        box = [int(n) for n in (*x, *y)]
        return box if box[1] > box[0] and box[3] > box[2] else None

    if any(c < np.float32(options.arm_threshold) for c in arm_scores):
        return None
    shoulder, elbow, wrist = arm
    if options.bottom_margin is not None and wrist[1] >= height - options.bottom_margin:
        return None
    lower = math.sqrt((wrist[0] - elbow[0]) ** 2 + (wrist[1] - elbow[1]) ** 2)
    upper = math.sqrt((elbow[0] - shoulder[0]) ** 2 + (elbow[1] - shoulder[1]) ** 2)
    side = 1.1 * max(lower, 0.9 * upper)
    x = max(0, wrist[0] + 0.33 * (wrist[0] - elbow[0]) - side / 2)
    y = max(0, wrist[1] + 0.33 * (wrist[1] - elbow[1]) - side / 2)
    side = min([side] + ([width - x] if x + side > width else []) + ([height - y] if y + side > height else []))
    x, y, side = int(x), int(y), int(side)
    return [x, x + side, y, y + side] if side > 0 else None


def oracle_hand(hand, scores, box, options, mirror):
    out, kept = np.zeros((21, 2)), np.zeros(21, np.float32)
    x0, x1, y0, y1 = box
    for v in range(21):
        x, y, score = *hand[v], scores[v]
        if score < np.float32(options.hand_threshold):
            x, y, score = 0, 0, 0
        u = [max((x - x0) / (x1 - x0) * 256, 0), max((y - y0) / (y1 - y0) * 256, 0)]
        if mirror:
            u[0] = 256 - u[0]
            u = [n if n < 255 else 0 for n in u]
        out[v], kept[v] = (u[0] / 256, u[1] / 256), score
    return out, kept


def oracle(pose, options):
    width, height = pose.size
    frames = range(pose.num_frames)
    if pose.num_frames > 150:
        frames = range(0, pose.num_frames, max(2, math.ceil(pose.num_frames / 150)))
    names = LAYOUTS[pose.layout]
    rows = {side: [i for i, name in enumerate(names) if name.startswith(f"{side}_hand_")] for side in ("left", "right")}
    arms = {
        side: [names.index(f"{side}_{joint}") for joint in ("shoulder", "elbow", "wrist")] for side in ("left", "right")
    }
    trunk = [names.index("nose"), *arms["left"], *arms["right"]]
    clip, clip_scores = [], []
    for t in frames:
        xy, scores = pose.xy[t, 0].astype(np.float64), pose.confidence[t, 0]
        out, kept = np.zeros((49, 2)), np.zeros(49, np.float32)
        boxes = {}
        for side, place in (("right", 0), ("left", 21)):
            r, a = rows[side], arms[side]
            boxes[side] = oracle_box(xy[r].tolist(), scores[r], xy[a].tolist(), scores[a], width, height, options)
            if boxes[side] is not None:
                out[place : place + 21], kept[place : place + 21] = oracle_hand(
                    xy[r].tolist(), scores[r], boxes[side], options, mirror=side == "left"
                )
        if all(box is None for box in boxes.values()):
            continue
        for i, v in enumerate(trunk):
            if scores[v] >= np.float32(options.trunk_threshold):
                out[42 + i] = xy[v, 0] / width, xy[v, 1] / height
                kept[42 + i] = scores[v]
        clip.append(out)
        clip_scores.append(kept)
    return np.array(clip, np.float32), np.array(clip_scores, np.float32)


def random_pose(seed, layout="coco133", frames=60):
    """Hands of all sizes, everywhere and beyond every border, on a grid of quarters so that halves must be rounded."""
    rng = np.random.default_rng(seed)
    size = [(640, 480), (480, 640), (512, 512), (33, 200), (64, 9), (1000, 720)][seed % 6]
    count = len(LAYOUTS[layout])
    xy = rng.uniform(-0.2, 1.2, (frames, count, 2)) * size
    exact = rng.choice([0, 0.05, 0.1, 0.3, 0.4, 0.5, 0.8, 0.9, 1.0], (frames, count))
    confidence = np.where(rng.random((frames, 1)) < 0.5, exact, exact * 1.01)
    for side in ("left", "right"):
        rows = [i for i, name in enumerate(LAYOUTS[layout]) if name.startswith(f"{side}_hand_")]
        center = rng.uniform(-0.1, 1.1, (frames, 1, 2)) * size
        extent = rng.choice([0, 1, 5, 20, 60, 200, 2000], (frames, 1, 1))
        xy[:, rows] = center + extent * rng.uniform(-0.5, 0.5, (frames, 21, 2))
        place = center[:, 0]
        for joint in ("shoulder", "elbow", "wrist"):  # an arm that ends near the hand
            row = LAYOUTS[layout].index(f"{side}_{joint}")
            xy[:, row] = place = place + rng.normal(0, 0.1, (frames, 2)) * size
            confidence[:, row] = rng.choice([0.3, 0.5, 0.8, 0.9], frames, p=(0.1, 0.1, 0.1, 0.7))
        visible = rng.choice([0, 3, 9, 10, 21], (frames, 1)) > rng.permuted(np.tile(np.arange(21), (frames, 1)), axis=1)
        sure = rng.choice([0.3, 0.4, 0.5, 0.9], (frames, 21))
        confidence[:, rows] = np.where(visible, sure, rng.choice([0, 0.1], (frames, 21)))
    return Pose(np.round(xy * 4)[:, None] / 4, confidence[:, None], size=size, layout=layout)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("layout", ["coco133", "holistic", "sign49"])
def test_whole_clips_agree_exactly_with_plain_loops(name, layout):
    hands_found = 0
    for seed in range(12):
        pose = random_pose(seed, layout)
        want, want_confidence = oracle(pose, OPTIONS[name])
        got, got_confidence = arrays(pose, OPTIONS[name])
        assert got.dtype == got_confidence.dtype == np.float32
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(got_confidence, want_confidence)
        hands_found += int((got_confidence[:, :42].reshape(len(got), 2, 21) > 0).any(2).sum())
    assert hands_found > 100  # the cases are not empty


def hand_clip(hand, size=(640, 480), confidence=1.0, side="right", frames=1):
    """A sign49 pose with one hand and no arms."""
    xy, scores = np.zeros((frames, 1, 49, 2)), np.zeros((frames, 1, 49))
    part = graphs.layout(49).parts[f"{side}_hand"]
    xy[:, 0, part], scores[:, 0, part] = hand, confidence
    return Pose(xy, scores, size=size, layout="sign49", path="clip.pkl")


def spread(low, high):
    return np.linspace(low, high, 21)


def test_box_by_hand_calculation():
    # extent 100 x 50 around (200, 125): side 220, corner (90, 15)
    clip = preprocess(hand_clip(spread((150, 100), (250, 150))))
    np.testing.assert_allclose(clip.xy[0, 0], [(150 - 90) / 220, (100 - 15) / 220], rtol=1e-6)
    np.testing.assert_allclose(clip.xy[0, 20], [(250 - 90) / 220, (150 - 15) / 220], rtol=1e-6)
    assert (clip.xy[0, 21:] == 0).all() and (clip.confidence[0, 21:] == 0).all()


def test_box_slides_along_the_border_and_rounds_half_to_even():
    # extent 10: side 22; center (5, 475) would put the corner at (-6, 464): clamped to 0, shifted to 479 - 22 = 457
    clip = preprocess(hand_clip(spread((0, 475), (10, 475))))
    np.testing.assert_allclose(clip.xy[0, 20], [10 / 22, 18 / 22], rtol=1e-6)
    # extent 10, center 105.5 and 106.5: corners 94.5 -> 94 and 95.5 -> 96
    clip = preprocess(hand_clip(spread((100.5, 200), (110.5, 200))))
    np.testing.assert_allclose(clip.xy[0, 0, 0], 6.5 / 22, rtol=1e-6)
    clip = preprocess(hand_clip(spread((101.5, 200), (111.5, 200))))
    np.testing.assert_allclose(clip.xy[0, 0, 0], 5.5 / 22, rtol=1e-6)


def test_left_hand_is_mirrored_and_its_far_edge_removed():
    right = preprocess(hand_clip(spread((150, 100), (250, 150))))
    left = preprocess(hand_clip(spread((150, 100), (250, 150)), side="left"))
    np.testing.assert_allclose(left.xy[0, 21:42, 0], 1 - right.xy[0, :21, 0], rtol=1e-6)
    np.testing.assert_array_equal(left.xy[0, 21:42, 1], right.xy[0, :21, 1])
    # a box as large as the image: the joint at x = 0 is mirrored to 256 and becomes 0, with its confidence kept
    left = preprocess(hand_clip(spread((0, 100), (400, 300)), side="left"))
    assert left.xy[0, 21, 0] == 0 and left.confidence[0, 21] == 1


def test_mirroring_removes_what_is_not_below_255():
    hand = np.zeros((2, 1, 21, 1))
    hand[:, 0, :4, 0] = np.array([(1, 100), (1.5, 100), (100, 255), (100, 254.5)]).T
    args = (hand, np.ones((1, 21, 1), np.float32), np.zeros((2, 1, 1)), np.full((1, 1), 256.0), 0.4)
    left, _ = crop_normalise(*args, mirrored=[0])
    assert (left[:, 0, :4, 0].T * 256).tolist() == [[0, 100], [254.5, 100], [156, 0], [156, 254.5]]
    right, _ = crop_normalise(*args)
    assert (right * 256).tolist() == hand.tolist()


def test_arm_gives_a_box_when_the_hand_is_lost():
    pose = hand_clip(spread((150, 100), (250, 150)))
    xy = np.concatenate([pose.xy] * 2)
    confidence = np.concatenate([pose.confidence] * 2)
    confidence[1] = 0
    arm = [graphs.layout(49).names.index(f"left_{joint}") for joint in ("shoulder", "elbow", "wrist")]
    xy[1, 0, arm], confidence[1, 0, arm] = [(300, 100), (300, 200), (400, 200)], 0.9
    lost = graphs.layout(49).parts["left_hand"]
    xy[1, 0, lost], confidence[1, 0, lost.start : lost.start + 5] = (433, 200), 0.6
    both = Pose(xy, confidence, size=(640, 480), layout="sign49")
    # side 1.1 * 100 around (433, 200): corner (378, 145)
    clip = preprocess(both)
    assert clip.num_frames == 2
    np.testing.assert_allclose(clip.xy[1, 21], [1 - 55 / 110, 55 / 110], rtol=1e-6)
    confidence[1, 0, arm] = 0.45
    assert preprocess(Pose(xy, confidence, size=(640, 480), layout="sign49")).num_frames == 1
    confidence[1, 0, arm] = 0.9
    xy[1, 0, arm[-1], 1] = 430
    low = Pose(xy, confidence, size=(640, 480), layout="sign49")
    assert preprocess(low).num_frames == 1
    assert preprocess(low, PreprocessOptions(bottom_margin=None)).num_frames == 2


def test_long_clips_keep_every_sth_frame_and_short_ones_all():
    for frames, kept in ((150, 150), (151, 76), (300, 150), (301, 101), (449, 150), (451, 113)):
        pose = hand_clip(spread((150, 100), (250, 150)), frames=frames)
        assert preprocess(pose).num_frames == kept


def test_order_of_time_survives_dropped_frames():
    pose = hand_clip(spread((150, 100), (250, 150)), frames=30)
    xy, confidence = pose.xy.copy(), pose.confidence.copy()
    confidence[1::2] = 0
    nose = graphs.layout(49).names.index("nose")
    xy[:, 0, nose, 0], confidence[:, 0, nose] = np.arange(30), 1
    clip = preprocess(Pose(xy, confidence, size=(640, 480), layout="sign49"))
    np.testing.assert_allclose(clip.xy[:, 42, 0] * 640, np.arange(0, 30, 2), atol=1e-4)


@pytest.mark.parametrize("keypoints", [75, 79, 133])
def test_every_layout_holds_the_same_hands_and_the_rest_by_the_image(make_pose, keypoints):
    pose = make_pose(frames=5, seed=keypoints)
    confidence = pose.confidence.copy()
    confidence[1, 0, 23:91:2], confidence[2, 0, 0], confidence[3, 0, 91:112] = 0.39, 0.2, 0
    pose = Pose(pose.xy, confidence, size=pose.size)
    clip, small = preprocess(pose, PreprocessOptions(layout=keypoints)), preprocess(pose)
    layout, base = graphs.layout(keypoints), graphs.layout(49)
    assert clip.xy.shape == (5, keypoints, 2) and clip.confidence.shape == (5, keypoints)
    for name, row in zip(base.names, range(49), strict=True):
        same = layout.names.index(name)
        assert torch.equal(clip.xy[:, same], small.xy[:, row])
        assert torch.equal(clip.confidence[:, same], small.confidence[:, row])
    others = [i for i, name in enumerate(layout.names) if "_hand_" not in name]
    seen = confidence[:, 0, layout.indices[others]] >= np.float32(0.4)
    want = np.where(seen[..., None], pose.xy[:, 0, layout.indices[others]].astype(np.float64) / pose.size, 0)
    np.testing.assert_array_equal(clip.xy[:, others].numpy(), want.astype(np.float32))
    want = np.where(seen, confidence[:, 0, layout.indices[others]], 0)
    np.testing.assert_array_equal(clip.confidence[:, others], want)


@pytest.mark.parametrize("keypoints", graphs.LAYOUTS)
def test_a_mirrored_person_is_the_flipped_clip(make_pose, keypoints):
    """Hands swap as they are, since the left one is stored mirrored; all else is mirrored about the image's middle."""
    pose = make_pose(frames=4, size=(640, 480))
    coco, layout = graphs.layout(133), graphs.layout(keypoints)
    mirrored = pose.xy[:, :, coco.flip] * (-1, 1) + (640, 0)
    options = PreprocessOptions(layout=keypoints)
    clip = preprocess(pose, options)
    flipped = clip.xy[:, layout.flip].clone()
    others = [i for i, name in enumerate(layout.names) if "_hand_" not in name]
    flipped[:, others, 0] = 1 - flipped[:, others, 0]
    got = preprocess(Pose(mirrored, pose.confidence[:, :, coco.flip], size=pose.size), options)
    torch.testing.assert_close(got.xy[:, others], flipped[:, others], rtol=0, atol=1e-6)
    torch.testing.assert_close(got.xy, flipped, rtol=0, atol=2 / 256)  # boxes begin at whole pixels
    assert torch.equal(got.confidence, clip.confidence[:, layout.flip])


def test_joints_that_a_file_lacks_are_missing(make_pose):
    holistic = make_pose(frames=3, layout="holistic", count=75)
    clip = preprocess(holistic, PreprocessOptions(layout=133))
    names = np.array(graphs.layout(133).names)
    lacking = [name for name in names if name not in LAYOUTS["holistic"]]
    assert {name for name in lacking if not name.startswith("face_")} == {
        "left_small_toe", "right_small_toe"
    }  # fmt: skip
    rows = np.isin(names, lacking)
    assert not clip.confidence[:, rows].any() and not clip.xy[:, rows].any() and (clip.confidence[:, ~rows] == 1).all()


def test_holistic_and_coco_name_the_same_joints(make_pose):
    coco = make_pose(frames=5)
    to_holistic = {name: i for i, name in enumerate(LAYOUTS["holistic"])}
    xy, confidence = np.zeros((5, 1, 75, 2)), np.zeros((5, 1, 75))
    for i, name in enumerate(LAYOUTS["coco133"]):
        if name in to_holistic:
            xy[:, :, to_holistic[name]], confidence[:, :, to_holistic[name]] = (
                coco.xy[:, :, i],
                coco.confidence[:, :, i],
            )
    clip = preprocess(Pose(xy, confidence, size=coco.size, layout="holistic"))
    torch.testing.assert_close(clip.xy, preprocess(coco).xy, rtol=0, atol=0)
    assert joint_indices("coco133").tolist() == [*range(112, 133), *range(91, 112), 0, 5, 7, 9, 6, 8, 10]
    assert joint_indices("holistic").tolist() == [*range(54, 75), *range(33, 54), 0, 11, 13, 15, 12, 14, 16]


def test_the_largest_and_most_certain_person_is_taken_unless_one_is_named(make_pose):
    pose = make_pose(frames=5, people=3)
    xy = pose.xy * np.array([0.3, 1, 1], np.float32)[:, None, None]
    confidence = pose.confidence * np.array([1, 0.6, 0.9], np.float32)[:, None]
    clips = [preprocess(Pose(xy, confidence, size=pose.size), PreprocessOptions(person=p)) for p in (None, 0, 1, 2)]
    assert torch.equal(clips[0].xy, clips[3].xy)
    assert not torch.equal(clips[1].xy, clips[2].xy)
    with pytest.raises(PoseFileError, match="person 3 was asked for, but there are 3"):
        preprocess(pose, PreprocessOptions(person=3))


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        (hand_clip(spread((150, 100), (250, 150)), confidence=0), "no hand is visible in any frame"),
        (hand_clip(spread((150, 100), (250, 150)), confidence=0.3), "no hand is visible in any frame"),
        (
            hand_clip(spread((0.3, 0.3), (0.6, 0.5))),
            "positions look like fractions of the image, pixels are needed; say units='fractions' when reading",
        ),
        (
            hand_clip(spread((150, 100), (250, 150)), size=None),
            f"the file does not name the image size; {GIVE_SIZE}",
        ),
    ],
)
def test_clips_that_cannot_be_used(pose, message):
    with pytest.raises(PoseFileError) as raised:
        preprocess(pose)
    assert str(raised.value) == f"clip.pkl: {message}"


def test_size_of_the_options_serves_files_without_one():
    pose = hand_clip(spread((150, 100), (250, 150)), size=None)
    clip = preprocess(pose, PreprocessOptions(size=(640, 480)))
    assert torch.equal(clip.xy, preprocess(hand_clip(spread((150, 100), (250, 150)))).xy)


def test_options_are_checked():
    for layout in (50, "49", None):
        with pytest.raises(ValueError, match="PreprocessOptions: layout must be one of 49, 75, 79, 133, got"):
            PreprocessOptions(layout=layout)
    with pytest.raises(ValueError, match="PreprocessOptions: units must be one of 'auto', 'pixels', 'fractions'"):
        PreprocessOptions(units="metres")
    with pytest.raises(ValueError, match="PreprocessOptions.legacy: dataset must be one of 'wlasl'"):
        PreprocessOptions.legacy("phoenix")
    with pytest.raises(ValueError, match=r"PreprocessOptions: min_visible must be in \[1, 21\], got 0"):
        PreprocessOptions(min_visible=0)


def test_real_webcam_recordings_agree_with_plain_loops(shared_data):
    words = np.load(shared_data / "traduttore_asl" / "words.npz", allow_pickle=False)
    body = words["pose"][::200].astype(np.float64) / 8192
    hands = words["hands"][::200].astype(np.float64) / 16384
    size = (640, 480)
    checked = 0
    for clip_body, clip_hands in zip(body, hands, strict=True):
        found = clip_hands.any((2, 3))[..., None] * np.ones(21)
        xy = np.concatenate((clip_body[..., :2], clip_hands[:, 0], clip_hands[:, 1]), 1) * size
        confidence = np.concatenate((clip_body[..., 2], found[:, 0], found[:, 1]), 1)
        pose = Pose(xy[:, None], confidence[:, None], size=size, layout="holistic")
        if not found.any():
            with pytest.raises(PoseFileError, match="no hand is visible"):
                preprocess(pose)
            continue
        want, want_confidence = oracle(pose, PreprocessOptions())
        got = preprocess(pose)
        np.testing.assert_array_equal(got.xy, want)
        np.testing.assert_array_equal(got.confidence, want_confidence)
        checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hand_threshold": "q"}, "hand_threshold must be a number, got str"),
        ({"arm_threshold": float("nan")}, "arm_threshold must be finite, got nan"),
        ({"bottom_margin": 1.5}, "bottom_margin must be an integer, got float"),
        ({"size": "q"}, "the image size must be two whole numbers"),
        ({"size": (0, 480)}, "the image size must be two whole numbers"),
    ],
)
def test_options_of_the_wrong_kind(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PreprocessOptions(**options)
