"""``slrfast finetune islr``: isolated sign recognition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slrfast.data import ClipDataset
from slrfast.data.isolated_presets import PRESETS, open_preset
from slrfast.data.isolated_split import split_dataset
from slrfast.data.wrapped import WrappedDataset
from slrfast.tasks import knn_scores, linear_probe_scores, recognition_metrics
from slrfast.tasks.confusion import (
    class_table,
    confusing_metrics,
    confusion_matrix,
    untested,
    write_class_table,
    write_confusions,
)
from slrfast.tasks.fusion import late_fusion
from slrfast.tasks.recognition import Recognizer
from slrfast.tasks.score_files import ScoreFileError, Scores, read_scores, write_scores
from slrfast.train.config import RunError
from slrfast.train.confusion_picture import draw_confusion
from slrfast.train.finetune import Data, Say, Task, Test, check_count, hold_out, open_clips
from slrfast.train.inputs import OPTIONS
from slrfast.train.options import Parser
from slrfast.train.runs import RunFolder
from slrfast.train.scoring import COLUMNS, Labelled, aligned, encode_dataset, in_batches

CLASSIFIERS = ("trained", "probe", "knn")


def _add_options(parser: Parser) -> list[str]:
    parser.add_argument("--dataset", type=str, help=f"whose split files --lists names: {', '.join(PRESETS)}")
    parser.add_argument("--lists", type=str, help="folder of the data set's split files")
    parser.add_argument("--class_list", type=str, help="class names, where the split files have none")
    parser.add_argument("--videos", type=str, help=f"of an encoder that sees pictures: {OPTIONS['ccl']['videos']}")
    parser.add_argument("--labels", type=float, default=1.0, help="share of the training labels that is used")
    parser.add_argument("--folds", type=int, default=4, help="without test clips: one of so many parts of the signers")
    parser.add_argument(
        "--classifier", type=str, default="trained", help="trained; or of frozen features: probe (logistic), knn"
    )
    parser.add_argument("--votes", type=int, default=10, help="neighbours of knn")
    parser.add_argument("--fuse", type=list[str], default=[], help="score files of other models, added to ours")
    parser.add_argument("--fuse_weights", type=list[float], default=[], help="of ours, then of each of --fuse")
    own = ["dataset", "lists", "class_list", "videos", "labels", "folds", "classifier", "votes"]
    return [*own, "fuse", "fuse_weights"]


def open_data(values: Mapping[str, Any], system: Any, say: Say) -> Data:
    """Labelled clips to train and test on: by split files, by split, by file, or with whole groups held out."""
    if values["classifier"] not in CLASSIFIERS:
        raise RunError(f"--classifier must be one of {', '.join(CLASSIFIERS)}, got {values['classifier']!r}")
    check_count(folds=values["folds"], votes=values["votes"])
    _check_streams(values, system)
    if values["fuse_weights"] and not values["fuse"]:
        raise RunError("--fuse_weights weighs the score files of --fuse, and there are none")
    other = [read_scores(path) for path in values["fuse"]]  # before hours of training
    train, test, skipped = open_clips(values, system)
    notes: list[str] = []
    if values["dataset"] or values["lists"]:
        train, test, notes = _listed(values, train, test)
    elif test is None:
        train, test, note = hold_out(train.subset(Labelled.of(train).index), values["folds"])
        notes.append(note)
    train, test, more = same_classes(train, test)
    notes += more
    if values["labels"] != 1:
        train = share_of_labels(train, values["labels"], values["train"].seed)
        notes.append(f"{100 * values['labels']:g} % of the labels: {len(train)} clips")
    settings = {"fuse": other, "fuse_weights": values["fuse_weights"] or None, "votes": values["votes"]}
    ours = _scores(test, torch.zeros(len(test), len(train.class_names)), train.class_names)  # refuses equal names
    if other:
        try:
            late_fusion([ours, *other], weights=settings["fuse_weights"])
        except ScoreFileError:
            raise
        except ValueError as error:
            raise RunError(str(error)) from error
    settings["confusing"] = PRESETS[values["dataset"]].confusing if values["dataset"] else ()
    return Data(train, test, {"class_names": list(train.class_names)}, notes, settings, skipped)


def _check_streams(values: Mapping[str, Any], system: Any) -> None:
    """RunError where the encoder lacks the pictures that it would see, or streams are chosen that are not looked at."""
    task, trained = values["task"], values["classifier"] == "trained"
    if not trained and (task.streams or task.parts):
        raise RunError(
            f"--classifier {values['classifier']} reads all streams; leave out --task.streams and --task.parts"
        )
    sees = getattr(system.config, "modalities", ())
    if values["videos"] and "rgb" not in sees:
        raise RunError("--videos: this encoder sees poses alone")
    if "rgb" in (task.streams or sees) and "rgb" in sees and not values["videos"] and (trained or "pose" not in sees):
        hint = "; or --task.streams [pose]" if "pose" in sees else ""
        raise RunError(f"--videos must name the folder of the clips' videos, or 'rendered'{hint}")


def _listed(
    values: Mapping[str, Any], clips: ClipDataset, test: ClipDataset | None
) -> tuple[ClipDataset, ClipDataset, list[str]]:
    if not (values["dataset"] and values["lists"]):
        raise RunError("--dataset and --lists belong together: the name of the data set and where its split files are")
    if values["dataset"] not in PRESETS:
        raise RunError(f"--dataset must be one of {', '.join(PRESETS)}, got {values['dataset']!r}")
    if test is not None:
        raise RunError(
            "--lists says which clips are for the test; leave out --test_data, --train_split and --test_split"
        )
    preset = PRESETS[values["dataset"]]
    listing = open_preset(preset.name, values["lists"], class_list=values["class_list"])
    split = split_dataset(clips, listing, subset=preset.classes, train=preset.train, val=(), test=preset.test)
    return split.train, split.test, [*split.train.notes]


def same_classes(train: ClipDataset, test: ClipDataset) -> tuple[ClipDataset, ClipDataset, list[str]]:
    """The labelled clips of both, with the labels of ``train``.

    Raises:
        RunError: as :func:`with_labels_of`, or the training clips are of one class.
    """
    train = _labelled(train, "training")
    if len(set(train.labels)) < 2:
        raise RunError(f"all training clips are of one class, {train.class_names[train.labels[0]]!r}; give others too")
    test = with_labels_of(train.class_names, test)
    notes = []
    if never := sorted(set(test.labels) - set(train.labels)):
        some = train.class_names[never[0]]
        notes.append(f"{len(never)} of the tested classes have no training clip, such as {some!r}")
    return train, test, notes


def with_labels_of(class_names: Sequence[str], test: ClipDataset) -> ClipDataset:
    """The labelled clips of ``test``, with labels as in ``class_names``; RunError for none, or for another class."""
    test = _labelled(test, "test")
    if list(test.class_names) == list(class_names):
        return test
    number = {name: i for i, name in enumerate(class_names)}
    if unknown := sorted({test.class_names[label] for label in test.labels} - number.keys()):
        raise RunError(f"{len(unknown)} classes of the test clips are none of training's, such as {unknown[0]!r}")
    return Relabelled(test, [number.get(name, -1) for name in test.class_names], class_names)


def _labelled(data: ClipDataset, what: str) -> ClipDataset:
    kept = data.subset(i for i, label in enumerate(data.labels) if label >= 0)
    if not len(kept):
        raise RunError(f"no {what} clip has a label")
    return kept


class Relabelled(WrappedDataset):
    """The same clips with ``label[i]`` for the label i."""

    def __init__(self, dataset: ClipDataset, label: Sequence[int], class_names: Sequence[str]) -> None:
        super().__init__(dataset)
        self._labels, self.class_names = [label[old] for old in dataset.labels], list(class_names)

    @property
    def labels(self) -> list[int]:
        """One label per clip."""
        return self._labels

    def added(self, index: int) -> dict[str, Any]:
        return {"label": self._labels[index]}

    def added_to_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        return {"label": torch.tensor([self._labels[i] for i in indices])}

    def _select(self, indices: Sequence[int]) -> None:
        self._labels = [self._labels[i] for i in indices]


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
    return judge(model.scores(in_batches(model, data.test)), data, folder)


def _direct(values: Mapping[str, Any]) -> Test | None:
    kind = values["classifier"]
    return None if kind == "trained" else partial(_frozen, kind)


def _frozen(kind: str, system: Any, data: Data, folder: RunFolder | None) -> tuple[dict[str, Any], str]:
    """A classifier on frozen features, which has nothing to train by gradient descent."""
    train, test = (encode_dataset(system, part, progress="embedding") for part in (data.train, data.test))
    labels, classes = torch.tensor(data.train.labels), len(data.train.class_names)
    choice: dict[str, Any]
    if kind == "knn":
        choice = {"votes": min(data.settings["votes"], len(train))}
        scores = knn_scores(train, labels, test, classes, k=choice["votes"])
    else:
        scores, l2 = linear_probe_scores(train, labels, data.train.groups, test, classes)
        choice = {"l2": l2}
    results, text = judge(scores, data, folder)
    return {"classifier": kind, **choice, **results}, text


def judge(scores: Tensor, data: Data, folder: RunFolder | None) -> tuple[dict[str, Any], str]:
    """Metrics of the test clips' scores [N, C], alone and fused with other models'; files and a picture of them."""
    names, labels = data.extra["class_names"], torch.tensor(data.test.labels)
    own = _scores(data.test, scores, names)
    parts = {"": own}
    if data.settings["fuse"]:
        fused = late_fusion([own, *data.settings["fuse"]], weights=data.settings["fuse_weights"])
        parts = {"ours": own, "fused": fused}
    metrics = {name: recognition_metrics(part.values, labels) for name, part in parts.items()}
    cells = [["", *COLUMNS.values()]]
    cells += [[name, *(f"{100 * found[key]:.1f}" for key in COLUMNS)] for name, found in metrics.items()]
    text = [aligned(cells, text_columns=1), "", "Accuracies in percent."]
    last = list(parts)[-1]
    best = parts[last].values
    results: dict[str, Any] = {"metrics": metrics[last], "classes": len(names)}
    if len(parts) > 1:
        results["alone"] = metrics["ours"]
    if missing := untested(labels, len(names)):
        results["classes_without_test_clip"] = [names[i] for i in missing]
        text.append(
            f"{len(missing)} classes have no test clip and do not count per class, such as {names[missing[0]]!r}."
        )
    if data.settings["confusing"]:
        results["confusing"] = groups = confusing_metrics(best, labels, data.settings["confusing"])
        rows = [
            [name, *("-" if value is None else f"{100 * value:.1f}" for k, value in group.items() if k != "clips")]
            for name, group in groups.items()
        ]
        text += ["", aligned([["", "top-1", "top-2", "top-5"], *rows], text_columns=1)]
    if folder is not None:
        matrix = confusion_matrix(best, labels)
        write_scores(folder.scores, own)
        write_class_table(folder.classes, class_table(best, labels, names), names)
        write_confusions(folder.confusions, matrix, names)
        draw_confusion(matrix, names, folder.confusion_picture)
        text.append(f"scores.npz, classes.csv, confusions.csv and confusion.png are in {folder.path}")
    return results, "\n".join(text)


def _scores(clips: ClipDataset, values: Tensor, class_names: Sequence[str]) -> Scores:
    return Scores.of(clips.names, values, class_names if len(set(class_names)) == len(class_names) else ())


TASK = Task(
    Recognizer,
    "Recognise isolated signs. Fine-tunes the encoder of a run with a linear classifier for every stream; with\n"
    "--preset linear only the classifier is trained, --classifier probe and knn train nothing by gradient descent.",
    [
        "islr --encoder runs/first --data labelled/ --run runs/signs",
        "islr --encoder runs/first --data poses/ --dataset wlasl100 --lists wlasl/",
        "islr --encoder runs/first --data index.csv --train_split train --test_split test --preset linear",
        "islr --encoder runs/first --data labelled/ --labels 0.2 --fuse [i3d-scores.npz]",
        "islr --encoder stc:small --data synthetic --task.epochs 5",
    ],
    ("stc", "stc_code", "linear", "masa", "ccl", "slp"),
    _add_options,
    open_data,
    _test,
    _direct,
)
