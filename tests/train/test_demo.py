import json
import signal
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from slrfast.systems import SYSTEMS
from slrfast.train import demo
from slrfast.train.cli import main


@pytest.fixture(autouse=True)
def tiny_stands_for_stc(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "stc", SYSTEMS["tiny"])
    for name in ("draw_training", "draw_embedding"):
        monkeypatch.setattr(demo, name, lambda *_: None)


def test_whole_signers_are_held_out_of_everything(tmp_path, capsys, monkeypatch, signs):
    trained_on = []
    pretrain = demo.pretrain
    monkeypatch.setattr(
        demo, "pretrain", lambda system, data, *a, **k: trained_on.append(data) or pretrain(system, data, *a, **k)
    )
    run = tmp_path / "run"
    assert main(["demo", "--synthetic", "--epochs", "2", "--run", str(run), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    (held,) = results["rounds"][0]["held_out"]
    assert {clip.group for clip in trained_on[0].clips} == set(signs.groups) - {held}
    assert results["test_clips"] == signs.groups.count(held)
    assert [(row["network"], row["classifier"]) for row in results["rows"]] == [
        ("pre-trained", "kNN"),
        ("untrained", "kNN"),
        ("pre-trained", "linear probe"),
        ("untrained", "linear probe"),
        ("chance", ""),
    ]
    assert results == json.loads((run / "results.json").read_text())
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == "synthetic"


def test_rounds_pool_their_test_clips(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["demo", "--synthetic", "--epochs", "1", "--rounds", "4", "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "36 test clips of 4 classes in 4 held-out signers (signer0, signer1, signer2, signer3)" in out
    assert "neither pre-training nor the classifiers" in out and f"Run folder with numbers and pictures: {run}" in out
    assert sorted(entry.name for entry in run.iterdir() if entry.is_dir()) == [f"round-{i}" for i in (1, 2, 3, 4)]


def test_interrupted_demo_goes_on_to_the_same_result(tmp_path, capsys, monkeypatch):
    tiny = SYSTEMS["tiny"]
    step, calls = tiny.training_step, []

    def interrupted(self, batch, generator=None):
        calls.append(batch)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, generator)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ["demo", "--synthetic", "--epochs", "2", "--rounds", "2", "--run"]
    assert main([*flags, str(whole)]) == 0
    monkeypatch.setattr(tiny, "training_step", interrupted)
    assert main([*flags, str(parts)]) == 130
    assert f"go on with:\n  slrfast demo --resume {parts}\n" in capsys.readouterr().out
    assert main(["demo", "--resume", str(parts)]) == 0
    first, second = (json.loads((run / "results.json").read_text()) for run in (whole, parts))
    assert first["rows"] == second["rows"]
    for number in (1, 2):
        one, two = (load_file(run / f"round-{number}" / "checkpoint.safetensors") for run in (whole, parts))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_slow_machine_gets_fewer_epochs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "EVALUATION_SECONDS", 0.0)
    monkeypatch.setattr(demo, "_seconds_per_step", lambda *_: 6.0)
    monkeypatch.setattr(
        SYSTEMS["tiny"].Config, "small", classmethod(lambda cls: replace(cls(), epochs=40, milestones=(30,)))
    )
    run = tmp_path / "run"
    # 0.85 x 60 s over 27 / 8 steps per epoch of 6 s each is 2.5 epochs
    assert main(["demo", "--synthetic", "--minutes", "1", "--run", str(run)]) == 0
    system = yaml.safe_load((run / "config.yaml").read_text())["system"]
    assert system["epochs"] == 2 and system["milestones"] == [2]
    assert "a step takes 6.00 s here, so 1 minutes allow 2 of 40 epochs" in capsys.readouterr().out


def test_when_the_time_runs_out_it_stops_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_seconds_per_step", lambda *_: 1e-9)
    monkeypatch.setattr(demo, "EVALUATION_SECONDS", 0.0)
    argv = ["demo", "--synthetic", "--minutes", "0.02", "--system.epochs", "100000", "--run", str(tmp_path / "run")]
    assert main(argv) == 0
    assert "The time ran out: pre-training stopped after" in capsys.readouterr().out


def test_seconds_per_step_leaves_the_global_generator_alone(tmp_path, signs):
    options = demo._options(["--synthetic"])
    before = torch.get_rng_state()
    assert demo._seconds_per_step(options, signs) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_an_existing_folder_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(demo, "open_dataset", lambda _: 1 / 0)
    assert main(["demo", "--synthetic", "--run", str(tmp_path)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_another_system_and_going_on_with_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "masa", SYSTEMS["tiny"])
    run = tmp_path / "run"
    assert main(["demo", "--synthetic", "--system", "masa", "--epochs", "1", "--run", str(run)]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["name"] == "masa"
    assert main(["demo", "--resume", str(run)]) == 0
    assert main(["demo", "--resume", str(run), "--system", "stc"]) == 2
    assert main(["demo", "--system", "mae"]) == 2
    sentence = f"slrfast: --system must be one of {', '.join(SYSTEMS)}, got 'mae'\n"
    assert capsys.readouterr().err.endswith(sentence)


def test_what_is_counted_in_epochs_moves_along():
    config = SYSTEMS["masa"].Config.small(epochs=100, warmup=5.0, semantic_ramp=10.0)
    short = demo.shortened(config, 20)
    assert (short.epochs, short.warmup, short.semantic_ramp) == (20, 1.0, 2.0)
