import numpy as np
import pytest
import torch

from slrfast.data import PreprocessOptions, SyntheticSigns, preprocess
from slrfast.data.signer import Style, skeleton
from slrfast.data.synthetic import HAND_SHAPES, PLACES, draw_signs, perform


def features(clip, frames=16):
    at = np.round(np.linspace(0, clip.num_frames - 1, frames)).astype(int)
    return clip.xy[at].flatten().numpy()


def nearest_neighbour_accuracy(data):
    """Top-1 with every signer held out in turn."""
    x, label, group = np.stack([features(c) for c in data.clips]), np.array(data.labels), np.array(data.groups)
    right = 0
    for signer in sorted(set(group)):
        test = group == signer
        distance = ((x[test][:, None] - x[~test][None]) ** 2).sum(-1)
        right += (label[~test][distance.argmin(1)] == label[test]).sum()
    return right / len(data)


def test_signs_of_a_new_signer_can_be_learnt_but_not_trivially():
    accuracy = nearest_neighbour_accuracy(SyntheticSigns(num_classes=20, clips_per_class=15, num_signers=5))
    assert 0.3 < accuracy < 0.85, accuracy  # chance is 0.05


def test_noise_and_variation_make_it_harder():
    easy = nearest_neighbour_accuracy(SyntheticSigns(10, 8, 4, noise=0, variation=0))
    hard = nearest_neighbour_accuracy(SyntheticSigns(10, 8, 4, noise=3, variation=2))
    assert easy > 0.95 and hard < 0.85, (easy, hard)


def test_takes_without_any_visible_hand_are_skipped_and_the_rest_keeps_its_poses(tmp_path):
    data = SyntheticSigns(10, 6, 6, seed=8, noise=5, variation=2)
    assert 0 < len(data.skipped) < 10 and {reason for _, reason in data.skipped} == {"no hand is visible in any frame"}
    assert len(data) + len(data.skipped) == 60 and len(data.save(tmp_path)) == len(data)
    for i in range(0, len(data), 7):
        assert torch.equal(preprocess(data.pose(i)).xy, data[i].xy) and data[i].index == i


def test_the_seed_decides_everything():
    first, again, other = (SyntheticSigns(4, 3, 2, seed=s) for s in (5, 5, 6))
    assert first.signs == again.signs != other.signs
    assert all(torch.equal(a.xy, b.xy) for a, b in zip(first, again, strict=True))
    np.testing.assert_array_equal(first.pose(7).xy, again.pose(7).xy)


def test_labels_groups_and_names():
    data = SyntheticSigns(3, 4, 2)
    assert data.labels == [0] * 4 + [1] * 4 + [2] * 4
    assert data.groups == ["signer0", "signer1"] * 6
    assert data.class_names == ["sign00", "sign01", "sign02"] and data[5].name == "sign01/001"
    assert len({clip.name for clip in data}) == 12 and data.skipped == []
    assert data.summary().endswith("12 labelled with 3 classes, 2 groups")


def test_classes_differ_and_use_every_inventory():
    signs = draw_signs(200, np.random.default_rng(0))
    assert len(set(signs)) == 200
    assert {s.hands for s in signs} == {"one", "mirror", "alternate", "base"}
    assert {s.movement for s in signs} == {"hold", "line", "arc", "circle", "zigzag"}
    assert {s.places[0] for s in signs} == set(range(len(PLACES)))
    assert {s.shapes[0] for s in signs} == set(range(len(HAND_SHAPES)))


def test_bones_keep_their_length_and_wrists_meet_hands():
    rng = np.random.default_rng(0)
    for sign in draw_signs(12, rng):
        style = Style.draw(rng, 1.0)
        points = skeleton(perform(sign, style, rng, 1.0), style)
        assert np.isfinite(points).all() and points.shape[1:] == (133, 3)
        upper, lower = style.arms
        for shoulder, elbow, wrist, hand in ((5, 7, 9, 91), (6, 8, 10, 112)):
            length = np.linalg.norm(points[:, elbow] - points[:, shoulder], axis=-1)
            np.testing.assert_allclose(length, upper, rtol=1e-9)
            np.testing.assert_allclose(np.linalg.norm(points[:, wrist] - points[:, elbow], axis=-1), lower, rtol=1e-9)
            np.testing.assert_array_equal(points[:, hand], points[:, wrist])
            for finger in range(5):
                joints = points[:, hand + 1 + 4 * finger : hand + 5 + 4 * finger]
                bones = np.linalg.norm(np.diff(joints, axis=1), axis=-1)
                np.testing.assert_allclose(bones, np.broadcast_to(bones[:1], bones.shape), rtol=1e-9)


def test_one_handed_signs_leave_the_other_hand_down():
    data = SyntheticSigns(12, 1, 1, noise=0, variation=0)
    for i, sign in enumerate(data.signs):
        height = data.pose(i).xy[:, 0, [9, 10], 1]
        moves = np.ptp(height, axis=0) > 30
        assert moves[1]
        assert moves[0] == (sign.hands != "one")


def test_a_detector_makes_mistakes_only_with_noise():
    clean, usual = SyntheticSigns(6, 4, 2, noise=0), SyntheticSigns(6, 4, 2, noise=1)
    confidence = np.concatenate([clean.pose(i).confidence[:, 0, :11] for i in range(24)])
    assert (confidence > 0.96).mean() > 0.95  # all but what the image cuts off
    noisy = np.concatenate([usual.pose(i).confidence[:, 0, 91:] for i in range(24)])
    lost = (noisy < 0.4).mean()
    assert 0.02 < lost < 0.4, lost
    assert (noisy > 0.7).mean() > 0.5
    kept = torch.cat([clip.confidence[:, :42] for clip in usual])
    assert 0.02 < float((kept == 0).float().mean()) < 0.9


def test_poses_go_through_the_same_preprocessing_as_files():
    data = SyntheticSigns(2, 1, 1, options=PreprocessOptions.legacy("msasl"))
    plain = SyntheticSigns(2, 1, 1)
    assert not torch.equal(data[0].confidence, plain[0].confidence)
    pose = data.pose(0)
    assert (pose.layout, pose.size, pose.xy.shape[1:]) == ("coco133", (640, 480), (1, 133, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_classes=0), r"SyntheticSigns: num_classes must be in \[1, 65536\], got 0"),
        (dict(noise=-1), r"SyntheticSigns: noise must be in \[0, 5\], got -1"),
        (dict(variation=9), r"SyntheticSigns: variation must be in \[0, 2\], got 9"),
        (dict(seed=-1), "SyntheticSigns: seed must be in"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticSigns(**arguments)
    with pytest.raises(ValueError, match="SyntheticSigns.save: format must be one of 'npz'"):
        SyntheticSigns(1, 1).save("nowhere", "bvh")
