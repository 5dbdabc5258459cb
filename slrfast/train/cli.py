"""The ``slrfast`` command.

Exit codes: 0 done; 1 unexpected error, with its traceback; 2 wrong input, in one sentence; 3 training diverged;
130 and 143 stopped by Ctrl-C or SIGTERM after saving.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence

import torch

import slrfast
from slrfast.data import PreprocessOptions
from slrfast.errors import SlrfastError
from slrfast.systems import SYSTEMS
from slrfast.train import info
from slrfast.train.bench import bench_command
from slrfast.train.config import build_system, keypoints_of, open_dataset
from slrfast.train.demo import demo
from slrfast.train.embed import embed_command
from slrfast.train.evaluate import evaluate_run
from slrfast.train.extract import extract
from slrfast.train.finetune import finetune_command
from slrfast.train.fit_flow import fit_flow_command
from slrfast.train.inputs import EXAMPLES, add_options, with_inputs
from slrfast.train.loop import TrainingDiverged, pretrain
from slrfast.train.options import Parser, TrainingOptions, training_options
from slrfast.train.pack import pack_command
from slrfast.train.pictures import draw_embedding, draw_training, spread
from slrfast.train.report import STOPPED, network_size, one_line, report_skipped, report_stop, speaker
from slrfast.train.runs import write_json
from slrfast.train.scoring import encode_dataset
from slrfast.train.search import search_command
from slrfast.train.view import view

USAGE = """usage: slrfast COMMAND [options]

commands:
  demo             pre-train a small STC and evaluate it on held-out sign languages, in minutes
  pretrain SYSTEM  pre-train a system on pose files
  evaluate         kNN and linear probe of a pre-trained run on held-out signers; a fine-tuned run on other clips
  finetune TASK    train a pre-trained encoder for a task, and test it: islr, cslr, slt, retrieval
  embed            features of clips or of their frames, in a NumPy file
  search           find clips by a text, or texts by a pose file
  extract VIDEO... poses of videos, by rtmlib, MMPose or MediaPipe
  fit-flow VIDEO...
                   the flow that CCL-SLR's motion masks are made with
  pack SOURCE OUT  pose files, cut out and normalised once, in one memory-mapped store
  view FILE        a picture or an animation of a pose file
  bench SYSTEM...  a training step on this machine: what every operation takes, and what it takes in plain PyTorch
  info             versions, instruction set, CUDA and the backend of every operation

examples:
  slrfast demo --synthetic
  slrfast pretrain stc --data poses/ --run runs/first
  slrfast pretrain masa --data poses/ --run runs/second
  slrfast evaluate --run runs/first --data labelled/

