"""CCL-SLR against the paper's equations written as loops, the specification's counts, and its ablations."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import slrfast
from slrfast.data import PoseBatch
from slrfast.systems.ccl import CCL, Features, PoseEncoder, RGBEncoder
from slrfast.systems.ccl_config import CCLConfig
from slrfast.systems.ccl_views import View

TINY = {
    "frames": 4, "image_size": 32, "rgb_layers": (1, 1, 1, 1), "rgb_width": 2, "gcn_channels": (4, 4, 8, 8, 8),
    "dim": 16, "heads": 2, "layers": 1, "manual_ffn": 24, "non_manual_ffn": 16, "embedding": 8, "bank_size": 24,
    "positives": 3,
}  # fmt: skip
NO_DROPOUT = {"gcn_dropout": 0.0, "frame_dropout": 0.0, "transformer_dropout": 0.0}
POSE, RGB = {"modalities": ("pose",)}, {"modalities": ("rgb",)}
TERMS = {"loss", "rgb/contrast", "rgb/mining", "rgb_to_pose", "pose/contrast", "pose/mining", "pose_to_rgb"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(**changes):
    torch.manual_seed(0)
    return CCL(CCLConfig.paper(**{**TINY, **changes}))


def batch(size=4, seed=0):
    clips = PoseBatch.random(size, seed=seed, keypoints=75, max_frames=40)
    rgb = torch.randint(256, (size, 3, 6, 40, 36), generator=seeded(seed), dtype=torch.uint8)
    return dataclasses.replace(clips, rgb=rgb, rgb_mask=torch.rand(size, 6, 40, 36, generator=seeded(seed)) < 0.5)


def poses(size=4, seed=0):
    return dataclasses.replace(batch(size, seed), rgb=None, rgb_mask=None)


def double(clips):
    return dataclasses.replace(clips, xy=clips.xy.double(), confidence=clips.confidence.double())


def count(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_parameters_of_the_specification():
    with torch.device("meta"):
        rgb, pose = RGBEncoder(CCLConfig.paper()), PoseEncoder(CCLConfig.paper())
    assert sum(p.numel() for p in rgb.backbone.parameters() if p.dim() > 1) / 1e6 == pytest.approx(46.1, abs=0.05)
    assert count(rgb.head) == pytest.approx((2048 * 2049 + 2049 * 128) / 1e6)
    assert count(pose.head) == pytest.approx((1024 * 1025 + 1025 * 128) / 1e6)
    assert count(pose.manual_transformer) == pytest.approx(47.24, abs=0.005)
    assert count(pose.non_manual_transformer) == pytest.approx(22.05, abs=0.005)
    assert [gcn.graph.num_nodes for gcn in (pose.embedding.hand_gcn, pose.embedding.body_gcn)] == [21, 7]


def test_multiplications_of_the_specification():
    with torch.device("meta"):
        rgb, view = RGBEncoder(CCLConfig.paper()).eval(), View(*[torch.empty(0)] * 3, torch.empty(1, 3, 32, 224, 224))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert rgb(view).shape == (1, 2048)
    assert counter.get_total_flops() / 1e9 == pytest.approx(159.4, abs=0.1)


def test_sizes_of_features_and_banks():
    config = CCLConfig.paper()
    assert config.features == {"rgb": 2048, "pose": 1024}
    assert (config.bank_size, config.embedding, config.positives, config.frames) == (16384, 128, 10, 32)
    assert (config.temperature, config.mining_temperature, config.mask_probability) == (0.07, 0.02, 0.2)
    system = tiny()
    shapes = {(m, n): tuple(bank.features.shape) for m, banks in system.banks.items() for n, bank in banks.items()}
    assert shapes == {("rgb", "f"): (24, 8), ("rgb", "g"): (24, 64), ("pose", "f"): (24, 8), ("pose", "g"): (24, 32)}


# ---- the losses ------------------------------------------------------------------------------------------------------


def loop_nce(query, key, bank, t):
    """Eq. 3, averaged over the batch."""
    total = 0.0
    for q, k in zip(query, key, strict=True):
        negatives = sum(torch.exp(q @ row / t) for row in bank)
        total = total - torch.log(torch.exp(q @ k / t) / (torch.exp(q @ k / t) + negatives))
    return total / len(query)


def loop_labels(query, banks, k):
    """Eq. 6: dense labels [B][N] of every modality, and their maximum."""
    rows = len(next(iter(banks.values())))
    labels = []
    for b in range(len(next(iter(query.values())))):
        found = [0.0] * rows
        for m, bank in banks.items():
            similar = [float(F.normalize(query[m][b], dim=0) @ row) for row in bank]
            for i in sorted(range(rows), key=lambda i: -similar[i])[:k]:
                found[i] = 1.0
        labels.append(found)
    return labels


def loop_bce(query, bank, labels, t):
    """Eq. 7-8, averaged over the batch."""
    total = 0.0
    for q, y in zip(query, labels, strict=True):
        guess = [torch.sigmoid(q @ row / t) for row in bank]
        terms = [y_i * torch.log(p) + (1 - y_i) * torch.log(1 - p) for y_i, p in zip(y, guess, strict=True)]
        total = total - sum(terms) / len(bank)
    return total / len(query)


@pytest.mark.parametrize("label_bank", ["g", "f"])
def test_losses_are_the_equations_as_loops(label_bank):
    system = tiny(label_bank=label_bank, mining_temperature=0.2, mining_weight=0.7, cross_weight=0.3).double()
    clips = double(batch())
    system.eval()
    with torch.no_grad():
        query, key = system.embed(*system.views(clips, seeded()))
    banks = {m: {n: bank.features.clone() for n, bank in b.items()} for m, b in system.banks.items()}
    losses = system.training_step(clips, seeded())
    labelled = {m: banks[m][label_bank] for m in banks}
    labels = loop_labels({m: getattr(query[m], label_bank) for m in query}, labelled, 3)
    assert all(3 <= sum(row) <= 6 for row in labels) and any(sum(row) > 3 for row in labels)
    expected = {}
    for m, other in (("rgb", "pose"), ("pose", "rgb")):
        expected[f"{m}/contrast"] = loop_nce(query[m].f, key[m].f, banks[m]["f"], 0.07)  # Eq. 9
        expected[f"{m}/mining"] = loop_bce(query[m].f, banks[m]["f"], labels, 0.2)
        expected[f"{m}_to_{other}"] = loop_nce(query[other].f, key[m].f, banks[m]["f"], 0.07)  # Eq. 11, 12
    weights = {"contrast": 1.0, "mining": 0.7, "pose": 0.3, "rgb": 0.3}
    expected["loss"] = sum(weights[name.split("/")[-1].split("_")[-1]] * value for name, value in expected.items())
    assert losses.keys() == expected.keys() == TERMS
    for name, value in expected.items():
        assert_close(losses[name].detach(), value, rtol=1e-8, atol=1e-10, msg=name)


def test_gradients_are_those_of_the_loops():
    system = tiny(mining_temperature=0.2).double()

    def rows(size, grad=False):
        return F.normalize(torch.randn(3, size, generator=generator, dtype=torch.float64), dim=1).requires_grad_(grad)

    generator = seeded()
    query = {m: Features(rows(size), rows(8, True)) for m, size in system.config.features.items()}
    key = {m: Features(rows(size), rows(8)) for m, size in system.config.features.items()}
    leaves = [query[m].f for m in query]
    gradients = torch.autograd.grad(system.losses(query, key)["loss"], leaves)
    banks = {m: system.banks[m]["f"].features for m in query}
    labels = loop_labels({m: query[m].g for m in query}, {m: system.banks[m]["g"].features for m in query}, 3)
    loss = 0.0
    for m, other in (("rgb", "pose"), ("pose", "rgb")):
        loss = (
            loss + loop_nce(query[m].f, key[m].f, banks[m], 0.07) + loop_nce(query[other].f, key[m].f, banks[m], 0.07)
        )
        loss = loss + loop_bce(query[m].f, banks[m], labels, 0.2)
    for mine, truth in zip(gradients, torch.autograd.grad(loss, leaves), strict=True):
        assert_close(mine, truth, rtol=1e-8, atol=1e-10)


def test_positives_are_of_one_clip_in_all_banks():
    """A clip that was seen before is found by either modality, and pulled towards in both f banks."""
    system = tiny(positives=1)
    generator = seeded()
    sizes = system.config.features
    clips = {m: Features(*(torch.randn(5, d, generator=generator) for d in (sizes[m], 8))) for m in sizes}
    system.enqueue(clips)
    again = {"rgb": clips["rgb"], "pose": Features(-clips["pose"].g, clips["pose"].f)}
    found = system.positives(again)
    assert found.shape == (5, 2) and found[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert not (found[:, 1] == found[:, 0]).any()
    for banks in system.banks.values():
        assert {int(bank.cursor) for bank in banks.values()} == {5}
        assert_close(banks["f"].features[:5].norm(dim=1), torch.ones(5))


def test_keys_that_do_not_fit_are_written_to_no_bank():
    system = tiny()
    key = {m: Features(torch.randn(2, d), torch.randn(2, 8)) for m, d in system.config.features.items()}
    key["pose"] = Features(key["pose"].g[:1], key["pose"].f)
    with pytest.raises(ValueError, match=r"CCL: key\['pose'\].* must have shape"):
        system.enqueue(key)
    assert {int(bank.cursor) for banks in system.banks.values() for bank in banks.values()} == {0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_banks_give_nearly_the_same(dtype):
    exact, system = tiny(), tiny(bank_dtype=dtype)
    system.load_state_dict(exact.state_dict())
    assert system.banks["rgb"]["g"].features.dtype == getattr(torch, dtype)
    expected, found = (s.eval().training_step(batch(), seeded()) for s in (exact, system))
    for name, value in found.items():
        assert_close(value, expected[name], rtol=0.05 if dtype == "bfloat16" else 1e-6, atol=0.05, msg=name)


# ---- the step --------------------------------------------------------------------------------------------------------


def test_step_order_enqueues_keys_and_moves_key_encoders_last():
    system = tiny(momentum=0.99)
    before = {n: p.clone() for n, p in system.key.named_parameters()}
    optimizer = system.optimizer()
    system.training_step(batch(), seeded())["loss"].backward()
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in system.key.named_parameters())
    assert all(bank.cursor.item() == 4 for banks in system.banks.values() for bank in banks.values())
    optimizer.step()
    system.update_after_step()
    for old, new, target in zip(before.values(), system.key.parameters(), system.query.parameters(), strict=True):
        assert_close(new, old + 0.01 * (target - old))


def test_every_query_parameter_learns():
    system = tiny()
    system.training_step(batch(6), seeded())["loss"].backward()
    silent = [n for n, p in system.query.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.endswith("bias") for name in silent)  # before a batch norm, or of scores under a softmax


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"mining_weight": 0.0}, {name for name in TERMS if "mining" not in name}),
        ({"cross_weight": 0.0}, {name for name in TERMS if "_to_" not in name}),
        ({"mining_weight": 0.0, "cross_weight": 0.0}, {"loss", "rgb/contrast", "pose/contrast"}),
        ({"label_bank": "f"}, TERMS),
        ({"mask_probability": 0.0}, TERMS),
        (POSE, {"loss", "pose/contrast", "pose/mining"}),
        (RGB, {"loss", "rgb/contrast", "rgb/mining"}),
    ],
)
def test_ablations(changes, terms):
    system = tiny(**changes)
    clips = batch()
    if changes == POSE:
        clips = poses()
    if "mask_probability" in changes:
        clips = dataclasses.replace(clips, rgb_mask=None)
    losses = system.training_step(clips, seeded())
    assert set(losses) == terms
    assert_close(losses["loss"], sum(value for name, value in losses.items() if name != "loss"))
    losses["loss"].backward()
    named = {"f"} | ({"g"} if "mining" in str(terms) and changes.get("label_bank") != "f" else set())
    assert all(set(banks) == named for banks in system.banks.values())
    assert set(system.query) == set(system.config.modalities)


def test_encode():
    system = tiny().train()
    features = system.encode(batch())
    assert features.shape == (4, 96) and features.dtype == torch.float32 and not features.requires_grad
    assert torch.equal(features, system.encode(batch())) and system.training
    assert_close(features[:, :64].norm(dim=1), torch.ones(4))
    assert_close(system.encode(poses()), features[:, 64:])
    unmasked = dataclasses.replace(batch(), rgb_mask=None)
    assert torch.equal(system.encode(unmasked), features)
    assert tiny(**POSE).encode(batch()).shape == (4, 32) and tiny(**RGB).encode(batch()).shape == (4, 64)
    first = dataclasses.replace(batch(), **{n: getattr(batch(), n)[:1] for n in ("label", "index", "rgb", "rgb_mask")},
                                offsets=batch().offsets[:2], xy=batch().xy[: batch().offsets[1]],
                                confidence=batch().confidence[: batch().offsets[1]])  # fmt: skip
    assert_close(system.encode(first), features[:1], rtol=1e-4, atol=1e-5)


def test_schedule_and_optimizer():
    system = CCL(CCLConfig.paper(**TINY))
    assert [system.learning_rate(e) for e in (0, 99.9, 100, 139)] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert CCL(CCLConfig.paper(**TINY, warmup=4.0)).learning_rate(1.0) == pytest.approx(0.0025)
    optimizer = system.optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (0.01, 0.9)
    assert {id(p) for p in group["params"]} == {id(p) for p in system.query.parameters()}
    assert (system.config.epochs, system.config.batch_size) == (140, 64)


def test_save_and_load(tmp_path):
    system = tiny(**NO_DROPOUT)
    system.training_step(batch(), seeded())
    system.save_pretrained(tmp_path)
    again = CCL.from_pretrained(tmp_path)
    assert again.config == system.config
    for (name, a), b in zip(system.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert_close(again.encode(batch()), system.encode(batch()))
    names = {name for name in system.state_dict() if not name.startswith(("query.", "key."))}
    kinds = ("features", "cursor")
    assert names == {f"banks.{m}.{n}.{kind}" for m in ("rgb", "pose") for n in "gf" for kind in kinds}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resuming_is_bitwise_equal(dtype):
    system = tiny(bank_dtype=dtype)
    optimizer, generator = system.optimizer(), seeded()

    def train(system, optimizer):
        torch.manual_seed(3)  # dropout
        losses = system.training_step(batch(), generator)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        system.update_after_step()
        return losses

    for _ in range(7):  # 28 clips: the banks of 24 rows wrap around
        train(system, optimizer)
    torch.manual_seed(1)
    again = CCL(system.config)
    again_optimizer = again.optimizer()
    again.load_state_dict(system.state_dict())
    again_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = generator.get_state()
    for _ in range(2):
        expected = train(system, optimizer)
        after = generator.get_state()
        generator.set_state(state)
        assert all(torch.equal(value, expected[name]) for name, value in train(again, again_optimizer).items())
        state = after
    for (name, a), b in zip(system.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_fused_and_reference_operations_take_the_same_step():
    fused, reference, clips = tiny().double(), tiny().double(), double(batch())
    torch.manual_seed(3)
    losses = fused.training_step(clips, seeded())
    losses["loss"].backward()
    torch.manual_seed(3)
    with slrfast.backend("reference"):
        expected = reference.training_step(clips, seeded())
        expected["loss"].backward()
    for name, value in losses.items():
        assert_close(value, expected[name], msg=name)
    for (name, mine), theirs in zip(fused.query.named_parameters(), reference.query.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9, msg=name)
    for (name, mine), theirs in zip(fused.named_buffers(), reference.buffers(), strict=True):
        assert_close(mine, theirs, msg=name)


def test_autocast_keeps_banks_and_losses_wide():
    exact = tiny(**NO_DROPOUT).training_step(batch(8), seeded())
    system = tiny(**NO_DROPOUT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = system.training_step(batch(8), seeded())
    losses["loss"].backward()
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert abs(losses["loss"] - exact["loss"]) < 0.1 * exact["loss"]
    assert all(bank.features.dtype == torch.float32 for banks in system.banks.values() for bank in banks.values())
    assert all(p.grad.isfinite().all() for p in system.query.parameters())
    assert system.encode(batch()).dtype == torch.float32


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_batches_that_do_not_fit_are_refused_in_one_sentence():
    system, clips = tiny(), batch()
    with pytest.raises(ValueError, match=r"CCL: batch must have rgb, got poses alone; train with modalities"):
        system.training_step(poses())
    with pytest.raises(ValueError, match=r"CCL: batch must have rgb_mask for a mask_probability of 0.2, got none"):
        system.training_step(dataclasses.replace(clips, rgb_mask=None))
    with pytest.raises(ValueError, match=r"CCL: batch must have rgb, got poses alone"):
        tiny(**RGB).encode(poses())
    empty = dataclasses.replace(clips, rgb=clips.rgb[:, :, :0], rgb_mask=None)
    for call in (system.training_step, system.encode):
        with pytest.raises(ValueError, match=r"CCL: batch.rgb must have at least one frame and one pixel, got \[4"):
            call(empty)
        with pytest.raises(TypeError, match="CCL: batch.xy must be torch.float32, got torch.float64"):
            call(double(clips))
        with pytest.raises(ValueError, match=r"CCL: batch must be on the system's device \(cpu\), got meta"):
            call(clips.to("meta"))
        with pytest.raises(ValueError, match="CCL: batch must have layout 75, got 49; pre-process with layout=75"):
            call(PoseBatch.random(2))
    no_frames = dataclasses.replace(poses(2), offsets=torch.tensor([0, 0, len(poses(2).xy)]))
    with pytest.raises(ValueError, match="name at least one frame inside the clip"):
        tiny(**POSE).training_step(no_frames)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"positives": 25}, r"CCLConfig: positives must be in \[1, 24\], got 25"),
        ({"modalities": ("pose", "rgb")}, "CCLConfig: modalities must be 'rgb', 'pose' or both in this order"),
        ({"label_bank": "h"}, "CCLConfig: label_bank must be one of 'g', 'f', got 'h'"),
        ({"flip": "none"}, "CCLConfig: flip must be one of 'shared', 'independent', got 'none'"),
        ({"mining_temperature": 0.0}, "CCLConfig: mining_temperature must be finite and > 0, got 0.0"),
        ({"mask_probability": 1.5}, r"CCLConfig: mask_probability must be in \[0, 1\], got 1.5"),
        ({"mining_weight": -1.0}, "CCLConfig: mining_weight must be finite and >= 0, got -1.0"),
        ({"crop": (0.0, 1.0)}, "CCLConfig: crop must be .low, high. with 0 < low"),
        ({"jitter": (0.4, 0.4, 0.4, 0.7)}, "CCLConfig: jitter must be three strengths"),
        ({"rgb_layers": (1, 1, 1)}, "CCLConfig: rgb_layers must be four integers >= 1"),
        ({"dim": 17}, "CCLConfig: dim must times 2 and 3 be a multiple of 2 heads, got 17"),
        ({"min_crop": 0.0}, r"CCLConfig: min_crop must be in \(0, 1\], got 0.0"),
        ({"min_crop": "all"}, "CCLConfig: min_crop must be a number, got str"),
        ({"rgb_layers": 3}, "CCLConfig: rgb_layers must be four integers >= 1, got 3"),
        ({"rgb_layers": (1, 1, 1, 1.5)}, "CCLConfig: rgb_layers must be four integers >= 1"),
        ({"crop": 0.5}, "CCLConfig: crop must be .low, high. with 0 < low <= high <= 1, got 0.5"),
        ({"crop": (0.5,)}, "CCLConfig: crop must be .low, high."),
        ({"jitter": ()}, "CCLConfig: jitter must be three strengths"),
        ({"scale": (1.0,)}, "CCLConfig: scale must be .low, high., finite, low <= high, got"),
        ({"scale": (2.0, 1.0)}, "CCLConfig: scale must be .low, high., finite, low <= high, got"),
        ({"milestones": ("last",)}, "CCLConfig: milestones must be a sequence of numbers, got"),
    ],
)
def test_settings_that_do_not_fit(changes, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        CCLConfig.paper(**{**TINY, **changes})


def test_one_clip_of_one_frame_and_one_picture():
    clips = PoseBatch.random(2, min_frames=1, max_frames=1, keypoints=75)
    clips = dataclasses.replace(clips, rgb=batch(2).rgb[:, :, :1], rgb_mask=batch(2).rgb_mask[:, :1])
    assert all(torch.isfinite(value) for value in tiny().training_step(clips, seeded()).values())
