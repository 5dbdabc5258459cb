"""The run folder: where everything of a run lies, and the log of its steps."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

import slrfast
from slrfast.files import locked, replacing
from slrfast.systems import SYSTEMS
from slrfast.train.config import RunError, TrainConfig, as_yaml, read_yaml

_KINDS: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (("system", "train"), dict, "a mapping of options"),
    (("preprocess",), (dict, type(None)), "a mapping of options"),
    (("data", "split"), (str, type(None)), "a text"),
)
"""What evaluation reads from a run's config, which is a file that people edit."""


class RunFolder:
    """Names of the files of one run. Making the object touches nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.model = self.path / "model"
        self.results = self.path / "results.json"
        self.evaluation = self.path / "evaluation.json"
        self.evaluation_picture = self.path / "evaluation.png"
        self.evaluation_skipped = self.path / "evaluation-skipped.txt"
        self.sentences = self.path / "sentences.jsonl"
        self.skipped = self.path / "skipped.txt"
        self.loss_picture = self.path / "loss.png"
        self.views_picture = self.path / "views.png"
        self.rgb_picture = self.path / "rgb.png"
        self.embedding_picture = self.path / "embedding.png"
        self.scores = self.path / "scores.npz"
        self.classes = self.path / "classes.csv"
        self.confusions = self.path / "confusions.csv"
        self.confusion_picture = self.path / "confusion.png"

    def check(self, *, overwrite: bool = False) -> None:
        """RunError when the path is a file, or a folder that is not empty and not to be overwritten."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file, not a folder; choose another --run")
        if not overwrite and self.path.is_dir() and any(self.path.iterdir()):
            raise RunError(f"{self.path} exists and is not empty; choose another --run, or use --resume or --overwrite")

    def create(self, *, overwrite: bool = False) -> RunFolder:
        """Make the folder, or with ``overwrite`` remove a run's own files, and no others, from an existing one.

        Raises:
            RunError: as :meth:`check`, the folder cannot be made, or a run is being trained in it.
        """
        self.check(overwrite=overwrite)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: the run folder cannot be made ({error.strerror})") from error
        with self.locked():
            for entry in vars(self).values():
                if entry != self.path and entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry != self.path:
                    entry.unlink(missing_ok=True)
        return self

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock ends with the process, however it ends.

        Raises:
            RunError: another process has it, or there is no such folder.
        """
        busy = RunError(f"{self.path}: another process is training in this folder; wait or stop it")
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path, busy))
            except OSError as error:
                raise RunError(f"{self.path}: the run folder cannot be opened ({error.strerror})") from error
            yield

    def existing(self) -> RunFolder:
        """The folder itself, or RunError when no run lies there."""
        if not self.config.is_file():
            raise RunError(f"{self.path} is not a run folder: it has no config.yaml")
        return self

    def write_config(self, values: Mapping[str, Any], again: str) -> None:
        """Write the resolved config, headed by the versions and the command that uses it again."""
        head = f"# slrfast {slrfast.__version__}, torch {torch.__version__}; the same run again: {again}\n"
        with replacing(self.config) as path:
            path.write_text(head + as_yaml(values), encoding="utf-8")

    def read_config(self) -> dict[str, Any]:
        """The resolved config; RunError when it is not one."""
        values = read_yaml(self.existing().config)
        if "task" in values:
            hint = "give the run of slrfast pretrain that it began with"
            raise RunError(f"{self.path}: is a run of slrfast finetune; {hint}")
        missing = [key for key in ("name", "system", "train") if key not in values]
        if missing:
            raise RunError(f"{self.config}: has no {missing[0]!r}, so it is not the config of a run")
        if values["name"] not in list(SYSTEMS):
            raise RunError(f"{self.config}: {values['name']!r} is no system; there are {', '.join(SYSTEMS)}")
        for keys, kind, what in _KINDS:
            for key in keys:
                if not isinstance(values.get(key), kind):
                    raise RunError(f"{self.config}: {key!r} must be {what}, got {type(values.get(key)).__name__}")
        try:
            TrainConfig(**values["train"])
        except (TypeError, ValueError) as error:
            raise RunError(f"{self.config}: {error}") from error
        return values

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines of metrics.jsonl."""
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the tail of a killed run
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
        return records


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class RunLog:
    """Appends to metrics.jsonl and TensorBoard; lines after ``step`` are dropped first, as their steps run again."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = [record for record in folder.read_metrics() if record["step"] <= step]
        with replacing(folder.metrics) as path:
            path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._file = open(folder.metrics, "a", encoding="utf-8")
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._writer.close()


def new_file(option: str, path: str, *, overwrite: bool = False) -> Path:
    """The file that an option says to write; RunError where it cannot be, before any work is done for it."""
    file = Path(path)
    if not path or path.endswith(("/", os.sep)) or file.is_dir():
        raise RunError(f"{option} {path}: {'is a folder' if path else 'names no file'}")
    if not file.parent.is_dir():
        raise RunError(f"{option} {path}: its folder does not exist")
    if file.exists() and not overwrite:
        raise RunError(f"{path} exists; choose another {option}, or use --overwrite")
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{file.name}.", dir=file.parent):
            return file
    except OSError as error:
        raise RunError(f"{option} {path}: cannot be written ({error.strerror})") from error
