"""Command-line options shared by the commands: YAML file and flags, presets, run folder."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from slrfast.train.config import RunError, TrainConfig, config_of, presets, read_yaml, system_config
from slrfast.train.runs import RunFolder

TRAIN_HELP = {
    "seed": "of the initial weights, the order of clips, views and dropout",
    "device": "auto, cpu, cuda or cuda:<number>",
    "precision": "float32, or bf16: forward passes under autocast",
    "workers": "loader processes; 0 loads in the training process",
    "clip_norm": "scale gradients down to this norm",
    "log_every": "steps between two lines of metrics.jsonl",
    "checkpoint_every": "epochs between two checkpoints",
    "knn_every": "epochs between two kNN accuracies on the labelled clips, 0 for none",
}

_PATHS = ("data", "test_data", "sentences", "encoder", "videos", "flow", "captions", "test_captions", "text_encoder")
# values of --data, --videos, --flow, --captions and --text_encoder that name no file
_NO_PATHS = ("synthetic", "fingerspelling", "rendered", "identity", "glosses", "tiny")


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose errors are one sentence, raised as RunError."""

    def __init__(self, command: str, description: str, examples: Sequence[str]) -> None:
        epilog = "examples:\n" + "\n".join(f"  slrfast {example}" for example in examples)
        super().__init__(
            prog=f"slrfast {command}",
            usage=f"slrfast {command} [options]",
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            exit_on_error=False,
        )

    def read(self, argv: Sequence[str]) -> Any:
        try:
            return self.parse_args(_sizes(argv))
        except argparse.ArgumentError as error:
            raise RunError(f"{' '.join(str(error).split())} (see {self.prog} --help)") from error

    def add_json(self) -> None:
        self.add_argument(
            "--json", action="store_true", help="print one JSON object on stdout; all else goes to stderr"
        )


@dataclass(frozen=True)
class TrainingOptions:
    """A training command line, resolved.

    Attributes:
        command: its words, such as "pretrain stc".
        values: everything that config.yaml keeps.
        config: of the system or the task.
        train: the training options.
        run: the run folder.
        resume, overwrite, json: as given.
    """

    command: str
    values: dict[str, Any]
    config: Any
    train: TrainConfig
    run: RunFolder
    resume: bool
    overwrite: bool
    json: bool

    @property
    def again(self) -> str:
        """The command that goes on with this run."""
        return f"slrfast {self.command} --resume {shlex.quote(str(self.run.path))}"

    def check_run(self) -> None:
        """Refuse a folder that cannot be used before any work is done."""
        if not self.resume:
            self.run.check(overwrite=self.overwrite)

    def open_run(self) -> None:
        """Make the run folder, unless one is resumed, and write the config into it."""
        if not self.resume:
            self.run.create(overwrite=self.overwrite)
        self.run.write_config(self.values, f"slrfast {self.command} --config {self.run.config.name} --run NEW")


def training_options(
    parser: Parser,
    argv: Sequence[str],
    own: Sequence[str],
    *,
    command: str,
    name: str,
    preset: str,
    run_prefix: str,
    section: str = "system",
    known: Mapping[str, Any] | None = None,
) -> TrainingOptions:
    """Add the options of a training command to a parser that has the command's ``own``, and parse.

    Values come, later ones winning, from the preset, the YAML file (--config, or of the run to resume), the flags.

    Args:
        section: where the config of what is trained stands: "system", or "task".
        known: its configs by the names of the presets; None are the presets of the system ``name``.
    """
    early = _early_options(argv)
    if early["name"] not in (None, name):
        raise RunError(f"--resume {early['resume']}: is a run of {early['name']}, not of {name}")
    preset = early["preset"] or preset
    known = {each: system_config(name, each) for each in presets(name)} if known is None else known
    if preset not in known:
        raise RunError(f"--preset must be one of {', '.join(known)}, got {preset!r}")
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML file of these options")
    parser.add_argument("--name", type=Literal[name], default=name, help=argparse.SUPPRESS)
    parser.add_argument("--preset", type=str, default=preset, help=f"{', '.join(known)}: defaults of --{section}.*")
    parser.add_argument("--run", type=str, help=f"run folder (default: {run_prefix}-<date>)")
    parser.add_argument("--resume", type=str, metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in an existing --run folder")
    parser.add_json()
    parser.add_class_arguments(type(known[preset]), section, help=f"{name} (preset {preset})")
    defaults = dataclasses.asdict(known[preset])
    parser.set_defaults({f"{section}.{key}": value for key, value in defaults.items()})
    training = parser.add_argument_group("training")
    for field in dataclasses.fields(TrainConfig):
        kind = float | None if field.name == "clip_norm" else type(field.default)
        training.add_argument(f"--train.{field.name}", type=kind, default=field.default, help=TRAIN_HELP[field.name])
    if early["resume"]:
        argv = ["--config", str(RunFolder(early["resume"]).existing().config), *argv]
    options = parser.read(argv)
    if options.resume and (options.run or options.overwrite):
        raise RunError("--resume goes on in its own folder; leave out --run and --overwrite")
    for key in (section, "train", *(key for key in own if key == "preprocess")):
        if not isinstance(options[key], jsonargparse.Namespace):
            raise RunError(f"{key!r} must hold a mapping of options, got {type(options[key]).__name__}")
    try:
        train = TrainConfig(**options.train.as_dict())
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
    config = config_of(type(known[preset]), options[section].as_dict())
    folder = options.resume or options.run or time.strftime(f"{run_prefix}-%Y%m%d-%H%M%S")
    values = {"name": name, **{key: options[key] for key in own}, "preset": preset, section: config, "train": train}
    for flag, path in (("--run", folder), ("--data", values.get("data") or "")):
        if not _is_text(path):
            raise RunError(f"{flag} must be valid UTF-8 to be kept in config.yaml, got {path}; rename it")
    for key in _PATHS:  # a run is resumed from any folder
        path = values.get(key)
        if path and path not in _NO_PATHS and Path(path).exists():
            values[key] = str(Path(path).resolve())
    return TrainingOptions(
        command, values, config, train, RunFolder(folder), bool(options.resume), options.overwrite, options.json
    )


def _sizes(argv: Sequence[str]) -> list[str]:
    """The arguments with a size, 640x480 or 640,480, written as the list [640,480], the one form that YAML has."""
    one_word = r"(--(?:\S+\.)?size=)(\d+)[x,](\d+)"
    return [
        re.sub(r"(\d+)[x,](\d+)", r"[\1,\2]", word)
        if re.fullmatch(one_word, word) or (re.fullmatch(r"--(\S+\.)?size", before) and word[:1].isdigit())
        else word
        for before, word in zip(["", *argv], argv, strict=False)
    ]


def _is_text(path: str) -> bool:
    """Whether a path can be written into a text file; on Linux its bytes can be anything."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _early_options(argv: Sequence[str]) -> dict[str, str | None]:
    """The options that decide the defaults of the others."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("preset", "config", "resume"):
        early.add_argument(f"--{name}", nargs="?")
    found = vars(early.parse_known_args(list(argv))[0])
    file = RunFolder(found["resume"]).existing().config if found["resume"] else found["config"]
    if file is not None and Path(file).is_file():
        values = read_yaml(Path(file))  # in any case: it refuses what is no YAML in one sentence
        found["preset"] = values.get("preset") if found["preset"] is None else found["preset"]
        found["name"] = values.get("name") if found["resume"] else None
    return {"name": None, **found}
