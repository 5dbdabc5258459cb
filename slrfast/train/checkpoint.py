"""Checkpoints of a training run: one safetensors file, its scalars as JSON in the file's own header.

One file and one rename, so weights, optimizer and counters can never be of different steps. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from slrfast.errors import CheckpointError
from slrfast.files import replacing

_FORMAT = 1


def save_checkpoint(
    path: str | Path, system: nn.Module, optimizer: Optimizer, generator: torch.Generator, progress: dict[str, Any]
) -> None:
    """Write everything that the next step depends on; an earlier checkpoint stays whole until the new one is.

    Args:
        path: file to replace.
        system: its ``state_dict`` is saved (weights, running statistics, banks, cursors).
        optimizer: its per-parameter state is saved under the parameter's name.
        generator: the generator of views; saved with torch's own CPU and CUDA generators.
        progress: JSON values, such as the step.
    Raises:
        CheckpointError: the file cannot be written, for example because the disk is full.
    """
    tensors = {f"model/{name}": value for name, value in system.state_dict().items()}
    scalars: dict[str, dict[str, Any]] = {}
    names: dict[Tensor, str] = {parameter: name for name, parameter in system.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{names[parameter]}/{key}"] = value
            else:
                scalars.setdefault(names[parameter], {})[key] = value
    tensors["rng/views"] = generator.get_state()
    tensors["rng/cpu"] = torch.get_rng_state()
    if generator.device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(generator.device)
    # copies, because safetensors refuses tensors that share memory
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    header = {"format": _FORMAT, "progress": progress, "optimizer": scalars}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"slrfast": json.dumps(header)})
        except SafetensorError as error:
            raise CheckpointError(f"{path}: cannot be written ({error}); an earlier file is unchanged") from error


def load_checkpoint(
    path: str | Path, system: nn.Module, optimizer: Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    """Put a checkpoint back into a system, optimizer and generators that were built from the same config.

    Returns:
        The ``progress`` that was saved.
    Raises:
        CheckpointError: no such file, not a checkpoint, or one of another configuration.
    """
    header, tensors = _read(Path(path))
    model = _under(tensors, "model/")
    try:
        system.load_state_dict(model, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise CheckpointError(f"{path}: is of another configuration than this run ({detail})") from error
    weights = dict(system.named_parameters())
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in header["optimizer"].items()}
    for name, value in _under(tensors, "optimizer/").items():
        parameter, _, key = name.rpartition("/")
        if parameter in weights and value.dim() and value.shape != weights[parameter].shape:
            raise CheckpointError(f"{path}: the optimizer state {name!r} has the wrong shape {list(value.shape)}")
        if parameter in weights and value.shape == weights[parameter].shape:
            # in the parameter's layout in memory, which a fused optimizer takes for granted
            value = torch.empty_like(weights[parameter], dtype=value.dtype, device=value.device).copy_(value)
        state.setdefault(parameter, {})[key] = value
    names = {parameter: name for name, parameter in weights.items()}
    trained = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    unknown = sorted(set(state) - set(trained))
    if unknown:
        raise CheckpointError(f"{path}: has optimizer state of {unknown[0]}, which this run does not train")
    numbered = {number: state[name] for number, name in enumerate(trained) if name in state}
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
    _restore_generators(Path(path), tensors, generator)
    return header["progress"]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no checkpoint to go on from")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "slrfast" not in metadata:
                raise CheckpointError(f"{path}: is not a whole slrfast checkpoint (something else wrote it)")
            header = json.loads(metadata["slrfast"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: is not a whole slrfast checkpoint ({error})") from error
    if not isinstance(header, dict) or "format" not in header:
        raise CheckpointError(f"{path}: is not a whole slrfast checkpoint (its header has no format)")
    if header["format"] != _FORMAT:
        raise CheckpointError(f"{path}: has format {header['format']}, this version reads format {_FORMAT}")
    for key in ("progress", "optimizer"):
        if not isinstance(header.get(key), dict):
            raise CheckpointError(f"{path}: is not a whole slrfast checkpoint (its header has no {key})")
    if not all(isinstance(values, dict) for values in header["optimizer"].values()):
        raise CheckpointError(f"{path}: is not a whole slrfast checkpoint (the optimizer's scalars are no mappings)")
    return header, tensors


def _restore_generators(path: Path, tensors: dict[str, Tensor], generator: torch.Generator) -> None:
    cuda = generator.device.type == "cuda"
    if cuda != ("rng/cuda" in tensors):
        raise CheckpointError(f"{path}: was written on another kind of device than {generator.device}")
    try:
        generator.set_state(tensors["rng/views"])
        torch.set_rng_state(tensors["rng/cpu"])
        if cuda:
            torch.cuda.set_rng_state(tensors["rng/cuda"], generator.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the state of a random generator is missing or damaged ({error})") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
