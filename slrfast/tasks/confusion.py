"""What is taken for what: confusion matrices, a table per class, and NMFs-CSL's total, confusing and normal accuracy.

As in ``metrics``, a tie is worth its expected value under a random order of the tied classes, so that the diagonal over
its row is the class's top-1 accuracy. Classes without a test clip have none: they are listed, and no mean counts them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slrfast import checks
from slrfast.files import replacing
from slrfast.tasks.metrics import class_ranks, top_k_hits

_ROWS = 4096
_CELLS = 1 << 26


@dataclass(frozen=True)
class Confusion:
    """A pair of classes that are confused.

    Attributes:
        true, taken_for: classes.
        clips: how many of the true class, a fraction where predictions tie.
        share: of the true class's clips, in (0, 1].
    """

    true: int
    taken_for: int
    clips: float
    share: float


@dataclass(frozen=True)
class ClassRow:
    """A class's row of the table.

    Attributes:
        label, name: the class.
        clips: test clips.
        top1, top5: accuracy in [0, 1] (top-C with fewer than five classes), None without test clips.
        confusion: what it is most often taken for, None if for nothing else.
    """

    label: int
    name: str
    clips: int
    top1: float | None
    top5: float | None
    confusion: Confusion | None


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """How many clips of each class (rows) are taken for each class (columns).

    A clip whose highest score is shared by n classes counts 1 / n for each.

    Args:
        scores: [N, C] float, higher is better; infinities are fine, NaN is refused. C is at most 8192.
        labels: [N] int64 in [0, C).
    Returns:
        [C, C] float64 on the CPU; a row sums to the class's clips.
    Raises:
        ValueError, TypeError: as :func:`~slrfast.tasks.metrics.class_ranks`, or more classes than that.

    >>> confusion_matrix(torch.tensor([[3.0, 1.0], [2.0, 2.0], [0.0, 1.0]]), torch.tensor([0, 1, 1]))
    tensor([[1.0000, 0.0000],
            [0.5000, 1.5000]], dtype=torch.float64)
    """
    class_ranks(scores, labels)
    classes = scores.shape[1]
    checks.require(classes * classes <= _CELLS, "confusion_matrix", "scores", "be of at most 8192 classes", classes)
    matrix = torch.zeros(classes, classes, dtype=torch.float64)
    for start in range(0, len(scores), _ROWS):
        part = scores[start : start + _ROWS].detach()
        best = (part == part.amax(1, keepdim=True)).double()
        matrix.index_add_(0, labels[start : start + _ROWS].cpu(), (best / best.sum(1, keepdim=True)).cpu())
    return matrix


def most_confused(matrix: Tensor, count: int = 20) -> list[Confusion]:
    """The pairs of different classes that are confused most, by clips, then by share, then by class.

    Args:
        matrix: [C, C] from :func:`confusion_matrix`.
        count: at most so many pairs, >= 1.

    >>> most_confused(torch.tensor([[1.0, 3.0], [0.0, 2.0]]))
    [Confusion(true=0, taken_for=1, clips=3.0, share=0.75)]
    """
    _check_matrix("most_confused", matrix)
    checks.integer_between("most_confused", 1, _CELLS, count=count)
    wrong = matrix.double().cpu().clone()
    totals = wrong.sum(1)
    wrong.fill_diagonal_(0)
    share = wrong / totals.clamp(min=1e-300)[:, None]
    true, taken_for = (wrong > 0).nonzero(as_tuple=True)
    pairs = zip(
        wrong[true, taken_for].tolist(), share[true, taken_for].tolist(), true.tolist(), taken_for.tolist(), strict=True
    )
    ordered = sorted(pairs, key=lambda pair: (-pair[0], -pair[1], pair[2], pair[3]))
    return [Confusion(true, taken_for, clips, part) for clips, part, true, taken_for in ordered[:count]]


def class_table(scores: Tensor, labels: Tensor, class_names: Sequence[str]) -> list[ClassRow]:
    """A row for every class, in their order.

    Args:
        scores, labels: as for :func:`confusion_matrix`.
        class_names: C of them.
    Raises:
        ValueError, TypeError: as :func:`confusion_matrix`, or another number of names.

    >>> class_table(torch.tensor([[0.1, 0.9]]), torch.tensor([0]), ["go", "stay"])[0].confusion.taken_for
    1
    """
    matrix = confusion_matrix(scores, labels)
    classes = len(matrix)
    checks.require(
        len(class_names) == classes, "class_table", "class_names", f"be {classes} names", f"{len(class_names)} of them"
    )
    hits = top_k_hits(scores, labels, min(5, classes)).cpu()
    five = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels.cpu(), hits).tolist()
    clips = torch.bincount(labels.cpu(), minlength=classes).tolist()
    wrong = matrix.clone().fill_diagonal_(0)
    most, taken_for = wrong.max(1)
    rows = []
    for label, name in enumerate(class_names):
        count, confused = clips[label], float(most[label])
        worst = Confusion(label, int(taken_for[label]), confused, confused / count) if confused > 0 else None
        top1, top5 = (float(matrix[label, label]) / count, five[label] / count) if count else (None, None)
        rows.append(ClassRow(label, str(name), count, top1, top5, worst))
    return rows


def untested(labels: Tensor, classes: int) -> list[int]:
    """The classes of which there is no test clip.

    >>> untested(torch.tensor([2, 0]), 4)
    [1, 3]
    """
    checks.shapes("untested", labels=(labels, "N"))
    checks.dtype("untested", torch.int64, labels=labels)
    checks.integer_between("untested", 1, _CELLS, classes=classes)
    present = set(labels.tolist())
    outside = sorted(label for label in present if not 0 <= label < classes)
    checks.require(not outside, "untested", "labels", f"be in [0, {classes - 1}]", outside[:3])
    return [label for label in range(classes) if label not in present]


def confusing_metrics(
    scores: Tensor, labels: Tensor, confusing: Sequence[int], places: Sequence[int] = (1, 2, 5)
) -> dict[str, dict[str, float | None]]:
    """NMFs-CSL's three accuracies per instance: of all clips, of those of confusing words, and of the others.

    A clip is ranked among all classes in each of them.

    Args:
        scores, labels: as for :func:`confusion_matrix`.
        confusing: classes whose words are told apart by the face only, ``data.isolated_presets.NMFS_CONFUSING``.
        places: the k of top-k, those above C are left out.
    Returns:
        "total", "confusing" and "normal", each {"clips": N, "top1": ..., "top2": ..., "top5": ...}; None for a group
        without test clips.
    Raises:
        ValueError, TypeError: as :func:`confusion_matrix`; a confusing class outside [0, C), or none.

    >>> confusing_metrics(torch.eye(3), torch.tensor([0, 2, 2]), [0, 1])["normal"]["top1"]
    0.5
    """
    class_ranks(scores, labels)
    classes = scores.shape[1]
    chosen = sorted(set(confusing))
    checks.require(len(chosen) > 0, "confusing_metrics", "confusing", "name at least one class", 0)
    for label in (chosen[0], chosen[-1]):
        checks.integer_between("confusing_metrics", 0, classes - 1, confusing=label)
    mine = torch.isin(labels.cpu(), torch.tensor(chosen))
    groups = {"total": torch.ones_like(mine), "confusing": mine, "normal": ~mine}
    made: dict[str, dict[str, float | None]] = {name: {"clips": int(group.sum())} for name, group in groups.items()}
    for k in places:
        if k > classes:
            continue
        hits = top_k_hits(scores, labels, k).cpu()
        for name, group in groups.items():
            made[name][f"top{k}"] = float(hits[group].mean()) if bool(group.any()) else None
    return made


def write_class_table(path: str | os.PathLike, rows: Sequence[ClassRow], class_names: Sequence[str]) -> None:
    """Write the table as CSV: label, class, clips, top1, top5, confused_with, confused_share; empty where nothing is.

    Raises:
        CheckpointError: the file cannot be written; one that stood there before is left whole.
    """
    head = ("label", "class", "clips", "top1", "top5", "confused_with", "confused_share")
    cells = [
        (row.label, row.name, row.clips, _cell(row.top1), _cell(row.top5))
        + (("", "") if row.confusion is None else (class_names[row.confusion.taken_for], _cell(row.confusion.share)))
        for row in rows
    ]
    _write(path, head, cells)


def write_confusions(path: str | os.PathLike, matrix: Tensor, class_names: Sequence[str]) -> None:
    """Write every pair of different classes that is confused as CSV, worst first: true, taken_for, clips, share.

    Raises:
        ValueError: another number of names. CheckpointError: as :func:`write_class_table`.
    """
    _check_matrix("write_confusions", matrix)
    checks.require(
        len(class_names) == len(matrix), "write_confusions", "class_names", f"be {len(matrix)} names", len(class_names)
    )
    pairs = most_confused(matrix, _CELLS)
    cells = [(class_names[p.true], class_names[p.taken_for], f"{p.clips:g}", _cell(p.share)) for p in pairs]
    _write(path, ("true", "taken_for", "clips", "share"), cells)


def _write(path: str | os.PathLike, head: Sequence[str], cells: Sequence[Sequence[object]]) -> None:
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(cells)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _check_matrix(op: str, matrix: Tensor) -> None:
    checks.shapes(op, matrix=(matrix, "C C"))
    checks.floating(op, matrix=matrix)
    fits = matrix.numel() > 0 and bool((matrix >= 0).all()) and bool(matrix.isfinite().all())
    checks.require(fits, op, "matrix", "hold counts >= 0", list(matrix.shape) if not matrix.numel() else "others")
