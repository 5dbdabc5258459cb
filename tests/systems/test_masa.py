"""MASA against the paper's algorithm written as loops, the specification's counts, and its own padded form."""

import dataclasses
import math

import pytest
import torch

from slrfast import graphs
from slrfast.data import PoseBatch
from slrfast.nn import sinusoidal_positions
from slrfast.systems import MASA, SYSTEMS, MASAConfig
from slrfast.systems.masa import MotionAutoencoder
from slrfast.systems.padded_clips import PaddedClips, smallest

TINY = {
    "gcn_channels": (4, 4, 8, 8, 8), "dim": 16, "embedding": 8, "heads": 2, "ffn": 24, "encoder_layers": 1,
    "decoder_layers": 1, "head_hidden": 8, "bank_size": 24,
}  # fmt: skip
NO_DROPOUT = {"gcn_dropout": 0.0, "frame_dropout": 0.0, "transformer_dropout": 0.0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(preset="paper", **changes):
    torch.manual_seed(0)
    return getattr(MASAConfig, preset)(**{**TINY, **changes})


def moving(size=4, seed=0, **sizes):
    """Clips with so much motion that about half of the frames are candidates."""
    clips = PoseBatch.random(size, seed=seed, **({"min_frames": 6, "max_frames": 14} | sizes))
    frames = torch.arange(len(clips.xy))
    still = (frames // 4 % 2 == 0).view(-1, 1, 1)
    sharp = (0.9 + 0.1 * clips.confidence) * (clips.confidence > 0)
    return dataclasses.replace(clips, xy=torch.where(still, clips.xy[:1], clips.xy), confidence=sharp)


def double(clips):
    return dataclasses.replace(clips, xy=clips.xy.double(), confidence=clips.confidence.double())


def count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6


class TestSizes:
    def test_parameters_of_the_specification(self):
        with torch.device("meta"):
            paper = MotionAutoencoder(MASAConfig.paper())
        assert count(paper.encoder.transformer) == pytest.approx(47.24, abs=0.005)
        assert count(paper.decoder) == pytest.approx(31.49, abs=0.005)
        assert count(paper.encoder.hand_gcn) == pytest.approx(2.837, abs=0.0005)
        assert not list(paper.encoder.hand_temporal.parameters())

    def test_legacy_heads(self):
        with torch.device("meta"):
            heads = MASA(MASAConfig.legacy()).autoencoder
        assert count(heads.hand_motion) == pytest.approx(0.142, abs=0.0005)
        assert count(heads.trunk_motion) == pytest.approx(0.135, abs=0.0005)

    def test_registered_under_its_name(self):
        assert SYSTEMS["masa"] is MASA and MASA.Config is MASAConfig


# ---- the paper -------------------------------------------------------------------------------------------------------


def loop_masked(xy, confidence, keys, config):
    """Algorithm 1 for one clip [T, 49, 2] in pixels: the masked frames and the candidates."""
    frames = []
    for i in range(len(xy) - config.interval):
        moved = 0
        for v in range(49):
            here, there = confidence[i, v], confidence[i + config.interval, v]
            here = here if here >= config.confidence_threshold else 0
            there = there if there >= config.confidence_threshold else 0
            for c in range(2):
                moved += abs(xy[i + config.interval, v, c] - xy[i, v, c]) * here * there >= config.motion_threshold
        if moved / 98 >= config.joint_fraction:
            frames.append(i)
    if config.mask_choice == "random":
        frames = list(range(len(xy)))
    chosen = sorted(frames, key=lambda i: keys[i])[: math.floor(config.mask_ratio * len(frames))]
    return sorted(int(i) for i in chosen), frames


def loop_step(system, clips, first, second, epoch):
    """Eq. 2-9 clip by clip, with the networks in evaluation mode."""
    config, network = system.config, system.autoencoder
    motion, queries, keys = 0.0, [], []
    for b in range(clips.size):
        rows = slice(int(clips.offsets[b]), int(clips.offsets[b + 1]))
        xy, confidence = clips.xy[rows], clips.confidence[rows]
        places = sinusoidal_positions(len(xy), 3 * config.dim, dtype=xy.dtype)
        masked, _ = loop_masked(256 * xy, confidence, first[b], config)
        seen = [i for i in range(len(xy)) if i not in masked]
        tokens = torch.cat(network.encoder.embed_parts(xy[seen]), -1) + places[seen]
        encoded = network.encoder.transformer(tokens[None])[0]
        sequence = torch.stack([network.token if i in masked else encoded[seen.index(i)] for i in range(len(xy))])
        predicted = network.motion(network.decoder((sequence + places)[None])[0]).view(-1, 49, 2)
        loss = 0.0
        for i in masked:
            later = min(i + 3, len(xy) - 1)
            c = [torch.where(confidence[j] >= config.confidence_threshold, confidence[j], 0) for j in (i, later)]
            if config.target == "joint":
                target, weight = 256 * xy[i] * config.target_scale, c[0]
            else:
                target = (256 * xy[later] - 256 * xy[i]) * config.target_scale
                weight = c[0] * c[1] * (i + 3 < len(xy))  # no motion is known of the last frames
            loss = loss + ((predicted[i] - target) * weight[:, None]).square().sum()
        motion = motion + (loss / len(masked) if masked else 0.0) / clips.size
        queries.append(network.encoder.head(encoded.mean(0)))
        left_out = sorted(range(len(xy)), key=lambda i: second[b][i])[: int(config.view_ratio * len(xy))]
        kept = [i for i in range(len(xy)) if i not in left_out]
        key_encoder = system.key.encoder
        tokens = torch.cat(key_encoder.embed_parts(xy[kept]), -1) + places[kept]
        keys.append(key_encoder.head(key_encoder.transformer(tokens[None])[0].mean(0)))
    contrast = 0.0
    for q, k in zip(queries, keys, strict=True):
        negatives = sum(torch.exp(q @ row / config.temperature) for row in system.contrast.bank.features)
        pair = torch.exp(q @ k / config.temperature)
        contrast = contrast - torch.log(pair / (pair + negatives)) / clips.size
    loss = config.motion_weight * motion + config.semantic_weight * min(1, epoch / 100) * contrast
    return loss, motion, contrast, torch.stack(keys)


SWITCHES = (
    dict(mask_choice="random"), dict(target="joint"), dict(mask_choice="random", target="joint"),
    dict(semantic_weight=0.0), dict(motion_weight=0.0),
)  # fmt: skip


@pytest.mark.parametrize(("epoch", "switch"), [(0.0, {}), (30.5, {}), (250.0, {}), *((30.5, s) for s in SWITCHES)])
def test_training_step_is_the_paper_written_as_loops(epoch, switch):
    system = MASA(tiny(motion_threshold=20.0, **switch)).double().eval()
    clips = double(moving())
    system.epoch = epoch
    shape = (2, 1, clips.size, int(clips.lengths.max()))
    first, second = torch.rand(shape, generator=seeded())
    with torch.no_grad():
        *expected, keys = loop_step(system, clips, first[0], second[0], epoch)
    losses = system.training_step(clips, seeded())
    assert float(expected[1]) > 0
    for name, value in zip(("loss", "motion", "contrast"), expected, strict=True):
        torch.testing.assert_close(losses[name].detach(), value, rtol=1e-6, atol=1e-9, msg=name)
    torch.testing.assert_close(system.contrast.bank.features[: clips.size], keys)
    losses["loss"].backward()
    assert all(p.grad is None for p in system.key.parameters())
    learned = {name: p.grad is not None and bool(p.grad.any()) for name, p in system.autoencoder.named_parameters()}
    assert learned["encoder.transformer.blocks.0.qkv.weight"] and learned["token"] == ("motion_weight" not in switch)
    head = any(on for name, on in learned.items() if name.startswith("encoder.head"))
    assert head == (epoch > 0 and "semantic_weight" not in switch)


def test_switches_are_for_whole_frames():
    for wrong in (dict(mask_choice="random"), dict(target="joint")):
        with pytest.raises(ValueError, match="masking must be 'frame' for random masks or joint targets, got 'part'"):
            tiny("legacy", **wrong)
    with pytest.raises(ValueError, match="mask_choice must be one of 'motion', 'random'"):
        tiny(mask_choice="all")


def test_random_masks_are_a_share_of_all_frames():
    system = MASA(tiny(mask_choice="random", mask_ratio=0.5))
    clips = PaddedClips.of(moving(64))
    hidden = system.autoencoder.masked(clips, torch.rand((1, *clips.xy.shape[:2]), generator=seeded())).mask
    assert hidden.sum(1).tolist() == [int(0.5 * n) for n in clips.lengths.tolist()]
    assert not (hidden & ~clips.packing.present).any()


@pytest.mark.parametrize("training", [False, True])
def test_masked_frames_cannot_influence_the_encoder(training):
    system = MASA(tiny(motion_threshold=20.0, **NO_DROPOUT)).double().train(training)
    network = system.autoencoder
    clips = double(moving())
    xy = clips.xy.clone().requires_grad_()
    padded = PaddedClips.of(dataclasses.replace(clips, xy=xy))
    keys = torch.rand((1, *padded.xy.shape[:2]), generator=seeded())
    mask = network.masked(padded, keys).mask
    assert 0 < int(mask.sum()) < int(clips.lengths.sum())
    x, number, visible = padded.visible(mask)
    (gradient,) = torch.autograd.grad(network.encoder(x, number, visible).square().sum(), xy)
    hidden = padded.packing.unpad(mask)
    assert (gradient[hidden] == 0).all()
    assert (gradient[~hidden].flatten(1).abs().amax(1) > 0).all()
    with torch.no_grad():
        other = padded._replace(xy=padded.xy.masked_fill(mask[..., None, None], 0.123))
        assert torch.equal(network.encoder(*other.visible(mask)), network.encoder(x, number, visible))


def test_frames_keep_the_positions_they_had_before_others_were_masked():
    padded = PaddedClips.of(double(moving(2)))
    mask = torch.zeros(padded.xy.shape[:2], dtype=torch.bool)
    mask[:, 1] = True
    _, number, visible = padded.visible(mask)
    assert number[: visible.lengths[0]].tolist() == [i for i in range(int(padded.lengths[0])) if i != 1]
    assert visible.lengths == tuple(int(n) - 1 for n in padded.lengths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frames_keep_their_numbers_in_half_types(dtype):
    clips = moving(2, min_frames=2500, max_frames=2500)
    clips = dataclasses.replace(clips, xy=clips.xy.to(dtype), confidence=clips.confidence.to(dtype))
    x, number, _ = PaddedClips.of(clips).visible(torch.zeros(2, 2500, dtype=torch.bool))
    assert torch.equal(number, torch.arange(2500).repeat(2))
    assert x.dtype == dtype and torch.equal(x, clips.xy)


def test_nothing_moves():
    system = MASA(tiny())
    clips = moving()
    still = dataclasses.replace(clips, xy=torch.full_like(clips.xy, 0.5))
    losses = system.training_step(still, seeded())
    assert losses["motion"] == 0
    losses["loss"].backward()
    gradients = [p.grad for p in system.autoencoder.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_clips_shorter_than_the_interval(length):
    system = MASA(tiny())
    losses = system.training_step(moving(3, min_frames=length, max_frames=length), seeded())
    assert math.isfinite(losses["loss"].item())


def test_batches_do_not_change_a_clip():
    system = MASA(tiny())
    together = moving(3)
    first = PoseBatch(*(getattr(together, f)[: int(together.offsets[1])] for f in ("xy", "confidence")),
                      together.offsets[:2], together.label[:1], together.index[:1])  # fmt: skip
    features = system.encode(together)
    assert features.shape == (3, 48) and features.dtype == torch.float32 and system.training
    torch.testing.assert_close(system.encode(first), features[:1])


def test_views_hide_what_the_encoders_do_not_see():
    system = MASA(tiny(motion_threshold=20.0))
    clips = moving()
    padded = PaddedClips.of(clips)
    masked, sampled = system.views(clips, seeded())
    present = padded.packing.present
    for view in (masked, sampled):
        assert torch.equal(view.xy, padded.xy)
        assert (view.confidence <= padded.confidence).all()
    left = ((sampled.confidence.amax(-1) > 0) & present).sum(1)
    assert torch.equal(left, padded.lengths - (padded.lengths * 0.5).long())
    first, _ = torch.rand((2, 1, *padded.xy.shape[:2]), generator=seeded())
    assert torch.equal(masked.confidence.amax(-1) == 0, system.autoencoder.masked(padded, first).mask | ~present)


class TestSchedules:
    def test_learning_rate_of_the_paper(self):
        system = MASA(tiny())
        rates = [system.learning_rate(e) for e in (0, 10, 20, 210, 400, 500)]
        assert rates == pytest.approx([0, 5e-5, 1e-4, 5e-5, 0, 0])

    def test_learning_rate_of_the_code(self):
        system = MASA(tiny("legacy"))
        rates = [system.learning_rate(e) for e in (10, 119, 120, 219.9, 220, 320, 370)]
        assert rates == pytest.approx([5e-5, 1e-4, 5e-5, 5e-5, 2.5e-5, 1.25e-5, 6.25e-6])

    def test_semantic_weight(self):
        system = MASA(tiny())
        assert [system.semantic_weight(e) for e in (0, 50, 100, 300)] == pytest.approx([0, 0.025, 0.05, 0.05])
        assert MASA(tiny(semantic_ramp=0.0)).semantic_weight(0) == 0.05

    def test_optimizer(self):
        system = MASA(tiny())
        optimizer = system.optimizer()
        assert isinstance(optimizer, torch.optim.AdamW)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.95), 1e-4)
        owned = {id(p) for p in group["params"]}
        assert owned == {id(p) for p in system.autoencoder.parameters()}


def test_key_encoder_follows():
    system = MASA(tiny(momentum=0.75))
    before = system.key.encoder.head.output.weight.clone()
    with torch.no_grad():
        system.autoencoder.encoder.head.output.weight.add_(1.0)
    system.update_after_step()
    torch.testing.assert_close(system.key.encoder.head.output.weight, before + 0.25)


@pytest.mark.parametrize("preset", ["paper", "legacy"])
def test_saved_and_loaded(tmp_path, preset):
    system = MASA(tiny(preset))
    system.training_step(moving(), seeded())
    system.save_pretrained(tmp_path)
    loaded = MASA.from_pretrained(tmp_path)
    assert loaded.config == system.config
    torch.testing.assert_close(loaded.encode(moving()), system.encode(moving()))


@pytest.mark.parametrize("preset", ["paper", "legacy"])
def test_bf16_autocast_stays_close(preset):
    system = MASA(tiny(preset, motion_threshold=20.0, temperature=0.5, **NO_DROPOUT))
    system.epoch = 100.0
    state = {name: value.clone() for name, value in system.state_dict().items()}
    exact = system.training_step(moving(8), seeded())
    system.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = system.training_step(moving(8), seeded())
    rounded["loss"].backward()
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], value, rtol=0.05, atol=1e-3, msg=name)


