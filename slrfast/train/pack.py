"""``slrfast pack``: pose files in, one memory-mapped store out."""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict

from slrfast.data import PoseStore, PreprocessOptions, looks_packed, pack
from slrfast.data.sources import skipped_lines
from slrfast.errors import one_line
from slrfast.train.config import RunError, open_dataset
from slrfast.train.options import Parser
from slrfast.train.report import STOPPED, speaker

DESCRIPTION = """Pre-process pose files once, into a folder of memory-mapped arrays that every command takes as --data.
SOURCE is a folder whose sub-folders are the classes, a CSV index (columns path, label, split, group), an author-style
pickle of a split, another store, 'synthetic' or 'fingerspelling'. Interrupted, the same command goes on."""
GENERATED = ("synthetic", "fingerspelling")


def pack_command(argv: Sequence[str]) -> int:
    """Run the pack command and return its exit code."""
    parser = Parser(
        "pack",
        DESCRIPTION,
        [
            "pack poses/ store/",
            "pack index.csv store/ --dtype float16 --workers 2",
            "pack wlasl_train.pkl store/ --preprocess.hand_threshold 0.5 --preprocess.drop_last true",
            "pretrain stc --data store/ --split train",
        ],
    )
    parser.usage = "slrfast pack SOURCE OUT [options]"
    parser.add_argument("source", type=str, help="where the clips are")
    parser.add_argument("out", type=str, help="folder of the store, made here")
    parser.add_argument("--dtype", type=str, default="float32", help="float32, or float16 for half the size")
    parser.add_argument("--format", type=str, default="auto", help="of the pose files, when their bytes do not tell")
    parser.add_argument("--split", type=str, help="only these clips (default: all, the split is chosen on reading)")
    for column in ("path", "label", "split", "group"):
        parser.add_argument(f"--{column}_column", type=str, default=column, help="in the CSV index")
    parser.add_argument("--workers", type=int, default=0, help="processes that read; 0 reads in this one")
    parser.add_class_arguments(PreprocessOptions, "preprocess", help="pre-processing")
    parser.add_json()
    values = parser.read(argv).as_dict()
    as_json, preprocess, source, out = (values.pop(key) for key in ("json", "preprocess", "source", "out"))
    say = speaker(as_json)
    began = time.perf_counter()
    try:
        store = _pack(source, out, values, preprocess)
    except KeyboardInterrupt:
        say(f"stopped; the same command goes on: slrfast pack {shlex.quote(source)} {shlex.quote(out)} ...")
        return STOPPED["SIGINT"]
    size = sum(file.stat().st_size for file in store.path.iterdir())
    results = {
        "store": out,
        "clips": len(store),
        "frames": store.metadata["frames"],
        "keypoints": store.metadata["keypoints"],
        "dtype": store.metadata["dtype"],
        "bytes": size,
        "classes": len(store.class_names),
        "groups": len(set(store.groups) - {""}),
        "skipped_files": len(store.skipped),
        "skipped": [list(pair) for pair in store.skipped[:100]],
        "seconds": round(time.perf_counter() - began, 3),
    }
    counts = store.summary().split("\n")[0]
    for line in (f"{out}: {counts}, {size / 1e6:.1f} MB", *skipped_lines(store.skipped)):
        say(one_line(line))
    say(f"next: slrfast pretrain stc --data {shlex.quote(out)}")
    if as_json:
        print(json.dumps(results))
    return 0


def _pack(source: str, out: str, values: dict, preprocess: dict) -> PoseStore:
    try:
        options = PreprocessOptions(**preprocess)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"[\s\S]* files? skipped")  # they are listed below
            if source in GENERATED:
                dataset = open_dataset(source, values["split"], asdict(options))
                return pack(dataset, out, dtype=values["dtype"])
            if looks_packed(source):
                given = None if options == PreprocessOptions() else options
                return pack(source, out, options=given, progress=True, **values)
            return pack(source, out, options=options, progress=True, **values)
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, RunError) else RunError(str(error)) from error
