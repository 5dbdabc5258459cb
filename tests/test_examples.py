"""The three examples are short, and one run: the losses of ``slrfast pretrain``, step by step."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from slrfast.data import SyntheticSigns
from slrfast.systems import STC, STCConfig
from slrfast.train.config import TrainConfig
from slrfast.train.loop import pretrain

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = {"plain_pytorch": "torch", "lightning_stc": "lightning", "accelerate_stc": "accelerate"}
EPOCHS = 2
CONFIG = STCConfig.small(
    epochs=EPOCHS, frames=8, batch_size=16, bank_size=64, neighbors=8,
    gcn_dropout=0.1, transformer_dropout=0.1,  # drawn from the global generator
)  # fmt: skip


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Losses of the command line's own loop, on the examples' clips."""
    run = tmp_path_factory.mktemp("expected")
    torch.manual_seed(3)
    pretrain(STC(CONFIG), SyntheticSigns(8, 12), TrainConfig(seed=3), run, progress=False)
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "package"), EXAMPLES.items())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_losses_are_those_of_pretrain(name, package, expected, tmp_path, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # whatever a trainer leaves behind
    monkeypatch.setattr(STCConfig, "small", lambda **_: CONFIG)
    losses = load(name).train(epochs=EPOCHS, seed=3)
    assert len(losses) == len(expected) == EPOCHS * 6 and losses[0] > 0
    assert losses == pytest.approx(expected, rel=1e-4)


def test_every_example_is_short_and_tested():
    files = sorted(FOLDER.glob("*.py"))
    assert {path.stem for path in files} == set(EXAMPLES)
    assert all(path.read_text().count("\n") < 60 for path in files)