# ---- the authors' code -----------------------------------------------------------------------------------------------


def test_legacy_masks_rising_coordinates_of_every_part_on_its_own():
    system = MASA(tiny("legacy", motion_threshold=20.0))
    padded = PaddedClips.of(moving())
    keys = torch.rand((3, *padded.xy.shape[:2]), generator=seeded())
    residual, weight, masks = system.autoencoder.masked(padded, keys)
    for p, part in enumerate(graphs.layout(49).parts[name] for name in ("right_hand", "left_hand", "trunk")):
        for b in range(len(masks[p])):
            candidates = []
            for i in range(int(padded.lengths[b]) - 3):
                moved = 256 * (padded.xy[b, i + 3, part] - padded.xy[b, i, part])
                if int((moved > 20).sum()) > 1:
                    candidates.append(i)
                c = [padded.confidence[b, j, part] for j in (i, i + 3)]
                if p < 2:
                    c = [torch.where(v >= 0.5, v, 0) for v in c]
                torch.testing.assert_close(weight[b, i, part], (c[0] * c[1])[:, None] * (moved > 20))
            chosen = sorted(candidates, key=lambda i: keys[p, b, i])[: math.floor(0.9 * len(candidates))]
            assert masks[p, b].nonzero().flatten().tolist() == sorted(chosen)
    assert not torch.equal(masks[0], masks[1])


