"""STC against the paper's equations, the specification's counts, and an independent field-style implementation."""

import copy
import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines.stc import FieldEncoder, FieldSTC, copy_encoder, copy_system
from slrfast import graphs
from slrfast.data import PoseBatch
from slrfast.errors import CheckpointError
from slrfast.reference.feature_kl import feature_kl
from slrfast.reference.info_nce import info_nce
from slrfast.reference.neighbor_kl import neighbor_kl
from slrfast.systems import STC, SYSTEMS, STCConfig
from slrfast.systems.stc import Parts, STCEncoder

TINY = {
    "frames": 12, "gcn_channels": (4, 4, 8, 8, 8), "dim": 16, "embedding": 8, "heads": 2, "layers": 1,
    "hand_ffn": 24, "trunk_ffn": 16, "bank_size": 24, "neighbors": 9, "min_frames": 8,
}  # fmt: skip
NO_DROPOUT = {"gcn_dropout": 0.0, "frame_dropout": 0.0, "transformer_dropout": 0.0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(**changes):
    torch.manual_seed(0)
    return STC(STCConfig.paper(**{**TINY, **changes}))


def batch(size=4, seed=0):
    return PoseBatch.random(size, seed=seed)


def double(clips):
    return dataclasses.replace(clips, xy=clips.xy.double(), confidence=clips.confidence.double())


def trainable(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_parameter_counts_of_the_specification():
    with torch.device("meta"):
        paper, legacy = STCEncoder(STCConfig.paper()), STCEncoder(STCConfig.legacy())
    assert round(trainable(paper) / 1e6, 2) == 48.34
    assert round(trainable(legacy) / 1e6, 2) == 48.67
    assert round(trainable(paper.hand_gcn) / 1e6, 3) == round(trainable(paper.trunk_gcn) / 1e6, 3) == 2.837
    assert round(trainable(paper.hand_temporal) / 1e6, 3) == 6.822
    assert round(trainable(paper.hand_transformer) / 1e6, 2) == 22.05
    assert round(trainable(paper.trunk_transformer) / 1e6, 2) == 6.31


def test_dense_form_costs_what_the_specification_says():
    config = STCConfig.paper()
    with torch.device("meta"):
        encoder = FieldEncoder(config).eval()
        x, visible = torch.empty(1, 64, 49, 2), torch.empty(1, 64, 2, dtype=torch.bool)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        encoder(x, visible)
    per_frame = {name: sum(ops.values()) / 64e6 for name, ops in counter.get_flop_counts().items()}
    assert per_frame["FieldEncoder.hand_gcn"] + per_frame["FieldEncoder.hand_tcn"] == pytest.approx(2 * 56.80, abs=0.02)
    assert per_frame["FieldEncoder.trunk_gcn"] + per_frame["FieldEncoder.trunk_tcn"] == pytest.approx(32.40, abs=0.02)
    assert per_frame["FieldEncoder.hand_transformer"] == pytest.approx(44.83, abs=0.02)
    assert per_frame["FieldEncoder.trunk_transformer"] == pytest.approx(12.98, abs=0.02)
    assert counter.get_total_flops() / 64e6 == pytest.approx(203.8, abs=0.1)


@pytest.mark.parametrize("preset", ["paper", "legacy"])
@pytest.mark.parametrize("training", [False, True])
def test_encoder_equals_the_field_style_encoder(preset, training):
    torch.manual_seed(0)
    config = getattr(STCConfig, preset)(**{**TINY, **NO_DROPOUT})
    ours, field = STCEncoder(config).double().train(training), FieldEncoder(config).double().train(training)
    copy_encoder(ours, field)
    x = torch.randn(3, 12, 49, 2, dtype=torch.float64)
    visible = torch.rand(3, 12, 2) < 0.7
    visible[0, :, 0] = False
    for a, b in zip(ours(x, visible)[:2], field(x, visible), strict=True):
        torch.testing.assert_close(a, b)
    buffers = {name: value for name, value in field.named_buffers() if name.endswith("running_var")}
    copied = FieldEncoder(config).double()
    copy_encoder(ours, copied)
    for name, value in copied.named_buffers():
        if name in buffers:
            torch.testing.assert_close(value, buffers[name])  # each hand updates the running statistics in turn


def test_training_step_equals_the_field_style_step():
    system = tiny(**NO_DROPOUT).double()
    field = FieldSTC(system.config).double()
    copy_system(system, field)
    clips = double(batch())
    query, key = system.views(clips, seeded())
    as_dict = [{"joint": v.xy, "motion": v.motion, "visible": v.visible} for v in (query, key)]
    expected = field(*as_dict)
    loss = system.training_step(clips, seeded())["loss"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for s in ("joint", "motion"):
        copied = FieldEncoder(system.config).double()
        with torch.no_grad():
            for parameter in system.query[s].parameters():
                parameter.copy_(parameter.grad)
        copy_encoder(system.query[s], copied)
        for (name, gradient), parameter in zip(copied.named_parameters(), field.encoder_q[s].parameters(), strict=True):
            torch.testing.assert_close(gradient.detach(), parameter.grad, rtol=1e-6, atol=1e-9, msg=name)
        for part in ("hand", "trunk"):
            queue = getattr(field, f"queue_{s}_{part}").T
            torch.testing.assert_close(system.banks[s][part].features, queue)


def embeddings(system, views):
    """Query and key embeddings as the training step computes them."""
    query, key = views
    inputs = {"joint": (query.xy, key.xy), "motion": (query.motion, key.motion)}
    q = {s: system.query[s].embed(inputs[s][0], query.visible) for s in inputs}
    k = {s: system.key[s].embed(inputs[s][1], key.visible) for s in inputs}
    return q, k


def loop_nce(z, positive, bank, t):
    total = 0.0
    for b in range(len(z)):
        negatives = sum(torch.exp(z[b] @ row / t) for row in bank)
        pair = torch.exp(z[b] @ positive[b] / t)
        total += -torch.log(pair / (pair + negatives))
    return total / len(z)


def loop_kl(p, q):
    return sum(p_i * torch.log(p_i / q_i) for p_i, q_i in zip(p, q, strict=True))


def loop_neighbors(teacher, teacher_bank, student, student_bank, k, tt, ts):
    total = 0.0
    for b in range(len(teacher)):
        similar = torch.stack([teacher[b] @ row for row in teacher_bank])
        nearest = sorted(range(len(similar)), key=lambda i: -similar[i].item())[:k]
        p = torch.softmax(similar[nearest] / tt, 0)
        q = torch.softmax(torch.stack([student[b] @ student_bank[i] for i in nearest]) / ts, 0)
        total += loop_kl(p, q)
    return total / len(teacher)


def test_paper_losses_are_the_equations_as_loops():
    system = tiny(**NO_DROPOUT).double()
    clips = double(batch())
    q, k = embeddings(system, system.views(clips, seeded()))
    banks = {s: {p: m.features.clone() for p, m in parts.items()} for s, parts in system.banks.items()}
    losses = system.training_step(clips, seeded())
    expected = {}
    for s in ("joint", "motion"):
        expected[f"{s}/contrast"] = loop_nce(q[s].hand, k[s].hand, banks[s]["hand"], 0.07) + loop_nce(
            q[s].trunk, k[s].trunk, banks[s]["trunk"], 0.07
        )
        rows = range(len(q[s].hand))
        expected[f"{s}/consistency"] = sum(
            loop_kl(F.softmax(teacher[b] / 0.1, 0), F.softmax(student[b] / 0.1, 0))
            for b in rows
            for teacher, student in ((k[s].hand, q[s].trunk), (k[s].trunk, q[s].hand))
        ) / len(rows)
    for a, b in (("joint", "motion"), ("motion", "joint")):
        anchors = [banks[s]["hand"] + banks[s]["trunk"] for s in (a, b)]
        expected[f"{a}_to_{b}"] = loop_neighbors(
            k[a].hand + k[a].trunk, anchors[0], q[b].hand + q[b].trunk, anchors[1], 9, 0.05, 0.1
        )
    expected["loss"] = (
        0.5 * (expected["joint/contrast"] + expected["joint/consistency"])
        + 0.5 * (expected["motion/contrast"] + expected["motion/consistency"])
        + expected["joint_to_motion"]
        + expected["motion_to_joint"]
    )
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-8, atol=1e-10, msg=name)


def test_legacy_losses_are_the_authors_code_as_loops():
    torch.manual_seed(0)
    changes = {**TINY, **NO_DROPOUT, "part_bank_size": 16, "part_neighbors": 5}
    system = STC(STCConfig.legacy(**changes))
    q, k = embeddings(system, system.views(batch(), seeded()))
    banks = {s: {p: m.features.clone() for p, m in parts.items()} for s, parts in system.banks.items()}
    assert {p: len(bank) for p, bank in banks["joint"].items()} == {"hand": 16, "trunk": 16, "total": 24}
    losses = system.training_step(batch(), seeded())
    total = 0.0
    for s in ("joint", "motion"):
        for part in ("hand", "trunk", "total"):
            total += loop_nce(getattr(q[s], part), getattr(k[s], part), banks[s][part], 0.07)
        for a, b in (("hand", "trunk"), ("trunk", "hand")):
            total += loop_neighbors(
                getattr(k[s], a), banks[s][a], getattr(q[s], b), banks[s][b], 5, 0.05, 0.1
            )  # fmt: skip
    for a, b in (("joint", "motion"), ("motion", "joint")):
        total += loop_neighbors(k[a].total, banks[a]["total"], q[b].total, banks[b]["total"], 9, 0.05, 0.1)
    torch.testing.assert_close(losses["loss"], total.detach(), rtol=1e-4, atol=1e-5)


def test_step_order_enqueues_keys_and_moves_key_encoders_last():
    system = tiny()
    before = {n: p.clone() for n, p in system.key.named_parameters()}
    optimizer = system.optimizer()
    system.training_step(batch(), seeded())["loss"].backward()
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in system.key.named_parameters())
    assert all(bank.cursor.item() == 4 for parts in system.banks.values() for bank in parts.values())
    optimizer.step()
    system.update_after_step()
    weights = zip(before.values(), system.key.parameters(), system.query.parameters(), strict=True)
    for old, new, target in weights:
        torch.testing.assert_close(new, old + 0.01 * (target - old))


def test_every_query_parameter_learns():
    system = tiny()
    system.training_step(batch(), seeded())["loss"].backward()
    silent = [n for n, p in system.query.named_parameters() if p.grad is None or not p.grad.any()]
    # biases before a batch norm have no effect on its output, up to rounding; in float32 a few come out as exact zeros
    assert all(name.endswith("bias") for name in silent)


def test_ablations():
    assert set(tiny(streams=("joint",)).training_step(batch())) == {"loss", "joint/contrast", "joint/consistency"}
    assert "motion_to_joint" not in tiny(transfer_weight=0.0).training_step(batch())
    without = tiny(consistency_weight=0.0, streams=("motion",)).training_step(batch(), seeded())
    assert set(without) == {"loss", "motion/contrast"}
    torch.testing.assert_close(without["loss"], 0.5 * without["motion/contrast"])


def test_encode_is_deterministic_and_leaves_the_mode():
    system = tiny().train()
    features = system.encode(batch())
    assert features.shape == (4, 32) and features.dtype == torch.float32 and not features.requires_grad
    assert torch.equal(features, system.encode(batch())) and system.training
    assert tiny(streams=("joint",)).encode(batch()).shape == (4, 16)
    system.query["joint"].hand_gcn.eval()  # as a user who freezes its statistics would
    system.encode(batch())
    assert not system.query["joint"].hand_gcn.blocks[0].training and system.training


def test_a_batch_of_another_dtype_or_device_is_refused_in_one_sentence():
    system = tiny()
    for call in (system.training_step, system.encode):
        with pytest.raises(TypeError, match="STC: batch.xy must be torch.float32, got torch.float64"):
            call(double(batch()))
        with pytest.raises(
            ValueError, match=r"STC: batch must be on the system's device \(cpu\), got meta; use batch.to"
        ):
            call(batch().to("meta"))


def test_losses_do_not_depend_on_what_else_the_graph_saved():
    """A second step before the first one's backward overwrites the banks, and changes no gradient of the first."""
    gradients = []
    for again in (False, True):
        system = tiny(**NO_DROPOUT, streams=("joint",)).eval()
        loss = system.training_step(batch(), seeded())["loss"]
        if again:
            system.training_step(batch(seed=5), seeded(5))
        loss.backward()
        gradients.append([p.grad for p in system.query.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_schedules():
    paper, legacy = STC(STCConfig.paper(**TINY)), STC(STCConfig.legacy(**TINY, part_bank_size=16, part_neighbors=5))
    rates = [paper.learning_rate(epoch) for epoch in (0, 49.99, 50, 100, 149)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0001, 0.0001])
    assert [legacy.learning_rate(e) for e in (99.9, 100)] == pytest.approx([0.01, 0.001])
    assert STC(STCConfig.paper(**TINY, warmup=4.0)).learning_rate(1.0) == pytest.approx(0.0025)
    group = paper.optimizer().param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 1e-4)


def test_save_and_load(tmp_path):
    system = tiny()
    system.training_step(batch(), seeded())
    system.save_pretrained(tmp_path / "model")
    again = STC.from_pretrained(tmp_path / "model")
    assert again.config == system.config
    for (name, a), b in zip(system.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert SYSTEMS["stc"] is STC and STC.Config is STCConfig
    assert STC.from_pretrained(tmp_path).config == system.config  # a run's folder, which keeps it as "model"


def test_damaged_checkpoints_are_named(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(CheckpointError, match="model: cannot be read as a saved STC"):
        STC.from_pretrained(folder)
    tiny().save_pretrained(folder)
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "colour": 1}))
    with pytest.raises(CheckpointError, match="does not fit this version of STC.*colour"):
        STC.from_pretrained(folder)
    config.write_text(json.dumps({**fields, "system": "MASA"}))
    with pytest.raises(CheckpointError, match="does not describe a STC"):
        STC.from_pretrained(folder)
    config.write_text(json.dumps(fields))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as a saved STC"):
        STC.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"neighbors": 25}, r"STCConfig: neighbors must be in \[1, 24\], got 25"),
        ({"part_bank_size": 5}, r"STCConfig: neighbors must be in \[1, 5\], got 9"),
        ({"consistency": "neighbors", "part_neighbors": 0}, r"STCConfig: part_neighbors must be in \[1, 24\], got 0"),
        ({"heads": 0}, "STCConfig: heads must be in"),
        ({"temperature": 0.0}, "STCConfig: temperature must be finite and > 0, got 0.0"),
        ({"transfer_weight": float("nan")}, "STCConfig: transfer_weight must be finite and >= 0, got nan"),
        ({"gcn_dropout": 1.5}, r"STCConfig: gcn_dropout must be in \[0, 1\], got 1.5"),
        ({"warmup": -1.0}, "STCConfig: warmup must be finite and >= 0, got -1.0"),
        ({"streams": ("joint", "bone")}, "STCConfig: streams must be 'joint', 'motion' or both"),
        ({"consistency": "none"}, "STCConfig: consistency must be one of 'features', 'neighbors', got 'none'"),
        ({"min_crop": 0.0}, r"STCConfig: min_crop must be in \(0, 1\], got 0.0"),
        ({"frames": 0}, r"STCConfig: frames must be in \[1, 2147483648\], got 0"),
    ],
)
def test_bad_configs(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        STCConfig.paper(**{**TINY, **changes})


def test_a_batch_larger_than_the_bank_keeps_its_last_keys():
    system = tiny(bank_size=3, neighbors=2)
    assert torch.isfinite(system.training_step(batch(5), seeded())["loss"])
    assert system.banks["joint"]["hand"].cursor.item() == 5 % 3


def test_one_clip_of_one_frame():
    clips = PoseBatch.random(2, min_frames=1, max_frames=1)
    losses = tiny().training_step(clips, seeded())
    assert all(torch.isfinite(value) for value in losses.values())


def test_legacy_graph_is_only_in_legacy_mode():
    with torch.device("meta"):
        pooled = [STCEncoder(c).trunk_gcn.graph.pooled for c in (STCConfig.paper(), STCConfig.legacy())]
    assert pooled == [graphs.TRUNK3, graphs.TRUNK3_LEGACY]


def random_parts(size, generator, grad=False):
    """Unit-length embeddings of both streams, as the heads make them."""

    def rows():
        return F.normalize(torch.randn(size, 8, generator=generator), dim=1).requires_grad_(grad)

    return {s: Parts(rows(), rows()) for s in ("joint", "motion")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_after_enqueues_are_the_reference_equations(dtype):
    system, generator = tiny(bank_dtype=str(dtype).removeprefix("torch.")), seeded()
    rows = {s: {part: bank.features.clone() for part, bank in banks.items()} for s, banks in system.banks.items()}
    for step, size in enumerate((5, 5, 5, 5, 7, 30)):
        query, key = random_parts(size, generator, grad=True), random_parts(size, generator)
        q, k = ({s: Parts(*(x.detach().double() for x in parts[:2])) for s, parts in e.items()} for e in (query, key))
        leaves = [x.requires_grad_() for parts in q.values() for x in parts[:2]]
        wide = {s: {part: bank.double() for part, bank in banks.items()} for s, banks in rows.items()}
        anchors = {s: (banks["hand"].float() + banks["trunk"].float()).to(dtype) for s, banks in rows.items()}
        expected = 0.0
        for s in q:
            expected = expected + 0.5 * info_nce(q[s].hand, k[s].hand, wide[s]["hand"], 0.07).mean()
            expected = expected + 0.5 * info_nce(q[s].trunk, k[s].trunk, wide[s]["trunk"], 0.07).mean()
            expected = expected + 0.5 * feature_kl(k[s].hand, q[s].trunk, 0.1).mean()
            expected = expected + 0.5 * feature_kl(k[s].trunk, q[s].hand, 0.1).mean()
        for a, b in (("joint", "motion"), ("motion", "joint")):
            teacher, student = k[a].hand + k[a].trunk, q[b].hand + q[b].trunk
            pair = (teacher, anchors[a].double(), student, anchors[b].double())
            expected = expected + neighbor_kl(*pair, 9, 0.05, 0.1).mean()
        loss = system.losses(query, key)["loss"]
        system.enqueue(key)
        loss.backward()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
        ours = [x.grad.double() for parts in query.values() for x in parts[:2]]
        # over a bfloat16 bank the weights are bfloat16 too: 2^-9 of a weighted mean of unit rows over 0.07
        atol = 1e-6 if dtype == torch.float32 else 2**-9 / 0.07
        for gradient, truth in zip(ours, torch.autograd.grad(expected, leaves), strict=True):
            torch.testing.assert_close(gradient, truth, rtol=1e-4, atol=atol)
        cursor = (0, 5, 10, 15, 20, 3)[step]
        for j in range(size):
            for s, parts in key.items():
                for part, bank in rows[s].items():
                    bank[(cursor + j) % 24] = F.normalize(getattr(parts, part)[j], dim=0)
    assert all(torch.equal(bank.features, rows[s][p]) for s, b in system.banks.items() for p, bank in b.items())


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

    for _ in range(7):  # 28 clips: the bank of 24 rows wraps around
        train(system, optimizer)
    names = {name for name in system.state_dict() if name.startswith("banks.")}
    parts = ("hand.features", "hand.cursor", "trunk.features", "trunk.cursor")
    assert names == {f"banks.{s}.{part}" for s in ("joint", "motion") for part in parts}
    torch.manual_seed(1)
    again = STC(system.config)
    again_optimizer = again.optimizer()
    again.load_state_dict(system.state_dict())
    again_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = generator.get_state()
    for _ in range(2):
        expected = train(system, optimizer)
        after = generator.get_state()
        generator.set_state(state)
        assert all(torch.equal(value, expected[name]) for name, value in train(again, again_optimizer).items())
        assert torch.equal(generator.get_state(), after)
        state = after
        for s, banks in system.banks.items():
            assert torch.equal(banks.sum, again.banks[s].sum) and banks.sum.dtype == getattr(torch, dtype)
    for (name, a), b in zip(system.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_either_optimizer_trains_the_query_encoders_alone():
    for name, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        system = STC(STCConfig.small(frames=4, bank_size=8, neighbors=4, optimizer=name))
        optimizer = system.optimizer()
        assert type(optimizer) is kind
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for encoder in system.query.values() for p in encoder.parameters()}
