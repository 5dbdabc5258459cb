"""Timed calls captured in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from benchmarks.harness import is_ours

GRAPH = "CUDA graph"
Result = TypeVar("Result")


def graphed(call: Callable[[], Result]) -> Callable[[], Result]:
    """The same call captured in a CUDA graph; what it returns is overwritten by the next replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> Result:
        graph.replay()
        return results

    return replay


def captured(
    candidates: Mapping[str, Callable[[], Result]],
) -> tuple[dict[str, Callable[[], Result]], dict[str, str]]:
    """The candidates in CUDA graphs, and why others' code cannot be captured; where ours cannot, that is an error."""
    found, skipped = {}, {}
    for name, call in candidates.items():
        try:
            found[f"{name}, {GRAPH}"] = graphed(call)
        except RuntimeError as error:
            if is_ours(name):
                raise
            skipped[f"{name}, {GRAPH}"] = str(error).splitlines()[0]
    return found, skipped
