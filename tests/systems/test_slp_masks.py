"""Hierarchical masks against the same rule written as loops."""

import math

import pytest
import torch

from slrfast.systems.slp_masks import hierarchical_mask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(lengths, joints=5, seed=0, **settings):
    lengths = torch.tensor(lengths)
    keys = torch.rand(len(lengths), int(lengths.max()), joints + 2, generator=seeded(seed))
    return hierarchical_mask(lengths, keys, **settings), keys


def loop_mask(keys, length, ratio, levels, span):
    """One clip's mask [T][V], from its keys [T, V + 2]; and its frames in spans, its frames on their own."""
    joints, whole = keys.shape[1] - 2, sum(levels)
    in_spans, in_frames = (math.floor(length * ratio * levels[i] / whole + 1e-9) for i in (2, 1))
    sizes = [min(span, in_spans - place) for place in range(0, in_spans, span)]
    slots = sorted(range(length - in_spans + len(sizes)), key=lambda slot: float(keys[slot, -2]))
    span_of = dict(zip(slots, sizes, strict=False))
    covered, frame = set(), 0
    for slot in range(length - in_spans + len(sizes)):
        size = span_of.get(slot, 0)
        covered |= set(range(frame, frame + size))
        frame += max(size, 1)
    free = [t for t in range(length) if t not in covered]
    single = set(sorted(free, key=lambda t: float(keys[t, -1]))[:in_frames])
    mask = [[t in covered | single] * joints for t in range(length)]
    missing = math.floor(length * joints * ratio + 0.5) - joints * (in_spans + in_frames) if levels[0] else 0
    cells = [(t, v) for t in free if t not in single for v in range(joints)]
    for t, v in sorted(cells, key=lambda cell: float(keys[cell]))[:missing]:
        mask[t][v] = True
    return mask, covered, single


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("levels", [(1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 3.0), (2.0, 0.0, 1.0)])
@pytest.mark.parametrize("span", [1, 3, 8])
def test_masks_are_those_of_the_loops(ratio, levels, span):
    lengths = [23, 1, 40, 7, 2]
    mask, keys = drawn(lengths, ratio=ratio, levels=levels, span=span)
    for b, length in enumerate(lengths):
        expected, _, _ = loop_mask(keys[b], length, ratio, levels, span)
        assert mask[b, :length].tolist() == expected, (b, length)
        assert not mask[b, length:].any()


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6, 0.8])
def test_the_share_is_exact_and_every_level_takes_part(ratio):
    lengths = [100, 33, 4, 1]
    mask, _ = drawn(lengths, joints=79, ratio=ratio)
    assert mask.flatten(1).sum(1).tolist() == [math.floor(79 * n * ratio + 0.5) for n in lengths]
    whole, partly = mask.all(2)[0], mask.any(2)[0] & ~mask.all(2)[0]
    assert int(whole.sum()) >= 2 * math.floor(100 * ratio / 3) and partly.any()
    span = min(8, math.floor(100 * ratio / 3))
    assert whole.unfold(0, span, 1).all(1).any()


def test_spans_are_consecutive_and_reach_every_place():
    seen = torch.zeros(12)
    for seed in range(200):
        mask, _ = drawn([12], joints=1, seed=seed, ratio=0.25, levels=(0, 0, 1), span=3)
        frames = mask[0, :, 0].nonzero().flatten()
        assert frames.tolist() == list(range(int(frames[0]), int(frames[0]) + 3))
        seen += mask[0, :, 0]
    assert (seen > 0).all()


def test_one_generator_gives_one_mask():
    assert torch.equal(drawn([30, 9], seed=3)[0], drawn([30, 9], seed=3)[0])
    assert not torch.equal(drawn([30, 9], seed=3)[0], drawn([30, 9], seed=4)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.1}, r"hierarchical_mask: ratio must be in \[0, 1\], got 1.1"),
        ({"span": 0}, r"hierarchical_mask: span must be in"),
        ({"levels": (0, 0, 0)}, r"levels must be three finite weights >= 0, not all 0, got \(0, 0, 0\)"),
        ({"levels": (1, 1)}, "levels must be three finite weights"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        drawn([4], **settings)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"lengths must be in \[0, 3\], got 4 for clip 0"):
        hierarchical_mask(torch.tensor([4]), torch.rand(1, 3, 5))
    with pytest.raises(ValueError, match="keys must have a column for each joint and two more"):
        hierarchical_mask(torch.tensor([3]), torch.rand(1, 3, 2))
