import math
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from slrfast.data import ClipDataset
from slrfast.systems import STCConfig
from slrfast.train.config import RunError, TrainConfig, build_system
from slrfast.train.loop import BatchOrder, TrainingDiverged, pretrain
from slrfast.train.runs import RunFolder

TIMING = ("seconds", "clips_per_second")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run").create()


def metrics(folder):
    return [{key: value for key, value in record.items() if key not in TIMING} for record in folder.read_metrics()]


def interrupt_in_call(system, call, number=signal.SIGINT):
    """The signal arrives in the middle of a step."""
    step = system.training_step

    def training_step(batch, generator=None):
        if system.calls + 1 == call:
            signal.raise_signal(number)
        return step(batch, generator)

    system.training_step = training_step
    return system


class TestOrder:
    def test_every_epoch_is_a_permutation_without_remainder(self):
        batches = list(BatchOrder(clips=10, batch_size=3, seed=0, first=0, last=6))
        assert [len(batch) for batch in batches] == [3] * 6
        epochs = [sum(batches[:3], []), sum(batches[3:], [])]
        assert all(len(set(epoch)) == 9 for epoch in epochs) and epochs[0] != epochs[1]

    def test_any_later_start_sees_the_same_batches(self):
        whole = list(BatchOrder(10, 3, 7, 0, 12))
        for first in range(12):
            assert list(BatchOrder(10, 3, 7, first, 12)) == whole[first:]
        assert list(BatchOrder(10, 3, 8, 0, 12)) != whole


class TestRun:
    def test_a_term_that_is_always_zero_is_pointed_out_once(self, tiny, signs, folder, capsys):
        system = tiny()
        step = system.training_step

        def with_idle_terms(batch, generator=None):
            losses = step(batch, generator)
            return {**losses, "still": 0 * losses["loss"], "late": losses["loss"] * (system.calls > 9)}

        system.training_step = with_idle_terms
        pretrain(system, signs, TrainConfig(), folder, progress=False)
        assert capsys.readouterr().err == "still: 0 in each of 10 steps, so nothing is learned from it\n"

    def test_what_is_no_term_of_the_loss_may_be_zero(self, tiny, signs, folder, capsys):
        system = tiny()
        step = system.training_step
        system.training_step = lambda *a, **k: {**step(*a, **k), "top1": torch.tensor(0.0)}
        system.measures = ("top1",)
        pretrain(system, signs, TrainConfig(), folder, progress=False)
        assert capsys.readouterr().err == ""

    def test_a_run_leaves_a_log_a_checkpoint_and_a_model(self, tiny, signs, folder):
        result = pretrain(tiny(), signs, TrainConfig(), folder, progress=False)
        assert (result.step, result.steps, result.stopped_by) == (12, 12, None)
        records = folder.read_metrics()
        assert [record["step"] for record in records] == list(range(1, 13))
        assert records[5]["epoch"] == 5 / 4
        assert records[-1]["loss"] == pytest.approx(records[-1]["contrast"] + records[-1]["size"], rel=1e-6)
        assert folder.checkpoint.is_file() and (folder.model / "model.safetensors").is_file()
        assert list(folder.tensorboard.iterdir())

    def test_learning_rate_follows_the_fractional_epoch(self, tiny, signs, folder):
        pretrain(tiny(), signs, TrainConfig(), folder, progress=False)
        rates = [record["learning_rate"] for record in folder.read_metrics()]
        assert rates == pytest.approx([0.05] * 8 + [0.005] * 4)

    def test_same_seed_same_run_and_global_generator_untouched(self, tiny, signs, tmp_path):
        logs = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            torch.manual_seed(len(logs))
            before = torch.get_rng_state()
            folder = RunFolder(tmp_path / name).create()
            pretrain(tiny(epochs=1), signs, TrainConfig(seed=seed), folder, progress=False)
            assert torch.equal(torch.get_rng_state(), before)
            logs.append(metrics(folder))
        assert logs[0] == logs[1] != logs[2]

    def test_worker_processes_do_not_change_the_run(self, tiny, signs, tmp_path):
        logs = []
        for workers in (0, 1):
            folder = RunFolder(tmp_path / str(workers)).create()
            pretrain(tiny(epochs=1), signs, TrainConfig(workers=workers), folder, progress=False)
            logs.append(metrics(folder))
        assert logs[0] == logs[1]

    def test_clip_norm_bounds_the_update(self, tiny, signs, folder):
        system = tiny(epochs=1, batch_size=36)
        before = {name: value.detach().clone() for name, value in system.query.named_parameters()}
        pretrain(system, signs, TrainConfig(clip_norm=0.01), folder, progress=False)
        moved = math.sqrt(
            sum(float((v - before[n]).square().sum()) for n, v in system.query.state_dict().items() if n in before)
        )
        assert folder.read_metrics()[0]["gradient_norm"] > 0.01
        assert moved == pytest.approx(0.05 * 0.01, rel=1e-2)

    def test_log_every_and_knn_every(self, tiny, signs, folder):
        pretrain(tiny(), signs, TrainConfig(log_every=5, knn_every=2), folder, progress=False)
        records = folder.read_metrics()
        assert [record["step"] for record in records] == [5, 8, 10, 12]
        assert [record["step"] for record in records if "knn_top1" in record] == [8]
        assert 0 <= records[1]["knn_top1"] <= 1

    def test_knn_does_not_change_the_run(self, tiny, signs, tmp_path):
        logs = []
        for knn_every in (0, 1):
            folder = RunFolder(tmp_path / str(knn_every)).create()
            pretrain(tiny(), signs, TrainConfig(knn_every=knn_every), folder, progress=False)
            logs.append([record["loss"] for record in folder.read_metrics()])
        assert logs[0] == logs[1]

    def test_time_limit_stops_and_saves(self, tiny, signs, folder):
        result = pretrain(tiny(epochs=50), signs, TrainConfig(), folder, time_limit=0.0, progress=False)
        assert (result.step, result.steps, result.stopped_by) == (1, 200, "time")
        assert folder.checkpoint.is_file()

    def test_fewer_clips_than_a_batch(self, tiny, signs, folder):
        with pytest.raises(RunError, match="36 usable clips, fewer than one batch of 64; lower batch_size"):
            pretrain(tiny(batch_size=64), signs, TrainConfig(), folder, progress=False)

    def test_knn_of_unlabelled_clips_is_refused_before_training(self, tiny, signs, folder):
        unlabelled = ClipDataset([replace(clip, label=-1) for clip in signs.clips], signs.class_names)
        with pytest.raises(RunError, match="labelled clips of at least two classes, this dataset has 0"):
            pretrain(tiny(), unlabelled, TrainConfig(knn_every=1), folder, progress=False)
        assert not folder.checkpoint.exists()

    def test_unknown_device(self, tiny, signs, folder):
        with pytest.raises(RunError, match="'gpu' is no device; use auto, cpu, cuda"):
            pretrain(tiny(), signs, TrainConfig(device="gpu"), folder, progress=False)