def test_legacy_sees_no_motion_into_the_padding():
    """From coordinates below zero, padding would be a rise: a clip has the same target alone and in a batch."""
    system = MASA(tiny("legacy"))
    clips = moving(2, min_frames=6, max_frames=6)
    clips = dataclasses.replace(clips, xy=clips.xy - 2, confidence=torch.ones_like(clips.confidence))
    keys = torch.rand((3, 2, 8), generator=seeded())
    alone = PaddedClips.of(clips)
    padded = alone._replace(xy=torch.nn.functional.pad(alone.xy, (0, 0, 0, 0, 0, 2)),
                            confidence=torch.nn.functional.pad(alone.confidence, (0, 0, 0, 2)))  # fmt: skip
    expected, got = system.autoencoder.masked(alone, keys[..., :6]), system.autoencoder.masked(padded, keys)
    for one, other, frames in zip(expected, got, (1, 1, 2), strict=True):
        assert one.any() and torch.equal(one, other.narrow(frames, 0, 6)) and not other.narrow(frames, 6, 2).any()


def test_legacy_loss():
    system = MASA(tiny("legacy", motion_threshold=20.0)).double().eval()
    network = system.autoencoder
    padded = PaddedClips.of(double(moving()))
    keys = torch.rand((3, *padded.xy.shape[:2]), generator=seeded())
    residual, weight, masks = network.masked(padded, keys)
    with torch.no_grad():
        loss, _ = network(padded, keys)
        decoded = network.decoder(network.encoder(padded, masks), keys=padded.packing.present).chunk(3, -1)
        expected = 0.0
        for p, part in enumerate((slice(0, 21), slice(21, 42), slice(42, 49))):
            predicted = (network.hand_motion if p < 2 else network.trunk_motion)(decoded[p]).view(
                *masks[p].shape, -1, 2
            )
            assert (predicted >= 0).all()
            difference = (predicted - residual[:, :, part]).abs() * weight[:, :, part] * masks[p][..., None, None]
            expected += 10 * difference.sum() / (masks[p].sum() * predicted.shape[2] + 1)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)


