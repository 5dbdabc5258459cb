"""The synthetic signer's body: joint angles and wrist paths in, 133 keypoints in the image out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_KNUCKLES = np.array([(-0.035, 0.03), (-0.03, 0.095), (-0.005, 0.1), (0.018, 0.095), (0.038, 0.085)])
_BONES = np.array(
    [(0.05, 0.04, 0.03), (0.05, 0.03, 0.025), (0.055, 0.035, 0.027), (0.05, 0.033, 0.025), (0.04, 0.025, 0.02)]
)
_SPREAD = np.array([-0.75, -0.14, 0.0, 0.12, 0.25])
_BEND = np.array([(0.5, 0.7, 0.8), (1.45, 1.6, 1.1), (1.45, 1.6, 1.1), (1.45, 1.6, 1.1), (1.45, 1.6, 1.1)])
_HAND_SCALE = 2.2
_BODY = {  # shoulder widths from the middle of the shoulders, for the right half where there are two
    "nose": (0.0, -0.72, 0.25),
    "eye": (0.09, -0.8, 0.2),
    "ear": (0.21, -0.76, 0.0),
    "shoulder": (0.5, 0.0, 0.0),
    "hip": (0.33, 1.55, 0.0),
    "knee": (0.34, 2.7, 0.1),
    "ankle": (0.34, 3.8, 0.0),
}


@dataclass(frozen=True)
class Motion:
    """What is done, in the signer's dominant-side frame; hand 0 is the dominant one.

    Attributes:
        wrists: [T, 2, 3], each hand's x counted to its own side.
        flexion: [T, 2, 5], thumb to little finger.
        angles: [T, 2, 3], pitch, yaw, roll of the palm.
        sway: [T, 3], shift of head and shoulders.
    """

    wrists: np.ndarray
    flexion: np.ndarray
    angles: np.ndarray
    sway: np.ndarray


@dataclass(frozen=True)
class Style:
    """How one signer signs and is filmed.

    Attributes:
        width: shoulder width as a fraction of the image's height.
        center: where the middle of the shoulders stands in the image, as fractions.
        yaw: turn of the body to the camera, radians.
        arms: (upper, lower) arm length in shoulder widths.
        hand: size of the hand, 1 is average.
        fingers: [5] relative finger lengths.
        tempo: duration factor.
        amplitude: size of movements.
        accent: [3] habitual shift of the signing space.
        flexion: [5] habitual shift of the finger flexion.
        turn: [3] habitual shift of the palm's angles.
        left_handed: mirrors the sign.
    """

    width: float
    center: tuple[float, float]
    yaw: float
    arms: tuple[float, float]
    hand: float
    fingers: np.ndarray
    tempo: float
    amplitude: float
    accent: np.ndarray
    flexion: np.ndarray
    turn: np.ndarray
    left_handed: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, variation: float) -> Style:
        """A random signer; variation 0 is the average one."""

        def vary(scale: float, *shape: int) -> np.ndarray:
            return variation * scale * rng.uniform(-1, 1, shape)

        return cls(
            width=float(0.3 * np.exp(vary(0.25))),
            center=(float(0.5 + vary(0.06)), float(0.45 + vary(0.05))),
            yaw=float(vary(0.3)),
            arms=(float(0.8 * np.exp(vary(0.1))), float(0.72 * np.exp(vary(0.1)))),
            hand=float(np.exp(vary(0.15))),
            fingers=np.exp(vary(0.1, 5)),
            tempo=float(np.exp(vary(0.35))),
            amplitude=float(np.exp(vary(0.3))),
            accent=vary(0.12, 3),
            flexion=vary(0.12, 5),
            turn=vary(0.3, 3),
            left_handed=bool(rng.random() < 0.15 * min(variation, 1)),
        )

    def project(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Body coordinates [T, V, 3] to pixels [T, V, 2] by a weak perspective."""
        x = points[..., 0] * np.cos(self.yaw) + points[..., 2] * np.sin(self.yaw)
        z = points[..., 2] * np.cos(self.yaw) - points[..., 0] * np.sin(self.yaw)
        near = 1 + 0.12 * z
        scale = self.width * size[1]
        return np.stack(
            (self.center[0] * size[0] + scale * near * x, self.center[1] * size[1] + scale * near * points[..., 1]), -1
        )


def skeleton(motion: Motion, style: Style) -> np.ndarray:
    """COCO-WholeBody's 133 keypoints in shoulder widths, [T, 133, 3]; x as in the image: the right hand has x < 0."""
    points = np.zeros((len(motion.sway), 133, 3))
    points[:, 0] = np.array(_BODY["nose"]) + motion.sway
    for left, name in ((1, "eye"), (3, "ear"), (5, "shoulder"), (11, "hip"), (13, "knee"), (15, "ankle")):
        sway = motion.sway if left < 11 else 0
        points[:, left] = np.array(_BODY[name]) + sway
        points[:, left + 1] = np.array(_BODY[name]) * (-1, 1, 1) + sway
    for i, (dx, dz) in enumerate(((0.05, 0.2), (0.1, 0.18), (0.0, -0.05))):
        points[:, 17 + i] = points[:, 15] + (dx, 0.1, dz)
        points[:, 20 + i] = points[:, 16] + (-dx, 0.1, dz)
    points[:, 23:91] = points[:, :1] + _FACE
    for hand in range(2):
        left = (hand == 0) == style.left_handed
        side = np.array((1 if left else -1, 1, 1))
        shoulder = points[:, 5 if left else 6] * side
        elbow, wrist = _reach(shoulder, motion.wrists[:, hand], style.arms)
        joints = _hand(wrist, motion.flexion[:, hand], motion.angles[:, hand], style)
        points[:, 7 if left else 8] = elbow * side
        points[:, 9 if left else 10] = wrist * side
        points[:, slice(91, 112) if left else slice(112, 133)] = joints * side
    return points


