"""slrfast bench: steps of both kinds are timed on the same work, and nothing is timed on a wrong answer."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

import slrfast
from slrfast import systems
from slrfast.train import bench
from slrfast.train.bench import REST, WrongAnswer, bench_command, shares
from slrfast.train.cli import main
from slrfast.train.config import RunError

OPS = {
    "stc": {"gcn_block", "part_max", "pose_views", "neighbor_kl", "info_nce", "feature_kl", "enqueue_"},
    "masa": {"gcn_block", "motion_mask", "masked_motion_loss", "gather_visible", "info_nce", "enqueue_"},
    "ccl": {"gcn_block", "bank_losses", "topk_similarity", "enqueue_"},
    "slp": {"gcn_block", "sign_text_similarity", "masked_pose_loss"},
}


def measured(capsys, *words):
    capsys.readouterr()
    assert bench_command([*words, "--batch_size", "2", "--rounds", "1", "--json"]) == 0
    out = capsys.readouterr()
    return json.loads(out.out), out.err


@pytest.mark.parametrize("name", OPS)
def test_every_system(name, capsys):
    told, text = measured(capsys, name)
    (found,) = told["systems"]
    assert (found["system"], found["preset"], found["clips"], found["device"]) == (name, "small", 2, "cpu")
    assert found["difference"] <= 1e-3  # in float32 on a CPU
    for kind in ("slrfast", "reference"):
        operations = found["operations"][kind]
        assert OPS[name] <= operations.keys()
        assert all(each >= 0 for each in operations.values())
        assert found["clips_per_second"][kind] == pytest.approx(2 / found["seconds"][kind])
        # the parts are those of a step, not of several; a profiled step is slower
        assert 0.2 < sum(operations.values()) / found["seconds"][kind] < 5
    assert found["ratio"] == pytest.approx(found["seconds"]["reference"] / found["seconds"]["slrfast"])
    assert re.search(rf"^{name} small +slrfast +plain PyTorch +ratio$", text, re.M)
    assert re.search(r"^gcn_block +[\d.,]+ ms +[\d.,]+ ms +\d", text, re.M)


def test_bf16(capsys):
    assert measured(capsys, "stc", "--precision", "bf16")[0]["systems"][0]["precision"] == "bf16"


def test_the_second_kind_runs_the_reference(monkeypatch, capsys):
    forced = []
    real = slrfast.backend
    monkeypatch.setattr(slrfast, "backend", lambda name: forced.append(name) or real(name))
    measured(capsys, "stc")
    assert forced == ["reference"] * 4  # compared, warmed up, timed, profiled


def test_nothing_is_timed_on_a_wrong_answer(monkeypatch):
    real = systems.STC.training_step
    monkeypatch.setattr(bench._Step, "timed", None)
    used = []

    def wrong(self, batch, generator=None):
        terms = real(self, batch, generator)
        used.append(self)
        return {**terms, "loss": terms["loss"] * (1.1 if len(used) == 1 else 1)}

    monkeypatch.setattr(systems.STC, "training_step", wrong)
    with pytest.raises(WrongAnswer, match=r"^stc: losses differ from the reference's by 0.1, so nothing is timed$"):
        bench_command(["stc", "--batch_size", "2"])


@pytest.mark.parametrize(
    ("ours", "error"),
    [
        ({"loss": 2.0, "small": 1e-6}, 0.0),
        ({"loss": 2.2, "small": 1e-6}, 0.1),
        ({"loss": 2.0, "small": 2e-6}, 5e-4),  # beside a loss of 2 this is nothing
        ({"loss": float("nan"), "small": 1e-6}, float("nan")),
        ({"loss": 2.0, "small": float("nan")}, float("nan")),
    ],
)
def test_the_largest_difference_counts(ours, error):
    assert bench._disagreement(ours, {"loss": 2.0, "small": 1e-6}) == pytest.approx(error, nan_ok=True)


def event(name, total, own, parent=None, device=DeviceType.CPU, on_gpu=(0, 0)):
    return SimpleNamespace(
        name=name,
        cpu_time_total=total,
        self_cpu_time_total=own,
        device_time_total=on_gpu[0],
        self_device_time_total=on_gpu[1],
        cpu_parent=parent,
        device_type=device,
    )


def test_shares_of_a_step():
    """Forward and backward of an operation count together, operations inside one another once."""
    outer = event("slrfast::info_nce", 5e6, 2e6)
    events = [
        outer,
        event("aten::mm", 1e6, 1e6, outer),
        event("slrfast::topk_similarity", 2e6, 2e6, outer),
        event("slrfast::info_nce_grad", 3e6, 3e6),
        event("slrfast::motion", 9e6, 9e6),
        event("aten::add", 4e6, 4e6),
    ]
    assert shares(events, on_gpu=False) == {"motion": 9.0, "info_nce": 8.0, REST: 4.0}


def test_shares_of_a_step_on_a_gpu():
    """The time of kernels counts, at the event that launched them and not again at the kernel's own."""
    op = event("slrfast::motion", 1, 1, on_gpu=(3e6, 0))
    events = [
        op,
        event("aten::mul", 1, 1, op, on_gpu=(3e6, 3e6)),
        event("aten::add", 1, 1, on_gpu=(2e6, 2e6)),
        event("mul_kernel", 0, 0, device=DeviceType.CUDA, on_gpu=(3e6, 3e6)),
        event("add_kernel", 0, 0, device=DeviceType.CUDA, on_gpu=(2e6, 2e6)),
    ]
    assert shares(events, on_gpu=True) == {"motion": 3.0, REST: 2.0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("stc moca", "'moca' is no system; there are"),
        ("ccl --preset legacy", "ccl has the presets paper, small, not 'legacy'"),
        ("--precision fp8", "bench: precision must be one of"),
        ("--rounds 0", "bench: rounds must be"),
        ("--batch_size 1", "bench: batch_size must be"),
        ("--device tpu", "'tpu' is no device"),
    ],
)
def test_what_cannot_be(words, said):
    with pytest.raises(RunError) as error:
        bench_command(words.split())
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_command_line_knows_it(capsys):
    assert main(["bench", "nothing"]) == 2
    assert "'nothing' is no system" in capsys.readouterr().err


def test_random_numbers_of_the_caller_stay(capsys):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    step = bench._Step("stc", systems.STCConfig.small(), torch.device("cpu"), "float32")
    step.terms(bench._batch("stc", 2, step.system))
    assert torch.equal(torch.get_rng_state(), before)
