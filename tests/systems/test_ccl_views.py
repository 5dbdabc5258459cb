"""The two views of a batch of pictures and poses: crops in time and space, flips, colours and masks."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from slrfast import graphs
from slrfast.data import PoseBatch
from slrfast.systems.ccl import CCL
from slrfast.systems.ccl_config import CCLConfig
from slrfast.systems.ccl_views import PictureChanges, moments, pictures

TINY = {
    "frames": 4, "image_size": 32, "rgb_layers": (1, 1, 1, 1), "rgb_width": 2, "gcn_channels": (4, 4, 8, 8, 8),
    "dim": 16, "heads": 2, "layers": 1, "manual_ffn": 24, "non_manual_ffn": 16, "embedding": 8, "bank_size": 24,
    "positives": 3,
}  # fmt: skip
STILL = {
    "rotation": 0.0, "scale": (1.0, 1.0), "joint_probability": 0.0, "flip_probability": 0.0, "crop": (1.0, 1.0),
    "jitter_probability": 0.0, "mask_probability": 0.0,
}  # fmt: skip
LAYOUT = graphs.layout(75)
HANDS = slice(0, 42)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(**changes):
    torch.manual_seed(0)
    return CCL(CCLConfig.paper(**{**TINY, **changes}))


def batch(size=4, seed=0, pictures=6, frames=None):
    clips = PoseBatch.random(size, seed=seed, keypoints=75, min_frames=frames or 10, max_frames=frames or 40)
    rgb = torch.randint(256, (size, 3, pictures, 40, 36), generator=seeded(seed), dtype=torch.uint8)
    mask = torch.rand(size, pictures, 40, 36, generator=seeded(seed)) < 0.5
    return dataclasses.replace(clips, rgb=rgb, rgb_mask=mask)


def test_shapes_ranges_and_one_draw():
    system, clips = tiny(), batch()
    first, second = (seeded(3) for _ in range(2))
    for view, again in zip(system.views(clips, first), system.views(clips, second), strict=True):
        assert view.xy.shape == (4, 4, 75, 2) and view.confidence.shape == (4, 4, 75)
        assert view.visible.shape == (4, 4, 5) and view.rgb.shape == (4, 3, 4, 32, 32)
        assert view.rgb.dtype == torch.float32 and 0 <= view.rgb.min() and view.rgb.max() <= 1
        assert all(torch.equal(a, b) for a, b in zip(view, again, strict=True))
    assert torch.equal(first.get_state(), second.get_state())
    query, key = system.views(clips, seeded())
    assert not torch.equal(query.xy, key.xy) and not torch.equal(query.rgb, key.rgb)
    without = dataclasses.replace(clips, rgb=None, rgb_mask=None)
    assert all(view.rgb is None for view in tiny(modalities=("pose",)).views(without))


def test_views_are_as_exact_under_autocast():
    system, clips = tiny(), batch()
    expected = system.views(clips, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        found = system.views(clips, seeded())
    for view, again in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(view, again, strict=True))


def test_pictures_show_the_moments_of_the_pose():
    """Positions and pixels that tell the time: both are cut from the same window, in either view another."""
    size, frames = 300, 50
    system = tiny(**STILL, frames=3, image_size=1)
    clips = batch(size, frames=frames)
    clips.xy = torch.arange(float(frames)).repeat(size)[:, None, None].expand(-1, 75, 2).contiguous()
    clips.confidence = torch.ones_like(clips.confidence)
    clips.rgb = (5 * torch.arange(25, dtype=torch.uint8)).view(1, 1, 25, 1, 1).expand(size, 3, 25, 4, 4)
    centers = []
    for view in system.views(clips, seeded()):
        pose, shown = view.xy[:, :, 0, 0], view.rgb[:, 0, :, 0, 0] * 255 / 5
        assert ((pose + 0.5) / 2 - (shown + 0.5)).abs().max() <= 0.76  # a picture lasts for two frames
        length = 1.5 * (pose[:, 2] - pose[:, 0])
        assert length.min() < 8 and length.max() > 45 and (pose >= 0).all() and (pose <= 49).all()
        centers.append(pose[:, 1])
    assert abs(float(torch.corrcoef(torch.stack(centers))[0, 1])) < 4 / size**0.5


@pytest.mark.parametrize(("frames", "shown", "out"), [(7, 3, 5), (3, 16, 4), (1, 1, 4), (90, 32, 32)])
def test_moments_are_the_pictures_under_the_middle_of_every_frame(frames, shown, out):
    for start in range(frames):
        for length in range(1, frames - start + 1):
            lengths = torch.tensor([frames])
            found = moments(lengths, torch.tensor([start]), torch.tensor([length]), out, shown)[0].tolist()
            exact = [(start + (i + 0.5) * length / out) * shown / frames for i in range(out)]
            assert found == [math.floor(place + 1e-9) for place in exact] and 0 <= min(found) <= max(found) < shown


def test_whole_pictures_stay_as_they_are():
    rgb = batch().rgb[..., :32, :32].contiguous()
    index = torch.tensor([[0, 5, 2]]).expand(4, 3)
    found = pictures(rgb, None, index, PictureChanges.none(4, rgb.device, torch.float32), 32)
    assert_close(found, rgb[:, :, [0, 5, 2]] / 255, rtol=0, atol=1e-5)


def test_a_crop_is_a_part_of_the_picture_and_inside_it():
    rgb = torch.arange(64, dtype=torch.uint8).repeat(1, 3, 1, 64, 1)
    rgb[:, 1] = rgb[:, 1].mT.clone()
    changes = PictureChanges.none(1, rgb.device, torch.float64)
    changes = changes._replace(box=torch.tensor([[0.5, 0.5, -0.25]], dtype=torch.float64))  # x 32..64, y 8..40
    found = pictures(rgb, None, torch.zeros(1, 1, dtype=torch.int64), changes, 32)[0, :, 0] * 255
    assert_close(found[0], torch.arange(32.0, 64, dtype=torch.float64).expand(32, 32))
    assert_close(found[1], torch.arange(8.0, 40, dtype=torch.float64)[:, None].expand(32, 32))
    mirrored = pictures(rgb, None, torch.zeros(1, 1, dtype=torch.int64), changes._replace(flip=~changes.flip), 32)
    assert_close(mirrored[0, :, 0] * 255, found.flip(-1))


def test_drawn_crops_are_inside():
    drawn = PictureChanges.draw(
        torch.zeros(500, dtype=torch.bool), (0.6, 0.9), (0.4,) * 4, (0.5, 0.2, None), seeded(), torch.float32
    )
    share, *middles = drawn.box.T
    assert 0.6 <= share.min() < 0.62 and 0.88 < share.max() <= 0.9
    for middle in middles:
        assert (middle.abs() + share <= 1 + 1e-6).all() and (middle < -0.2).any() and (middle > 0.2).any()
    changed = (drawn.jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    assert abs(float(changed.float().mean()) - 0.5) < 0.1 and abs(float(drawn.mask.float().mean()) - 0.2) < 0.08
    for column, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.8 * math.pi, 0.8 * math.pi)]):
        values = drawn.jitter[changed, column]
        assert low <= values.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < values.max() <= high
    assert not drawn.flip.any()


def test_colours_change_as_loops_over_pixels_say():
    """Brightness, saturation and hue (a turn in YIQ that keeps grey), then contrast about the clip's grey mean."""
    rgb = torch.randint(60, 190, (1, 3, 2, 4, 4), generator=seeded(), dtype=torch.uint8)
    b, c, s, h = 0.9, 1.2, 0.7, 0.4
    changes = PictureChanges.none(1, rgb.device, torch.float64)
    changes = changes._replace(jitter=torch.tensor([[b, c, s, h]], dtype=torch.float64))
    found = pictures(rgb, None, torch.tensor([[0, 1]]), changes, 4)

    def grey(r, g, b):
        return 0.299 * r + 0.587 * g + 0.114 * b

    def turned(r, g, b):
        luma = grey(r, g, b)
        i, q = 0.5959 * r - 0.2746 * g - 0.3213 * b, 0.2115 * r - 0.5227 * g + 0.3112 * b
        i, q = i * math.cos(h) - q * math.sin(h), i * math.sin(h) + q * math.cos(h)
        return luma + 0.956 * i + 0.619 * q, luma - 0.272 * i - 0.647 * q, luma - 1.106 * i + 1.703 * q

    pixels = []
    for pixel in (rgb[0].flatten(1).T.double() / 255).tolist():
        pixel = [s * x + (1 - s) * grey(*pixel) for x in pixel]
        pixels.append([b * x for x in turned(*pixel)])
    mean = sum(grey(*pixel) for pixel in pixels) / len(pixels)
    expected = torch.tensor([[min(max(c * x + (1 - c) * mean, 0), 1) for x in pixel] for pixel in pixels])
    assert_close(found[0].flatten(1).T, expected.double(), rtol=0, atol=2e-3)  # the usual rounded YIQ matrices
    unchanged = changes._replace(jitter=torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=torch.float64))
    assert_close(pictures(rgb, None, torch.tensor([[0, 1]]), unchanged, 4), rgb.double() / 255)


