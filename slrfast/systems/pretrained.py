"""Saving and loading a system: ``config.json`` and ``model.safetensors`` in one folder."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from typing_extensions import Self

from slrfast import checks
from slrfast.data import PoseBatch
from slrfast.errors import CheckpointError
from slrfast.files import replacing


class Pretrained(nn.Module):
    """A module that is built from a frozen dataclass ``Config`` and can be saved and loaded.

    Attributes:
        config: its settings.
        keypoints: of the clips that it takes.
        epoch: the (fractional) epoch that training has come to, which the training loop keeps up; weights of losses
            that change during training follow it.
    """

    keypoints: ClassVar[int] = 49
    epoch: float = 0.0

    Config: ClassVar[type[Any]]
    config: Any

    def require(self, batch: PoseBatch) -> None:
        """TypeError or ValueError unless the batch has the system's device, keypoints and dtype."""
        own, op = next(self.parameters()), type(self).__name__
        same = batch.xy.device == own.device
        rule = f"be on the system's device ({own.device})"
        checks.require(same, op, "batch", rule, batch.xy.device, "use batch.to(device)")
        batch.require_layout(op, self.keypoints)
        checks.dtype(op, own.dtype, **{"batch.xy": batch.xy, "batch.confidence": batch.confidence})

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """All modules in evaluation mode, and afterwards each as it was."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write ``config.json`` and ``model.safetensors`` (parameters, buffers, banks and cursors) into ``folder``.

        Raises:
            CheckpointError: the folder cannot be written; files that were there before are unchanged.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be created ({error.strerror})") from error
        with replacing(folder / "model.safetensors") as path:
            _save_tensors(self, path)
        with replacing(folder / "config.json") as path:
            config = {"system": type(self).__name__, **dataclasses.asdict(self.config)}
            path.write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Self:
        """Build the system that :meth:`save_pretrained` wrote.

        Args:
            folder: the one written, or that of a run, which keeps it as ``model``.
        Raises:
            CheckpointError: a file is missing, damaged, or of another system or version.
        """
        folder = Path(folder)
        if not (folder / "config.json").exists() and (folder / "model" / "config.json").is_file():
            folder = folder / "model"
        try:
            fields = json.loads((folder / "config.json").read_text())
            tensors = load_file(folder / "model.safetensors")
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: cannot be read as a saved {cls.__name__} ({error})") from error
        if not isinstance(fields, dict) or fields.pop("system", None) != cls.__name__:
            raise CheckpointError(f"{folder / 'config.json'}: does not describe a {cls.__name__}")
        try:
            model = cls(cls.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}))
            model.load_state_dict(tensors)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: does not fit this version of {cls.__name__} ({error})") from error
        return model


def _save_tensors(module: nn.Module, path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    except SafetensorError as error:
        raise OSError(None, str(error)) from error
