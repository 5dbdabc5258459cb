"""What the processes of all detectors share: names of videos in, keypoints out.

It runs in the detector's own environment, which may be older than slrfast's: Python 3.8, NumPy and OpenCV, nothing of
slrfast. Both ways one JSON object a line. In: {"video", "out"}. Out, first: {"ready": versions}, or the end after
{"missing": module}, {"offline": why} or {"refused": why}. Then for every video some {"frame", "of"} and at last
{"failed": why}, or {"done"} when the arrays are in the .npz file "out". Whatever the detector prints goes to stderr.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time

MAX_FRAMES = 100_000
MAX_PEOPLE = 16
KEPT, WIDTH = 4, 480  # frames for a preview, and how wide they are


class Unreadable(Exception):
    """A video that gives no keypoints; the message says why."""


def serve(open_detector) -> None:
    """Answer until stdin ends. ``open_detector(options)`` gives an object with ``versions``, ``start()`` for a new
    video and ``detect(BGR frame) -> (positions [P, V, 2] in pixels, confidences [P, V])``."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**message) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        import cv2  # noqa: F401
        import numpy  # noqa: F401

        detector = open_detector(json.loads(sys.argv[1]))
    except ImportError as error:
        return tell(missing=error.name or str(error))
    except OSError as error:
        return tell(offline=describe(error))
    except Exception as error:
        return tell(refused=describe(error))
    tell(ready=detector.versions)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            frames = extract(detector, job["video"], job["out"], tell)
        except Unreadable as error:
            tell(failed=str(error))
        except BrokenPipeError:  # nobody listens any more
            return None
        except Exception as error:
            tell(failed="the detector stopped with " + describe(error))
        else:
            tell(done=frames)


def end_with(parent: int) -> None:
    """End this process soon after its parent was killed, also where a decoder or a network hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def extract(detector, video: str, out: str, tell) -> int:
    """Write the keypoints of every frame of a video and a few small frames; returns how many frames there are."""
    import cv2
    import numpy as np

    capture = cv2.VideoCapture(video)
    try:
        if not capture.isOpened():
            raise Unreadable("cannot be decoded as a video")
        total = whole(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = capture.get(cv2.CAP_PROP_FPS)
        detector.start()
        counts: list[int] = []
        positions, confidences, kept = [], [], {}
        size, stride, told = None, 1, 0.0
        while True:
            there, frame = capture.read()
            if not there:
                break
            number = len(counts)
            if size is None:
                size = frame.shape[1], frame.shape[0]
            if (frame.shape[1], frame.shape[0]) != size:
                raise Unreadable(f"frame {number} has another size than the first")
            if number == MAX_FRAMES:
                raise Unreadable(f"has more than {MAX_FRAMES} frames")
            xy, confidence = detector.detect(frame)
            xy, confidence = np.asarray(xy, np.float32)[:MAX_PEOPLE], np.asarray(confidence, np.float32)[:MAX_PEOPLE]
            counts.append(len(xy))
            if len(xy):
                positions.append(xy)
                confidences.append(confidence)
            if number % stride == 0:
                kept[number] = small(frame)
                if len(kept) > 2 * KEPT:
                    stride *= 2
                    kept = {i: image for i, image in kept.items() if i % stride == 0}
            if time.monotonic() - told > 0.2:
                told = time.monotonic()
                tell(frame=len(counts), of=total)
    finally:
        capture.release()
    if size is None:
        raise Unreadable("has no frame that can be decoded")
    if not positions:
        raise Unreadable(f"shows nobody in any of its {len(counts)} frames")
    chosen = sorted(kept)
    chosen = [chosen[i * (len(chosen) - 1) // max(KEPT - 1, 1)] for i in range(KEPT)] if len(chosen) > KEPT else chosen
    with open(out, "wb") as file:
        np.savez(
            file,
            counts=np.array(counts, np.int64),
            xy=np.concatenate(positions),
            confidence=np.concatenate(confidences),
            size=np.array(size, np.int64),
            fps=np.float64(rate if math.isfinite(rate) and 0 < rate < 1e6 else 0),
            total=np.int64(total),
            images=np.stack([kept[i] for i in chosen]),
            image_frames=np.array(chosen, np.int64),
        )
    return len(counts)


def version(package) -> str:
    from importlib import metadata

    try:
        return metadata.version(package.__name__)
    except metadata.PackageNotFoundError:
        return getattr(package, "__version__", "?")


def whole(number: float) -> int:
    return int(number) if math.isfinite(number) and 0 < number < 1 << 31 else 0


def small(frame):
    """RGB, no wider than a preview needs."""
    import cv2

    height, width = frame.shape[:2]
    if width > WIDTH:
        frame = cv2.resize(frame, (WIDTH, max(1, round(height * WIDTH / width))), interpolation=cv2.INTER_AREA)
    return frame[:, :, ::-1].copy()
