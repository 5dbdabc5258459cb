import time

import numpy as np
import pytest
import torch

from slrfast import graphs
from slrfast.data import ClipDataset, PreprocessOptions, SyntheticSigns
from slrfast.data.render import RenderedDataset, render


@pytest.fixture(scope="module", params=graphs.LAYOUTS)
def signs(request):
    return SyntheticSigns(
        num_classes=2, clips_per_class=2, num_signers=2, options=PreprocessOptions(layout=request.param)
    )


def drawn(clip, **options):
    return render(clip.xy.numpy(), clip.confidence.numpy(), **options)


def person(clip, **options):
    """Where the signer is: what does not change with the background, [T, H, W]."""
    a, b = (drawn(clip, seed=seed, background_motion=0, **options).astype(int) for seed in (1, 2))
    return (a == b).all(0)


def test_pictures_of_every_layout(signs):
    rgb = drawn(signs[0], frames=6, size=(64, 96))
    assert rgb.shape == (3, 6, 64, 96) and rgb.dtype == np.uint8
    share = person(signs[0], frames=6, size=(64, 96)).mean()
    assert 0.05 < share < 0.7


def test_hands_are_drawn_at_the_wrists_and_follow_their_joints():
    clip = SyntheticSigns(num_classes=1, clips_per_class=1, noise=0)[0]
    layout = graphs.layout(49)
    frame = clip.num_frames // 2
    xy, confidence = (array.numpy()[frame : frame + 1].copy() for array in (clip.xy, clip.confidence))
    before = render(xy, confidence, frames=1, size=112, background_motion=0)[:, 0]
    for side in ("right", "left"):
        hand = layout.parts[f"{side}_hand"]
        bent, lost = xy.copy(), confidence.copy()
        bent[:, hand][:, 8] += (0.1, -0.2)  # the tip of the forefinger
        lost[:, hand] = 0
        wrist = xy[0, layout.names.index(f"{side}_wrist")] * 112
        for changed in (render(bent, confidence, frames=1, size=112, background_motion=0)[:, 0],
                        render(xy, lost, frames=1, size=112, background_motion=0)[:, 0]):  # fmt: skip
            rows, columns = np.nonzero((changed != before).any(0))
            assert len(rows) and np.hypot(columns - wrist[0], rows - wrist[1]).max() < 40


def test_the_left_hand_is_unmirrored():
    """A body that is its own mirror image is drawn as one, though its left hand is stored mirrored."""
    layout = graphs.layout(49)
    xy, confidence = np.zeros((1, 49, 2), np.float32), np.ones((1, 49), np.float32)
    hand = np.random.default_rng(0).uniform(0.2, 0.8, (21, 2))
    xy[0, layout.parts["right_hand"]] = xy[0, layout.parts["left_hand"]] = hand
    places = {"nose": (0.5, 0.3), "shoulder": (0.15, 0.5), "elbow": (0.2, 0.7), "wrist": (0.15, 0.6)}
    for name, (x, y) in places.items():
        if name == "nose":
            xy[0, layout.names.index(name)] = x, y
        else:
            xy[0, layout.names.index(f"left_{name}")] = 0.5 + x, y
            xy[0, layout.names.index(f"right_{name}")] = 0.5 - x, y
    shown = (render(xy, confidence, frames=1, size=201, seed=1, background_motion=0)[:, 0]
             == render(xy, confidence, frames=1, size=201, seed=2, background_motion=0)[:, 0]).all(0)  # fmt: skip
    different = shown[:, 1:200] != shown[:, 200:1:-1]  # x is 201 times a fraction, so the middle is column 100.5
    assert different.mean() < 0.02 and shown.mean() > 0.1


