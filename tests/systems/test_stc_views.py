"""The two views of a batch: crops, augmentation, motion and visibility."""

import torch

from slrfast.data import PoseBatch
from slrfast.systems import STC, STCConfig

TINY = {
    "frames": 12, "gcn_channels": (4, 4, 8, 8, 8), "dim": 16, "embedding": 8, "heads": 2, "layers": 1,
    "hand_ffn": 24, "trunk_ffn": 16, "bank_size": 24, "neighbors": 9, "min_frames": 8,
}  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(**changes):
    torch.manual_seed(0)
    return STC(STCConfig.paper(**{**TINY, **changes}))


def batch(size=4, seed=0):
    return PoseBatch.random(size, seed=seed)


def test_views_crop_resample_and_do_not_mix_clips():
    system = tiny(min_crop=0.5)
    clips = batch(6)
    first, second = system.views(clips, seeded())
    assert first.xy.shape == first.motion.shape == (6, 12, 49, 2)
    assert first.confidence.shape == (6, 12, 49) and first.visible.shape == (6, 12, 2)
    assert not torch.equal(first.xy, second.xy)
    assert torch.equal(first.xy, system.views(clips, seeded())[0].xy)
    alone = PoseBatch.random(1, seed=7)
    alone.xy = torch.cat([torch.full_like(alone.xy, 0.25), torch.full_like(alone.xy, 0.75)])
    alone.confidence = alone.confidence.repeat(2, 1)
    alone.offsets = torch.tensor([0, len(alone.xy) // 2, len(alone.xy)])
    alone.label, alone.index = alone.label.repeat(2), alone.index.repeat(2)
    for direction in ("backward", "forward"):
        still = tiny(motion_direction=direction).views(alone, seeded())[0]
        assert not still.motion.any()  # two clips at rest, at different places


def test_views_are_one_draw_and_leave_nothing_between_steps():
    system, clips = tiny(), batch(6)
    first, second = (seeded(3) for _ in range(2))
    for generator in (first, second):
        system.views(clips, generator)
    assert torch.equal(first.get_state(), second.get_state())
    for a, b in zip(system.views(clips, first), system.views(clips, second), strict=True):
        assert all(
            torch.equal(x, y) and x.is_contiguous() == (x.dtype != torch.bool) for x, y in zip(a, b, strict=True)
        )
    state = torch.get_rng_state()
    system.encode(clips)
    assert torch.equal(torch.get_rng_state(), state)


def test_crops_of_both_views_are_independent_and_inside():
    system = tiny(rotation=0.0, scale=(1.0, 1.0), joint_probability=0.0, swap_probability=0.0, frames=2, min_frames=1)
    size = 2000
    clips = PoseBatch.random(size, min_frames=40, max_frames=40)
    clips.xy = torch.arange(40.0).repeat(size)[:, None, None].expand(-1, 49, 2).contiguous()  # a position is its time
    clips.confidence = torch.ones_like(clips.confidence)
    centers = []
    for view in system.views(clips, seeded()):
        early, late = view.xy[:, :, 0, 0].T
        assert (early >= 0).all() and (late <= 39).all() and (early <= late).all()
        length = 2 * (late - early)  # of a crop read at a quarter and at three quarters
        assert length.min() == 4 and length.max() == 39 and abs(float(length.mean()) - 21.5) < 4 * 10.4 / size**0.5
        centers.append((early + late) / 2)
        assert abs(float(centers[-1].mean()) - 19.5) < 4 * 8 / size**0.5
    assert abs(float(torch.corrcoef(torch.stack(centers))[0, 1])) < 4 / size**0.5


def test_a_hand_that_is_never_seen_is_not_pooled():
    system = tiny()
    clips = batch(3)
    clips.confidence[:, 21:42] = 0
    clips.xy[:, 21:42] = 0
    for view in system.views(clips, seeded(3)):
        swapped = view.visible[:, 0, 1]
        assert torch.equal(view.visible[..., 1].all(1), swapped) and torch.equal(view.visible[..., 0].all(1), ~swapped)


def test_motion_is_mapped_like_the_positions_it_comes_from():
    """The linear map acts on every motion vector, also where a joint is lost for a while."""
    system = tiny(joint_probability=0.0, min_crop=1.0, frames=30, min_frames=30)
    clips = PoseBatch.random(3, min_frames=30, max_frames=30)
    view = system.views(clips, seeded())[0]
    plan = system.augment_plan
    torch.rand((2, 2, 3), generator=(generator := seeded()))  # the crops of both views
    both = plan.draw(6, generator=generator)
    drawn = both._replace(linear=both.linear[:3], swap=both.swap[:3])
    motion = torch.zeros(3, 30, 49, 2)
    positions = clips.xy.view(3, 30, 49, 2)
    motion[:, 1:] = positions[:, 1:] - positions[:, :-1]
    expected = torch.einsum("bij,btvj->btvi", drawn.linear[:, 0], motion)
    swapped = torch.where(drawn.swap[:, None, None, None], expected[:, :, drawn.swap_index], expected)
    torch.testing.assert_close(view.motion, swapped)


def test_legacy_motion_is_taken_after_augmentation():
    torch.manual_seed(0)
    system = STC(STCConfig.legacy(**{**TINY, "part_bank_size": 16, "part_neighbors": 5}))
    view = system.views(batch(), seeded())[0]
    torch.testing.assert_close(view.motion[:, :-1], view.xy[:, 1:] - view.xy[:, :-1])
    assert not view.motion[:, -1].any()
