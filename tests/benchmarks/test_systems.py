"""The benchmarks of temporal blocks, packed clips, loss curves and CUDA graphs, and which ones a GPU machine runs."""

import dataclasses
import re
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from benchmarks import capture, harness
from benchmarks.ops import _blocks
from slrfast import ops
from slrfast.ops import _dispatch
from slrfast.systems import STCConfig

ROOT = Path(__file__).resolve().parents[2]


def without_compiling(case, rounding=1e-5):
    """The case with candidates that take no time to start."""
    calls = {name: call for name, call in case.candidates.items() if "compile" not in name}
    return dataclasses.replace(case, candidates=calls, rounding=rounding)


def test_every_benchmark_runs_on_a_gpu_machine():
    script = (ROOT / "benchmarks" / "device.sh").read_text()
    listed = set(re.findall(r"systems\.(\w+)", re.search(r"^modules=\((.*)\)", script, re.MULTILINE)[1]))
    files = (ROOT / "benchmarks" / "systems").glob("*.py")
    measured = {path.stem for path in files if "(OP, cases" in path.read_text()}
    assert listed == measured and "temporal" in measured


@pytest.fixture
def temporal(monkeypatch):
    from benchmarks.systems import temporal

    paper, small = STCConfig.paper, {"dim": 16, "heads": 2, "trunk_ffn": 16}
    monkeypatch.setattr(temporal.STCConfig, "paper", lambda **changes: paper(**{**small, **changes}))
    monkeypatch.setitem(_blocks.CLIPS, "cpu", 2)
    monkeypatch.setattr(temporal, "FRAMES", 10)
    return list(temporal.cases("cpu"))


def test_temporal_blocks_and_transformers_agree_with_float64(temporal):
    for case in map(without_compiling, temporal):
        found = harness.errors(case)
        assert {"slrfast", "slrfast, bf16", "eager", "eager, bf16"} <= set(found) and found["slrfast"] < 1e-5
    blocks, transformer = temporal
    assert {"slrfast, one convolution", "slrfast, bf16, one convolution"} < set(blocks.candidates)
    assert not torch.equal(transformer.candidates["slrfast"]()[0], transformer.candidates["slrfast"]()[0])  # dropout


def test_a_wrong_temporal_block_is_not_timed(temporal, monkeypatch):
    from benchmarks.systems.temporal import Widened

    def slipped(self, x, real=None):
        wide, narrow = real_branches(self, x)
        return wide.roll(1, 2), narrow

    real_branches = Widened._branches
    monkeypatch.setattr(Widened, "_branches", slipped)
    with pytest.raises(harness.WrongAnswer, match="slrfast, one convolution"):
        harness.errors(without_compiling(temporal[0]))


def test_packed_clips_agree_with_padded_ones_and_with_one_by_one(monkeypatch):
    from benchmarks.systems import packed

    monkeypatch.setattr(packed, "CLIPS", {"cpu": 3})
    monkeypatch.setattr(packed, "lengths", lambda count: ("short", [5, 3, 9]))
    monkeypatch.setattr(packed, "DIM", 16)
    monkeypatch.setattr(packed, "FFN", 16)
    (case,) = packed.cases("cpu")
    assert case.baseline == "padded" and set(case.candidates) == {"slrfast", "padded"}
    assert case.shapes["packed"] == (17, 7, 2) and case.shapes["padded"] == (3, 9, 7, 2)
    assert harness.errors(dataclasses.replace(case, rounding=1e-5))["slrfast"] < 1e-4
    with pytest.raises(harness.WrongAnswer, match="in float64"):
        harness.errors(dataclasses.replace(case, exact=lambda: [1.001 * tensor for tensor in case.truth()]))
    masked = packed.masked_block
    monkeypatch.setattr(packed, "masked_block", lambda block, x, keys: masked(block, x, torch.ones_like(keys)))
    with pytest.raises(harness.WrongAnswer, match="padded"):
        harness.errors(case)


