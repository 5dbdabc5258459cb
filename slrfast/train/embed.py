"""``slrfast embed``: the features of clips in a NumPy file, for whatever is built on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slrfast import checks
from slrfast.files import replacing
from slrfast.tasks.finetuned import check_frames
from slrfast.train.config import RunError, choose_device, keypoints_of, open_dataset, read_yaml, sized
from slrfast.train.finetune import name_of, open_encoder
from slrfast.train.inputs import with_inputs
from slrfast.train.options import Parser
from slrfast.train.report import report_skipped, speaker
from slrfast.train.runs import RunFolder, new_file
from slrfast.train.scoring import encode_dataset, encode_frames

DESCRIPTION = """Write the features of every clip, or with --frames of every frame, into one .npz file:

  features      [N, D] float32; with --frames [S, D], clip n is rows offsets[n] to offsets[n + 1]
  names         [N] of the clips
  labels        [N] int64, -1 unknown, and class_names
  groups        [N] signers or languages, and splits; "" unknown

numpy.load(FILE) reads it; nothing in it is pickled."""


def embed_command(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser(
        "embed",
        DESCRIPTION,
        [
            "embed --encoder runs/first --data poses/ --out features.npz",
            "embed --encoder runs/masa --data store/ --split test --frames --out frames.npz",
            "embed --encoder stc:small --data poses/ --out untrained.npz",
        ],
    )
    parser.add_argument(
        "--encoder",
        type=str,
        required=True,
        help="run of slrfast pretrain or finetune; SYSTEM:PRESET, such as stc:small, is untrained",
    )
    parser.add_argument("--data", type=str, required=True, help="folder of pose files, index file or store")
    parser.add_argument("--split", type=str, help="rows of the index file with this split")
    parser.add_argument("--out", type=str, required=True, help="file to write")
    parser.add_argument("--frames", action="store_true", help="a vector of every frame, of MASA and SLP")
    parser.add_argument("--videos", type=str, help="folder with the clips' videos, for ccl (default: poses alone)")
    parser.add_argument("--size", type=tuple[int, int] | None, help="WxH in pixels, for pose files that do not say")
    parser.add_argument("--seed", type=int, default=0, help="of the weights of SYSTEM:PRESET")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_json()
    options = parser.read(argv)
    say = speaker(options.json)
    out = new_file("--out", options.out, overwrite=options.overwrite)
    skipped = new_file("--out", f"{out}-skipped.txt", overwrite=options.overwrite)
    if not out.name.endswith(".npz"):  # what readers go by
        raise RunError(f"--out {out}: must end in .npz")
    results = _embed(options, out, skipped, say)
    frames = f", {results['frames']} frames" if options.frames else ""
    say(f"{out}: {results['clips']} clips{frames}, {results['dim']} numbers each, {results['bytes'] / 1e6:.1f} MB")
    if options.json:
        print(json.dumps(results))
    return 0


def _embed(options: Any, out: Path, skipped: Path, say: Any) -> dict[str, Any]:
    try:
        checks.integer_between("embed", 0, 2**31 - 1, seed=options.seed)
    except ValueError as error:
        raise RunError(str(error)) from error
    system = open_encoder(options.encoder, options.seed).to(choose_device(options.device))
    name, run = name_of(system), RunFolder(options.encoder)
    if options.videos and not (name == "ccl" and "rgb" in system.config.modalities):
        raise RunError(f"--videos {options.videos}: read by ccl with pictures, not by this {name}")
    if options.frames:
        try:
            check_frames("--frames", system)
        except ValueError as error:
            raise RunError(str(error)) from error
    config = sized(read_yaml(run.config) if run.config.is_file() else {}, options.size, name)
    preprocess = config.get("preprocess")
    clips = open_dataset(options.data, options.split, preprocess, keypoints_of(name))
    inputs = {"videos": options.videos, "data": options.data, "split": options.split, "preprocess": preprocess}
    clips = with_inputs(name, clips, inputs, system, train=False, say=say)
    report_skipped(clips.skipped, skipped, say)
    arrays: dict[str, Any] = {
        "names": np.array(clips.names, dtype=str),
        "labels": np.array(clips.labels, np.int64),
        "class_names": np.array(clips.class_names, dtype=str),
        "groups": np.array(clips.groups, dtype=str),
        "splits": np.array(clips.splits, dtype=str),
    }
    if options.frames:
        rows = encode_frames(system, clips, progress="embedding")
        arrays |= {"features": rows.rows.numpy(), "offsets": rows.offsets.numpy()}
    else:
        arrays["features"] = encode_dataset(system, clips, progress="embedding").numpy()
    with replacing(out) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return {
        "file": str(out),
        "encoder": options.encoder,
        "data": options.data,
        "split": options.split,
        "clips": len(clips),
        "frames": len(arrays["features"]) if options.frames else None,
        "dim": arrays["features"].shape[1],
        "bytes": out.stat().st_size,
        "skipped_files": len(clips.skipped),
    }
