"""``slrfast evaluate``: a pre-trained network next to the same network untrained and to chance, on held-out groups.

A run of ``slrfast finetune islr`` is tested as it is, on other clips.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slrfast import checks
from slrfast.data.isolated_presets import PRESETS
from slrfast.tasks.finetuned import TASK
from slrfast.train.config import (
    RunError,
    build_system,
    choose_device,
    keypoints_of,
    load_system,
    one_name,
    open_dataset,
    read_yaml,
    sized,
    system_config,
)
from slrfast.train.finetune import Data, finetuned_for, load_finetuned, name_of
from slrfast.train.finetune_islr import TASK as ISLR
from slrfast.train.finetune_islr import with_labels_of
from slrfast.train.inputs import TRIAL, with_inputs
from slrfast.train.pictures import draw_embedding
from slrfast.train.report import report_skipped
from slrfast.train.runs import RunFolder, write_json
from slrfast.train.scoring import Evaluation, Labelled, encode_dataset


def evaluate_run(
    run: str | Path,
    data: str | None = None,
    split: str | None = None,
    *,
    folds: int = 4,
    votes: int = 10,
    device: str = "auto",
    size: tuple[int, int] | None = None,
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Any], str]:
    """Evaluate a run's saved model; evaluation.json and, of pre-training, evaluation.png go into the run folder.

    Args:
        run: run folder of ``slrfast pretrain``, ``slrfast demo`` or ``slrfast finetune islr``.
        data: labelled clips as for ``--data``; None takes the data that the run was pre-trained on.
        split: rows of an index file; None takes the run's own split with the run's own data, else all rows.
        folds: the groups are divided into so many parts, each held out once.
        votes: neighbours of kNN.
        device: "auto", "cpu", "cuda" or "cuda:1".
        size: width and height of the images, for pose files that do not say; None is that of the run.
        say: told about skipped files.
    Returns:
        What evaluation.json holds, and the same as text for people.
    Raises:
        RunError: not a run folder, or of another task; no labels, folds < 2 or votes < 1. CheckpointError: the model is
            damaged.
    """
    try:
        checks.integer_between("evaluate", 2, 10**6, folds=folds)
        checks.integer_between("evaluate", 1, 10**6, votes=votes)
    except ValueError as error:
        raise RunError(str(error)) from error
    folder = RunFolder(run)
    if (task := finetuned_for(folder)) is not None:
        return _test_finetuned(folder, task, data, split, device, size, say)
    config = folder.read_config()
    name, trained_on = config["name"], config.get("data")
    config = sized(config, size, name)
    source = data or trained_on
    if source is None:
        raise RunError(f"{folder.path} does not say what it was pre-trained on; give --data")
    target = choose_device(device)
    networks = {
        "pre-trained": load_system(name, folder.model).to(target),
        "untrained": build_system(name, system_config(name, config["system"]), config["train"]["seed"]).to(target),
    }
    same = trained_on is not None and one_name(source) == one_name(trained_on)
    split = split or (config.get("split") if same else None)
    dataset = open_dataset(source, split, config.get("preprocess"), keypoints_of(name))
    if same:  # of other clips there are poses alone
        inputs = {**TRIAL.get(name, {}), **config, "data": source, "split": split}  # a demo's config names none
        dataset = with_inputs(name, dataset, inputs, networks["pre-trained"], train=False)
    report_skipped(dataset.skipped, folder.evaluation_skipped, say)
    clips = Labelled.of(dataset)
    features = {key: encode_dataset(system, dataset, clips.index, progress=key) for key, system in networks.items()}
    evaluation = Evaluation(clips)
    held_out = clips.folds(folds)
    for key, values in features.items():
        for held in held_out:
            evaluation.add(key, values, held, votes=votes)
    results = {
        "run": str(folder.path),
        "data": source,
        "split": split,
        "clips": len(clips.labels),
        "classes": len(clips.names),
        "groups": len(set(clips.groups)),
        "held_out": "groups" if clips.grouped else "clips",
        "folds": len(held_out),
        "pretraining_saw_these_clips_unlabelled": same and config.get("split") in (None, split),
        "rows": evaluation.rows(),
        "standard_error": evaluation.standard_error(),
        "choices": evaluation.choices,
    }
    write_json(folder.evaluation, results)
    draw_embedding(features, clips.labels, clips.names, folder.evaluation_picture)
    return results, _text(results, evaluation, folder)


def _test_finetuned(
    folder: RunFolder,
    task: str,
    source: str | None,
    split: str | None,
    device: str,
    size: tuple[int, int] | None,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], str]:
    """Test the model of a run of ``finetune islr`` on labelled clips, whose classes are found by their names."""
    if task != ISLR.name:
        raise RunError(f"{folder.path}: evaluate tests pre-training and finetune {ISLR.name}, this is finetune {task}")
    if not (folder.model / TASK).exists():
        raise RunError(f"{folder.path}: this run of finetune {task} has no model")
    if not source:
        raise RunError(f"{folder.path}: --data is needed to test a fine-tuned model: labelled clips")
    config, model = read_yaml(folder.config), load_finetuned(folder.model).to(choose_device(device))
    name, trained_on, class_names = name_of(model.encoder), config.get("data"), model.extra()["class_names"]
    config = sized(config, size, name)
    clips = open_dataset(source, split, config.get("preprocess"), keypoints_of(name))
    clips = with_inputs(name, clips, {**config, "data": source, "split": split}, model.encoder, train=False)
    report_skipped(clips.skipped, folder.evaluation_skipped, say)
    test = with_labels_of(class_names, clips)
    preset = PRESETS.get(config.get("dataset") or "")
    settings = {"fuse": [], "confusing": preset.confusing if preset else ()}
    found, text = ISLR.test(model, Data(test, test, model.extra(), settings=settings), None)
    same = isinstance(trained_on, str) and one_name(source) == one_name(trained_on)
    saw = same and (split is None or config.get("train_split") in (None, split))
    results = {"run": str(folder.path), "data": source, "split": split, "clips": len(test), **found}
    results["training_may_have_seen_these_clips"] = saw
    write_json(folder.evaluation, results)
    lines = [f"{len(test)} clips of {len(class_names)} classes", "", text, ""]
    lines += ["The run was trained on clips of this data, so that this may be no test."] if saw else []
    return results, "\n".join([*lines, f"evaluation.json is in {folder.path}"])


def _text(results: dict[str, Any], evaluation: Evaluation, folder: RunFolder) -> str:
    unit = f"{results['groups']} groups" if results["held_out"] == "groups" else "single clips (no groups are known)"
    saw = (
        "Pre-training drew on the same clips without labels, held-out groups included."
        if results["pretraining_saw_these_clips_unlabelled"]
        else "Pre-training used other data."
    )
    return "\n".join(
        [
            f"{results['clips']} clips of {results['classes']} classes; {results['folds']} folds over {unit}, "
            "each held out once from both classifiers. " + saw,
            "",
            evaluation.table(),
            "",
            f"Accuracies in percent; one standard error of the best top-1 is {100 * results['standard_error']:.1f}.",
            f"evaluation.json and evaluation.png are in {folder.path}",
        ]
    )
