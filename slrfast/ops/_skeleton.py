"""A skeleton's constants on a device, made once and outside any CUDA graph capture."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slrfast import checks
from slrfast.graphs import SkeletonGraph


def edges(graph: SkeletonGraph, device: torch.device) -> tuple[Tensor, Tensor]:
    """The edges (partition, source, target), int32 [E, 3], and their float32 coefficients [E].

    A constant under ``torch.compile``.
    """
    return _edges(graph, device)


def members(graph: SkeletonGraph, device: torch.device) -> tuple[Tensor]:
    """The nodes of every part, int32 [Vp, M], filled up with the part's first; a constant under ``torch.compile``."""
    return _members(graph, device)


# torch.compiler.assume_constant_result, without its import of the whole compiler
edges._dynamo_marked_constant = True  # type: ignore[attr-defined]
members._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _edges(graph: SkeletonGraph, device: torch.device) -> tuple[Tensor, Tensor]:
    index = [edge[:3] for edge in graph.edges]
    with torch.inference_mode(False):
        return (
            torch.tensor(index, dtype=torch.int32).reshape(-1, 3).to(device),
            torch.tensor(np.array([edge[3] for edge in graph.edges], np.float32)).to(device),
        )


@lru_cache(maxsize=256)
def _members(graph: SkeletonGraph, device: torch.device) -> tuple[Tensor]:
    longest = max(map(len, graph.parts))
    table = [[*part, *[part[0]] * (longest - len(part))] for part in graph.parts]
    with torch.inference_mode(False):
        return (torch.tensor(table, dtype=torch.int32).to(device),)


def check(op: str, graph: Any, nodes: int, partitions: int | None = None) -> None:
    """Refuse what is no graph, or one whose nodes or partitions are not those of x and weight."""
    if not isinstance(graph, SkeletonGraph):
        raise TypeError(checks.message(op, "graph", "be a slrfast.graphs.SkeletonGraph", type(graph).__name__))
    checks.require(nodes == graph.num_nodes, op, "x", f"have the graph's {graph.num_nodes} nodes", nodes)
    own = graph.num_partitions
    checks.require(partitions in (None, own), op, "weight", f"have the graph's {own} partitions", partitions)
