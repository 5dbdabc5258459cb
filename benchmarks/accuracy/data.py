"""The real clips of the accuracy runs: WLASL's hands, and Nepali fingerspelling; pre-processed once, kept as stores."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.real_clips import FIRST, NAMES, WRISTS, hands_pose
from slrfast.data import Clip, ClipDataset, Pose, PoseDataset, PreprocessOptions, pack, preprocess
from slrfast.errors import PoseFileError

BODY = {"nose": 0, "left_shoulder": 11, "right_shoulder": 12, "left_elbow": 13, "right_elbow": 14,
        "left_wrist": 15, "right_wrist": 16}  # fmt: skip
"""The trunk's joints among MediaPipe's 33."""
LONGEST = 640
"""Pixels of the longer side of an image, whatever it was."""
OPTIONS = {"bottom_margin": None, "hand_threshold": 0.1, "trunk_threshold": 0.1}
"""MediaPipe gives no confidences of hand joints: what it found counts."""


def open_clips(name: str, data: Path, layout: int, cache: Path) -> PoseDataset:
    """The clips of "wlasl" or "nepali" from ``data``, out of a store below ``cache`` that the first call makes."""
    store = cache / f"{name}-{layout}"
    if not store.exists():
        reader, folder = {"wlasl": (wlasl, "wlasl_hands"), "nepali": (nepali, "nsl_fingerspell")}[name]
        options = PreprocessOptions(layout=layout, **OPTIONS)  # type: ignore[arg-type]
        clips = []
        for clip, pose in reader(data / folder):
            try:
                made = preprocess(pose, options)
            except PoseFileError:
                continue  # no hand in any frame
            clips.append(replace(clip, xy=made.xy, confidence=made.confidence))
        cache.mkdir(parents=True, exist_ok=True)
        pack(ClipDataset(clips, {"wlasl": _glosses, "nepali": _letters}[name](data / folder)), store)
    return PoseDataset(store)


def wlasl(folder: Path) -> Iterator[tuple[Clip, Pose]]:
    """Train and val clips: label = the class's number, group = dup_group (byte-identical videos), split.

    There is no body: a wrist of the trunk is the root of its hand, the other joints of the trunk are missing.
    """
    rows = _rows(folder / "wlasl_hands.csv")
    with np.load(folder / "wlasl_hands.npz") as arrays:
        offsets, xy = arrays["offset"], arrays["xy"]
    usual = float(np.median([float(row["aspect_w_over_h"]) for row in rows if row["aspect_w_over_h"]]))
    for i, row in enumerate(rows):
        clip = Clip(None, None, int(row["class"]), row["video_id"], row["dup_group"], split=row["split"])  # type: ignore[arg-type]
        yield clip, hands_pose(xy[offsets[i] : offsets[i + 1]], float(row["aspect_w_over_h"] or usual))


def _glosses(folder: Path) -> list[str]:
    gloss = {int(row["class"]): row["gloss"] for row in _rows(folder / "wlasl_hands.csv")}
    return [gloss.get(i, "") for i in range(1 + max(gloss))]


def nepali(folder: Path) -> Iterator[tuple[Clip, Pose]]:
    """Signs of five signers, and transitions between them, without label: group = signer, split = type."""
    rows = _rows(folder / "nsl_fingerspell.csv")
    labels = {name: i for i, name in enumerate(_letters(folder))}
    with np.load(folder / "nsl_fingerspell.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for i, row in enumerate(rows):
        size = float(row["width"]), float(row["height"])
        frames = slice(arrays["offset"][i], arrays["offset"][i + 1])
        part = {name: value[frames].astype(np.float32) for name, value in arrays.items() if name != "offset"}
        label = labels.get(row["roman_label"], -1)
        yield Clip(None, None, label, f"{i}", row["signer"], split=row["type"]), _absolute(part, size)  # type: ignore[arg-type]


def _letters(folder: Path) -> list[str]:
    return sorted({row["roman_label"] for row in _rows(folder / "nsl_fingerspell.csv") if row["type"] == "sign"})


def _absolute(part: dict[str, np.ndarray], size: tuple[float, float]) -> Pose:
    """A clip in pixels: its hands put back to their wrists, all about the middle of the image where a body is seen."""
    pixels = np.array(size) * LONGEST / max(size)
    frames = len(part["pose"])
    out, confidence = np.zeros((frames, 1, len(NAMES), 2)), np.zeros((frames, 1, len(NAMES)))
    seen = part["pose"].any((1, 2))
    for name, number in BODY.items():
        out[:, 0, NAMES.index(name)] = part["pose"][:, number, :2]
        confidence[:, 0, NAMES.index(name)] = np.where(seen, part["pose"][:, number, 2], 0)
    for side in ("right", "left"):
        meta, there = part[f"{side}_meta"], part[f"{side}_meta"].any(1)
        hand = slice(FIRST[side], FIRST[side] + 21)
        out[:, 0, hand] = part[side] * meta[:, None, 2:] + meta[:, None, :2]
        confidence[:, 0, hand] = there[:, None]
        wrist = WRISTS[side]
        rootless = there & (confidence[:, 0, wrist] < 0.1)
        out[rootless, 0, wrist] = meta[rootless, :2]
        confidence[rootless, 0, wrist] = 1.0
    out[seen] += 0.5  # the shoulders' centre was the origin
    out = np.clip(out, 0, 1) * pixels * (confidence > 0)[..., None]
    whole = (round(float(pixels[0])), round(float(pixels[1])))
    return Pose(out.astype(np.float32), confidence.astype(np.float32), size=whole, layout="sign49")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