class TestResume:
    @pytest.mark.parametrize("stop_in", [1, 4, 6, 11])
    def test_bitwise_equal_to_an_uninterrupted_run(self, tiny, signs, tmp_path, stop_in):
        whole, parts = (RunFolder(tmp_path / name).create() for name in ("whole", "parts"))
        pretrain(tiny(), signs, TrainConfig(knn_every=2), whole, progress=False)

        result = pretrain(interrupt_in_call(tiny(), stop_in), signs, TrainConfig(knn_every=2), parts, progress=False)
        assert (result.step, result.stopped_by) == (stop_in, "SIGINT")
        torch.manual_seed(99)
        result = pretrain(tiny(), signs, TrainConfig(knn_every=2), parts, resume=True, progress=False)
        assert (result.step, result.stopped_by) == (12, None)

        first, second = load_file(whole.checkpoint), load_file(parts.checkpoint)
        assert {name.split("/")[0] for name in first} == {"model", "optimizer", "rng"}
        assert {"model/bank", "model/cursor", "optimizer/query.0.weight/momentum_buffer", "rng/views"} <= set(first)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert metrics(whole) == metrics(parts)

    def test_bitwise_with_stc(self, signs, tmp_path):
        config = STCConfig.small(
            frames=8, gcn_channels=(4, 4, 8, 8, 8), dim=8, embedding=8, heads=2, layers=1, hand_ffn=8, trunk_ffn=8,
            bank_size=20, neighbors=5, batch_size=8, epochs=2, milestones=(1,),
        )  # fmt: skip
        whole, parts = (RunFolder(tmp_path / name).create() for name in ("whole", "parts"))
        pretrain(build_system("stc", config, 0), signs, TrainConfig(), whole, progress=False)
        pretrain(build_system("stc", config, 0), signs, TrainConfig(), parts, time_limit=0.0, progress=False)
        result = pretrain(build_system("stc", config, 0), signs, TrainConfig(), parts, resume=True, progress=False)
        assert result.step == 8
        first, second = load_file(whole.checkpoint), load_file(parts.checkpoint)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        assert metrics(whole) == metrics(parts)

    def test_after_a_kill_the_steps_since_the_checkpoint_run_again(self, tiny, signs, tmp_path):
        whole, killed = (RunFolder(tmp_path / name).create() for name in ("whole", "killed"))
        pretrain(tiny(), signs, TrainConfig(), whole, progress=False)
        system = tiny()

        def die(batch, generator=None):
            raise MemoryError

        step = system.training_step
        system.training_step = lambda batch, generator=None: (die if system.calls == 6 else step)(batch, generator)
        with pytest.raises(MemoryError):
            pretrain(system, signs, TrainConfig(), killed, progress=False)
        assert metrics(killed)[-1]["step"] == 6
        with open(killed.metrics, "a") as file:
            file.write('{"step": 7, "lo')
        pretrain(tiny(), signs, TrainConfig(), killed, resume=True, progress=False)
        assert metrics(killed) == metrics(whole)

    def test_a_finished_run_stays_as_it_is(self, tiny, signs, folder):
        pretrain(tiny(), signs, TrainConfig(), folder, progress=False)
        before = metrics(folder)
        result = pretrain(tiny(), signs, TrainConfig(), folder, resume=True, progress=False)
        assert (result.step, result.stopped_by) == (12, None)
        assert metrics(folder) == before

    def test_sigterm_too_and_handlers_are_put_back(self, tiny, signs, folder):
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        result = pretrain(interrupt_in_call(tiny(), 2, signal.SIGTERM), signs, TrainConfig(), folder, progress=False)
        assert result.stopped_by == "SIGTERM"
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

    def test_a_second_interrupt_acts_at_once(self, tiny, signs, folder):
        system = interrupt_in_call(tiny(), 3)
        once = system.training_step

        def twice(batch, generator=None):
            third = system.calls == 2
            terms = once(batch, generator)
            if third:
                signal.raise_signal(signal.SIGINT)
            return terms

        system.training_step = twice
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background lacks
        try:
            with pytest.raises(KeyboardInterrupt):
                pretrain(system, signs, TrainConfig(), folder, progress=False)
        finally:
            signal.signal(signal.SIGINT, before)


