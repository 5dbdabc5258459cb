"""Isolated recognition: the classifier, what it sees of a clip, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from slrfast.data import PoseBatch
from slrfast.systems import CCL, MASA, SLP, STC
from slrfast.systems.ccl_config import CCLConfig
from slrfast.systems.masa_config import MASAConfig
from slrfast.systems.slp_config import SLPConfig
from slrfast.systems.stc_config import STCConfig
from slrfast.tasks.recognition import Recognizer, RecognizerConfig
from slrfast.tasks.sampling import augmented, centre, cut, window

NAMES = ["a", "b", "c"]
SYSTEMS = {
    "stc": lambda: STC(STCConfig.small(frames=8, bank_size=16, neighbors=8)),
    "stc legacy": lambda: STC(STCConfig.legacy(**vars(STCConfig.small(frames=8, bank_size=16, neighbors=8)))),
    "masa": lambda: MASA(MASAConfig.small(bank_size=16)),
    "masa legacy": lambda: MASA(MASAConfig.small(bank_size=16, masking="part")),
    "slp": lambda: SLP(SLPConfig.small()),
    "ccl": lambda: CCL(CCLConfig.small(frames=4, bank_size=16, modalities=("pose",))),
}


def batch_for(system, size: int = 4, **options) -> PoseBatch:
    return PoseBatch.random(size, keypoints=system.keypoints, num_classes=3, **options)


@pytest.mark.parametrize("name", SYSTEMS)
def test_encoder_and_head_learn_the_labels_of_a_batch(name):
    torch.manual_seed(0)
    system = SYSTEMS[name]()
    model = Recognizer(RecognizerConfig(swap_probability=0.0, min_crop=1.0), system, NAMES)
    batch = replace(batch_for(system, 6), label=torch.tensor([0, 1, 2, 0, 1, 2]))
    optimizer = model.optimizer()
    losses = []
    for _ in range(12):
        loss = model.training_step(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    moved = [p.grad is not None and bool(p.grad.any()) for p in system.parameters() if p.requires_grad]
    assert any(moved)


@pytest.mark.parametrize("name", SYSTEMS)
def test_encode_is_the_features_of_all_streams_in_evaluation_mode(name):
    system = SYSTEMS[name]().train()
    batch = batch_for(system)
    encoded = system.encode(batch)
    assert system.training
    with torch.no_grad():
        features = system.eval().features(batch)
    assert {stream: x.shape[1] for stream, x in features.items()} == system.widths
    assert torch.equal(encoded, torch.cat(list(features.values()), -1))


def test_frozen_encoder_does_not_move_and_its_statistics_stay():
    system = SYSTEMS["stc"]()
    before = {name: value.clone() for name, value in system.state_dict().items()}
    model = Recognizer(RecognizerConfig.linear(), system, NAMES)
    model.train()
    optimizer = model.optimizer()
    loss = model.training_step(batch_for(system))["loss"]
    loss.backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in system.state_dict().items())
    assert bool(model.heads["joint"].weight.grad.any())


def test_learning_rates_follow_the_papers():
    model = Recognizer(RecognizerConfig.slp(), SYSTEMS["slp"](), NAMES)
    assert [group["rate"] for group in model.optimizer().param_groups] == [1.0, 0.1]
    assert [model.learning_rate(epoch) for epoch in (0, 19.9, 20, 40)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    assert RecognizerConfig.masa().milestones == (20, 40) and RecognizerConfig.masa().frames == 32
    assert RecognizerConfig.linear().milestones == (50,) and RecognizerConfig.linear().epochs == 70
    assert RecognizerConfig.stc_code().milestones == (50, 70) and RecognizerConfig.stc_code().epochs == 80


def test_streams_and_parts_of_stc():
    system = SYSTEMS["stc"]().eval()
    batch = batch_for(system)
    with torch.no_grad():
        hand, trunk, both = (
            system.features(batch, parts)["motion"] for parts in (("hand",), ("trunk",), ("hand", "trunk"))
        )
        torch.testing.assert_close(hand + trunk, both)
        joint = Recognizer(RecognizerConfig(streams=("joint",)), system, NAMES).eval()
        assert list(joint.heads) == ["joint"]
        both_streams = Recognizer(RecognizerConfig(), system, NAMES).eval()
        each = [both_streams.heads[s](system.features(batch)[s]) for s in ("joint", "motion")]
        torch.testing.assert_close(both_streams(batch), (each[0] + each[1]) / 2)


def test_windows_are_whole_frames_of_their_clips():
    batch = PoseBatch.random(8, seed=3)
    for seed in range(20):
        seen = window(batch, None, 0.3, torch.Generator().manual_seed(seed))
        for b in range(8):
            whole, part = (
                batch.xy[batch.offsets[b] : batch.offsets[b + 1]],
                seen.xy[seen.offsets[b] : seen.offsets[b + 1]],
            )
            assert 0.3 * len(whole) - 1 < len(part) <= len(whole)
            start = next(i for i in range(len(whole)) if torch.equal(whole[i], part[0]))
            assert torch.equal(whole[start : start + len(part)], part)
    assert window(batch, 10, 1.0).lengths.tolist() == [10] * 8
    middle = centre(batch, 11)
    first = int((batch.lengths[0] - 11) // 2)
    assert torch.equal(middle.xy[:11], batch.xy[first : first + 11])
    assert centre(batch, None) is batch and centre(batch, 1000) is batch


def test_pictures_are_cut_with_the_poses():
    shown = torch.arange(8, dtype=torch.uint8)[None, None, :, None, None].expand(2, 3, 8, 1, 1)
    batch = replace(PoseBatch.random(2, min_frames=16, max_frames=16), rgb=shown, rgb_mask=(shown[:, 0] % 2).bool())
    seen = cut(batch, torch.tensor([0, 8]), torch.tensor([16, 8]))
    assert seen.rgb[0, 0, :, 0, 0].tolist() == list(range(8))
    assert seen.rgb[1, 0, :, 0, 0].tolist() == [4, 4, 5, 5, 6, 6, 7, 7]
    assert torch.equal(seen.rgb_mask[1, :, 0, 0], seen.rgb[1, 0, :, 0, 0] % 2 == 1)


def test_swapped_hands_are_the_other_hand():
    batch = PoseBatch.random(3)
    plan = RecognizerConfig(swap_probability=1.0).augmentation
    swapped = augmented(batch, plan)
    torch.testing.assert_close(swapped.xy[:, :21], batch.xy[:, 21:42])
    torch.testing.assert_close(swapped.confidence[:, 21:42], batch.confidence[:, :21])
    torch.testing.assert_close(swapped.xy[:, 42:], batch.xy[:, 42:])


@pytest.mark.parametrize("fusion", ["late", "sum", "concat", "adaptive"])
def test_saved_model_of_every_fusion_gives_the_same_scores(fusion, tmp_path):
    from slrfast.train.finetune import load_finetuned

    torch.manual_seed(0)
    system = SYSTEMS["stc"]()
    config = RecognizerConfig(fusion=fusion, supervision="each", dropout=0.1, learning_rate=0.1)
    model = Recognizer(config, system, NAMES)
    batch, optimizer = batch_for(system), model.optimizer()
    before = {name: value.clone() for name, value in model.named_parameters() if not name.startswith("encoder.")}
    for _ in range(2):  # the adaptive average's weights start without gradient
        model.training_step(batch)["loss"].backward()
        optimizer.step()
    parameters = dict(model.named_parameters())
    assert all(not torch.equal(value, parameters[name]) for name, value in before.items())
    model.save_pretrained(tmp_path)
    loaded = load_finetuned(tmp_path)
    assert loaded.class_names == NAMES and loaded.config == model.config
    assert torch.equal(model.scores([batch]), loaded.scores([batch]))


def test_early_fusion_reads_both_streams_through_one_classifier():
    torch.manual_seed(0)
    system = SYSTEMS["stc"]().eval()
    batch = batch_for(system)
    with torch.no_grad():
        joint, motion = system.features(batch).values()
        for fusion, vector in (
            ("sum", joint + motion),
            ("concat", torch.cat((joint, motion), 1)),
            ("adaptive", (joint + motion) / 2),
        ):
            model = Recognizer(RecognizerConfig(fusion=fusion), system, NAMES).eval()
            assert list(model.heads) == ["fused"]
            torch.testing.assert_close(model(batch), model.heads["fused"](vector))


def test_each_classifier_is_taught_alone_or_their_average():
    torch.manual_seed(0)
    system = SYSTEMS["stc"]().eval()
    batch = batch_for(system)
    for supervision in ("together", "each"):
        config = RecognizerConfig(
            supervision=supervision, min_crop=1.0, swap_probability=0.0, encoder_rate=0.0, label_smoothing=0.1
        )
        model = Recognizer(config, system, NAMES)
        loss = model.training_step(batch)["loss"]
        logits = [model.heads[s](system.features(batch)[s]) for s in ("joint", "motion")]
        taught = logits if supervision == "each" else [(logits[0] + logits[1]) / 2]
        expected = sum(F.cross_entropy(x, batch.label, label_smoothing=0.1) for x in taught)
        torch.testing.assert_close(loss, expected)
    assert RecognizerConfig.ccl().supervision == "each" and RecognizerConfig.ccl().milestones == (25, 35)


def test_no_test_clips_at_all():
    with pytest.raises(ValueError, match="Recognizer: batches must be one or more, got 0"):
        Recognizer(RecognizerConfig(), SYSTEMS["stc"](), NAMES).scores([])


def test_ccl_without_pictures_lacks_a_stream():
    system = CCL(CCLConfig.small(frames=4, image_size=16, rgb_width=2, bank_size=16))
    with pytest.raises(ValueError, match=r"batch must have what stream \['rgb'\] reads, got none"):
        Recognizer(RecognizerConfig(), system, NAMES).training_step(batch_for(system))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: Recognizer(RecognizerConfig(streams=("pose",)), s, NAMES), "config.streams must be among"),
        (lambda s: Recognizer(RecognizerConfig(parts=("face",)), s, NAMES), "config.parts must be among"),
        (lambda s: Recognizer(RecognizerConfig(), s, ["a"]), "class_names"),
        (lambda s: Recognizer(RecognizerConfig(streams=("joint",), fusion="sum"), s, NAMES), "must be 'late' for one"),
        (lambda s: RecognizerConfig(streams=("joint", "joint")), "streams must name each once, got joint, joint"),
        (lambda s: RecognizerConfig(parts=("hand", "hand")), "parts must name each once"),
        (lambda s: RecognizerConfig(supervision="none"), "supervision must be one of"),
        (lambda s: RecognizerConfig(milestones=(-1,)), "milestones must be epochs >= 0"),
        (lambda s: RecognizerConfig(optimizer="lion"), "optimizer"),
        (lambda s: RecognizerConfig(min_crop=0.0), "min_crop must be in"),
        (lambda s: RecognizerConfig(label_smoothing=1.0), "label_smoothing must be in"),
        (lambda s: RecognizerConfig(swap_probability=2.0), "swap_probability must be in"),
        (lambda s: RecognizerConfig(encoder_rate=-1.0), "encoder_rate must be"),
        (
            lambda s: Recognizer(RecognizerConfig(), s, NAMES).training_step(
                replace(batch_for(s), label=torch.tensor([0, 1, 3, 0]))
            ),
            r"batch.label must be in \[0, 2\], got \[0, 3\]",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make(SYSTEMS["stc"]())


def test_parts_of_a_system_without_parts():
    with pytest.raises(ValueError, match="config.parts must be empty: this encoder has none, got hand"):
        Recognizer(RecognizerConfig(parts=("hand",)), SYSTEMS["masa"](), NAMES)
