"""What a pose format is, and the steps that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slrfast.data.pose import GIVE_SIZE, LAYOUTS, Pose, check_length
from slrfast.errors import PoseFileError

MAX_PEOPLE = 16
_MAX_NUMBERS = 1 << 16

Person = tuple[np.ndarray, np.ndarray]
"""One detection: positions [V, 2] and confidences [V]."""


class Asked(NamedTuple):
    """What the caller knows about a file.

    Attributes:
        size: (width, height) of the image in pixels, for files that do not name it.
        drop_last: ignore the last entry of ``img_list``.
        units: of the positions: "pixels"; "fractions" of the image; "auto": pixels, but a guess for Uni-Sign's pickles,
            which come in both.
    """

    size: tuple[int, int] | None = None
    drop_last: bool = False
    units: str = "auto"

    def pixels(self, path: object, xy: np.ndarray, size: tuple[int, int] | None, fractions: bool = False) -> np.ndarray:
        """Positions [..., 2] in pixels; ``fractions`` is what "auto" means for this file."""
        if self.units == "pixels" or (self.units == "auto" and not fractions):
            return xy
        if size is None:
            raise PoseFileError(path, f"positions are fractions of the image, whose size is unknown; {GIVE_SIZE}")
        return np.asarray(xy, np.float64) * np.asarray(size, np.float64)


class Format(NamedTuple):
    """A pose file format.

    Attributes:
        suffixes: extensions, lower case, with the dot.
        matches: whether a file with these first 64 bytes can be of this format.
        read: (path, what the caller knows) -> Pose. It may raise anything; the caller names the file.
        write: (path, pose) -> None.
    """

    suffixes: tuple[str, ...]
    matches: Callable[[bytes], bool]
    read: Callable[[Path, Asked], Pose]
    write: Callable[[Path, Pose], None]


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Whatever goes wrong inside becomes a PoseFileError: the bytes are somebody else's, and so is the fault."""
    try:
        yield
    except PoseFileError as error:
        if error.reason.isprintable():
            raise
        raise PoseFileError(error.path, printable(error.reason)) from error
    except OSError as error:
        raise PoseFileError(path, f"cannot be opened: {error.strerror or error}") from error
    except Exception as error:
        text = printable(" ".join(str(error).split())[:120])
        kind = type(error).__name__
        raise PoseFileError(path, f"is damaged ({kind}: {text})" if text else f"is damaged ({kind})") from error


def printable(text: str) -> str:
    """With everything escaped that a terminal would obey or cannot show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def people(path: str, frame: int, keypoints: object, scores: object = None, layout: str = "coco133") -> list[Person]:
    """Check one frame's detections: keypoints [V, 2], [V, 3] or [P, V, 2 or 3], with scores [V] or [P, V].

    None, or nothing at all in a list or array, is a frame without anybody.

    Raises:
        PoseFileError: naming the frame and the shape found.
    """
    count = len(LAYOUTS[layout])
    if keypoints is None:
        return []
    try:
        array = numbers(keypoints)
        if array.size == 0:
            return []
        array = array[None] if array.ndim == 2 else array
        if scores is None and array.shape[-1] == 2:
            raise PoseFileError(path, f"frame {frame}: the keypoints have no scores")
        confidence = array[..., 2] if scores is None else np.atleast_2d(numbers(scores))
    except PoseFileError:
        raise
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise PoseFileError(path, f"frame {frame}: the keypoints are no [{count}, 2] array of numbers") from error
    if array.ndim != 3 or array.shape[1] != count or array.shape[2] not in (2, 3):
        raise PoseFileError(
            path, f"frame {frame}: keypoints must have shape [{count}, 2], got {list(array.shape[-2:])}"
        )
    if confidence.shape != array.shape[:2]:
        got = list(confidence.shape[1:])
        raise PoseFileError(path, f"frame {frame}: scores must have shape [{count}], got {got}")
    return [(xy[:, :2], c) for xy, c in zip(array, confidence, strict=True)]


def numbers(value: object) -> np.ndarray:
    """Float64 array of nested lists of numbers; TypeError for anything else, ValueError if ragged or too many.

    A pickle can refer to one list a million times from a few bytes, so the size is known before anything is built.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            raise TypeError(f"array of dtype {value.dtype}")
        return value.astype(np.float64)
    _count(value, depth=4)
    return np.asarray(value, np.float64)


def _count(value: object, depth: int) -> int:
    if isinstance(value, (int, float, np.number)) or value is None:
        return 1
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        total = value.size
    elif depth and isinstance(value, (list, tuple)):
        total = 1
        for item in value:
            total += _count(item, depth - 1)
            if total > _MAX_NUMBERS:
                break
    else:
        raise TypeError(type(value).__name__)
    if total > _MAX_NUMBERS:
        raise ValueError("too many numbers for one frame")
    return total


def stack(path: str, frames: Sequence[Sequence[Person]], layout: str = "coco133") -> tuple[np.ndarray, np.ndarray]:
    """Put every frame's detections, in any order and number, into tracks: xy [T, P, V, 2] and confidence [T, P, V].

    Every detection goes to the track that was last seen nearest to it, nearest pairs first. Only the 16 most
    prominent people of a frame are kept.
    """
    count = len(LAYOUTS[layout])
    tracks = min(MAX_PEOPLE, max((len(frame) for frame in frames), default=0))
    check_length(path, len(frames), tracks * count)
    xy = np.zeros((len(frames), tracks, count, 2), np.float64)
    confidence = np.zeros((len(frames), tracks, count), np.float64)
    last = np.full((tracks, 2), np.nan)
    for t, frame in enumerate(frames):
        if tracks == 1:
            xy[t, 0], confidence[t, 0] = frame[0] if frame else (0, 0)
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # Pose refuses such positions
            frame = sorted(frame, key=prominence, reverse=True)[:MAX_PEOPLE]
            centers = np.array([_center(person) for person in frame]).reshape(-1, 2)
            assigned = _assign(last, centers)
        for person, track in enumerate(assigned):
            xy[t, track], confidence[t, track] = frame[person]
            last[track] = centers[person]
    return xy, confidence


def prominence(person: Person) -> float:
    """Mean confidence times the diagonal of the visible keypoints: large and certain people first."""
    xy, confidence = person
    seen = xy[confidence > 0]
    if not len(seen) or not np.isfinite(seen).all():
        return 0.0
    return float(np.nan_to_num(confidence).mean() * np.linalg.norm(np.ptp(seen, axis=0)))


def _center(person: Person) -> np.ndarray:
    xy, confidence = person
    seen = xy[(confidence > 0) & np.isfinite(xy).all(-1)]
    return seen.mean(0) if len(seen) else np.zeros(2)


def _assign(last: np.ndarray, centers: np.ndarray) -> list[int]:
    """A track for every detection; tracks not seen yet (NaN) come after all others, in order."""
    track = [-1] * len(centers)
    distance = np.linalg.norm(centers[:, None] - last[None], axis=-1)
    distance = np.where(np.isnan(distance), np.inf, distance)
    for _ in centers:
        person, best = np.unravel_index(np.argmin(distance), distance.shape)
        if not np.isfinite(distance[person, best]):
            break
        track[person] = int(best)
        distance[person], distance[:, best] = np.inf, np.inf
    free = iter(sorted(set(range(len(last))) - set(track)))
    return [next(free) if t < 0 else t for t in track]
