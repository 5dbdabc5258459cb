"""A tiny system with everything that a resumed run could lose: momentum, a bank, a cursor, dropout, drawn views."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from slrfast.data import SyntheticSigns
from slrfast.systems import SYSTEMS
from slrfast.train import config


@dataclass(frozen=True)
class TinyConfig:
    dim: int = 8
    bank_size: int = 24
    learning_rate: float = 0.05
    batch_size: int = 8
    epochs: int = 3
    milestones: tuple[int, ...] = (2,)
    nan_at: int = -1

    @classmethod
    def paper(cls):
        return cls(dim=16)

    @classmethod
    def legacy(cls):
        return cls()

    @classmethod
    def small(cls):
        return cls()


class View(NamedTuple):
    xy: torch.Tensor
    confidence: torch.Tensor


class Tiny(nn.Module):
    Config = TinyConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.query = nn.Sequential(
            nn.Linear(98, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, config.dim)
        )
        self.key = nn.Linear(98, config.dim)
        self.key.requires_grad_(False)
        self.register_buffer("bank", F.normalize(torch.randn(config.bank_size, config.dim), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.calls = 0

    def _mean(self, batch):
        return torch.stack([part.mean(0).flatten() for part in batch.xy.split(batch.lengths.tolist())])

    def training_step(self, batch, generator=None):
        x = self._mean(batch)
        noise = 0.05 * torch.randn(x.shape, generator=generator, device=x.device)
        query = F.normalize(self.query(x + noise), dim=1)
        key = F.normalize(self.key(x), dim=1).detach()
        logits = torch.cat(((query * key).sum(1, keepdim=True), query @ self.bank.clone().T), 1) / 0.2
        contrast = F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64, device=x.device))
        self.calls += 1
        if self.calls == self.config.nan_at:
            contrast = contrast * float("nan")
        size = query.square().mean()
        rows = (self.cursor + torch.arange(len(x), device=x.device)) % len(self.bank)
        self.bank[rows] = key.to(self.bank.dtype)
        self.cursor.add_(len(x)).remainder_(len(self.bank))
        return {"loss": contrast + size, "contrast": contrast, "size": size}

    @torch.no_grad()
    def update_after_step(self):
        self.key.weight.lerp_(
            self.query[-1].weight.new_ones(self.key.weight.shape) * self.query[-1].weight.mean(), 0.01
        )

    @torch.no_grad()
    def views(self, batch, generator=None):
        xy = torch.stack(
            [part[torch.linspace(0, len(part) - 1, 8).long()] for part in batch.xy.split(batch.lengths.tolist())]
        )
        return tuple(
            View(xy + 0.02 * torch.randn(xy.shape, generator=generator), torch.ones(xy.shape[:3])) for _ in range(2)
        )

    @torch.no_grad()
    def encode(self, batch):
        was_training = self.training
        self.eval()
        features = self.query(self._mean(batch))
        self.train(was_training)
        return features

    def optimizer(self):
        return torch.optim.SGD(self.query.parameters(), self.config.learning_rate, momentum=0.9)

    def learning_rate(self, epoch):
        return self.config.learning_rate * (0.1 if epoch >= self.config.milestones[0] else 1.0)

    def save_pretrained(self, folder):
        Path(folder).mkdir(exist_ok=True)
        save_file(self.state_dict(), Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps(asdict(self.config)))

    @classmethod
    def from_pretrained(cls, folder):
        values = json.loads((Path(folder) / "config.json").read_text())
        values["milestones"] = tuple(values["milestones"])
        system = cls(TinyConfig(**values))
        system.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        return system


@pytest.fixture(scope="session")
def signs():
    return SyntheticSigns(num_classes=4, clips_per_class=9, num_signers=4)


@pytest.fixture(autouse=True)
def tiny_is_a_system(monkeypatch, signs):
    """In-process commands know the tiny system, and their synthetic data is small."""
    monkeypatch.setitem(SYSTEMS, "tiny", Tiny)
    monkeypatch.setattr(config, "SyntheticSigns", lambda **_: signs)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny tensors gain nothing from a second thread, and lose much when the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny():
    """A function that builds the tiny system: ``tiny(epochs=2)``."""

    def build(**changes):
        return config.build_system("tiny", TinyConfig(**changes), seed=0)

    return build
