from functools import lru_cache

import pytest
import torch

from slrfast.nn.flow import Flow, FlowConfig, IdentityFlow
from slrfast.nn.moving import MotionPreservingMask


def scene(t=8, size=16, seed=0, moves=True):
    """uint8 [3, T, H, W]: a textured background at rest, before which a bright square of 4 x 4 moves to the right."""
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.randint(0, 90, (3, 1, size, size), generator=generator).repeat(1, t, 1, 1)
    for i in range(t if moves else 0):
        rgb[:, i, 4:8, i : i + 4] = 230
    return rgb.byte()


def street(t=12, size=32, seed=0, color=None):
    """A smooth background with a little noise, before which a disc moves; and where the disc is, [T, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    still = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")[0] * 0.7 + 0.15
    rgb, disc = still[:, None].repeat(1, t, 1, 1), torch.zeros(t, size, size, dtype=torch.bool)
    color = torch.rand(3, generator=generator) if color is None else torch.tensor(color)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for i in range(t):
        disc[i] = (y - size / 2) ** 2 + (x - size * (0.2 + 0.6 * i / t)) ** 2 < (size / 8) ** 2
        rgb[:, i, disc[i]] = color[:, None]
    noise = 0.003 * torch.randn(rgb.shape, generator=generator)
    return ((rgb + noise).clamp(0, 1) * 255).byte(), disc


@lru_cache
def trained():
    """A small flow that was trained on such streets, shortly."""
    torch.manual_seed(0)
    flow = Flow(FlowConfig(2, 3, 12))
    frames = torch.cat([street(seed=s)[0].transpose(0, 1) for s in range(8)])
    flow.initialize(frames[::6].float() / 255)
    optimizer, generator = torch.optim.Adam(flow.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(100):
        optimizer.zero_grad()
        flow.bits_per_dim(frames[torch.randint(len(frames), (16,), generator=generator)], generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 50.0)
        optimizer.step()
    return flow.requires_grad_(False)


def by_steps(mask, rgb):
    """The mask of one clip, step by step, as the paper tells it."""
    frames = rgb.transpose(0, 1).float() / 255
    z, _ = mask.flow(frames)
    sigma = z.std(0)
    least = sigma.flatten().sort().values[int(mask.threshold * sigma.numel())] if mask.quantile else mask.threshold
    kept = z * (sigma >= least)
    motion = mask.flow.inverse(kept)
    if mask.relative:
        motion = (motion - mask.flow.inverse(torch.zeros_like(z))).abs()
    grey = 0.299 * motion[:, 0] + 0.587 * motion[:, 1] + 0.114 * motion[:, 2]
    levels = (grey.clamp(0, 1) * 255 + 0.5).floor()
    spread = [levels.numel() * levels.var(correction=0).item()] + [
        sum(
            len(side) * side.var(correction=0).item() for side in (levels[levels > t], levels[levels <= t]) if len(side)
        )
        for t in range(255)
    ]
    best = min(range(256), key=lambda i: (round(spread[i], 3), i))
    return levels > best - 1 if best else torch.ones_like(levels, dtype=torch.bool)


def test_finds_what_moves_before_a_background_at_rest():
    rgb = scene()
    moving = MotionPreservingMask(IdentityFlow(), 0.05)(rgb)
    assert moving.shape == (8, 16, 16) and moving.dtype == torch.bool
    for i in range(8):
        assert moving[i, 4:8, i : i + 4].all() and moving[i].sum() == 16


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("threshold", "quantile"), [(0.1, False), (0.9, True)])
def test_equals_the_steps_of_the_paper(threshold, quantile, relative):
    for flow in (IdentityFlow(), trained()):
        mask = MotionPreservingMask(flow, threshold, quantile, relative=relative, frames_at_once=3)
        for seed in (0, 7):
            rgb = scene(seed=seed)
            assert (mask(rgb) != by_steps(mask, rgb)).float().mean() < 0.005  # grey that rounding moves by a level


@pytest.mark.parametrize("color", [(0.9, 0.75, 0.65), (0.02, 0.05, 0.1)], ids=["bright", "dark"])
def test_a_trained_flow_finds_what_moves(color):
    inside, outside, grey = [], [], []
    for seed in range(100, 104):
        rgb, disc = street(seed=seed, color=color)
        moving = MotionPreservingMask(trained())(rgb)
        inside.append(moving[disc].float().mean())
        outside.append(moving[:, ~disc.any(0)].float().mean())
        grey.append(MotionPreservingMask(trained(), relative=False)(rgb)[disc].float().mean())
    inside, outside, grey = (float(torch.stack(shares).mean()) for shares in (inside, outside, grey))
    assert inside > 0.8 and outside < 0.4, (inside, outside)
    assert color[0] > 0.5 or grey < 0.5, "a dark disc would be lost in the grey of the frames themselves"


def test_a_batch_is_its_clips():
    mask = MotionPreservingMask(IdentityFlow(), 0.05)
    clips = torch.stack([scene(seed=s) for s in range(3)])
    assert torch.equal(mask(clips), torch.stack([mask(clip) for clip in clips]))
    assert mask(clips[:0]).shape == (0, 8, 16, 16)


@pytest.mark.parametrize("flow", ["identity", "trained"])
@pytest.mark.parametrize("rgb", [scene(moves=False), scene(1), scene(8) * 0], ids=["at rest", "one frame", "black"])
def test_nothing_is_taken_away_where_nothing_moves(flow, rgb):
    assert MotionPreservingMask(IdentityFlow() if flow == "identity" else trained())(rgb).all()


def test_explains_itself():
    mask, rgb = MotionPreservingMask(IdentityFlow(), 0.05), scene()
    moving, frames = mask.explain(rgb)
    assert torch.equal(moving, mask(rgb)) and frames.shape == rgb.shape
    assert not frames[:, :, 12:].any() and frames[:, 2, 5, 4].allclose(torch.tensor(230 / 255))


def test_no_gradient_and_no_trace_in_the_flow():
    flow = Flow(FlowConfig(1, 1, 2))
    assert not MotionPreservingMask(flow).explain(scene())[1].requires_grad
    assert sum(p.numel() for p in MotionPreservingMask(flow).parameters()) == sum(p.numel() for p in flow.parameters())


def test_fingerprint_changes_with_all_that_changes_masks():
    flow = Flow(FlowConfig(1, 1, 2))
    masks = [
        MotionPreservingMask(IdentityFlow()), MotionPreservingMask(flow), MotionPreservingMask(flow, 0.4),
        MotionPreservingMask(flow, quantile=True), MotionPreservingMask(flow, relative=False),
    ]  # fmt: skip
    assert len({mask.fingerprint() for mask in masks}) == 5
    assert MotionPreservingMask(flow, frames_at_once=2).fingerprint() == masks[1].fingerprint()
    assert MotionPreservingMask(flow, 1).fingerprint() == MotionPreservingMask(flow, 1.0).fingerprint()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m(torch.zeros(3, 4, 8, 8)), TypeError, "rgb must be torch.uint8, got torch.float32"),
        (lambda m: m(scene()[0]), ValueError, "rgb must have shape [..., 3, T, H, W], got [8, 16, 16]"),
        (
            lambda m: m(scene()[None, None]),
            ValueError,
            "rgb must have shape [3, T, H, W] or [B, 3, T, H, W], got [1, 1",
        ),
        (
            lambda m: m(scene(size=15)),
            ValueError,
            "rgb must have height and width that are multiples of 2, got 15 x 15",
        ),
        (lambda m: MotionPreservingMask(m.flow, -1), ValueError, "threshold must be finite and >= 0, got -1"),
        (lambda m: MotionPreservingMask(m.flow, 2, True), ValueError, "threshold must be in [0, 1], got 2"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error) as raised:
        call(MotionPreservingMask(Flow(FlowConfig(1, 1, 2))))
    assert str(raised.value).startswith("MotionPreservingMask: ") and words in str(raised.value)
