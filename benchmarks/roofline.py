"""Where every benchmark stands between its two floors: arithmetic at the machine's peak, bytes at its copy rate.

Everything comes from a run's JSON: the operations are the arithmetic floor times the peak that was measured in the same
run, the bytes the other floor times the copy rate at that size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.harness import OURS


class Position(NamedTuple):
    """A case of a benchmark on the roofline.

    Attributes:
        flops, bytes: what the work needs at least.
        seconds: of slrfast's first form.
        baseline_seconds: of what the case is compared with.
        peak: FLOP/s of a large float32 matrix product.
        copied: bytes/s of a copy of as many bytes.
    """

    op: str
    case: str
    commit: str
    flops: float
    bytes: float
    seconds: float
    baseline_seconds: float
    peak: float
    copied: float

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes

    @property
    def of_peak(self) -> float:
        """Share of the arithmetic peak."""
        return self.flops / self.seconds / self.peak

    @property
    def of_copy(self) -> float:
        """Share of the copy rate."""
        return self.bytes / self.seconds / self.copied

    @property
    def bound(self) -> str:
        """Which floor is the higher one."""
        return "arithmetic" if self.flops / self.peak > self.bytes / self.copied else "bytes"


def position(run: Mapping, case: Mapping, baseline: str) -> Position:
    """A recorded case."""
    rates, floors = case["machine"], case["floor_seconds"]
    peak, copied = rates["flops_per_second"], rates["copied_bytes_per_second"]
    return Position(
        run["op"], case["name"], run["commit"], floors["flops"] * peak, floors["bytes"] * copied,
        case["seconds"][OURS], case["seconds"][baseline], peak, copied,
    )  # fmt: skip


def render(positions: Mapping[str, Sequence[Position]]) -> str:
    """A table for every machine."""
    sections = []
    for machine, found in positions.items():
        lines = [
            f"## {machine}",
            "",
            "| benchmark | case | FLOP | bytes | FLOP/byte | bound by | of peak | of copy rate | commit |",
            "|---|---|--:|--:|--:|---|--:|--:|---|",
        ]
        for p in found:
            lines.append(
                f"| {p.op} | {p.case} | {count(p.flops)} | {count(p.bytes)} | {p.intensity:.3g} | {p.bound} "
                f"| {p.of_peak:.0%} | {p.of_copy:.0%} | {p.commit} |"
            )
        sections.append("\n".join(lines))
    return "\n\n".join(sections) or "No results have been recorded yet."


def count(number: float) -> str:
    """Three digits and a power of a thousand."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.3g}"
