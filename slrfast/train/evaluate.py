"""``slrfast evaluate``: a pre-trained network next to the same network untrained and to chance, on held-out groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slrfast import checks
from slrfast.train.config import (
    RunError,
    build_system,
    choose_device,
    keypoints_of,
    load_system,
    open_dataset,
    system_config,
)
from slrfast.train.demo import INPUTS
from slrfast.train.inputs import with_inputs
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
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Any], str]:
    """Evaluate a run's saved model; evaluation.json and evaluation.png go into the run folder.

    Args:
        run: run folder of ``slrfast pretrain`` or ``slrfast demo``.
        data: labelled clips as for ``--data``; None takes the data that the run was pre-trained on.
        split: rows of an index file; None takes the run's own split with the run's own data, else all rows.
        folds: the groups are divided into so many parts, each held out once.
        votes: neighbours of kNN.
        device: "auto", "cpu", "cuda" or "cuda:1".
        say: told about skipped files.
    Returns:
        What evaluation.json holds, and the same as text for people.
    Raises:
        RunError: not a run folder, no labels, folds < 2 or votes < 1.
    """
    try:
        checks.integer_between("evaluate", 2, 10**6, folds=folds)
        checks.integer_between("evaluate", 1, 10**6, votes=votes)
    except ValueError as error:
        raise RunError(str(error)) from error
    folder = RunFolder(run)
    config = folder.read_config()
    name, trained_on = config["name"], config.get("data")
    source = data or trained_on
    if source is None:
        raise RunError(f"{folder.path} does not say what it was pre-trained on; give --data")
    target = choose_device(device)
    networks = {
        "pre-trained": load_system(name, folder.model).to(target),
        "untrained": build_system(name, system_config(name, config["system"]), config["train"]["seed"]).to(target),
    }
    same = trained_on is not None and _one_name(source) == _one_name(trained_on)
    split = split or (config.get("split") if same else None)
    dataset = open_dataset(source, split, config.get("preprocess"), keypoints_of(name))
    if same:  # of other clips there are poses alone
        inputs = {**INPUTS.get(name, {}), **config, "data": source, "split": split}  # a demo's config names none
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
        "pretraining_saw_these_clips_unlabelled": same and split == config.get("split"),
        "rows": evaluation.rows(),
        "standard_error": evaluation.standard_error(),
        "choices": evaluation.choices,
    }
    write_json(folder.evaluation, results)
    draw_embedding(features, clips.labels, clips.names, folder.evaluation_picture)
    return results, _text(results, evaluation, folder)


def _one_name(source: str) -> str:
    """One name for one source of clips, however its path is written."""
    return str(Path(source).resolve()) if Path(source).exists() else source


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