class TestDivergence:
    def test_names_step_and_term_and_keeps_the_last_good_state(self, tiny, signs, folder):
        with pytest.raises(
            TrainingDiverged, match=r"step 6 \(epoch 1\.25\): contrast is nan; the last good state is kept in"
        ):
            pretrain(tiny(nan_at=6), signs, TrainConfig(), folder, progress=False)
        kept = load_file(folder.checkpoint)
        assert all(bool(torch.isfinite(value).all()) for value in kept.values())
        result = pretrain(tiny(), signs, TrainConfig(), folder, resume=True, progress=False)
        assert result.step == 12
        assert [record["step"] for record in folder.read_metrics()] == list(range(1, 13))

    def test_broken_weights_are_never_saved(self, tiny, signs, folder):
        system = tiny()
        update = system.update_after_step

        def poison():
            update()
            if system.calls == 4:
                with torch.no_grad():
                    system.query[0].bias[0] = float("inf")

        system.update_after_step = poison
        with pytest.raises(TrainingDiverged, match=r"after step 4: weight 'query\.0\.bias' is not finite"):
            pretrain(system, signs, TrainConfig(), folder, progress=False)
        kept = load_file(folder.checkpoint)
        assert bool(torch.isfinite(kept["model/query.0.bias"]).all())


def test_bfloat16_runs_the_forward_pass_under_autocast(tiny, signs, folder):
    system, seen = tiny(), []
    step = system.training_step

    def training_step(batch, generator=None):
        seen.append(torch.is_autocast_enabled("cpu"))
        return step(batch, generator)

    system.training_step = training_step
    pretrain(system, signs, TrainConfig(precision="bf16"), folder, progress=False)
    assert set(seen) == {True} and not torch.is_autocast_enabled("cpu")
    with pytest.raises(ValueError, match="train: precision must be one of"):
        TrainConfig(precision="half")