def test_legacy_attends_to_no_frame_with_a_masked_part():
    system = MASA(tiny("legacy")).double().eval()
    encoder = system.autoencoder.encoder
    padded = PaddedClips.of(double(moving(2, min_frames=8, max_frames=8)))
    masks = torch.zeros((3, 2, 8), dtype=torch.bool)
    masks[1, :, 5] = True
    seen = []
    encoder.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs["keys"])), with_kwargs=True
    )
    encoder(padded, masks)
    tokens, keys = seen[0]
    assert torch.equal(keys, ~masks[1])
    assert torch.equal(tokens[0, 5, 16:32], encoder.token) and not torch.equal(tokens[0, 5, :16], encoder.token)


def test_legacy_step_trains():
    system = MASA(tiny("legacy", motion_threshold=20.0))
    system.epoch = 10.0
    losses = system.training_step(moving(), seeded())
    losses["loss"].backward()
    assert system.autoencoder.encoder.token.grad.abs().sum() > 0
    assert losses["motion"] > 0
    assert system.encode(moving()).shape == (4, 16)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_smallest_keys():
    keys = torch.tensor([[0.5, 0.1, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0]])
    candidates = torch.tensor([[True, False, True, True], [True, True, True, True]])
    assert smallest(keys, candidates, 0.7).tolist() == [[False, False, True, True], [True, True, False, False]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking": "joint"}, "masking must be one of 'frame', 'part'"),
        ({"dim": 5}, "dim must times 3 be a multiple of 8 heads, got 5"),
        ({"dim": 5, "heads": 5}, "dim must be even, for the positions, got 5"),
        ({"view_ratio": 1.0}, r"view_ratio must be in \[0, 1\), got 1.0"),
        ({"mask_ratio": 1.5}, r"mask_ratio must be in \[0, 1\], got 1.5"),
        ({"target_scale": 0.0}, "target_scale must be"),
        ({"semantic_ramp": math.inf}, "semantic_ramp must be finite and >= 0, got inf"),
        ({"interval": 0}, "interval must be"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MASAConfig.paper(**changes)


def test_batches_that_do_not_fit():
    system = MASA(tiny())
    with pytest.raises(TypeError, match="batch.xy must be torch.float32"):
        system.training_step(double(moving()))
    clips = moving(2)
    empty = dataclasses.replace(clips, offsets=torch.tensor([0, 0, len(clips.xy)]))
    with pytest.raises(ValueError, match="batch must have at least one frame in every clip, got 0"):
        system.encode(empty)
    short = dataclasses.replace(clips, offsets=clips.offsets - torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match=f"MASA: offsets must rise from 0 to the {len(clips.xy)} frames, got"):
        system.training_step(short)
    with pytest.raises(ValueError, match="x must have at least two frames per group in training mode, got 1"):
        system.training_step(moving(1, min_frames=1, max_frames=1))
    assert system.encode(moving(1, min_frames=1, max_frames=1)).isfinite().all()
