"""A skeleton's constants on a device, made once and outside any CUDA graph capture; what ops on skeletons share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slrfast import checks
from slrfast.graphs import SkeletonGraph

Constants = tuple[Tensor, ...]
_MADE: dict[tuple[Any, ...], Constants] = {}
_MOST = 256  # kept


def edges(graph: SkeletonGraph, device: torch.device) -> Constants:
    """The edges (partition, source, target), int32 [E, 3], and their float32 coefficients [E].

    A constant under ``torch.compile``.
    """
    return _constants(_edges, graph, device)


def members(graph: SkeletonGraph, device: torch.device) -> Constants:
    """The nodes of every part, int32 [Vp, M], filled up with the part's first; a constant under ``torch.compile``."""
    return _constants(_members, graph, device)


def reach(graph: SkeletonGraph, device: torch.device, dtype: torch.dtype) -> Constants:
    """The sums of the coefficients that lead to a node, [V, P]; a constant under ``torch.compile``."""
    return _constants(_reach, graph, device, dtype)


# torch.compiler.assume_constant_result, without its import of the whole compiler
edges._dynamo_marked_constant = True  # type: ignore[attr-defined]
members._dynamo_marked_constant = True  # type: ignore[attr-defined]
reach._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _constants(make: Callable[..., Constants], *key: Any) -> Constants:
    """What ``make(*key)`` gives, made once; fake tensors where a mode asks for them, which are not kept."""
    place = make, *key
    made = _MADE.get(place)
    if made is None:
        with torch.inference_mode(False):
            made = make(*key)
        if all(type(tensor) is Tensor and not torch._is_functional_tensor(tensor) for tensor in made):
            if len(_MADE) >= _MOST:
                _MADE.pop(next(iter(_MADE)), None)
            _MADE[place] = made
    return tuple(map(torch.ops.aten.lift_fresh.default, made))  # the same, unless a mode asks for another


# Every device is named: torch.device("meta") may be the default.


def _edges(graph: SkeletonGraph, device: torch.device) -> Constants:
    index = [edge[:3] for edge in graph.edges]
    weights = np.array([edge[3] for edge in graph.edges], np.float32)
    return torch.tensor(index, dtype=torch.int32, device=device), torch.tensor(weights, device=device)


def _members(graph: SkeletonGraph, device: torch.device) -> Constants:
    longest = max(map(len, graph.parts))
    table = [[*part, *[part[0]] * (longest - len(part))] for part in graph.parts]
    return (torch.tensor(table, dtype=torch.int32, device=device),)


def _reach(graph: SkeletonGraph, device: torch.device, dtype: torch.dtype) -> Constants:
    return (torch.tensor(graph.dense().sum(1, dtype=np.float64).T, dtype=dtype, device=device),)


def check(op: str, graph: Any, nodes: int, partitions: int | None = None, weight: str = "weight") -> None:
    """Refuse what is no graph, or one whose nodes or partitions are not those of x and of the argument ``weight``."""
    if not isinstance(graph, SkeletonGraph):
        raise TypeError(checks.message(op, "graph", "be a slrfast.graphs.SkeletonGraph", type(graph).__name__))
    checks.require(nodes == graph.num_nodes, op, "x", f"have the graph's {graph.num_nodes} nodes", nodes)
    own = graph.num_partitions
    checks.require(partitions in (None, own), op, weight, f"have the graph's {own} partitions", partitions)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast rounds x to before a product; None where it is off, and for float64, which it leaves."""
    device = x.device.type
    on = x.dtype != torch.float64 and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None