class TestFlip:
    def test_a_flipped_pose_is_the_picture_mirrored(self):
        """Every joint of face, mouth and trunk at 1 - x under the other side's name; hands change places."""
        clips = batch(frames=8)
        pose = {**STILL, "flip_probability": 1.0, "min_crop": 1.0, "frames": 8}
        (view, _), (plain, _) = (
            tiny(**pose).views(clips, seeded()),
            tiny(**{**pose, "flip_probability": 0.0}).views(clips, seeded()),
        )
        assert torch.equal(view.confidence, plain.confidence[..., LAYOUT.flip])
        source = plain.xy[:, :, LAYOUT.flip]
        seen = (view.confidence > 0)[..., None]
        expected = torch.where(seen, torch.stack((1 - source[..., 0], source[..., 1]), -1), source)
        assert_close(view.xy[:, :, 42:], expected[:, :, 42:])
        assert torch.equal(view.xy[:, :, HANDS], source[:, :, HANDS])
        assert_close(view.rgb, plain.rgb.flip(-1), rtol=0, atol=1e-5)
        assert torch.equal(view.visible[..., [1, 0, 2, 3, 4]], plain.visible)

    def test_names_of_the_other_side(self):
        for i, name in enumerate(LAYOUT.names):
            other = LAYOUT.names[LAYOUT.flip[i]]
            if "left" in name:
                assert other == name.replace("left", "right")

    @pytest.mark.parametrize("flip", ["shared", "independent"])
    def test_pictures_and_pose_of_a_view(self, flip):
        size = 400
        system = tiny(**{**STILL, "flip_probability": 0.5}, flip=flip, image_size=4)
        clips = batch(size, frames=5, pictures=1)
        clips.xy[:], clips.confidence[:] = 0.25, 1.0
        clips.rgb = torch.zeros(size, 3, 1, 4, 4, dtype=torch.uint8)
        clips.rgb[..., :2] = 255
        flipped = []
        for view in system.views(clips, seeded()):
            pose, picture = view.xy[:, 0, -1, 0] > 0.5, view.rgb[:, 0, 0, 0, 0] < 0.5
            assert 160 < int(pose.sum()) < 240 and 160 < int(picture.sum()) < 240
            assert torch.equal(pose, picture) == (flip == "shared")
            assert flip == "shared" or 160 < int((pose == picture).sum()) < 240
            flipped.append(pose)
        assert 160 < int((flipped[0] == flipped[1]).sum()) < 240


