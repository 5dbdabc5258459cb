"""What a run is made of: training options, the system and the data, and how each is built from its name."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace

from slrfast import checks
from slrfast.data import ClipDataset, Fingerspelling, PoseDataset, PreprocessOptions, SyntheticSigns, looks_packed
from slrfast.errors import SlrfastError
from slrfast.systems import SYSTEMS


class RunError(SlrfastError, ValueError):
    """A run cannot be started or continued as asked; the message is one sentence that says why."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train, apart from what belongs to the system (its config holds batch size, epochs and schedule).

    Attributes:
        seed: of the initial weights, the order of clips, views and dropout.
        device: "auto" (a GPU when there is one), "cpu", "cuda" or "cuda:1".
        precision: "float32", or "bf16": the forward pass under autocast to bfloat16.
        workers: loader processes; 0 loads in the training process.
        clip_norm: gradients are scaled down to this norm; none when null.
        log_every: steps between two lines of metrics.jsonl.
        checkpoint_every: epochs between two checkpoints.
        knn_every: epochs between two kNN accuracies on the labelled clips; 0 turns them off.
    """

    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    workers: int = 0
    clip_norm: float | None = None
    log_every: int = 1
    checkpoint_every: int = 1
    knn_every: int = 0

    def __post_init__(self) -> None:
        checks.integer_between("train", 0, 2**31 - 1, seed=self.seed)
        checks.choice("train", ("float32", "bf16"), precision=self.precision)
        checks.integer_between("train", 0, 1024, workers=self.workers)
        checks.integer_between("train", 1, 10**9, log_every=self.log_every, checkpoint_every=self.checkpoint_every)
        checks.integer_between("train", 0, 10**9, knn_every=self.knn_every)
        if self.clip_norm is not None:
            checks.positive("train", clip_norm=self.clip_norm)


def choose_device(name: str) -> torch.device:
    """The device of a ``--train.device`` value; RunError when this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise RunError(f"{name!r} is no device; use auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"device {name!r} was asked for, but this machine has {torch.cuda.device_count()} usable GPUs")
    return device


def presets(name: str) -> list[str]:
    """The presets that a system has; only what has published code has "legacy"."""
    return [preset for preset in ("paper", "legacy", "small") if hasattr(SYSTEMS[name].Config, preset)]


def system_config(name: str, values: Mapping[str, Any] | str) -> Any:
    """A system's config from the name of a preset or from all its values; RunError when a value is refused."""
    config_class: Any = SYSTEMS[name].Config
    if isinstance(values, str):
        if values not in presets(name):
            raise RunError(f"--preset must be one of {', '.join(presets(name))}, got {values!r}")
        return getattr(config_class, values)()
    return config_of(config_class, values)


def config_of(config_class: Any, values: Mapping[str, Any]) -> Any:
    """A frozen config from all its values as YAML has them; RunError when one is refused."""
    try:
        return config_class(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error


def build_system(name: str, config: Any, seed: int) -> Any:
    """The system with freshly drawn weights, a function of its config and the seed alone.

    Raises:
        RunError: a value of the config fits no network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return SYSTEMS[name](config)
        except SlrfastError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(f"{name} cannot be built with these --system options: {reason}") from error


def load_system(name: str, folder: Path) -> Any:
    """The system saved in a run's ``model`` folder."""
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist, so there is no finished {name} run in {folder.parent}")
    return SYSTEMS[name].from_pretrained(folder)


def keypoints_of(name: str) -> int:
    """The keypoints of the clips that a system takes."""
    return getattr(SYSTEMS[name], "keypoints", 49)


def open_dataset(
    source: str, split: str | None = None, preprocess: Mapping[str, Any] | None = None, layout: int = 49
) -> ClipDataset:
    """The clips behind ``--data``: "synthetic", "fingerspelling", or a store, folder or file that PoseDataset reads.

    A store keeps the options it was packed with: options other than the defaults, of which ``layout`` is one, must be
    the same.
    """
    if not source:
        raise RunError("--data is empty; name a store, a folder, an index file, 'synthetic' or 'fingerspelling'")
    defaults = PreprocessOptions(layout=layout)
    options = preprocess_options(preprocess, layout)
    if source == "synthetic":
        return SyntheticSigns(num_classes=20, clips_per_class=50, num_signers=12, options=options)
    if looks_packed(source):
        return PoseDataset(source, split=split, options=None if options == defaults else options)
    with warnings.catch_warnings():
        # the commands list the skipped files themselves
        warnings.filterwarnings("ignore", message=r".* files? skipped")
        if source == "fingerspelling":
            return Fingerspelling(options=options, progress=True)
        return PoseDataset(source, split=split, options=options, progress=True)


def preprocess_options(values: Any, layout: int) -> PreprocessOptions:
    """The options of a config's mapping, without one the defaults of this layout; RunError where they are wrong."""
    if values is not None and not isinstance(values, Mapping):
        raise RunError(f"'preprocess' must hold a mapping of options, got {type(values).__name__}")
    try:
        return PreprocessOptions(**(values or {"layout": layout}))
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error


def sized(config: dict[str, Any], size: tuple[int, int] | None, name: str) -> dict[str, Any]:
    """A run's config, its pre-processing of images of this size if one is given; ``name`` of the system."""
    if size is None:
        return config
    options = preprocess_options(config.get("preprocess"), keypoints_of(name))
    return {**config, "preprocess": {**dataclasses.asdict(options), "size": size}}


def one_name(source: str) -> str:
    """One name for one source of clips, however its path is written."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def as_yaml(values: Mapping[str, Any]) -> str:
    """Plain YAML; dataclasses become mappings and tuples become lists."""
    return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; RunError when there is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise RunError(f"{path}: cannot be read as YAML (it is nested too deeply)") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise RunError(f"{path}: must hold a mapping of options, got {type(values).__name__}")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return _plain(value.as_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
