"""``slrfast finetune TASK``: a pre-trained encoder and a head, trained for a task and tested."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from slrfast import checks
from slrfast.data import ClipDataset, PreprocessOptions
from slrfast.data.synthetic_sentences import SyntheticSentences
from slrfast.data.wrapped import some
from slrfast.errors import CheckpointError, SlrfastError, one_line
from slrfast.systems import SYSTEMS
from slrfast.tasks.finetuned import TASK, Finetuned
from slrfast.tasks.probe import group_folds, known_groups
from slrfast.train.config import (
    RunError,
    build_system,
    choose_device,
    config_of,
    keypoints_of,
    load_system,
    one_name,
    open_dataset,
    preprocess_options,
    presets,
    read_yaml,
    system_config,
)
from slrfast.train.inputs import with_inputs
from slrfast.train.loop import pretrain
from slrfast.train.options import Parser, TrainingOptions, training_options
from slrfast.train.report import network_size, report_skipped, report_stop, speaker
from slrfast.train.runs import RunFolder, write_json

Say = Callable[[str], None]
Test = Callable[[Any, "Data", RunFolder | None], tuple[dict[str, Any], str]]

SYNTHETIC = "synthetic"
"""The value of --data for made-up clips."""


@dataclass(frozen=True)
class Data:
    """What a task is trained and tested on.

    Attributes:
        train: its clips carry labels, or tokens, as the task needs them.
        test: clips that training never sees.
        extra: what the task's constructor takes besides config and encoder.
        notes: lines for people: how the clips were divided, what was left out.
        settings: what else the test goes by.
        skipped: files that could not be used, and why.
    """

    train: ClipDataset
    test: ClipDataset
    extra: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Task:
    """A task of the command line.

    Attributes:
        kind: the class that is trained; ``kind.task`` names the task, ``kind.Config`` its settings.
        description: what --help says, and in its first sentence what the list of tasks says.
        examples: command lines without "slrfast finetune".
        presets: the names of the config's class methods that are presets; by the encoder's system where one has its
            name, else the first.
        add_options: adds the task's own options and returns their names.
        open_data: from the options' values, the encoder and ``say`` the data.
        direct: answers from the frozen encoder alone: given the options' values, None, or what trains nothing and tests
            as ``test`` does, with the encoder for the model.
        test: tests a model on ``data.test``, writes what it has to show into the folder (None: nowhere), and returns
            JSON values and text for people.
    """

    kind: type[Finetuned]
    description: str
    examples: Sequence[str]
    presets: Sequence[str]
    add_options: Callable[[Parser], list[str]]
    open_data: Callable[[Mapping[str, Any], Any, Say], Data]
    test: Test
    direct: Callable[[Mapping[str, Any]], Test | None] = lambda values: None

    @property
    def name(self) -> str:
        return self.kind.task


def tasks() -> dict[str, Task]:
    """All tasks by name."""
    from slrfast.train import finetune_cslr, finetune_islr, finetune_retrieval, finetune_slt

    return {
        module.TASK.name: module.TASK for module in (finetune_islr, finetune_cslr, finetune_slt, finetune_retrieval)
    }


def finetune_command(argv: Sequence[str]) -> int:
    """Run the finetune command and return its exit code."""
    known = tasks()
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: slrfast finetune TASK [options]\n\ntasks:")
        for name, task in known.items():
            print(f"  {name:12}{task.description.split('.')[0]}")
        print("\nexamples:\n" + "\n".join(f"  slrfast finetune {task.examples[0]}" for task in known.values()))
        return 0 if argv else 2
    name, *rest = argv
    if name not in known:
        raise RunError(f"{name!r} is no task; there are {', '.join(known)}")
    return _finetune(known[name], rest)


def _finetune(task: Task, argv: Sequence[str]) -> int:
    options = _options(task, argv)
    values, say = options.values, speaker(options.json)
    options.check_run()
    encoder = open_encoder(values["encoder"], options.train.seed)
    data = task.open_data(values, encoder, say)
    values["preprocess"] = data.train.options or values["preprocess"]  # a store has its own
    direct = task.direct(values)
    model = encoder if direct else build_task(task.kind, options.config, encoder, data.extra, options.train.seed)

    def start() -> None:
        options.open_run()
        report_skipped(data.skipped, options.run.skipped, say)
        for note in data.notes:
            say(note)
        size = "nothing to train" if direct else network_size(model)
        say(
            f"{options.command}: {len(data.train)} clips to train on, {len(data.test)} to test on, {size}; "
            f"run folder {options.run.path}"
        )

    trained: dict[str, Any] = {}
    if direct:
        start()
        model.to(choose_device(options.train.device))
        tested, text = direct(model, data, options.run)
    else:
        result = pretrain(model, data.train, options.train, options.run, resume=options.resume, on_start=start)
        if result.stopped_by:
            return report_stop(result, options, result.stopped_by)
        trained = dataclasses.asdict(result)
        tested, text = task.test(model, data, options.run)
    results = {
        "run": str(options.run.path),
        **trained,
        "encoder": values["encoder"],
        "train_clips": len(data.train),
        "test_clips": len(data.test),
        **tested,
    }
    write_json(options.run.results, results)
    made = "results.json is" if direct else "results.json and the model are"
    say(f"\n{text}\n\n{made} in {options.run.path}")
    if options.json:
        print(json.dumps(results))
    return 0


def _options(task: Task, argv: Sequence[str]) -> TrainingOptions:
    parser = Parser(f"finetune {task.name}", task.description, [f"finetune {each}" for each in task.examples])
    parser.add_argument(
        "--encoder",
        type=str,
        required=True,
        help="run of slrfast pretrain or finetune; SYSTEM:PRESET, such as stc:small, is the same from scratch",
    )
    parser.add_argument(
        "--data", type=str, required=True, help="folder of pose files, index file, store or 'synthetic'"
    )
    parser.add_argument("--test_data", type=str, help="the same for the test clips (default: --data)")
    parser.add_argument("--train_split", type=str, help="rows of the index file that are trained on")
    parser.add_argument("--test_split", type=str, help="rows of the index file that are tested on")
    own = ["encoder", "data", "test_data", "train_split", "test_split", *task.add_options(parser)]
    parser.add_class_arguments(PreprocessOptions, "preprocess", help="pre-processing of pose files")
    system = _system_of(argv)
    if system:
        parser.set_defaults({"preprocess.layout": keypoints_of(system)})
    return training_options(
        parser,
        argv,
        [*own, "preprocess"],
        command=f"finetune {task.name}",
        name=task.name,
        preset=system if system and system in task.presets else task.presets[0],
        run_prefix=f"runs/{task.name}",
        section="task",
        known={each: getattr(task.kind.Config, each)() for each in task.presets},
    )


def _system_of(argv: Sequence[str]) -> str | None:
    """The system of ``--encoder``, which decides defaults; None where it is not given or of no use."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--encoder", nargs="?")
    found = early.parse_known_args(list(argv))[0].encoder
    try:
        return None if not found else _where(found)[0]
    except SlrfastError:
        return None  # said when the encoder is opened