class TestMask:
    def test_what_does_not_move_is_black(self):
        settings = {**STILL, "mask_probability": 1.0, "min_crop": 1.0, "frames": 6, "image_size": 36}
        clips = batch(frames=12)
        clips.rgb, clips.rgb_mask = clips.rgb[..., :36, :], clips.rgb_mask[..., :36, :]
        clips.rgb_mask[1] = False
        for view in tiny(**settings).views(clips, seeded()):
            expected = clips.rgb / 255 * clips.rgb_mask[:, None]
            expected[1] = clips.rgb[1] / 255  # nothing moves: nothing is taken away
            assert_close(view.rgb, expected, rtol=0, atol=1e-5)

    def test_it_is_flipped_and_cropped_with_the_picture(self):
        settings = {**STILL, "mask_probability": 1.0, "flip_probability": 0.5, "crop": (0.5, 1.0), "image_size": 30}
        clips = batch(8)
        light = torch.zeros(8, 6, 40, 36, dtype=torch.bool)
        light[..., 10:30, 5:20] = True
        clips.rgb = 255 * light[:, None].expand(-1, 3, -1, -1, -1).to(torch.uint8)
        clips.rgb_mask = light
        for view in tiny(**settings).views(clips, seeded()):
            assert ((view.rgb == 0) | (view.rgb > 0.5)).all() and (view.rgb > 0.5).any()
        clips.rgb_mask = ~light
        (view, _) = tiny(**settings).views(clips, seeded())
        assert (view.rgb <= 0.5).all()

    def test_how_often(self):
        size = 500
        system = tiny(**{**STILL, "mask_probability": 0.2}, image_size=4)
        clips = batch(size, frames=5, pictures=1)
        clips.rgb = torch.full((size, 3, 1, 4, 4), 255, dtype=torch.uint8)
        clips.rgb_mask = torch.zeros(size, 1, 4, 4, dtype=torch.bool)
        clips.rgb_mask[..., 0] = True
        masked = [view.rgb[:, 0, 0, 0, 3] < 0.5 for view in system.views(clips, seeded())]
        assert all(abs(float(m.float().mean()) - 0.2) < 0.07 for m in masked)
        assert 10 <= int((masked[0] & masked[1]).sum()) <= 35  # 0.04 of 500


def test_parts_that_are_never_seen_are_not_pooled():
    system = tiny(**STILL, modalities=("pose",), gcn_dropout=0.0, frame_dropout=0.0, transformer_dropout=0.0).eval()
    clips = batch(3)
    mouth = LAYOUT.parts["mouth"]
    clips.confidence[:, mouth], clips.xy[:, mouth] = 0, 0
    view, _ = system.views(clips, seeded())
    assert not view.visible[..., list(LAYOUT.parts).index("mouth")].any()
    weights = []
    pool = system.query["pose"].non_manual_pool
    pool.register_forward_pre_hook(lambda _, args: weights.append(args[1]))
    system.query["pose"](view)
    assert weights[0].shape == (3, 8) and not weights[0][:, 4:].any() and weights[0][:, :4].any()


@pytest.mark.slow
def test_a_compiled_step_is_the_same_without_a_graph_break():
    changes = {"gcn_dropout": 0.0, "frame_dropout": 0.0, "transformer_dropout": 0.0}
    eager, compiled, clips = tiny(**changes), tiny(**changes), batch()
    torch.manual_seed(0)
    losses = eager.training_step(clips)
    step = torch.compile(compiled.training_step, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    found = step(clips)
    for name, value in losses.items():
        assert_close(found[name].detach(), value.detach(), rtol=1e-4, atol=1e-5, msg=name)
