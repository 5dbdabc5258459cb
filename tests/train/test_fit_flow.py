import json
import math

import numpy as np
import pytest
import torch

from slrfast.errors import CheckpointError
from slrfast.nn.flow import Flow, FlowConfig
from slrfast.train import fit_flow as module
from slrfast.train.config import RunError
from slrfast.train.fit_flow import fit_flow, fit_flow_command, held_out_bits
from slrfast.train.loop import TrainingDiverged

SMALL = ["--size", "16", "--frames", "8", "--levels", "1", "--steps", "2", "--hidden", "4", "--device", "cpu"]


def gradients(count, size=16, seed=0):
    """uint8 [count, 3, size, size]: smooth frames, which a flow can learn to expect."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 2, 2, generator=generator)
    return (torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") * 255).byte()


@pytest.fixture
def videos(tmp_path):
    """A folder of three videos, in which a bright block moves, and a file that is none."""
    av = pytest.importorskip("av")
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, name in enumerate(("a.mp4", "b.mp4", "deep/c.mp4")):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width = stream.height = 32
            stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
            still = np.full((32, 32, 3), random.integers(30, 120, 3), np.uint8)
            for t in range(10):
                picture = still.copy()
                picture[8 + number : 16, 2 * t : 2 * t + 8] = 230
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode(None))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


# ---- training -------------------------------------------------------------------------------------------------------


def test_training_lowers_the_bits():
    torch.manual_seed(0)
    flow, frames, others = Flow(FlowConfig(1, 2, 6)), gradients(64), gradients(16, seed=1)
    saved = []
    fit = fit_flow(flow, frames, others, iterations=80, batch_size=8, save=lambda: saved.append(1))
    assert fit.iterations == 80 and fit.stopped is None and saved == [1]
    assert fit.after < fit.before - 0.5 and fit.after == pytest.approx(held_out_bits(flow, others), abs=1e-6)


def test_is_deterministic_and_the_seed_counts():
    def run(seed):
        torch.manual_seed(0)
        flow = Flow(FlowConfig(1, 1, 4))
        return fit_flow(flow, gradients(16), gradients(4), iterations=5, batch_size=4, seed=seed), flow.fingerprint()

    (first, one), (second, two), (_, three) = run(0), run(0), run(1)
    assert one == two != three and (first.before, first.after) == (second.before, second.after)


def test_the_time_limit_ends_it():
    fit = fit_flow(Flow(FlowConfig(1, 1, 4)), gradients(16), gradients(4), iterations=10**6, time_limit=0.3)
    assert fit.stopped == "time" and 0 < fit.iterations < 10**5 and 0.3 <= fit.seconds < 20


def test_an_interrupt_saves(monkeypatch):
    flow, saved, calls = Flow(FlowConfig(1, 1, 4)), [], []
    bits = Flow.bits_per_dim

    def interrupted(self, frames, generator=None):
        calls.append(generator)
        if sum(call is not None for call in calls) == 4 and generator is not None:
            raise KeyboardInterrupt
        return bits(self, frames, generator)

    monkeypatch.setattr(Flow, "bits_per_dim", interrupted)
    fit = fit_flow(flow, gradients(16), gradients(4), iterations=50, save=lambda: saved.append(1))
    assert fit.stopped == "SIGINT" and saved == [1] and math.isfinite(fit.after)


def test_divergence_is_said_and_nothing_is_saved_over():
    flow, saved = Flow(FlowConfig(1, 1, 4)), []
    with torch.no_grad():
        flow.steps[0][1].weight.fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="the loss is nan after 1 iterations; take a smaller --learning_rate"):
        fit_flow(flow, gradients(8), gradients(4), iterations=5, save=lambda: saved.append(1))
    assert not saved


# ---- the command ----------------------------------------------------------------------------------------------------


def test_fits_a_folder_of_videos(videos, tmp_path, capsys):
    out = tmp_path / "flow"
    arguments = [str(videos), "--out", str(out), *SMALL, "--iterations", "60", "--batch_size", "8"]
    assert fit_flow_command(arguments) == 0
    said = capsys.readouterr().out
    results = json.loads((out / "fit.json").read_text())
    flow = Flow.from_pretrained(out)
    assert flow.config == FlowConfig(1, 2, 4) and flow.fingerprint() == results["fingerprint"]
    assert results["bits_after"] < results["bits_before"] and results["iterations"] == 60
    assert (results["clips"], results["frames"], results["held_out_frames"]) == (3, 16, 8)
    ((path, reason),) = results["skipped"]
    assert path.endswith("broken.mp4") and reason and f"skipped: {path}" in said
    assert f"{results['bits_before']:.3f} before, {results['bits_after']:.3f} after 60 iterations" in said
    assert (out / "masked.png").read_bytes()[:4] == b"\x89PNG" and 0 < results["moving_share"] <= 1


def test_goes_on_with_a_flow_and_prints_json(videos, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    common = [str(videos / "a.mp4"), "--size", "16", "--iterations", "3", "--device", "cpu"]
    assert fit_flow_command([*common, "--out", str(first), "--levels", "1", "--steps", "1", "--hidden", "4"]) == 0
    capsys.readouterr()
    assert fit_flow_command([*common, "--out", str(second), "--start", str(first), "--json"]) == 0
    output = capsys.readouterr()
    results = json.loads(output.out)
    ended = json.loads((first / "fit.json").read_text())
    assert results["bits_before"] == ended["bits_after"] and "bits/dim" in output.err
    assert results["fingerprint"] != ended["fingerprint"]
    assert Flow.from_pretrained(second).config == FlowConfig(1, 1, 4)


def test_synthetic_signs(tmp_path):
    arguments = ["--synthetic", "--out", str(tmp_path / "flow"), *SMALL, "--iterations", "2", "--videos", "8"]
    assert fit_flow_command(arguments) == 0
    assert json.loads((tmp_path / "flow" / "fit.json").read_text())["clips"] == 8


def test_an_interrupt_ends_with_a_saved_flow(videos, tmp_path, monkeypatch, capsys):
    fit = module.fit_flow

    def interrupted(flow, frames, held_out, **options):
        return module.FlowFit(**{**fit(flow, frames, held_out, **options).__dict__, "stopped": "SIGINT"})

    monkeypatch.setattr(module, "fit_flow", interrupted)
    out = tmp_path / "flow"
    assert fit_flow_command([str(videos), "--out", str(out), *SMALL, "--iterations", "1"]) == 130
    assert Flow.from_pretrained(out).config == FlowConfig(1, 2, 4)
    assert f"--start {out} --out NEW" in capsys.readouterr().out


def test_a_flow_that_is_there_is_not_replaced_unasked(videos, tmp_path):
    out = tmp_path / "flow"
    Flow(FlowConfig(1, 1, 2)).save_pretrained(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    arguments = [str(videos / "a.mp4"), "--out", str(out), *SMALL, "--iterations", "1"]
    with pytest.raises(RunError, match="there is a flow already; take another --out, or --overwrite"):
        fit_flow_command(arguments)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert fit_flow_command([*arguments, "--overwrite"]) == 0
    assert Flow.from_pretrained(out).config == FlowConfig(1, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["VIDEOS", "--size", "18"], RunError, "--size must be a multiple of 4 for 2 levels, got 18"),
        (["VIDEOS", "--size", "4"], RunError, "--size must be in [8, 1024], got 4"),
        (["VIDEOS", "--frames", "1"], RunError, "--frames must be in [2, 512], got 1"),
        (["VIDEOS", "--iterations", "0"], RunError, "--iterations must be >= 1, got 0"),
        (["VIDEOS", "--minutes", "-1"], RunError, "--minutes must be finite and > 0, got -1"),
        (["VIDEOS", "--learning_rate", "0"], RunError, "--learning_rate must be finite and > 0, got 0.0"),
        (["VIDEOS", "--levels", "9"], RunError, "--levels must be in [1, 4], got 9"),
        (["VIDEOS", "--levels", "many"], RunError, "levels"),
        (["VIDEOS", "--start", "nowhere"], CheckpointError, "nowhere: cannot be read as a saved Flow"),
        (["VIDEOS", "--start", "nowhere", "--hidden", "3"], RunError, "--hidden is that of the flow in nowhere"),
        (["VIDEOS", "--synthetic"], RunError, "give VIDEO, files or folders, or --synthetic, not both"),
        ([], RunError, "give VIDEO, files or folders, or --synthetic"),
        (["VIDEOS/broken.mp4"], RunError, "none of the 1 videos could be used; the first, "),
        (["nowhere.mp4"], RunError, "nowhere.mp4: there is no such file or folder"),
        (["EMPTY"], RunError, "there are no videos in this folder"),
    ],
)
def test_errors(videos, tmp_path, arguments, error, words):
    (tmp_path / "empty").mkdir()
    arguments = [a.replace("VIDEOS", str(videos)).replace("EMPTY", str(tmp_path / "empty")) for a in arguments]
    with pytest.raises(error) as raised:
        fit_flow_command([*arguments, "--out", str(tmp_path / "flow")])
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "flow" / "config.json").exists()
