"""Real clips to measure with: WLASL's where $SLRFAST_DATA names them, else the fingerspelling corpus."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from slrfast import graphs
from slrfast.data import Clip, Fingerspelling, Pose, preprocess

NAMES = graphs.layout(49).names
WRISTS = {"right": NAMES.index("right_wrist"), "left": NAMES.index("left_wrist")}
FIRST = {"right": NAMES.index("right_hand_wrist"), "left": NAMES.index("left_hand_wrist")}
HEIGHT, UNDETECTED = 480, -32768


def spread_out(lengths: list[int], count: int) -> list[int]:
    """Positions of ``count`` clips whose lengths are the middles of equal shares of all, so no draw is lucky."""
    order = np.argsort(lengths, kind="stable")
    return order[((np.arange(count) + 0.5) / count * len(order)).astype(int)].tolist()


def real_clips(count: int) -> tuple[str, list[Clip]]:
    """What they are, and so many pre-processed clips of typical lengths."""
    folder = Path(os.environ.get("SLRFAST_DATA", "")) / "wlasl_hands"
    if (folder / "wlasl_hands.npz").is_file():
        return "WLASL", _wlasl(folder, count)
    corpus = Fingerspelling()
    return "fingerspelling", [corpus[i] for i in spread_out([c.num_frames for c in corpus.clips], count)]


def _wlasl(folder: Path, count: int) -> list[Clip]:
    with np.load(folder / "wlasl_hands.npz") as arrays:
        offsets, xy = arrays["offset"], arrays["xy"]
    with (folder / "wlasl_hands.csv").open(newline="") as file:
        aspects = [row["aspect_w_over_h"] for row in csv.DictReader(file)]  # empty where nobody knows
    detected = (xy != UNDETECTED).all((2, 3)).any(1)
    frames = [int(detected[a:b].sum()) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    usable = [i for i, n in enumerate(frames) if n > 3 and aspects[i]]
    chosen = [usable[i] for i in spread_out([frames[i] for i in usable], count)]
    return [preprocess(hands_pose(xy[offsets[i] : offsets[i + 1]], float(aspects[i]))) for i in chosen]


def hands_pose(xy: np.ndarray, aspect: float) -> Pose:
    """Two unordered hands [T, 2, 21, 2] as a Pose; a wrist of the trunk is where its hand begins, the rest missing."""
    size = round(HEIGHT * aspect), HEIGHT
    seen = (xy != UNDETECTED).all((2, 3))
    pixels = np.where(seen[..., None, None], xy / 16384, 0) * np.array(size)
    out = np.zeros((len(xy), 1, len(NAMES), 2), np.float32)
    confidence = np.zeros(out.shape[:3], np.float32)
    last = {"right": np.array([0.3, 0.6]) * size, "left": np.array([0.7, 0.6]) * size}
    for t, (hands, there) in enumerate(zip(pixels, seen, strict=True)):
        found = hands[there]
        if len(found) == 2:
            found = found[np.argsort(found[:, 0, 0])]  # the signer's left hand is on the right
            sides = ["right", "left"]
        else:
            sides = [min(last, key=lambda side: np.linalg.norm(last[side] - hand[0])) for hand in found]
        for hand, side in zip(found, sides, strict=True):
            out[t, 0, FIRST[side] : FIRST[side] + 21] = hand
            out[t, 0, WRISTS[side]] = last[side] = hand[0]
            confidence[t, 0, [*range(FIRST[side], FIRST[side] + 21), WRISTS[side]]] = 1.0
    return Pose(out, confidence, size=size, layout="sign49")
