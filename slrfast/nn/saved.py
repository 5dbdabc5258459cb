"""Saving and loading a module with a config: ``config.json`` and ``model.safetensors`` in one folder."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from typing_extensions import Self

from slrfast.errors import CheckpointError, one_line
from slrfast.files import replacing


class Saved(nn.Module):
    """A module that is built from a frozen dataclass ``Config`` and can be saved and loaded.

    Attributes:
        config: its settings.
    """

    KIND: ClassVar[str] = "system"
    Config: ClassVar[type[Any]]
    config: Any

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
            config = {self.KIND: type(self).__name__, **dataclasses.asdict(self.config)}
            path.write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Self:
        """Build what :meth:`save_pretrained` wrote.

        Args:
            folder: the one written, or that of a run, which keeps it as ``model``.
        Raises:
            CheckpointError: a file is missing, damaged, or of something else or another version.
        """
        folder = Path(folder)
        if not (folder / "config.json").exists() and (folder / "model" / "config.json").is_file():
            folder = folder / "model"
        try:
            fields = json.loads((folder / "config.json").read_text())
            tensors = load_file(folder / "model.safetensors")
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise CheckpointError(one_line(f"{folder}: cannot be read as a saved {cls.__name__} ({error})")) from error
        if not isinstance(fields, dict) or fields.pop(cls.KIND, None) != cls.__name__:
            raise CheckpointError(f"{folder / 'config.json'}: does not describe a {cls.__name__}")
        try:
            model = cls(cls.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}))
            model.load_state_dict(tensors)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                one_line(f"{folder}: does not fit this version of {cls.__name__} ({error})")
            ) from error
        return model


def _save_tensors(module: nn.Module, path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    except SafetensorError as error:
        raise OSError(None, str(error)) from error
