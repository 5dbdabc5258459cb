"""Scores of frozen features on clips of groups that no classifier was trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from slrfast.data import PoseBatch
from slrfast.nn.modes import evaluating
from slrfast.tasks import group_folds, knn_scores, linear_probe_scores, recognition_metrics
from slrfast.tasks.probe import known_groups
from slrfast.tasks.row_sets import RowSets
from slrfast.train.config import RunError
from slrfast.train.loading import load_batches

CLASSIFIERS = ("kNN", "linear probe")
COLUMNS = {
    "top1_instance": "top-1",
    "top5_instance": "top-5",
    "top1_class": "top-1/class",
    "top5_class": "top-5/class",
}


@dataclass(frozen=True)
class Labelled:
    """The labelled clips of a dataset.

    Attributes:
        index: [N] positions in the dataset.
        labels: [N] int64, counted among the classes that occur.
        groups: the group of every clip (signer, language); of its own where none is known.
        names: class names.
        grouped: False when no group is known, so that clips themselves are held out.
    """

    index: np.ndarray
    labels: Tensor
    groups: tuple[str, ...]
    names: tuple[str, ...]
    grouped: bool

    @classmethod
    def of(cls, dataset: Any) -> Labelled:
        """All labelled clips; RunError when they have fewer than two classes."""
        labels = np.asarray(dataset.labels, dtype=np.int64)
        index = np.flatnonzero(labels >= 0)
        present, compact = np.unique(labels[index], return_inverse=True)
        groups = [str(dataset.groups[i]) for i in index]
        if len(present) < 2:
            raise RunError(f"evaluation needs labelled clips of at least two classes, this dataset has {len(present)}")
        names = tuple(str(dataset.class_names[i]) for i in present)
        among, grouped = torch.from_numpy(compact.astype(np.int64)), len(set(groups)) > 1
        return cls(index, among, tuple(known_groups(groups)), names, grouped)

    def folds(self, count: int) -> list[np.ndarray]:
        """Positions in ``labels`` of each fold's held-out clips; fewer folds when there are fewer groups."""
        return group_folds(self.groups, min(count, len(set(self.groups))))


def encode_dataset(
    system: Any, dataset: Dataset, indices: Iterable[int] | None = None, *, batch_size: int = 64, progress: str = ""
) -> Tensor:
    """Features of clips in order, [N, D] float32 on the CPU; with ``progress`` a bar of that title."""
    batches = in_batches(system, dataset, indices, batch_size=batch_size, progress=progress)
    return torch.cat([system.encode(batch).float().cpu() for batch in batches])


def encode_frames(system: Any, dataset: Dataset, *, batch_size: int = 64, progress: str = "") -> RowSets:
    """Features of every frame of all clips, [S, D] float32 on the CPU, of a system that has them (``check_frames``)."""
    parts = []
    with torch.no_grad(), evaluating(system):
        for batch in in_batches(system, dataset, batch_size=batch_size, progress=progress):
            rows, packing = system.frame_features(batch)
            parts.append(RowSets(rows.float().cpu(), packing.offsets.cpu()))
    return RowSets.cat(parts)


def in_batches(
    model: nn.Module,
    dataset: Dataset,
    order: Iterable[int] | None = None,
    *,
    batch_size: int | None = None,
    progress: str = "",
) -> Iterator[PoseBatch]:
    """Batches of clips on the model's device.

    Args:
        model: a system or a task.
        dataset: map-style dataset of data.Clip.
        order: positions of the clips; None takes all as they stand.
        batch_size: None is that of the model's config.
        progress: title of a bar on stderr; empty draws none.
    """
    size: int = batch_size or model.config.batch_size  # type: ignore[assignment, union-attr]
    chosen = [int(i) for i in (range(len(dataset)) if order is None else order)]  # type: ignore[arg-type]
    device = next(model.parameters()).device
    places = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    with tqdm(total=len(chosen), desc=progress, unit=" clips", disable=not progress) as bar:
        for batch in load_batches(dataset, places):
            yield batch.to(device)
            bar.update(batch.size)