def _where(encoder: str) -> tuple[str, Path | str]:
    """The system of an ``--encoder``, and its folder or the preset that it is built from."""
    name, colon, preset = encoder.partition(":")
    if colon and name in SYSTEMS and not Path(encoder).exists():
        if preset not in presets(name):
            raise RunError(f"--encoder {encoder}: {name} has the presets {', '.join(presets(name))}")
        return name, preset
    run = RunFolder(encoder)
    if not run.config.is_file():
        raise RunError(f"--encoder {encoder} is neither the folder of a run nor SYSTEM:PRESET such as stc:small")
    if (task := finetuned_for(run)) is None:
        return run.read_config()["name"], run.model
    if not (run.model / TASK).exists():
        raise RunError(f"--encoder {encoder}: this run of finetune {task} has no model")
    system = _read_task(run.model)[1]
    return next(name for name, kind in SYSTEMS.items() if kind is system), run.model / "encoder"


def finetuned_for(run: RunFolder) -> str | None:
    """The task that a run of ``slrfast finetune`` is of; None for other runs."""
    name = read_yaml(run.existing().config).get("name")
    return name if isinstance(name, str) and name in tasks() else None


def _read_task(folder: Path) -> tuple[type[Finetuned], Any, Any, dict[str, Any]]:
    """From task.json the task, the encoder's system, the config, and what else the task is made from."""
    try:
        values = json.loads((folder / TASK).read_text("utf-8"))
        kind = tasks()[values["task"]].kind
        system = next(each for each in SYSTEMS.values() if each.__name__ == values["system"])
        return kind, system, config_of(kind.Config, values["config"]), dict(values["extra"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, StopIteration) as error:
        raise CheckpointError(one_line(f"{folder}: cannot be read as a fine-tuned model ({error})")) from error


def open_encoder(encoder: str, seed: int) -> Any:
    """The system of a run, or SYSTEM:PRESET with weights drawn from the seed.

    Raises:
        RunError: neither of them. CheckpointError: the run's model cannot be read.
    """
    name, where = _where(encoder)
    if isinstance(where, Path):
        return load_system(name, where)
    return build_system(name, system_config(name, where), seed)


def name_of(system: Any) -> str:
    """The name of a system on the command line."""
    return next(name for name, kind in SYSTEMS.items() if isinstance(system, kind))


def build_task(kind: type[Finetuned], config: Any, encoder: Any, extra: Mapping[str, Any], seed: int) -> Finetuned:
    """The task with a freshly drawn head, a function of its arguments alone; RunError when they do not fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return kind(config, encoder, **extra)
        except (TypeError, ValueError) as error:
            raise RunError(str(error)) from error


def load_finetuned(folder: str | Path) -> Finetuned:
    """What ``Finetuned.save_pretrained`` wrote, or a run of ``slrfast finetune`` keeps as ``model``.

    Raises:
        CheckpointError: a file is missing, damaged, or of something else.
    """
    folder = Path(folder)
    if not (folder / TASK).exists() and (folder / "model" / TASK).is_file():
        folder = folder / "model"
    kind, system, config, extra = _read_task(folder)
    encoder = system.from_pretrained(folder / "encoder")
    try:
        model = build_task(kind, config, encoder, extra, 0)
    except RunError as error:
        raise CheckpointError(f"{folder}: cannot be read as a fine-tuned model ({error})") from error
    model.load_head(folder)
    return model


class Clips(NamedTuple):
    """Clips to train on, those to test on where options name them, and the files of both that could not be used."""

    train: ClipDataset
    test: ClipDataset | None
    skipped: list[tuple[str, str]]


def open_clips(values: Mapping[str, Any], system: Any, *, sentences: bool = False) -> Clips:
    """The clips of --data and --train_split, and those of --test_data and --test_split if one of them is given.

    Args:
        values: of the options.
        system: the encoder.
        sentences: whether made-up clips are sentences, not single signs.
    Raises:
        RunError: the clips have another layout than the encoder takes, --test_split without --train_split, or both
            name the same clips.
    """
    name = name_of(system)
    wanted, preprocess = keypoints_of(name), dict(values["preprocess"])
    test_data, train_split, test_split = (values[key] for key in ("test_data", "train_split", "test_split"))
    if not test_data and bool(train_split) != bool(test_split):
        raise RunError("--train_split and --test_split belong together; give both, or none to hold out whole groups")
    if not test_data and train_split and train_split == test_split:
        raise RunError(f"--train_split and --test_split are both {train_split!r}; test on other clips")
    if test_data and train_split == test_split and one_name(test_data) == one_name(values["data"]):
        raise RunError(f"--test_data names the clips of --data, {test_data}; test on other clips, or leave it out")

    def opened(source: str, split: str | None) -> ClipDataset:
        clips: ClipDataset
        if sentences and source == SYNTHETIC:
            clips = SyntheticSentences(120, 6, noise=0.5, variation=0.5, options=preprocess_options(preprocess, wanted))
        else:
            clips = open_dataset(source, split, preprocess, wanted)
        of_these = {**values, "data": source, "split": split, "preprocess": preprocess}
        return with_inputs(name, clips, of_these, system, train=False)

    train = opened(values["data"], train_split)
    test = opened(test_data or values["data"], test_split) if test_data or test_split else None
    return Clips(train, test, [*train.skipped, *(test.skipped if test is not None else ())])


def hold_out(clips: ClipDataset, folds: int) -> tuple[ClipDataset, ClipDataset, str]:
    """All clips but one of so many parts of the groups, that part, and a note on who is in it.

    It is the part whose size is nearest to an equal share. Where no groups are known single clips are held out; where
    there are fewer groups than parts, so many parts.

    Raises:
        RunError: fewer than two folds or clips.
    """
    groups = clips.groups
    parts = known_groups(groups)
    if folds < 2:
        raise RunError(f"--folds must be at least 2, got {folds}")
    if len(clips) < 2:
        raise RunError(f"there is {len(clips)} clip, too few to hold some out for the test")
    count = min(folds, len(set(parts)))
    held = min(group_folds(parts, count), key=lambda fold: abs(count * len(fold) - len(clips)))
    rest = np.setdiff1d(np.arange(len(clips)), held)
    who = some(sorted({parts[i] for i in held} & set(groups)), 8) or "single clips, no groups are known"
    return clips.subset(rest.tolist()), clips.subset(held.tolist()), f"held out for the test: {who}"


def check_count(**counts: int) -> None:
    """RunError unless every count is a positive integer."""
    try:
        checks.integer_between("finetune", 1, 10**9, **counts)
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
