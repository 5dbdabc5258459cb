import dataclasses
import json
import os
import subprocess
import sys

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


def test_candidates_are_interleaved_in_turning_order_each_after_a_call_that_is_not_timed(monkeypatch):
    order = []
    monkeypatch.setattr(machine, "timed", lambda call, repeats, device: order.append(call().upper()) or 1.0)
    calls = {name: lambda name=name: order.append(name) or name for name in ("a", "b", "c")}
    harness.samples(Case("order", {}, calls, list, 1, 1), rounds=3)
    warm_up = "aA" * 3 + "bB" * 3 + "cC" * 3
    assert "".join(order) == warm_up + "".join(f"{name}{name}{name.upper()}" for name in "abc" + "bca" + "cab")


def test_our_forms_are_held_to_the_baseline_or_to_a_tolerance_of_their_own():
    off = {"slrfast, bf16 banks": lambda: [torch.linspace(0, 1, 1000) * 2.002]}
    with pytest.raises(WrongAnswer, match="slrfast, bf16 banks is off by 0.001"):
        harness.errors(case(**off))
    allowed = dataclasses.replace(case(**off), tolerances={"slrfast, bf16 banks": 0.01})
    result = harness.measure(allowed, rounds=2)
    assert result["allowed_error"]["slrfast, bf16 banks"] == 0.01 and result["allowed_error"]["eager"] == 1e-6
    assert 2e-7 <= result["allowed_error"]["slrfast"] < 1e-6
    assert not harness.is_ours("slrfaster") and harness.is_ours("slrfast, queue.T")


def test_our_float32_has_a_tolerance_of_its_own_only_beside_an_exact_check():
    with pytest.raises(ValueError, match="only beside an exact check"):
        dataclasses.replace(case(), tolerances={"slrfast": 0.01})
    off = lambda: [torch.linspace(0, 1, 1000) * 2.002]  # noqa: E731
    with pytest.raises(WrongAnswer, match="slrfast is off by 0.001 in float64"):
        harness.errors(dataclasses.replace(case(), tolerances={"slrfast": 0.01}, exact=off))
    exact = lambda: [torch.linspace(0, 1, 1000).double() * 2]  # noqa: E731
    loose = dataclasses.replace(case(slrfast=off), tolerances={"slrfast": 0.01}, exact=exact)
    assert harness.errors(loose)["slrfast"] == pytest.approx(1e-3, rel=1e-2)


def test_rounding_is_what_ours_may_be_off_beside_an_exact_baseline():
    off = {"slrfast": lambda: [torch.linspace(0, 1, 1000) * 2 + 2e-6]}
    with pytest.raises(WrongAnswer):
        harness.errors(case(**off))
    assert harness.errors(dataclasses.replace(case(**off), rounding=2e-6))["slrfast"] > 5e-7


def test_products_of_torch_may_err_as_other_peoples_code():
    off = {harness.GEMM: lambda: [torch.linspace(0, 1, 1000) * 2 + 1.8e-6]}
    assert harness.errors(case(**off))[harness.GEMM] > 5e-7
    with pytest.raises(WrongAnswer, match="GEMM"):
        harness.errors(dataclasses.replace(case(**off), tolerance=5e-7))


def test_convolutions_are_compared_in_full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []
    asked = case(eager=lambda: seen.append(torch.backends.cudnn.allow_tf32) or [torch.linspace(0, 1, 1000) * 2])
    harness.measure(asked, rounds=1)
    assert seen[0] is False and all(seen[1:]) and torch.backends.cudnn.allow_tf32


def test_a_form_may_be_held_to_a_candidate_of_its_own_precision():
    off = {name: lambda: [torch.linspace(0, 1, 1000) * 2.002] for name in ("slrfast, bf16", "eager, bf16")}
    limits = {"eager, bf16": 0.01}
    with pytest.raises(WrongAnswer, match="slrfast, bf16 is off"):
        harness.errors(dataclasses.replace(case(**off), tolerances=limits))
    same = dataclasses.replace(case(**off), tolerances=limits, held_to={"slrfast, bf16": "eager, bf16"})
    assert harness.allowed(same, harness.errors(same))["slrfast, bf16"] == pytest.approx(1.5e-3, rel=1e-2)