def knn_accuracy(system: Any, dataset: Any, *, votes: int = 10, folds: int = 4, batch_size: int = 64) -> float:
    """Top-1 accuracy per instance of a kNN vote with groups held out: a quick look during training."""
    clips = Labelled.of(dataset)
    features = encode_dataset(system, dataset, clips.index, batch_size=batch_size)
    evaluation = Evaluation(clips)
    for held in clips.folds(folds):
        evaluation.add("network", features, held, votes=votes, classifiers=CLASSIFIERS[:1])
    return evaluation.rows()[0]["top1_instance"]


class Evaluation:
    """Scores of several networks on held-out clips, pooled over folds, as one table."""

    def __init__(self, clips: Labelled) -> None:
        self.clips = clips
        self.truth: dict[tuple[str, str], list[Tensor]] = {}
        self.scores: dict[tuple[str, str], list[Tensor]] = {}
        self.choices: list[dict[str, Any]] = []

    def add(
        self,
        network: str,
        features: Tensor,
        held: np.ndarray,
        *,
        votes: int = 10,
        classifiers: Sequence[str] = CLASSIFIERS,
    ) -> None:
        """Train both classifiers without the held-out clips and score those.

        Args:
            network: row of the table.
            features: [N, D] of all of ``clips``.
            held: positions of the held-out clips, whole groups.
            votes: neighbours of kNN, fewer when there are fewer training clips.
        """
        clips = self.clips
        test = torch.zeros(len(clips.labels), dtype=torch.bool)
        test[torch.from_numpy(held)] = True
        train, labels = features[~test], clips.labels[~test]
        classes = len(clips.names)
        for classifier in classifiers:
            if classifier == CLASSIFIERS[0]:
                k = min(votes, len(train))
                scores = knn_scores(train, labels, features[test], classes, k=k)
                choice: dict[str, Any] = {"votes": k}
            else:
                groups = [group for group, out in zip(clips.groups, test.tolist(), strict=True) if not out]
                scores, l2 = linear_probe_scores(train, labels, groups, features[test], classes)
                choice = {"l2": l2}
            self.truth.setdefault((network, classifier), []).append(clips.labels[test])
            self.scores.setdefault((network, classifier), []).append(scores)
            self.choices.append(
                {"network": network, "classifier": classifier, "held_out_clips": int(test.sum()), **choice}
            )

    def rows(self) -> list[dict[str, Any]]:
        """Metrics per network and classifier, in the order they were added, then chance."""
        rows: list[dict[str, Any]] = []
        for (network, classifier), parts in self.scores.items():
            truth = torch.cat(self.truth[network, classifier])
            rows.append(
                {
                    "network": network,
                    "classifier": classifier,
                    **recognition_metrics(torch.cat(parts), truth),
                    "clips": len(truth),
                }
            )
        rows.sort(key=lambda row: CLASSIFIERS.index(row["classifier"]))
        flat = torch.zeros(rows[0]["clips"], len(self.clips.names))
        chance = recognition_metrics(flat, torch.zeros(len(flat), dtype=torch.int64))
        return [*rows, {"network": "chance", "classifier": "", **chance, "clips": len(flat)}]

    def table(self) -> str:
        """The rows as aligned text, accuracies in percent."""
        rows = self.rows()
        body = [
            [
                row["network"],
                row["classifier"],
                *(f"{100 * row[key]:.1f}" for key in COLUMNS),
                f"{row['mean_rank']:.1f}",
            ]
            for row in rows
        ]
        return aligned([["network", "classifier", *COLUMNS.values(), "mean rank"], *body], text_columns=2)

    def standard_error(self) -> float:
        """Standard error of the best top-1 per instance, clips taken as independent."""
        best = max(self.rows(), key=lambda row: row["top1_instance"])
        return math.sqrt(best["top1_instance"] * (1 - best["top1_instance"]) / best["clips"])


def aligned(cells: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """A table with a ruled head; the first columns to the left, the numbers to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