def _reach(shoulder: np.ndarray, target: np.ndarray, arms: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Elbow and wrist by two-bone inverse kinematics, the elbow down and outward; the wrist stays within reach."""
    upper, lower = arms
    reach = target - shoulder
    distance = np.linalg.norm(reach, axis=-1, keepdims=True)
    direction = reach / np.maximum(distance, 1e-6)
    distance = np.clip(distance, abs(upper - lower) + 0.05, 0.98 * (upper + lower))
    along = (distance**2 + upper**2 - lower**2) / (2 * distance)
    away = np.sqrt(np.maximum(upper**2 - along**2, 0))
    pole = np.array((0.5, 1.0, -0.4))
    pole = pole - (direction @ pole)[:, None] * direction
    pole /= np.maximum(np.linalg.norm(pole, axis=-1, keepdims=True), 1e-6)
    return shoulder + along * direction + away * pole, shoulder + distance * direction


def _hand(wrist: np.ndarray, flexion: np.ndarray, angles: np.ndarray, style: Style) -> np.ndarray:
    """21 joints by forward kinematics, for a hand whose thumb is on the body's side: [T, 21, 3]."""
    frames = len(wrist)
    bend = np.cumsum(flexion[:, :, None] * _BEND, -1)  # [T, 5, 3] angle of each bone out of the palm's plane
    spread = _SPREAD * (1 - 0.6 * flexion)
    length = _BONES * style.fingers[:, None]
    flat = length * np.cos(bend)
    bones = np.stack((flat * np.sin(spread)[..., None], flat * np.cos(spread)[..., None], length * np.sin(bend)), -1)
    knuckles = np.concatenate((_KNUCKLES, np.zeros((5, 1))), 1)
    local = np.zeros((frames, 21, 3))
    local[:, 1:] = np.concatenate(
        (np.broadcast_to(knuckles[None, :, None], (frames, 5, 1, 3)), knuckles[:, None] + np.cumsum(bones, 2)), 2
    ).reshape(frames, 20, 3)
    rotated = np.einsum("tij,tvj->tvi", _rotation(angles), local * (1, -1, 1))
    return wrist[:, None] + _HAND_SCALE * style.hand * rotated


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Roll about the camera axis, after pitch, after yaw about the forearm: [T, 3, 3]."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles).T, np.sin(angles).T
    one, zero = np.ones(len(angles)), np.zeros(len(angles))
    pitch = np.array([[one, zero, zero], [zero, cx, -sx], [zero, sx, cx]])
    yaw = np.array([[cy, zero, sy], [zero, one, zero], [-sy, zero, cy]])
    roll = np.array([[cz, -sz, zero], [sz, cz, zero], [zero, zero, one]])
    return np.einsum("ijt,jkt,klt->til", roll, pitch, yaw)


def _face() -> np.ndarray:
    """A neutral face of 68 landmarks around the nose tip, [68, 3]; landmark 30 is the tip, the right is x < 0."""

    def arc(
        count: int, center: tuple[float, float], radii: tuple[float, float], start: float, stop: float
    ) -> np.ndarray:
        angle = np.linspace(start, stop, count)
        return np.stack((center[0] + radii[0] * np.cos(angle), center[1] + radii[1] * np.sin(angle)), -1)

    turn = 2 * np.pi
    parts = [
        arc(17, (0, 0.0), (0.22, 0.27), np.pi, 0),
        arc(5, (-0.1, -0.1), (0.06, 0.03), np.pi, turn),
        arc(5, (0.1, -0.1), (0.06, 0.03), np.pi, turn),
        np.stack((np.zeros(4), np.linspace(-0.09, 0, 4)), -1),
        arc(5, (0, 0.02), (0.035, 0.012), np.pi, 0),
        arc(7, (-0.09, -0.07), (0.035, 0.015), np.pi, 3 * np.pi)[:6],
        arc(7, (0.09, -0.07), (0.035, 0.015), np.pi, 3 * np.pi)[:6],
        arc(13, (0, 0.11), (0.07, 0.03), np.pi, 3 * np.pi)[:12],
        arc(9, (0, 0.11), (0.045, 0.01), np.pi, 3 * np.pi)[:8],
    ]
    xy = np.concatenate(parts)
    return np.concatenate((xy, -0.5 * (xy[:, :1] ** 2)), 1)


_FACE = _face()
