import json

import pytest
import torch

from benchmarks import harness, machine
from benchmarks.harness import Case, WrongAnswer


def case(**candidates):
    x = torch.linspace(0, 1, 1000)
    calls = {"eager": lambda: [x * 2], "slrfast": lambda: [x + x], **candidates}
    truth = lambda: [x.double() * 2]  # noqa: E731
    return Case("double", {"x": [1000]}, calls, truth, flops=1000, bytes=8000, tolerance=1e-6)


def test_right_answers_are_timed_and_compared_within_the_run():
    result = harness.measure(case(), rounds=3)
    assert set(result["seconds"]) == {"eager", "slrfast"} and min(result["seconds"].values()) > 0
    assert result["speedup"]["eager"] == 1.0
    assert result["speedup"]["slrfast"] == result["seconds"]["eager"] / result["seconds"]["slrfast"]
    assert result["times_floor"]["slrfast"] == result["seconds"]["slrfast"] / max(result["floor_seconds"].values())


@pytest.mark.parametrize(
    "wrong",
    [lambda: [torch.zeros(1000)], lambda: [torch.zeros(3)], lambda: [], lambda: [torch.full((1000,), torch.nan)]],
)
def test_no_time_for_a_wrong_answer(wrong):
    for name in ("slrfast", "eager"):
        with pytest.raises(WrongAnswer, match=f"double: {name} "):
            harness.measure(case(**{name: wrong}))


def test_candidates_are_interleaved_in_turning_order(monkeypatch):
    order = []
    monkeypatch.setattr(machine, "timed", lambda call, repeats, device: order.append(call()) or 1.0)
    calls = {name: lambda name=name: name for name in ("a", "b", "c")}
    harness.samples(Case("order", {}, calls, list, 1, 1), rounds=3)
    assert "".join(order) == "aaabbbccc" + "abc" + "bca" + "cab"


def test_saved_run_says_what_ran_where(tmp_path):
    path = harness.save("double", [harness.measure(case(), rounds=2)], tmp_path)
    run = json.loads(path.read_text())
    assert path.name == f"double-{run['commit']}.json"
    assert {"op", "machine", "commit", "date", "versions", "threads", "load", "cases"} <= set(run)
    assert run["cases"][0]["shapes"] == {"x": [1000]} and run["versions"]["torch"]
    assert "/" not in run["machine"] and run["machine"].startswith("cpu-")
