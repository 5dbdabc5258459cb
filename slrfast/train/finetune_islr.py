"""``slrfast finetune islr``: isolated sign recognition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from slrfast.data import ClipDataset
from slrfast.tasks import recognition_metrics
from slrfast.tasks.recognition import Recognizer
from slrfast.train.config import RunError
from slrfast.train.finetune import Data, Say, Task, check_count, open_clips
from slrfast.train.loading import load_batches
from slrfast.train.options import Parser
from slrfast.train.runs import RunFolder
from slrfast.train.scoring import COLUMNS, Labelled, aligned


def _add_options(parser: Parser) -> list[str]:
    parser.add_argument("--labels", type=float, default=1.0, help="share of the training labels that is used")
    parser.add_argument("--folds", type=int, default=4, help="without test clips: one of so many parts of the signers")
    return ["labels", "folds"]


def open_data(values: Mapping[str, Any], system: Any, say: Say) -> Data:
    """Labelled clips to train and test on: by split, by file, or with whole groups held out."""
    train, test = open_clips(values, system)
    notes = []
    if test is None:
        check_count(folds=values["folds"])
        if values["folds"] < 2:
            raise RunError(f"--folds must be at least 2, got {values['folds']}")
        clips = Labelled.of(train)
        held = clips.folds(values["folds"])[0]
        names = sorted({clips.groups[i] for i in held}) if clips.grouped else ["single clips, no groups are known"]
        notes.append(f"held out for the test: {', '.join(names)}")
        test = train.subset(clips.index[held])
        train = train.subset(np.setdiff1d(clips.index, clips.index[held]))
    train, test, more = same_classes(train, test)
    notes += more
    if values["labels"] != 1:
        train = share_of_labels(train, values["labels"], values["train"].seed)
        notes.append(f"{100 * values['labels']:g} % of the labels: {len(train)} clips")
    return Data(train, test, {"class_names": list(train.class_names)}, notes)


def same_classes(train: ClipDataset, test: ClipDataset) -> tuple[ClipDataset, ClipDataset, list[str]]:
    """The labelled clips of both, with the labels of ``train``; RunError for a class that training does not have."""
    kept = [data.subset(i for i, label in enumerate(data.labels) if label >= 0) for data in (train, test)]
    for data, what in zip(kept, ("training", "test"), strict=True):
        if not len(data):
            raise RunError(f"no {what} clip has a label")
    train, test = kept
    if test.class_names != train.class_names:
        number = {name: i for i, name in enumerate(train.class_names)}
        found = {test.class_names[label] for label in test.labels}
        if unknown := sorted(found - number.keys()):
            raise RunError(f"{len(unknown)} classes of the test clips are none of training's, such as {unknown[0]!r}")
        test = relabelled(test, [number.get(name, -1) for name in test.class_names], train.class_names)
    trained = set(train.labels)
    notes = []
    if never := sorted(set(test.labels) - trained):
        some = train.class_names[never[0]]
        notes.append(f"{len(never)} of the tested classes have no training clip, such as {some!r}")
    return train, test, notes


def relabelled(data: ClipDataset, label: list[int], class_names: list[str]) -> ClipDataset:
    """The same clips with other labels: ``label[i]`` for i."""
    made = ClipDataset([replace(data[i], label=label[data[i].label]) for i in range(len(data))], class_names)
    made.options = data.options
    return made


def share_of_labels(data: ClipDataset, share: float, seed: int) -> ClipDataset:
    """A random share of every class's clips, at least one of each."""
    if not 0 < share <= 1:
        raise RunError(f"--labels must be in (0, 1], got {share}")
    labels, draw = np.array(data.labels), np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        clips = np.flatnonzero(labels == label)
        chosen += draw.permutation(clips)[: max(1, round(share * len(clips)))].tolist()
    return data.subset(sorted(chosen))


def _test(model: Recognizer, data: Data, folder: RunFolder | None) -> tuple[dict[str, Any], str]:
    device = next(model.parameters()).device
    size = model.config.batch_size
    order = [list(range(i, min(i + size, len(data.test)))) for i in range(0, len(data.test), size)]
    scores = model.scores(batch.to(device) for batch in load_batches(data.test, order))
    labels = torch.tensor(data.test.labels)
    metrics = recognition_metrics(scores, labels)
    cells = [["", *COLUMNS.values()], ["per cent", *(f"{100 * metrics[key]:.1f}" for key in COLUMNS)]]
    return {"metrics": metrics, "classes": len(model.class_names)}, aligned(cells, text_columns=1)


TASK = Task(
    Recognizer,
    "Recognise isolated signs. Fine-tunes the encoder of a run with a linear classifier for every stream; with\n"
    "--preset linear only the classifier is trained.",
    [
        "islr --encoder runs/first --data labelled/ --run runs/signs",
        "islr --encoder runs/first --data index.csv --train_split train --test_split test --preset linear",
        "islr --encoder stc:small --data synthetic --task.epochs 5",
    ],
    ("stc", "stc_code", "linear", "masa", "slp"),
    _add_options,
    open_data,
    _test,
)
