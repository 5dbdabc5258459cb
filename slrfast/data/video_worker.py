"""The process that decodes videos: PyAV and NumPy, nothing of slrfast, so that a hostile file takes nobody with it.

In, one JSON object a line: {"path", "at", "size"}; "at" is how many frames, spread evenly, or their numbers, or null
for none; "size" is [height, width]. Out, one JSON object a line: at first {"ready": version} or {"missing": module};
then for every video {"failed": why}, or {"count", "decoded", "fps", "bytes"} and so many bytes, uint8 [T, H, W, 3].
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter

MAX_FRAMES, MAX_PIXELS = 100_000, 1 << 25
# containers only: a playlist would have other files and addresses opened that it names
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts"


class Unreadable(Exception):
    """A video that gives no frames; the message says why."""


def serve(memory: int) -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        import av
        import numpy  # noqa: F401
    except ImportError as error:
        return tell(answers, missing=error.name or str(error))
    confine(memory)
    av.logging.set_level(None)
    tell(answers, ready=av.__version__)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        try:
            told, content = read(job["path"], job["at"], job["size"])
        except Unreadable as error:
            tell(answers, failed=str(error))
        except OSError as error:
            tell(answers, failed=f"cannot be decoded ({describe(error)})")
        except MemoryError:
            tell(answers, failed="cannot be decoded, it takes too much memory")
        except Exception as error:
            tell(answers, failed=f"cannot be decoded ({describe(error)})")
        else:
            tell(answers, **told, bytes=len(content))
            answers.write(content)
            answers.flush()


def tell(answers, **message) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


def describe(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())[:120]


def confine(memory: int) -> None:
    """No more than so many bytes of memory, no files written, no core dumped; what the system cannot do is left out."""
    try:
        import resource
    except ImportError:
        return
    for limit, most in (("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, limit), (most, most))
        except (AttributeError, OSError, ValueError):
            pass


def read(path: str, at, size) -> tuple[dict, bytes]:
    import av
    import numpy as np

    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}
    with open(path, "rb") as file, av.open(file, "r", options=options) as container:
        if not container.streams.video:
            raise Unreadable("has no video in it")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise Unreadable("is in a codec that is not known here")
        if not 0 < context.width * context.height <= MAX_PIXELS:
            raise Unreadable(f"has frames of {context.width} x {context.height} pixels")
        context.thread_count = 1
        shape = context.width, context.height
        count = 0
        for packet in container.demux(stream):
            count += packet.size > 0 and not packet.is_discard
            if count > MAX_FRAMES:
                raise Unreadable(f"has more than {MAX_FRAMES} frames")
        fps, last = float(stream.average_rate or 0), not isinstance(at, int)
        wanted = [0] if at is None else spread(count, at) if isinstance(at, int) else at
        frames, decoded, whole = decode(container, stream, wanted, size or (1, 1), shape, last)
        if isinstance(at, int) and whole and 0 < decoded < count:  # hidden frames have packets too
            count = decoded
            frames, decoded, whole = decode(container, stream, spread(count, at), size, shape, last)
        if not frames:
            raise Unreadable("has no frame that can be decoded")
        if at is None:
            return {"count": count, "decoded": decoded, "fps": fps}, b""
        frames += frames[-1:] * (len(wanted) - len(frames))  # a damaged end
        return {"count": count, "decoded": decoded, "fps": fps}, np.stack(frames).tobytes()


def spread(count: int, frames: int) -> list[int]:
    """Numbers of so many frames, evenly spread over all: the middle of each part."""
    return [(2 * i + 1) * count // (2 * frames) for i in range(frames)]


def decode(container, stream, wanted, size, shape, last):
    """The wanted frames (numbers rising, repeats allowed), how many were decoded, and whether nothing went wrong.

    ``last`` ends with the last that is wanted.
    """
    import av

    times, found, decoded = Counter(wanted), [], 0
    container.seek(0, stream=stream)
    try:
        for frame in container.decode(stream):
            if (frame.width, frame.height) != shape:
                raise Unreadable(f"frame {decoded} has another size than the first")
            if decoded in times:
                found += [picture(frame, size)] * times[decoded]
            decoded += 1
            if last and len(found) == len(wanted):
                break
    except av.FFmpegError:
        return found, decoded, False
    return found, decoded, True


def picture(frame, size):
    """RGB [H, W, 3], upright."""
    import numpy as np

    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    height, width = size if turns % 2 == 0 else size[::-1]
    image = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    return np.rot90(image, turns)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