Every command explains itself: slrfast COMMAND --help"""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that this terminal cannot show
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments == ["--version"]:
        print(f"slrfast {slrfast.__version__}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "demo": demo,
        "pretrain": pretrain_command,
        "evaluate": evaluate_command,
        "bench": bench_command,
        "embed": embed_command,
        "extract": extract,
        "finetune": finetune_command,
        "fit-flow": fit_flow_command,
        "info": info.main,
        "pack": pack_command,
        "search": search_command,
        "view": view,
    }
    command, *rest = arguments
    try:
        if command not in commands:
            return _complain(f"{command!r} is no command; there are {', '.join(commands)}")
        if command != "info" and (wrong := info.wrong_setting()):  # info shows it beside all else
            return _complain(wrong)
        return commands[command](rest)
    except SystemExit as stop:  # --help and --print_config
        return int(stop.code or 0)
    except KeyboardInterrupt:
        _complain("interrupted")
        return STOPPED["SIGINT"]
    except TrainingDiverged as error:
        _complain(str(error))
        return 3
    except SlrfastError as error:
        return _complain(str(error))
    except BrokenPipeError:  # the reader of stdout went away, as `head` does
        if sys.__stdout__ is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return STOPPED["SIGPIPE"]
    except OSError as error:
        if error.errno in _DISK_FULL:
            return _complain(f"{error.filename or 'a file'}: cannot be written ({error.strerror})")
        if error.filename is None:
            raise
        return _complain(f"{error.filename}: cannot be used ({error.strerror})")


def pretrain_command(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: slrfast pretrain SYSTEM [options]\n\nsystems: {', '.join(SYSTEMS)}")
        print("\nexamples:\n  slrfast pretrain stc --help\n  slrfast pretrain stc --data synthetic --preset small")
        return 0 if argv else 2
    name, *rest = argv
    if name not in SYSTEMS:
        return _complain(f"{name!r} is no system; there are {', '.join(SYSTEMS)}")
    inputs, trial = EXAMPLES.get(name, ("", ""))
    parser = Parser(
        f"pretrain {name}",
        f"Pre-train {name} on unlabelled poses. Ctrl-C saves and says how to go on.",
        [
            f"pretrain {name} --data poses/{inputs} --run runs/first",
            f"pretrain {name} --data synthetic{trial} --preset small --system.epochs 5",
            f"pretrain {name} --config runs/first/config.yaml --run runs/second --system.learning_rate 0.02",
            f"pretrain {name} --resume runs/first",
        ],
    )
    parser.add_argument(
        "--data",
        type=str,
        required=True,
        help="folder of pose files, index file, store, 'synthetic' or 'fingerspelling'",
    )
    parser.add_argument("--split", type=str, help="rows of the index file with this split")
    parser.add_class_arguments(PreprocessOptions, "preprocess", help="pre-processing of pose files")
    parser.set_defaults({"preprocess.layout": keypoints_of(name)})
    options = training_options(
        parser,
        rest,
        ["data", "split", "preprocess", *add_options(parser, name)],
        command=f"pretrain {name}",
        name=name,
        preset="paper",
        run_prefix=f"runs/{name}",
    )
    return _pretrain(options)


def _pretrain(options: TrainingOptions) -> int:
    say = speaker(options.json)
    options.check_run()
    values = options.values
    name, preprocess = values["name"], values["preprocess"].as_dict()
    poses = open_dataset(values["data"], values["split"], preprocess, keypoints_of(name))
    system = build_system(name, options.config, options.train.seed)
    dataset = with_inputs(name, poses, {**values, "preprocess": preprocess}, system, say=say)
    values["preprocess"] = poses.options or preprocess  # a store has its own, which other clips are to be cut by

    def start() -> None:
        options.open_run()
        report_skipped(dataset.skipped, options.run.skipped, say)
        say(f"{options.command}: {len(dataset)} clips, {network_size(system)}; run folder {options.run.path}")

    result = pretrain(system, dataset, options.train, options.run, resume=options.resume, on_start=start)
    if result.stopped_by:
        return report_stop(result, options, result.stopped_by)
    metrics = options.run.read_metrics()
    results = {
        "run": str(options.run.path),
        **dataclasses.asdict(result),
        "clips": len(dataset),
        "skipped_files": len(dataset.skipped),
        "last": metrics[-1] if metrics else None,
    }
    write_json(options.run.results, results)
    if metrics:  # somebody may have deleted them
        draw_training(options.run, system, dataset)
    some = spread(len(dataset))
    features = encode_dataset(system, dataset, some.tolist(), progress="embedding")
    labels = torch.tensor(dataset.labels)[some]
    draw_embedding({"pre-trained": features}, labels, dataset.class_names, options.run.embedding_picture)
    speed = f", {result.clips_per_second:.0f} clips/s" if result.clips_per_second else ""
    say(f"done: {result.steps} steps in {result.seconds:.0f} s{speed}")
    say(f"the model and pictures of losses, views and embedding are in {options.run.path}")
    say(f"next: slrfast evaluate --run {options.run.path}")
    if options.json:
        print(json.dumps(results))
    return 0


def evaluate_command(argv: list[str]) -> int:
    parser = Parser(
        "evaluate",
        "kNN and linear probe on frozen features with whole groups (signers, languages) held out, next to the same\n"
        "network untrained and to chance. Writes evaluation.json and evaluation.png into the run folder. A run of\n"
        "finetune islr is tested on --data as it is, and writes evaluation.json.",
        [
            "evaluate --run runs/first",
            "evaluate --run runs/first --data labelled/ --folds 5 --json",
            "evaluate --run runs/signs --data others.csv --split test",
        ],
    )
    parser.add_argument("--run", type=str, required=True, help="folder of a run of pretrain, demo or finetune islr")
    parser.add_argument("--data", type=str, help="labelled clips (default: the data of the run)")
    parser.add_argument("--split", type=str, help="rows of the index file with this split")
    parser.add_argument("--folds", type=int, default=4, help="parts that the groups are divided into")
    parser.add_argument("--votes", type=int, default=10, help="neighbours of kNN")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--size", type=tuple[int, int] | None, help="WxH in pixels, for pose files that do not say")
    parser.add_json()
    options = parser.read(argv)
    say = speaker(options.json)
    results, text = evaluate_run(
        options.run,
        options.data,
        options.split,
        folds=options.folds,
        votes=options.votes,
        device=options.device,
        size=options.size,
        say=say,
    )
    say(text)
    if options.json:
        print(json.dumps(results))
    return 0


def _complain(sentence: str) -> int:
    print(f"slrfast: {one_line(sentence)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
