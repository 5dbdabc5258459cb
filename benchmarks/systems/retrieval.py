"""Retrieval among 10,000 clips and 10,000 texts: the fine-grained similarity of all pairs, in tiles.

Clips of 25 to 100 frames are 7 to 25 windows of four, texts have 5 to 20 words, lengths evenly spread; D = 256. The
field's way pads all to the longest and takes 16 clips at a time against all texts, with all scores [16, 10000, 25, 20]
there at once, in eager torch. Ours never has more than a tile's scores.

Timed side by side: the first clips against all texts. Then, "whole": ours for all 10,000 x 10,000 pairs in one call,
with the memory that it takes beyond its inputs (the result's 400 MB included), its first rows held to the same truth;
the field's seconds for that are its time for the first clips scaled by their number, as "scaled" says.

    python -m benchmarks.systems.retrieval
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import harness, memory
from benchmarks.baselines import text as field
from benchmarks.harness import OURS, Case, main
from slrfast.tasks.row_sets import RowSets, similarity_matrix

OP = "retrieval"
MODULE = f"benchmarks.systems.{OP}"
BF16 = f"{OURS}, bf16"
ITEMS, FIRST, DIM = 10_000, 64, 256
WINDOWS, WORDS = (7, 25), (5, 20)
CHUNK, TRUTH_CHUNK = 16, 4  # clips that the field compares at a time


def inputs(device: str, clips: int, texts: int, dim: int) -> tuple[RowSets, RowSets]:
    """Unit rows that bfloat16 holds."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for count, (least, most) in ((texts, WORDS), (clips, WINDOWS)):
        lengths = torch.randint(least, most + 1, (count,), generator=generator)
        rows = F.normalize(torch.randn(int(lengths.sum()), dim, generator=generator), dim=-1)
        made.append(RowSets(rows.bfloat16().float().to(device), F.pad(lengths.cumsum(0), (1, 0))))
    return made[1], made[0]


def padded(sets: RowSets) -> tuple[Tensor, Tensor]:
    """All sets as the field holds them: [N, longest, D] with zeros, and which rows are real."""
    rows, present = sets.pad(torch.arange(len(sets)))
    return rows * present.unsqueeze(-1), present


def in_bfloat16(sets: RowSets) -> RowSets:
    """The same rows in bfloat16."""
    return RowSets(sets.rows.bfloat16(), sets.offsets)


@torch.no_grad()
def by_chunks(signs: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor], chunk: int = CHUNK) -> list[Tensor]:
    """The field's way: some clips at a time against all texts."""
    parts = zip(signs[0].split(chunk), signs[1].split(chunk), strict=True)
    return [torch.cat([field.similarity(rows, texts[0], present, texts[1]) for rows, present in parts])]


def call(name: str, signs: RowSets, texts: RowSets) -> Callable[[], list[Tensor]]:
    """What a candidate does, from data in the form that it wants."""
    if name == "eager":
        both = padded(signs), padded(texts)
        return lambda: by_chunks(*both)
    pair = (in_bfloat16(signs), in_bfloat16(texts)) if name == BF16 else (signs, texts)
    return lambda: [similarity_matrix(*pair)]


def prepared(name: str, device: str, *shape: int) -> Callable[[], list[Tensor]]:
    """A call whose memory is to be measured, see :func:`benchmarks.memory.peaks`."""
    call(name, *inputs(device, 2, 2, shape[-1]))()
    return call(name, *inputs(device, *shape))


def result(device: str) -> dict:
    """The first clips against all texts, side by side, and all clips against all texts."""
    clips, texts = inputs(device, ITEMS, ITEMS, DIM)
    first = clips.select(torch.arange(FIRST))
    wide = [(rows.double(), present) for rows, present in map(padded, (first, texts))]
    truth = by_chunks(wide[0], wide[1], TRUTH_CHUNK)
    shape = (FIRST, ITEMS, DIM)
    case = Case(
        name=f"the first {FIRST} of {ITEMS} clips x {ITEMS} texts",
        shapes={"windows": first.rows.shape, "words": texts.rows.shape},
        candidates={name: call(name, first, texts) for name in (OURS, BF16, "eager")},
        truth=lambda: truth,
        flops=2 * len(first.rows) * len(texts.rows) * DIM,
        bytes=first.rows.nbytes + texts.rows.nbytes + 4 * FIRST * ITEMS,
        memory=lambda: memory.peaks(MODULE, (OURS, BF16, "eager"), device, *shape),
        device=device,
    )
    measured = harness.measure(case)
    return measured | {"whole": whole(device, clips, texts, truth[0], measured)}


def whole(device: str, clips: RowSets, texts: RowSets, truth: Tensor, measured: dict) -> dict:
    """Ours for all pairs, once."""
    run, found = call(OURS, clips, texts), []
    before, started = memory.used(device), time.perf_counter()
    found += run()
    after = memory.used(device, peak=True)  # waits for a GPU
    seconds = time.perf_counter() - started
    error = harness.largest_error(found[0][:FIRST], truth)
    if not error <= measured["allowed_error"][OURS]:
        raise harness.WrongAnswer(f"{OP}: the first rows of the whole are off by {error:.3g}")
    return {
        "pairs": [len(clips), len(texts)],
        "seconds": {OURS: seconds, "eager": measured["seconds"]["eager"] * len(clips) / FIRST},
        "scaled": {"eager": f"{len(clips)} / {FIRST} times its seconds for the first {FIRST} clips"},
        "pairs_per_second": len(clips) * len(texts) / seconds,
        "peak_bytes": {OURS: after - before},
        "result_bytes": found[0].nbytes,
        "all_scores_bytes": {
            "padded": 4 * len(clips) * WINDOWS[1] * len(texts) * WORDS[1],
            "not padded": 4 * len(clips.rows) * len(texts.rows),
        },
        "error": {OURS: error},
    }


def show(op: str, found: dict) -> str:
    """A summary in text."""
    of = found["whole"]
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in of["seconds"].items())
    return (
        f"{harness.line(op, found)}\n{op} [{found['device']}] {of['pairs'][0]} x {of['pairs'][1]}: {times} (scaled);"
        f" {OURS} takes {of['peak_bytes'][OURS] / 1e6:.0f} MB, {of['result_bytes'] / 1e6:.0f} MB of it the result;"
        f" all padded scores would be {of['all_scores_bytes']['padded'] / 1e9:.0f} GB"
    )


def cases(device: str) -> Iterator[dict]:
    yield result(device)


def test_retrieval(benchmark) -> None:
    benchmark.group = OP
    for found in benchmark.pedantic(harness.run_all, (OP, cases), rounds=1):
        print(f"\n{show(OP, found)}", end="")


if __name__ == "__main__":
    main(OP, cases, show)
