"""A keypoint detector's faults: jitter, false confidences, and joints, hands or whole frames it loses."""

from __future__ import annotations

import numpy as np

_HANDS = (slice(91, 112), slice(112, 133))
_JITTER, _BLUR = 0.006, 0.03


def detect(
    xy: np.ndarray, width: float, size: tuple[int, int], rng: np.random.Generator, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and confidences as a detector would report them.

    Args:
        xy: float64 [T, 133, 2], true pixels.
        width: the signer's shoulder width in pixels, the scale of the jitter.
        size: (width, height) of the image.
        rng: randomness.
        noise: 0 for a perfect detector, 1 for a usual one.
    Returns:
        float64 [T, 133, 2] and [T, 133]; keypoints outside the image keep a guessed position with little confidence.
    """
    frames = len(xy)
    lost = np.clip(noise * _bursts(rng, (frames, 2), rate=0.02, mean=4), 0, 1)  # a hand that is hidden or out of focus
    speed = np.linalg.norm(np.diff(xy, axis=0, prepend=xy[:1]), axis=-1) / width
    doubt = noise * np.abs(rng.normal(0.06, 0.06, (frames, 133))) + noise * 0.8 * speed
    for hand, part in enumerate(_HANDS):
        doubt[:, part] += lost[:, hand, None] * rng.uniform(0.3, 1.0, (frames, 21))
    doubt += (rng.random((frames, 133)) < 0.01 * noise) * rng.uniform(0.2, 0.9, (frames, 133))
    doubt[rng.random(frames) < 0.01 * noise] += 0.95
    inside = ((xy >= 0) & (xy < np.array(size))).all(-1)
    confidence = np.clip(0.97 - doubt, 0.0, 1.0) * np.where(inside, 1, 0.15)
    jitter = width * noise * (_JITTER + _BLUR * (1 - confidence)[..., None] ** 2)
    return xy + jitter * rng.normal(size=xy.shape), confidence


def _bursts(rng: np.random.Generator, shape: tuple[int, int], rate: float, mean: float) -> np.ndarray:
    """1 inside bursts of about ``mean`` frames that start with probability ``rate``, else 0: [T, channels]."""
    starts = rng.random(shape) < rate
    until = np.where(starts, np.arange(shape[0])[:, None] + rng.geometric(1 / mean, shape), 0)
    return (np.maximum.accumulate(until, 0) > np.arange(shape[0])[:, None]).astype(np.float64)