def test_pictures_show_the_frames_that_spread_says():
    clip = SyntheticSigns(num_classes=1, clips_per_class=1)[0]
    whole = person(clip, frames=clip.num_frames)
    few = person(clip, frames=4)
    for t, frame in enumerate(np.array([1, 3, 5, 7]) * clip.num_frames // 8):
        assert (few[t] == whole[frame]).mean() > 0.999


def test_the_background_drifts_as_it_is_told():
    clip = SyntheticSigns(num_classes=1, clips_per_class=1)[0]
    nobody = np.zeros_like(clip.confidence.numpy())
    still, slow, fast = (render(clip.xy.numpy(), nobody, background_motion=motion, frames=9) for motion in (0, 1, 4))
    assert (still == still[:, :1]).all() and still.std() > 10
    change = [np.abs(np.diff(rgb.astype(int), axis=1)).mean() for rgb in (slow, fast)]
    assert 0 < change[0] < change[1]
    moved = [np.abs(slow[:, 0, y : 100 + y, x : 100 + x].astype(int) - slow[:, 1, 5:105, 5:105]).mean()
             for y in range(3, 8) for x in range(3, 8)]  # fmt: skip
    assert min(moved) == 0  # the next picture is the same texture, a pixel or two further
    assert render(clip.xy.numpy(), nobody, background_motion=100, frames=200, size=32).shape == (3, 200, 32, 32)


def test_joints_that_are_missing_or_astray_are_no_trouble(signs):
    clip = signs[0]
    nobody = render(clip.xy.numpy(), np.zeros_like(clip.confidence.numpy()), frames=3)
    assert nobody.shape == (3, 3, 112, 112)
    rng = np.random.default_rng(0)
    for scale in (1, 100, 1e30):
        xy = (rng.normal(size=clip.xy.shape) * scale).astype(np.float32)
        assert render(xy, (rng.random(clip.confidence.shape) < 0.5).astype(np.float32), frames=3, size=32).max() > 0


def test_wrong_arguments(signs):
    xy, confidence = signs[0].xy.numpy(), signs[0].confidence.numpy()
    for wrong in (xy[:0], xy[:, :20], xy[..., :1], xy[0]):
        with pytest.raises(ValueError, match=r"^render: xy must have shape \[F, V, 2\] with F > 0 and V one of 49, 75"):
            render(wrong, confidence)
    with pytest.raises(ValueError, match="^render: confidence must have shape"):
        render(xy, confidence[1:])
    with pytest.raises(ValueError, match="^render: height must be in"):
        render(xy, confidence, size=4)
    with pytest.raises(ValueError, match="^render: frames must be in"):
        render(xy, confidence, frames=0)
    with pytest.raises(ValueError, match="^render: background_motion must be in"):
        render(xy, confidence, background_motion=-1)


def test_a_data_set_with_pictures(signs):
    data = RenderedDataset(signs, frames=5, size=48)
    batch = data.batch([2, 0, 2])
    assert batch.rgb.shape == (3, 3, 5, 48, 48) and batch.rgb[0].equal(batch.rgb[2]) and batch.rgb_mask is None
    assert batch.rgb[1].equal(data[0].rgb) and batch.xy.equal(signs.batch([2, 0, 2]).xy)
    assert data.subset([2])[0].rgb.equal(batch.rgb[0])
    assert not RenderedDataset(signs, frames=5, size=48, seed=1)[0].rgb.equal(data[0].rgb)
    assert len(data) == len(signs) and data.labels == signs.labels


def test_a_signer_keeps_the_colours_and_a_clip_its_background(signs):
    data = RenderedDataset(signs, frames=1, size=64, background_motion=0)
    same_signer, other_signer = data[2].rgb, data[1].rgb  # take 0 of sign 1, take 1 of sign 0
    shirts = [rgb[:, 0, -1].T.unique(dim=0, return_counts=True) for rgb in (data[0].rgb, same_signer, other_signer)]
    common = [colours[counts.argmax()].tolist() for colours, counts in shirts]
    assert common[0] == common[1] != common[2]


def test_one_clip_is_drawn_in_well_under_50_ms():
    data = RenderedDataset(ClipDataset([SyntheticSigns(num_classes=1, clips_per_class=1)[0]]))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        assert data.pictures(0).shape == (3, 32, 112, 112)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05
    assert isinstance(data[0].rgb, torch.Tensor)
