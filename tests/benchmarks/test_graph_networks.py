"""The benchmarks of graph networks and of whole STC steps at sizes that take no time."""

import dataclasses
import importlib
import itertools

import pytest
import torch

from benchmarks import harness, memory
from benchmarks.baselines import gcn
from benchmarks.ops import _blocks
from slrfast.nn import PartGCN, TemporalBlock
from slrfast.ops import _dispatch
from slrfast.systems import STCConfig

CHANNELS = (2, 4, 4, 8, 8, 8)
SMALL = {
    "frames": 12, "gcn_channels": CHANNELS[1:], "dim": 16, "embedding": 8, "heads": 2, "layers": 1,
    "hand_ffn": 16, "trunk_ffn": 16, "bank_size": 32, "neighbors": 16, "min_frames": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    blocks = [
        dataclasses.replace(block, inputs=inputs, outputs=outputs)
        for block, (inputs, outputs) in zip(_blocks.BLOCKS, itertools.cycle(itertools.pairwise(CHANNELS)), strict=False)
    ]
    monkeypatch.setitem(_blocks.CLIPS, "cpu", 1)
    for op in ("graph_conv", "gcn_block", "part_gcn"):
        monkeypatch.setattr(importlib.import_module(f"benchmarks.ops.{op}"), "BLOCKS", blocks)


def check(case, **own):
    """Without compiling; float32 sums of this length agree to 1e-5."""
    calls = {name: call for name, call in case.candidates.items() if "compile" not in name}
    limits = {**case.tolerances, **own}
    found = harness.errors(dataclasses.replace(case, candidates=calls, tolerances=limits, rounding=1e-5))
    assert found["slrfast"] <= max(1e-5, case.tolerances.get("slrfast", 0))
    assert {"slrfast", "slrfast, bf16", "eager", "eager, bf16"} <= set(calls)


@pytest.mark.parametrize("op, count", [("graph_conv", 11), ("gcn_block", 10), ("part_max", 2), ("part_gcn", 2)])
def test_candidates_agree_with_float64(op, count, monkeypatch):
    module = importlib.import_module(f"benchmarks.ops.{op}")
    if op == "part_gcn":
        paper = STCConfig.paper
        monkeypatch.setattr(module.STCConfig, "paper", lambda **changes: paper(**{**SMALL, **changes}))
    cases = list(module.cases("cpu"))
    assert len(cases) == count
    for case in cases:
        check(case, **({"slrfast, bf16": 0.2} if op == "gcn_block" else {}))  # narrow blocks are noisier


def test_all_ten_convolutions_are_those_of_the_table():
    from benchmarks.ops import graph_conv

    *single, whole = graph_conv.cases("cpu")
    assert len(whole.truth()) == sum(len(case.truth()) for case in single) == 30
    assert whole.flops == sum(case.flops for case in single)


def test_without_torch_geometric_it_is_skipped_and_named(monkeypatch):
    import builtins

    from benchmarks.ops import graph_conv

    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("torch_geometric"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.warns(UserWarning, match="pip install torch_geometric"):
        case = next(graph_conv.cases("cpu"))
    assert case.skipped == {"torch-geometric": "torch-geometric is not installed"}
    assert not any("geometric" in name for name in case.candidates)


def test_dropout_is_in_the_timed_calls_and_not_in_the_checked():
    from benchmarks.ops import gcn_block

    case = next(gcn_block.cases("cpu"))
    for name in ("slrfast", "eager"):
        (first, *_), (second, *_) = (case.candidates[name]() for _ in range(2))
        assert not torch.equal(first, second)
        torch.testing.assert_close(case.checked[name]()[0], case.checked[name]()[0])


def test_products_of_torch_are_those_of_the_reference(monkeypatch):
    from benchmarks.ops import part_gcn

    seen = []
    choose = _dispatch.choose
    monkeypatch.setattr(_dispatch, "choose", lambda op, device: seen.append(choose(op, device)) or seen[-1])
    for op in ("graph_conv", "gcn_block"):
        case = next(importlib.import_module(f"benchmarks.ops.{op}").cases("cpu"))
        case.candidates[harness.GEMM]()
    paper = STCConfig.paper
    monkeypatch.setattr(part_gcn.STCConfig, "paper", lambda **changes: paper(**{**SMALL, **changes}))
    next(part_gcn.cases("cpu")).candidates[harness.GEMM]()
    assert len(seen) == 5 and set(seen) == {"reference"}


def test_frames_that_see_a_kink_are_left_out_of_the_comparison():
    x = torch.ones(1, 1, 9)
    x[..., 4] = 1e-6
    assert _blocks.smooth(torch.nn.ReLU(), x)[0].tolist() == [True] * 4 + [False] + [True] * 4
    assert _blocks.smooth(torch.nn.ReLU(), x, reach=2)[0].tolist() == [True] * 2 + [False] * 5 + [True] * 2


def test_both_layouts_of_the_field_are_the_same_network():
    torch.manual_seed(0)
    config = STCConfig.paper(**SMALL, gcn_dropout=0.0, frame_dropout=0.0)
    frames, clips = (gcn.PartGCN(_blocks.BLOCKS[0].graph, config, layout) for layout in (False, True))
    clips.load_state_dict(frames.state_dict())
    x = torch.rand(2, 5, 21, 2)
    torch.testing.assert_close(clips(x), frames(x), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(clips.buffers(), frames.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_wrong_gradient_of_a_block_is_not_timed():
    from benchmarks.ops import gcn_block

    case = next(gcn_block.cases("cpu"))
    calls = {name: case.candidates[name] for name in ("slrfast", "eager")}

    def wrong():
        y, dx, *grads = case.checked["slrfast"]()
        return [y, dx, *grads[:-1], (1 + 1e-4) * grads[-1]]

    with pytest.raises(harness.WrongAnswer, match="slrfast"):
        harness.errors(dataclasses.replace(case, candidates=calls, checked={**case.checked, "slrfast": wrong}))


def test_names_of_parameters_lead_to_the_field_style_modules():
    torch.manual_seed(0)
    config = STCConfig.paper(**SMALL, gcn_dropout=0.0, frame_dropout=0.0)
    graph = _blocks.BLOCKS[0].graph
    ours = PartGCN(graph, config.gcn_channels, config.dim, dropout=0, frame_dropout=0)
    field = gcn.PartGCN(graph, config)
    temporal, field_temporal = TemporalBlock(config.dim), gcn.TemporalBlock(config.dim)
    gcn.load(gcn.renamed(ours.state_dict()), field)
    gcn.load(gcn.renamed(temporal.state_dict()), field_temporal)
    x = torch.rand(2, 5, 21, 2)
    torch.testing.assert_close(temporal(ours(x).mT), field_temporal(field(x)), rtol=1e-4, atol=1e-5)


@pytest.fixture
def stc(monkeypatch):
    from benchmarks.systems import stc

    sizes = ("frames", "bank_size", "neighbors")
    settings = lambda **changes: STCConfig.paper(  # noqa: E731
        **SMALL, **{key: value for key, value in changes.items() if key not in sizes}
    )
    monkeypatch.setattr(stc, "settings", settings)
    monkeypatch.setattr(stc, "BATCH", {"cpu": 2})
    monkeypatch.setattr(stc, "FRAMES_PER_CLIP", 20)
    monkeypatch.setattr(stc, "ROUNDS", {"cpu": 1})
    return stc


def test_hand_network_is_checked_timed_and_weighed(monkeypatch):
    from benchmarks.systems import hand_gcn

    paper = STCConfig.paper
    monkeypatch.setattr(hand_gcn.STCConfig, "paper", lambda **changes: paper(**{**SMALL, **changes}))
    monkeypatch.setattr(hand_gcn.STCConfig, "dim", SMALL["dim"])
    training, evaluation = hand_gcn.cases("cpu")
    check(training, **dict.fromkeys((_blocks.FIELD_BF16, _blocks.FIELD_CLIPS_BF16), 0.9))  # narrow networks are noisier
    check(evaluation)
    assert not torch.equal(training.candidates["slrfast"]()[0], training.candidates["slrfast"]()[0])
    assert torch.equal(evaluation.candidates["slrfast"]()[0], evaluation.candidates["slrfast"]()[0])


def test_stc_step_is_profiled_in_every_precision(stc, monkeypatch):
    monkeypatch.setattr(memory, "peaks", lambda module, names, *rest: {"peak_bytes": dict.fromkeys(names, 1)})
    result = stc.training("cpu")
    assert set(result["seconds"]) == set(result["error"]) == set(result["peak_bytes"]) == set(stc.NAMES)
    for phases in result["phases"].values():
        assert sum(phases.values()) == pytest.approx(2 * phases["total"], rel=0.2) and phases["gcn"] > 0
    assert result["error"]["slrfast"] < 1e-3 and "  gcn" in stc.table("stc_step", result)
    assert stc.prepared("slrfast, bf16", "cpu", 2)()["total"] > 0


def test_stc_steps_that_differ_in_float64_are_refused(stc, monkeypatch):
    real = stc.first_step

    def wrong(name, *rest):
        found = real(name, *rest)
        return found | {"loss": found["loss"] * 1.001} if name == "slrfast" else found

    monkeypatch.setattr(stc, "first_step", wrong)
    with pytest.raises(harness.WrongAnswer, match="in float64"):
        stc.errors("cpu")


def test_encode_agrees_with_the_field_style_code(stc):
    check(stc.encoding("cpu"))
