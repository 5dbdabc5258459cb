"""slrfast bench: steps of both kinds are timed on the same work, and nothing is timed on a wrong answer."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from slrfast import systems
from slrfast.ops import _dispatch
from slrfast.train import bench
from slrfast.train.bench import Profile, WrongAnswer, bench_command, by_operation, differences, median_of
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
    assert bench_command([*words, "--batch_size", "4", "--rounds", "1", "--json"]) == 0
    out = capsys.readouterr()
    return json.loads(out.out), out.err


@pytest.mark.parametrize("name", OPS)
def test_every_system(name, capsys):
    before = torch.get_rng_state()
    told, text = measured(capsys, name)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers stay
    (found,) = told["systems"]
    assert (found["system"], found["preset"], found["clips"], found["device"]) == (name, "small", 4, "cpu")
    assert found["difference"]["losses"] <= 1e-3 and found["difference"]["gradients"] <= 1e-2
    assert found["backends"]["gcn_block"] == _dispatch.choose("gcn_block", "cpu")
    for kind in ("slrfast", "reference"):
        seconds, profiled = found["seconds"][kind], found["profiled"][kind]
        assert OPS[name] <= profiled["operations"].keys()
        assert min(profiled["operations"].values()) > 0
        assert sum(profiled["operations"].values()) < profiled["step"]  # on a CPU they run one after the other
        assert found["clips_per_second"][kind] == pytest.approx(4 / seconds)
    assert found["ratio"] == pytest.approx(found["seconds"]["reference"] / found["seconds"]["slrfast"])
    assert re.search(rf"^{name} small +backend +slrfast +plain PyTorch +ratio$", text, re.M)
    # what is not slrfast's makes up the rest of the step
    (head,) = re.findall(r"^a profiled step +([\d.,]+) ms +([\d.,]+) ms$", text, re.M)
    rows = re.findall(r"^(?:\w+ +(?:native|triton|cuda|reference)|all else) +([\d.,]+) ms +([\d.,]+) ms", text, re.M)
    for column in range(2):
        parts, whole = (sum(float(row[column].replace(",", "")) for row in part) for part in (rows, [head]))
        assert parts == pytest.approx(whole, abs=0.06 * (len(rows) + 1))


def test_both_kinds_do_the_same_work(monkeypatch, capsys):
    """In the precision that was asked for, in turn, the second with every operation in the reference."""
    real, used = systems.STC.training_step, []

    def watched(self, batch, generator=None):
        used.append((_dispatch._forced, torch.is_autocast_enabled("cpu")))
        return real(self, batch, generator)

    monkeypatch.setattr(systems.STC, "training_step", watched)
    (found,) = measured(capsys, "stc", "--precision", "bf16")[0]["systems"]
    compared = warmed_up = [(None, True), ("reference", True)]
    assert used == [*compared, *warmed_up, *[("reference", True)] * 2, *[(None, True)] * 2]  # timed, profiled
    assert found["precision"] == "bf16"
    assert 1e-5 < found["difference"]["gradients"] < 0.7  # float32 is closer


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_nothing_is_timed_on_a_wrong_answer(wrong, monkeypatch):
    real = systems.STC.training_step
    monkeypatch.setattr(bench._Step, "timed", None)
    used = []

    def training_step(self, batch, generator=None):
        terms = real(self, batch, generator)
        used.append(self)
        loss = terms["loss"]
        other = 1.1 * loss if wrong == "loss" else 1.1 * loss - 0.1 * loss.detach()  # the same, with another gradient
        return {**terms, "loss": other if len(used) == 1 else loss}

    monkeypatch.setattr(systems.STC, "training_step", training_step)
    with pytest.raises(WrongAnswer, match=r"^stc: losses differ .* by [\d.e-]+ and gradients by 0.067, so nothing"):
        bench_command(["stc", "--batch_size", "2"])


@pytest.mark.parametrize(
    ("ours", "losses"),
    [
        ({"loss": 2.0, "small": 1e-6}, 0.0),
        ({"loss": 2.2, "small": 1e-6}, 0.1),
        ({"loss": 2.0, "small": 3e-6}, 1e-4),  # beside a loss of 2 this is nothing
        ({"loss": float("nan"), "small": 1e-6}, float("nan")),
        ({"loss": 2.0, "small": float("nan")}, float("nan")),
    ],
)
def test_the_largest_difference_of_a_term_counts(ours, losses):
    gradient = torch.ones(3)
    found = differences((ours, gradient), ({"loss": 2.0, "small": 1e-6}, gradient))
    assert found == pytest.approx((losses, 0.0), nan_ok=True)


@pytest.mark.parametrize(
    ("ours", "error"),
    [
        ([3.0, 4.0], 0.0),
        ([0.0, 0.0], 1.0),
        ([-4.0, 3.0], 1.0),
        ([-3.0, -4.0], 2**0.5),
        ([float("nan"), 4.0], float("nan")),
    ],
)
def test_the_difference_of_gradients(ours, error):
    terms = {"loss": 1.0}
    found = differences((terms, torch.tensor(ours)), (terms, torch.tensor([3.0, 4.0])))
    assert found[1] == pytest.approx(error, nan_ok=True)
    assert error == 0 or not found[1] <= bench.AGREE["bf16"][1]


def event(name, total, parent=None, device=DeviceType.CPU, on_gpu=0.0):
    return SimpleNamespace(
        name=name, cpu_time_total=total, device_time_total=on_gpu, cpu_parent=parent, device_type=device
    )


def test_the_time_of_an_operation():
    """Forward and backward of an operation count together, operations inside one another once."""
    outer = event("slrfast::info_nce", 5e6)
    product = event("aten::mm", 3e6, outer)
    events = [
        outer,
        product,
        event("slrfast::topk_similarity", 2e6, product),
        event("slrfast::info_nce_grad", 3e6),
        event("slrfast::motion", 9e6, event("autograd::engine", 10e6)),
        event("aten::add", 4e6),
    ]
    assert by_operation(events, on_gpu=False) == pytest.approx({"info_nce": 8.0, "motion": 9.0})


def test_the_time_of_an_operation_on_a_gpu():
    """The time of kernels counts, at the event that launched them and not again at the kernel's own."""
    operation = event("slrfast::motion", 1, on_gpu=3e6)
    events = [
        operation,
        event("aten::mul", 1, operation, on_gpu=3e6),
        event("aten::add", 1, on_gpu=2e6),
        event("slrfast::motion", 0, device=DeviceType.CUDA, on_gpu=3e6),
    ]
    assert by_operation(events, on_gpu=True) == pytest.approx({"motion": 3.0})


def test_medians_of_profiles():
    steps = [Profile(5.0, {"a": 1.0, "b": 3.0}), Profile(9.0, {"a": 2.0, "b": 8.0}), Profile(6.0, {"a": 1.5})]
    found = median_of(steps)
    assert found == Profile(6.0, {"b": 3.0, "a": 1.5}) and list(found.operations) == ["b", "a"]


def test_all_systems_that_have_the_preset(monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "_bench", lambda name, options, device: asked.append(name))
    monkeypatch.setattr(bench, "_text", lambda found: "")
    monkeypatch.delitem(systems.SYSTEMS, "tiny", raising=False)
    assert bench_command(["--preset", "legacy"]) == 0
    assert asked == [name for name in systems.SYSTEMS if hasattr(systems.SYSTEMS[name].Config, "legacy")] != []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("stc moca", "'moca' is no system; there are"),
        ("ccl --preset legacy", "ccl has the presets paper, small, not 'legacy'"),
        ("--precision fp8", "bench: precision must be one of"),
        ("--preset tiny", "bench: preset must be one of"),
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
