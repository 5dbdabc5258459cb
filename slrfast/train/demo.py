"""``slrfast demo``: pre-train a small system on real fingerspelling and test it on sign languages that it never saw."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import torch

from slrfast.data import ClipDataset
from slrfast.systems import SYSTEMS
from slrfast.train.config import RunError, build_system, choose_device, keypoints_of, open_dataset
from slrfast.train.inputs import TRIAL, with_inputs
from slrfast.train.loop import BatchOrder, pretrain
from slrfast.train.options import Parser, TrainingOptions, training_options
from slrfast.train.pictures import draw_embedding, draw_training
from slrfast.train.report import network_size, report_skipped, report_stop, speaker
from slrfast.train.runs import RunFolder, write_json
from slrfast.train.scoring import Evaluation, Labelled, encode_dataset

DESCRIPTION = """Pre-train a small STC (or another --system) without labels, then recognise signs that no training has
seen the like of: Latin letters of whole sign languages (600 real fingerspelling clips, 19 sign languages), or with
--synthetic the generated signs of whole signers. The same network untrained and chance stand beside it."""
EVALUATION_SECONDS = 40.0
"""Kept free of every round's time for encoding, probes and pictures."""


def demo(argv: Sequence[str]) -> int:
    """Run the demo command and return its exit code."""
    began = time.perf_counter()
    options = _options(argv)
    values, say = options.values, speaker(options.json)
    options.check_run()
    name = values["name"]
    poses = dataset = open_dataset(values["data"], layout=keypoints_of(name))
    kind = "sign languages" if values["data"] == "fingerspelling" else "signers"
    clips = Labelled.of(dataset)
    folds = clips.folds(values["folds"])[: values["rounds"]]
    if not options.resume:
        options = _fit_to_time(options, dataset, len(folds), began)
        options.open_run()
    report_skipped(dataset.skipped, options.run.skipped, say)
    say(f"{len(dataset)} clips, {len(set(dataset.groups))} {kind}; run folder {options.run.path}")

    evaluation = Evaluation(clips)
    rounds = []
    for number, held in enumerate(folds):
        folder = options.run if len(folds) == 1 else RunFolder(options.run.path / f"round-{number + 1}")
        going_on = options.resume and folder.checkpoint.is_file()
        if not going_on and folder is not options.run:
            folder.create(overwrite=True)
        held_groups = {clips.groups[i] for i in held}
        system = build_system(name, options.config, options.train.seed).to(choose_device(options.train.device))
        dataset = with_inputs(name, poses, values | TRIAL.get(name, {}), system)
        seen = dataset.subset(i for i, group in enumerate(dataset.groups) if group not in held_groups)
        say(f"held out entirely: {', '.join(sorted(held_groups))}")
        labels = "with their glosses as texts" if name == "slp" else "without labels"
        say(f"pre-training {network_size(system)} on {len(seen)} clips {labels}, {options.config.epochs} epochs")
        untrained = encode_dataset(system, dataset, clips.index, progress="untrained")
        limit = None
        if values["epochs"] is None:
            left = 60 * values["minutes"] - (time.perf_counter() - began)
            limit = max(left / (len(folds) - number) - EVALUATION_SECONDS, 1.0)
        result = pretrain(system, seen, options.train, folder, resume=going_on, time_limit=limit)
        if result.stopped_by is not None and result.stopped_by != "time":
            return report_stop(result, options, result.stopped_by)
        trained = encode_dataset(system, dataset, clips.index, progress="pre-trained")
        evaluation.add("pre-trained", trained, held, votes=values["votes"])
        evaluation.add("untrained", untrained, held, votes=values["votes"])
        rounds.append({"held_out": sorted(held_groups), "pretraining_clips": len(seen), **dataclasses.asdict(result)})
        draw_training(folder, system, seen)
        maps = {"untrained": untrained, "pre-trained": trained}
        draw_embedding(maps, clips.labels, clips.names, folder.embedding_picture)
    return _report(options, evaluation, rounds, kind, time.perf_counter() - began)