def test_only_other_peoples_code_may_fail_to_be_captured(monkeypatch):
    def graphed(call):
        call()
        return lambda: "replayed"

    def fails():
        raise RuntimeError("operation not permitted\nwhen the stream is capturing")

    monkeypatch.setattr(capture, "graphed", graphed)
    found, skipped = capture.captured({"slrfast": lambda: None, "eager": fails})
    assert found["slrfast, CUDA graph"]() == "replayed" and len(found) == 1
    assert skipped == {"eager, CUDA graph": "operation not permitted"}
    for name in ("slrfast", "slrfast, bf16"):
        with pytest.raises(RuntimeError, match="not permitted"):
            capture.captured({name: fails})


@pytest.fixture
def loss_curves(monkeypatch):
    """The runs of loss_curves in this process, on few clips."""
    from benchmarks.systems import loss_curves

    class InTurn:
        __init__ = __exit__ = lambda self, *_: None

        def __enter__(self):
            return self

        def submit(self, call, *arguments):
            run = Future()
            run.set_result(call(*arguments))
            return run

    clips = loss_curves.SyntheticSigns(num_classes=2, clips_per_class=4)
    monkeypatch.setattr(loss_curves, "SyntheticSigns", lambda **_: clips)
    monkeypatch.setattr(loss_curves, "ProcessPoolExecutor", InTurn)
    monkeypatch.setattr(loss_curves, "SEEDS", (1, 2))
    return loss_curves


def test_loss_curves_compare_with_what_a_seed_changes(loss_curves):
    near = {
        "slrfast": [[1.0, 2.0], [3.0, 5.0]], "reference": [[1.0, 2.5], [3.0, 5.0]],
        loss_curves.MOVED: [[1.0, 2.0], [3.0, 6.0]],
    }  # fmt: skip
    assert loss_curves.compare(near) == {"same_seed": 0.125, "other_weights": 0.25, "other_seed": 2.25}
    first, second = (loss_curves.curve(None, 0.0, seed, 2) for seed in (1, 2))
    assert first == loss_curves.curve(None, 0.0, 1, 2) and first != second
    assert first[0] == pytest.approx(loss_curves.curve("reference", 0.0, 1, 1)[0], rel=1e-4)
    assert first[0] == pytest.approx(loss_curves.curve(None, 1e-7, 1, 1)[0], rel=1e-4)


def test_loss_curves_of_right_kernels_are_recorded(loss_curves):
    results = loss_curves.measured(6)
    assert results["distance"] == results["early_distance"] and len(results["losses"]["slrfast"][1]) == 6


@pytest.mark.parametrize("wrong", [{"dropout": 0.0}, {"eps": 1e-2}], ids=["no dropout", "other epsilon"])
def test_loss_curves_of_wrong_kernels_are_refused(wrong, loss_curves, monkeypatch):
    if _dispatch.choose("gcn_block", "cpu") == "reference":
        pytest.skip("nothing but the reference runs here")
    block = ops.gcn_block

    def broken(*arguments, **options):
        reference = _dispatch.choose("gcn_block", "cpu") == "reference"
        return block(*arguments, **(options if reference else options | wrong))

    monkeypatch.setattr(ops, "gcn_block", broken)
    with pytest.raises(harness.WrongAnswer, match="by more than rounding"):
        loss_curves.measured(2)


def test_loss_curves_are_compared_where_they_have_not_yet_met_again(loss_curves, monkeypatch):
    """Trajectories that were far apart at first may end as close as any."""
    late = {"slrfast": [0.0] * 96, "reference": [0.0] * 96, loss_curves.MOVED: [0.5] * 96}
    first = {"slrfast": 1.0, "reference": 2.0, loss_curves.MOVED: 1.001}
    names = {setting: name for name, setting in loss_curves.RUNS.items()}

    def curve(backend, change, seed, steps):
        name = names[backend, change]
        return [9.0 * (seed + first[name])] * 4 + [9.0 * seed + loss for loss in late[name]]

    monkeypatch.setattr(loss_curves, "curve", curve)
    monkeypatch.setattr(loss_curves, "EARLY", 4)
    with pytest.raises(harness.WrongAnswer):
        loss_curves.measured()
    first["reference"] = 1.002
    assert loss_curves.measured()["early_distance"]["same_seed"] == pytest.approx(0.018)
