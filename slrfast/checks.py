"""The only place that words input errors: ``<op>: <argument> must <rule>, got <value>[; what to do]``.

Every check reads sizes, dtypes and devices only, so none of them synchronises a device; all of them may run under
``torch.compile``. ValueError is for shape and range, TypeError for type and dtype.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


def message(op: str, argument: str, rule: str, got: object, hint: str = "") -> str:
    """The wording itself, for the rare check that none of the functions below expresses."""
    return f"{op}: {argument} must {rule}, got {got}" + (f"; {hint}" if hint else "")


def require(condition: bool, op: str, argument: str, rule: str, got: object, hint: str = "") -> None:
    """Raise ValueError unless ``condition`` holds."""
    if not condition:
        raise ValueError(message(op, argument, rule, got, hint))


def shapes(op: str, **arguments: tuple[Tensor, str]) -> dict[str, int]:
    """Match tensors against patterns such as ``query=(query, "B D")`` and return the size of every letter.

    A word of the pattern is a number, or a name that must have one size in all arguments; a leading ``...`` stands for
    any number of dimensions.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, pattern) in arguments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(message(op, name, "be a torch.Tensor", type(tensor).__name__))
        words = pattern.split()
        open_ended = bool(words) and words[0] == "..."
        words = words[1:] if open_ended else words
        offset = tensor.dim() - len(words)
        if offset < 0 or (offset and not open_ended):
            raise ValueError(message(op, name, f"have shape [{', '.join(pattern.split())}]", list(tensor.shape)))
        for axis, word in enumerate(words):
            size = tensor.shape[offset + axis]
            want = int(word) if word.isdigit() else sizes.setdefault(word, size)
            if size != want:
                shown = f"[{', '.join(pattern.split())}]" + ("" if word.isdigit() else f" with {word} = {want}")
                raise ValueError(message(op, name, f"have shape {shown}", list(tensor.shape)))
    return sizes


def floating(op: str, **tensors: Tensor) -> None:
    """Every tensor is float64, float32, bfloat16 or float16."""
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise TypeError(message(op, name, "be float64, float32, bfloat16 or float16", tensor.dtype))


def dtype(op: str, wanted: torch.dtype, **tensors: Tensor) -> None:
    """Every tensor has exactly this dtype."""
    for name, tensor in tensors.items():
        if tensor.dtype != wanted:
            raise TypeError(message(op, name, f"be {wanted}", tensor.dtype))


def same_device(op: str, **tensors: Tensor) -> None:
    """All tensors are on the device of the first."""
    (first, lead), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.device != lead.device:
            raise ValueError(message(op, name, f"be on the device of {first} ({lead.device})", tensor.device))


def positive(op: str, **scalars: float) -> None:
    """Every scalar is a finite number above zero."""
    for name, value in scalars.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(message(op, name, "be a number", type(value).__name__))
        require(0 < value < math.inf, op, name, "be finite and > 0", value)


def number_between(op: str, low: float, high: float, **scalars: float) -> None:
    """Every scalar is a finite number in [low, high]."""
    rule = f"be in [{low:g}, {high:g}]" if high < math.inf else f"be finite and >= {low:g}"
    for name, value in scalars.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(message(op, name, "be a number", type(value).__name__))
        require(low <= value <= high and value < math.inf, op, name, rule, value)


def are_numbers(values: object, count: int | None) -> bool:
    """Whether ``values`` is a tuple or list of so many numbers (None: of any number of them)."""
    if not isinstance(values, (tuple, list)) or (count is not None and len(values) != count):
        return False
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def integer_between(op: str, low: int, high: int, **scalars: int) -> None:
    """Every scalar is an integer in [low, high]."""
    for name, value in scalars.items():
        if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
            raise TypeError(message(op, name, "be an integer", type(value).__name__))
        require(low <= value <= high, op, name, f"be in [{low}, {high}]", value)


def rising(op: str, end: int | None, **offsets: Sequence[int]) -> None:
    """Every list of offsets starts at 0, never falls, and ends at ``end`` frames (None: anywhere)."""
    for name, values in offsets.items():
        falls = [f"{b} after {a}" for a, b in zip(values, values[1:], strict=False) if b < a]
        right = len(values) > 0 and values[0] == 0 and not falls and end in (None, values[-1])
        rule = "rise from 0" if end is None else f"rise from 0 to the {end} frames"
        if not right:
            raise ValueError(
                message(op, name, rule, values if len(values) <= 8 else (*falls, f"{values[0]} to {values[-1]}")[0])
            )


def lengths(op: str, frames: int, lengths: Tensor) -> None:
    """Every length is in [0, frames], where values may be read."""
    values = lengths.tolist() if may_read(lengths) else []
    if values and (min(values) < 0 or max(values) > frames):
        b, wrong = next((b, value) for b, value in enumerate(values) if not 0 <= value <= frames)
        require(False, op, "lengths", f"be in [0, {frames}]", f"{wrong} for clip {b}")


def choice(op: str, options: Sequence[str], **values: str) -> None:
    """Every value is one of ``options``."""
    for name, value in values.items():
        require(value in options, op, name, f"be one of {', '.join(map(repr, options))}", repr(value))


def no_gradient(op: str, **tensors: Tensor) -> None:
    """Warn, once per line that calls the op, where a gradient is recorded for a tensor that will not get one."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            note = f"{op}: {name} requires grad, but no gradient flows to it; pass {name}.detach()"
            warnings.warn(note, stacklevel=3)


def may_read(tensor: Tensor) -> bool:
    """Whether a check of values is allowed: always on CPU, elsewhere (it waits for the device) if SLRFAST_DEBUG=1.

    Never inside ``torch.compile``, where it would break the graph.
    """
    if torch.compiler.is_compiling() or type(tensor) is not Tensor:  # a fake tensor has no values
        return False
    return tensor.device.type == "cpu" or os.environ.get("SLRFAST_DEBUG") == "1"