def _options(argv: Sequence[str]) -> TrainingOptions:
    parser = Parser(
        "demo",
        DESCRIPTION,
        [
            "demo",
            "demo --synthetic --minutes 3",
            "demo --system masa --minutes 5",
            "demo --epochs 20 --rounds 4 --run runs/all-languages",
        ],
    )
    name, argv = _system_name(argv)
    prefix = "runs/demo" if name == "stc" else f"runs/demo-{name}"
    parser.add_argument("--synthetic", action="store_true", help="generated signs, which need no extra package")
    parser.add_argument("--data", type=str, default="fingerspelling", help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything; a slow machine gets fewer epochs")
    parser.add_argument("--epochs", type=int, help="this many epochs, whatever the time")
    parser.add_argument("--folds", type=int, default=4, help="parts that the languages (or signers) are divided into")
    parser.add_argument("--rounds", type=int, default=1, help="parts held out in turn, each with its own pre-training")
    parser.add_argument("--votes", type=int, default=10, help="neighbours of kNN")
    own = ("synthetic", "data", "minutes", "epochs", "folds", "rounds", "votes")
    command = "demo" if name == "stc" else f"demo --system {name}"
    options = training_options(parser, argv, own, command=command, name=name, preset="small", run_prefix=prefix)
    values = options.values
    if values.pop("synthetic"):
        values["data"] = "synthetic"
    if values["data"] not in ("fingerspelling", "synthetic"):
        raise RunError(f"the demo's data must be 'fingerspelling' or 'synthetic', got {values['data']!r}")
    if not 2 <= values["folds"] or not 1 <= values["rounds"] <= values["folds"]:
        got = f"got {values['folds']} and {values['rounds']}"
        raise RunError(f"--folds must be at least 2 and --rounds between 1 and --folds, {got}")
    if values["minutes"] <= 0 or (values["epochs"] is not None and values["epochs"] < 1) or values["votes"] < 1:
        raise RunError("--minutes, --epochs and --votes must be positive")
    return options


def _system_name(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The system of ``--system NAME``, which cannot be told from the options ``--system.*`` later, and the rest."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--system", nargs="?")
    early.add_argument("--resume", nargs="?")
    found, rest = early.parse_known_args(list(argv))
    if found.resume:
        rest += ["--resume", found.resume]
    going_on = found.resume and found.system is None
    name = RunFolder(found.resume).existing().read_config()["name"] if going_on else found.system or "stc"
    if name not in SYSTEMS:
        raise RunError(f"--system must be one of {', '.join(SYSTEMS)}, got {name!r}")
    return name, rest


def _fit_to_time(options: TrainingOptions, dataset: ClipDataset, rounds: int, began: float) -> TrainingOptions:
    """The same options with as many epochs as were asked for, or as the time allows on this machine."""
    epochs = options.values["epochs"]
    if epochs is None:
        per_epoch = len(dataset) * (1 - 1 / options.values["folds"]) / options.config.batch_size
        step = _seconds_per_step(options, dataset)
        left = 0.85 * 60 * options.values["minutes"] - (time.perf_counter() - began)
        fitting = int((left / rounds - EVALUATION_SECONDS) / (per_epoch * step))
        epochs = max(1, min(options.config.epochs, fitting))
        if epochs < options.config.epochs:
            speaker(options.json)(
                f"a step takes {step:.2f} s here, so {options.values['minutes']:g} minutes allow {epochs} of "
                f"{options.config.epochs} epochs (--minutes, --epochs)"
            )
    system = shortened(options.config, epochs)
    return dataclasses.replace(options, config=system, values={**options.values, "system": system})


def shortened(config: Any, epochs: int) -> Any:
    """A system's config with another number of epochs and all that it counts in epochs moved along."""
    share = epochs / config.epochs
    changes: dict[str, Any] = {}
    if hasattr(config, "milestones"):
        changes["milestones"] = tuple(max(1, round(m * share)) for m in config.milestones)
    changes |= {name: getattr(config, name) * share for name in ("warmup", "semantic_ramp") if hasattr(config, name)}
    return dataclasses.replace(config, epochs=epochs, **changes)


def _seconds_per_step(options: TrainingOptions, dataset: ClipDataset, steps: int = 3) -> float:
    """Measured on a scratch copy of the network, after one step that warms up."""
    device = choose_device(options.train.device)
    name = options.values["name"]
    system = build_system(name, options.config, options.train.seed).to(device)
    dataset = with_inputs(name, dataset, options.values | TRIAL.get(name, {}), system)
    optimizer = system.optimizer()
    size = options.config.batch_size
    if len(dataset) < size:
        raise RunError(f"the demo has {len(dataset)} clips, fewer than one batch of {size}; lower --system.batch_size")
    start = 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number, indices in enumerate(BatchOrder(size, size, 0, 0, steps + 1)):
            if number == 1:
                start = time.perf_counter()
            loss = system.training_step(dataset.batch(indices).to(device))["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            system.update_after_step()
            float(loss.detach())  # waits for the device
    return (time.perf_counter() - start) / steps


def _report(
    options: TrainingOptions, evaluation: Evaluation, rounds: list[dict[str, Any]], kind: str, seconds: float
) -> int:
    clips = evaluation.clips
    tested = evaluation.rows()[0]["clips"]
    training = sum(part["seconds"] for part in rounds)
    results = {
        "run": str(options.run.path),
        "data": options.values["data"],
        "protocol": f"whole {kind} held out from pre-training and from both classifiers",
        "classes": len(clips.names),
        "labelled_clips": len(clips.labels),
        "test_clips": tested,
        "rounds": rounds,
        "rows": evaluation.rows(),
        "standard_error": evaluation.standard_error(),
        "choices": evaluation.choices,
        "pretraining_seconds": round(training, 1),
        "seconds": round(seconds, 1),
    }
    write_json(options.run.results, results)
    say = speaker(options.json)
    early = [part for part in rounds if part["stopped_by"] == "time"]
    held = sorted({name for part in rounds for name in part["held_out"]})
    say(
        f"\n{tested} test clips of {len(clips.names)} classes in {len(held)} held-out {kind} ({', '.join(held)}):\n"
        f"neither pre-training nor the classifiers, which learn from the other {kind}, saw any clip of those\n"
        "that they are tested on.\n"
    )
    say(evaluation.table())
    say(f"\nAccuracies in percent; one standard error of the best top-1 is {100 * results['standard_error']:.1f}.")
    if early:
        say(f"The time ran out: pre-training stopped after {early[0]['step']} of {early[0]['steps']} steps.")
    say(f"Pre-training took {training / 60:.1f} min, everything {seconds / 60:.1f} min.")
    say(f"Run folder with numbers and pictures: {options.run.path}")
    if options.json:
        print(json.dumps(results))
    return 0