def test_a_random_call_is_checked_by_another_without_its_randomness():
    dropped = case(slrfast=lambda: [torch.nn.functional.dropout(torch.linspace(0, 2, 1000))])
    with pytest.raises(WrongAnswer):
        harness.errors(dropped)
    kept = dataclasses.replace(dropped, checked={"slrfast": lambda: [torch.linspace(0, 1, 1000) * 2]})
    assert harness.errors(kept)["slrfast"] < 1e-6


def test_root_mean_square_error_is_one_for_what_has_nothing_to_do_with_the_truth():
    error, truth = harness.root_mean_square_error, torch.tensor([3.0, 4.0]).double()
    assert error(torch.zeros(2), truth) == 1 == error(torch.tensor([4.0, -3.0]), truth)
    assert error(truth * 1.01, truth) == pytest.approx(0.01 / 2**0.5, rel=1e-2)
    assert error(torch.zeros(3), truth) == float("inf")


def test_one_tensor_with_a_nan_among_right_ones_is_wrong():
    two = dataclasses.replace(
        case(slrfast=lambda: [torch.linspace(0, 1, 1000) * 2, torch.tensor(torch.nan)]),
        truth=lambda: [torch.linspace(0, 1, 1000).double() * 2, torch.tensor(1.0)],
    )
    right = {"eager": lambda: [torch.linspace(0, 1, 1000) * 2, torch.tensor(1.0)]}
    with pytest.raises(WrongAnswer, match="slrfast is off by nan"):
        harness.errors(dataclasses.replace(two, candidates={**two.candidates, **right}))


def test_other_peoples_code_may_err_as_much_as_the_baseline():
    slightly = {"torch.compile": lambda: [torch.linspace(0, 1, 1000) * 2 + 1.8e-6]}
    assert harness.errors(case(**slightly))["torch.compile"] > 1.5 * 2e-7
    with pytest.raises(WrongAnswer):
        harness.errors(dataclasses.replace(case(**slightly), tolerance=5e-7))


def test_a_case_sets_its_threads_and_gives_them_back():
    seen, before = [], torch.get_num_threads()
    counted = case(eager=lambda: seen.append(torch.get_num_threads()) or [torch.linspace(0, 1, 1000) * 2])
    result = harness.measure(dataclasses.replace(counted, threads=before + 1), rounds=1)
    assert set(seen) == {before + 1} and result["threads"] == before + 1 and torch.get_num_threads() == before


def test_results_are_reduced_before_the_comparison_and_carry_memory_and_what_was_skipped():
    unordered = case(**{"slrfast, unsorted": lambda: [torch.linspace(0, 1, 1000).flip(0) * 2]})
    with pytest.raises(WrongAnswer, match="unsorted"):
        harness.errors(unordered)
    complete = dataclasses.replace(
        unordered,
        compared=lambda r: [r[0].sort().values],
        skipped={"faiss": "absent"},
        memory=lambda: {"peak_bytes": {"eager": 7}},
    )
    result = harness.measure(complete, rounds=1)
    assert result["skipped"] == {"faiss": "absent"} and result["peak_bytes"] == {"eager": 7}
    assert "skipped faiss: absent" in harness.line("double", result)


def test_the_label_names_the_machine_and_isa_what_ran():
    if not machine.isa().startswith("avx"):
        pytest.skip(f"the kernels of this machine are {machine.isa()}")
    code = "from benchmarks import machine; print(machine.isa(), machine.label('cpu'))"
    environment = {**os.environ, "SLRFAST_CPU_ISA": "avx2"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["avx2", machine.label("cpu")]


def test_a_summary_is_saved_as_it_is(tmp_path):
    ready = harness.measure(case(), rounds=1)
    assert harness.run_all("double", lambda device: [ready, case()], tmp_path, "cpu")[0] is ready
    (path,) = tmp_path.iterdir()
    assert len(json.loads(path.read_text())["cases"]) == 2


def test_saved_run_says_what_ran_where(tmp_path):
    path = harness.save("double", [harness.measure(case(), rounds=2)], tmp_path)
    run = json.loads(path.read_text())
    assert path.name == f"double-{run['commit']}.json"
    assert {"op", "machine", "commit", "date", "versions", "threads", "isa", "load", "cases"} <= set(run)
    assert run["cases"][0]["shapes"] == {"x": [1000]} and run["versions"]["torch"]
    assert "/" not in run["machine"] and run["machine"].startswith("cpu-")
