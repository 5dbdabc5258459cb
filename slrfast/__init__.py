"""slrfast: fast building blocks and pre-training systems for sign language recognition from poses."""

from __future__ import annotations

import importlib
from types import ModuleType

from slrfast import errors, graphs, ops
from slrfast.ops._dispatch import backend

__version__ = "0.1.0"
__all__ = ["__version__", "backend", "data", "errors", "graphs", "nn", "ops", "systems", "tasks", "train"]

_LAZY = frozenset({"data", "nn", "systems", "tasks", "train"})


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"slrfast.{name}")
    raise AttributeError(f"module 'slrfast' has no attribute {name!r}")
