"""An articulated signer: classes, signing styles and a detector's faults, without any data.

A sign is a phonological bundle as in real sign languages: hand shapes, places, orientations, a movement, one or two
hands. Classes are drawn from small common inventories, so they share all of these with other classes and differ in the
combination. Signers differ in proportions, tempo, amplitude, handedness, camera and accent. Every clip goes through the
same ``preprocess`` as a real file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slrfast import checks
from slrfast.data.batch import Clip
from slrfast.data.dataset import ClipDataset
from slrfast.data.detector import detect
from slrfast.data.formats import FORMATS
from slrfast.data.pose import Pose
from slrfast.data.preprocess import PreprocessOptions, preprocess
from slrfast.data.signer import Motion, Style, skeleton
from slrfast.errors import PoseFileError

# Positions are in shoulder widths from the middle of the shoulders: x to the hand's own side, y down, z to the camera.
PLACES = np.array(
    [
        *((0.15, -0.85, 0.45), (0.42, -0.55, 0.35), (0.05, -0.25, 0.55), (0.55, 0.0, 0.45), (0.05, 0.25, 0.6)),
        *((0.5, 0.5, 0.55), (-0.15, 0.55, 0.5), (0.75, -0.2, 0.6)),
    ]
)
HAND_SHAPES = np.array(
    [
        *((0, 0, 0, 0, 0), (1, 1, 1, 1, 1), (0.2, 1, 1, 1, 1), (0.8, 0, 1, 1, 1), (0.8, 0, 0, 1, 1), (0, 0, 1, 1, 1)),
        *((0.8, 0, 0, 0, 0), (0.7, 0.5, 0.5, 0.5, 0.5), (0.5, 0.7, 0, 0, 0), (0, 1, 1, 1, 0), (0.8, 1, 1, 1, 0)),
        *((0.8, 0, 0, 0, 1), (0.9, 0.3, 0.3, 0.3, 0.3), (0.5, 0.4, 1, 1, 1)),
    ]
)  # flexion of thumb to little finger, 0 straight, 1 closed
ORIENTATIONS = np.array(
    [(0.0, 0.0, 0.0), (0.0, 1.2, 0.0), (0.0, -1.0, 0.4), (0.9, 0.3, 0.0), (-0.7, 0.6, 0.9), (0.2, 2.2, 0.0)]
)
MOVEMENTS = ("hold", "line", "arc", "circle", "zigzag")
TWO_HANDED = ("one", "mirror", "alternate", "base")
REST = np.array([0.45, 1.5, 0.15])


@dataclass(frozen=True)
class Sign:
    """One class: two phases of the dominant hand, a movement between them, and what the other hand does."""

    shapes: tuple[int, int]
    places: tuple[int, int]
    orientations: tuple[int, int]
    movement: str
    hands: str
    repeats: int
    frames: int


class SyntheticSigns(ClipDataset):
    """Clips of made-up signs by made-up signers, the same for the same arguments.

    Args:
        num_classes: C.
        clips_per_class: clips of every class; signers take turns.
        num_signers: groups "signer0" ... .
        seed: classes, signers and clips.
        noise: scale of the detector's faults: jitter, false confidences, lost joints and hands; 0 for none.
        variation: scale of the differences between signers and between repetitions.
        size: (width, height) of the image in pixels.
        options: pre-processing.

    >>> data = SyntheticSigns(num_classes=3, clips_per_class=2, num_signers=2)
    >>> len(data), data.class_names, sorted(set(data.groups))
    (6, ['sign00', 'sign01', 'sign02'], ['signer0', 'signer1'])
    """

    def __init__(
        self,
        num_classes: int = 20,
        clips_per_class: int = 20,
        num_signers: int = 5,
        seed: int = 0,
        *,
        noise: float = 1.0,
        variation: float = 1.0,
        size: tuple[int, int] = (640, 480),
        options: PreprocessOptions | None = None,
    ) -> None:
        checks.integer_between("SyntheticSigns", 1, 1 << 16, num_classes=num_classes)
        checks.integer_between("SyntheticSigns", 1, 1 << 16, clips_per_class=clips_per_class, num_signers=num_signers)
        checks.integer_between("SyntheticSigns", 0, (1 << 63) - 1, seed=seed)
        checks.require(0 <= noise <= 5, "SyntheticSigns", "noise", "be in [0, 5]", noise)
        checks.require(0 <= variation <= 2, "SyntheticSigns", "variation", "be in [0, 2]", variation)
        options = options or PreprocessOptions()
        self.seed, self.noise, self.variation, self.size = seed, noise, variation, size
        self.num_signers = num_signers
        self.signs = draw_signs(num_classes, np.random.default_rng([seed, 0]))
        self.styles = [Style.draw(np.random.default_rng([seed, 1, s]), variation) for s in range(num_signers)]
        names = [f"sign{c:02d}" for c in range(num_classes)]
        clips: list[Clip] = []
        skipped: list[tuple[str, str]] = []
        self._takes: list[tuple[int, int]] = []
        for sign, take in np.ndindex(num_classes, clips_per_class):
            name = f"{names[sign]}/{take:03d}"
            try:
                clip = preprocess(self._perform(sign, take), options)
            except PoseFileError as error:  # a very noisy detector may miss both hands in every frame
                skipped.append((name, error.reason))
                continue
            clips.append(replace(clip, label=sign, name=name, group=f"signer{take % num_signers}"))
            self._takes.append((sign, take))
        super().__init__(clips, names, skipped)
        self.options = options

    def pose(self, i: int) -> Pose:
        """Clip i before pre-processing: COCO-WholeBody's 133 keypoints in pixels, as a detector would give them."""
        return self._perform(*self._takes[i])

    def _perform(self, sign: int, take: int) -> Pose:
        rng = np.random.default_rng([self.seed, 2, sign, take])
        style = self.styles[take % self.num_signers]
        motion = perform(self.signs[sign], style, rng, self.variation)
        xy = style.project(skeleton(motion, style), self.size)
        xy, confidence = detect(xy, style.width * self.size[1], self.size, rng, self.noise)
        return Pose(xy[:, None], confidence[:, None], 25.0, self.size, "coco133", f"sign {sign}, take {take}")

    def save(self, folder: str | os.PathLike, format: str = "npz") -> list[Path]:
        """Write every usable clip before pre-processing as ``<folder>/<class>/<number><extension>``.

        Args:
            folder: created if missing.
            format: a name in ``FORMATS``.
        Returns:
            The paths, in the order of the clips.
        """
        checks.choice("SyntheticSigns.save", tuple(FORMATS), format=format)
        paths = []
        for i, clip in enumerate(self.clips):
            path = Path(folder, clip.name + FORMATS[format].suffixes[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            FORMATS[format].write(path, self.pose(i))
            paths.append(path)
        return paths


def draw_signs(count: int, rng: np.random.Generator) -> list[Sign]:
    """Different signs out of the common inventories."""
    signs: dict[tuple, Sign] = {}
    while len(signs) < count:
        shape, place, turn = rng.integers(len(HAND_SHAPES)), rng.integers(len(PLACES)), rng.integers(len(ORIENTATIONS))
        movement = str(rng.choice(MOVEMENTS))
        other_shape = rng.integers(len(HAND_SHAPES)) if rng.random() < 0.3 else shape
        other_place = place if movement == "hold" else rng.integers(len(PLACES))
        other_turn = rng.integers(len(ORIENTATIONS)) if rng.random() < 0.3 else turn
        sign = Sign(
            (int(shape), int(other_shape)),
            (int(place), int(other_place)),
            (int(turn), int(other_turn)),
            movement,
            str(rng.choice(TWO_HANDED, p=(0.5, 0.2, 0.15, 0.15))),
            int(rng.integers(1, 3)),
            int(rng.integers(24, 48)),
        )
        signs.setdefault((sign.shapes, sign.places, sign.orientations, movement, sign.hands), sign)
    return list(signs.values())


def perform(sign: Sign, style: Style, rng: np.random.Generator, variation: float) -> Motion:
    """One repetition: rest, sign, rest, in the signer's tempo and amplitude."""
    frames = max(12, round(sign.frames * style.tempo * np.exp(0.1 * variation * rng.normal())))
    raise_frames = int(rng.integers(3, 8))
    total = frames + 2 * raise_frames
    time = (np.arange(total) - raise_frames) / (frames - 1)
    up = _ease(np.minimum(time * frames + raise_frames, total - 1 - np.arange(total)) / raise_frames)
    phase = np.clip(time, 0, 1) * sign.repeats
    blend = _ease(1 - np.abs(1 - 2 * (phase % 1)) if sign.repeats > 1 else phase)

    wander = 0.05 * variation
    path = _path(sign, blend, phase, style.amplitude) + style.accent + wander * rng.normal(size=3)
    shapes = _mix(HAND_SHAPES, sign.shapes, blend) + style.flexion + _smooth(rng, total, 5, 1.2 * wander)
    turns = _mix(ORIENTATIONS, sign.orientations, blend) + style.turn + _smooth(rng, total, 3, wander)

    lag = phase + 0.5 if sign.hands == "alternate" else phase
    other_path = _path(sign, _ease(np.abs((lag % 2) - 1)) if sign.hands == "alternate" else blend, lag, style.amplitude)
    other_path = other_path + style.accent + wander * rng.normal(size=3)
    other_shapes, other_turns, other_up = shapes, turns, up
    if sign.hands == "one":
        other_up = np.zeros(total)
    if sign.hands == "base":
        other_path = np.broadcast_to(np.array([0.12, 0.45, 0.55]) + style.accent, (total, 3))
        other_shapes = np.broadcast_to(HAND_SHAPES[sign.places[1] % 2] + style.flexion, (total, 5))
        other_turns = np.broadcast_to(np.array([0.2, 2.2, -0.6]) + style.turn, (total, 3))
    relaxed = np.array([0.3, 0.35, 0.4, 0.45, 0.5])
    wrists, flexions, angles = [], [], []
    for position, shape, turn, raised in ((path, shapes, turns, up), (other_path, other_shapes, other_turns, other_up)):
        raised = raised[:, None]
        wrists.append(REST + raised * (position - REST))
        flexions.append(np.clip(relaxed + raised * (shape - relaxed), 0, 1.05))
        angles.append(raised * turn + (1 - raised) * np.array([0.0, 1.3, 3.0]))
    sway = _smooth(rng, total, 3, 0.03 * variation)
    return Motion(np.stack(wrists, 1), np.stack(flexions, 1), np.stack(angles, 1), sway)


def _path(sign: Sign, blend: np.ndarray, phase: np.ndarray, amplitude: float) -> np.ndarray:
    """The dominant wrist during the sign, [T, 3]."""
    start, stop = PLACES[sign.places[0]], PLACES[sign.places[1]]
    swing = 2 * np.pi * phase
    zero = np.zeros_like(phase)
    around = {
        "hold": (zero, zero, zero),
        "line": (zero, zero, zero),
        "arc": (zero, -0.3 * np.sin(np.pi * blend), 0.15 * np.sin(np.pi * blend)),
        "circle": (0.22 * np.sin(swing), 0.22 * np.cos(swing), zero),
        "zigzag": (0.12 * np.sin(3 * swing), zero, zero),
    }[sign.movement]
    return start + amplitude * (blend[:, None] * (stop - start) + np.stack(around, -1))


def _mix(table: np.ndarray, ends: Sequence[int], blend: np.ndarray) -> np.ndarray:
    return table[ends[0]] + blend[:, None] * (table[ends[1]] - table[ends[0]])


def _ease(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _smooth(rng: np.random.Generator, frames: int, channels: int, scale: float) -> np.ndarray:
    """Slow random drift [T, channels]: an offset and two waves."""
    time = np.linspace(0, 2 * np.pi, frames)[:, None]
    offset, first, second = rng.normal(size=(3, channels))
    phases = rng.uniform(0, 2 * np.pi, size=(2, channels))
    return scale * (offset + first * np.sin(time + phases[0]) + second * np.sin(2 * time + phases[1]))
