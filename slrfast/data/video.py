"""Frames of videos, which come from strangers: decoded in a process of its own, within limits of time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slrfast import checks
from slrfast.data.wrapped import VIDEO_SUFFIXES
from slrfast.errors import SlrfastError, one_line

__all__ = [
    "VIDEO_SUFFIXES",
    "Decoded",
    "VideoDecoderError",
    "VideoFileError",
    "VideoInfo",
    "VideoReader",
    "list_videos",
    "spread",
]

_WORKER = Path(__file__).with_name("video_worker.py")


class VideoFileError(SlrfastError, ValueError):
    """A video cannot be used; the message is ``<path>: <what is wrong>``."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(one_line(f"{path}: {reason}"))
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)


class VideoDecoderError(SlrfastError, RuntimeError):
    """No video at all can be decoded here; the message says what to do."""


class VideoInfo(NamedTuple):
    """How many frames a video has, by its packets, and how many a second (0 if it does not say)."""

    frames: int
    fps: float


class Decoded(NamedTuple):
    """Frames of a video.

    Attributes:
        rgb: uint8 [3, T, H, W].
        missing: how many of them stand behind the last frame that could be decoded, and repeat it.
    """

    rgb: Tensor
    missing: int


class VideoReader:
    """Decodes videos with PyAV in a process of its own, which is started when it is needed and again when it died.

    Only containers of video are opened (MP4, Matroska, WebM, AVI, MPEG), never a playlist that names other files or
    addresses. A video that takes too long or too much memory, or crashes the decoder, is a VideoFileError. A reader can
    be sent to other processes; each has its own decoder.

    Args:
        time_limit: seconds for one video.
        memory_limit: bytes of address space for the decoder, where the system can limit it.

    >>> with VideoReader() as reader:
    ...     reader.read("nowhere.mp4", 8, 112)
    Traceback (most recent call last):
    slrfast.data.video.VideoFileError: nowhere.mp4: cannot be opened: No such file or directory
    """

    def __init__(self, *, time_limit: float = 60.0, memory_limit: int = 4 << 30) -> None:
        checks.positive("VideoReader", time_limit=time_limit)
        checks.integer_between("VideoReader", 1 << 28, 1 << 50, memory_limit=memory_limit)
        self.time_limit, self.memory_limit = float(time_limit), memory_limit
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._owner = 0

    def probe(self, path: str | os.PathLike) -> VideoInfo:
        """Count the frames and decode the first.

        Raises:
            VideoFileError: the file is no video, has no frame, or went over a limit.
            VideoDecoderError: PyAV is not installed.
        """
        told, _ = self._ask(path, None, None, 0)
        return VideoInfo(int(told["count"]), float(told["fps"]))

    def read(self, path: str | os.PathLike, frames: int | Sequence[int], size: int | tuple[int, int]) -> Decoded:
        """Some frames, upright, in RGB.

        Args:
            path: the video.
            frames: how many, spread evenly over the video as :func:`spread` says; or their numbers, never falling.
            size: pixels of the result, (height, width) or one number for both; the picture is stretched to it.
        Raises:
            VideoFileError: as for :meth:`probe`.
        """
        height, width = (size, size) if isinstance(size, int) else size
        checks.integer_between("VideoReader", 1, 4096, height=height, width=width)
        if isinstance(frames, int):
            checks.integer_between("VideoReader", 1, 4096, frames=frames)
            at: int | list[int] = frames
        else:
            at = [int(number) for number in frames]
            rising = 0 < len(at) <= 4096 and at[0] >= 0 and all(a <= b for a, b in zip(at, at[1:], strict=False))
            checks.require(rising, "VideoReader", "frames", "be 1 to 4096 numbers that never fall", at[:8])
        count = at if isinstance(at, int) else len(at)
        told, content = self._ask(path, at, (height, width), count * height * width * 3)
        pictures = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(count, height, width, 3))
        missing = 0 if isinstance(at, int) else sum(number >= told["decoded"] for number in at)
        if isinstance(at, int) and told["decoded"] < told["count"]:
            missing = int((spread(told["count"], at) >= told["decoded"]).sum())
        return Decoded(pictures.permute(3, 0, 1, 2).contiguous(), missing)

    def close(self) -> None:
        """End the decoder's process; the next video starts another."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                try:
                    stream.close()  # type: ignore[union-attr]
                except OSError:
                    pass
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"time_limit": self.time_limit, "memory_limit": self.memory_limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _ask(self, video: str | os.PathLike, at: Any, size: Any, length: int) -> tuple[dict[str, Any], bytearray]:
        path = Path(video)
        try:
            if path.stat().st_size == 0:
                raise VideoFileError(video, "is empty")
        except OSError as error:
            raise VideoFileError(video, f"cannot be opened: {error.strerror}") from error
        if not path.is_file():
            raise VideoFileError(video, "is not a file")
        if self._process is None or self._owner != os.getpid():  # a fork has its parent's pipe
            self._start()
        process, late = self._process, threading.Event()
        assert process is not None and process.stdin is not None

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.time_limit, stop)
        timer.daemon = True
        timer.start()
        content, whole = bytearray(length), False
        try:
            try:
                job = {"path": os.fspath(path.absolute()), "at": at, "size": size}
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:  # it is dead, and its answer will be none
                pass
            told = self._answer()
            if "failed" not in told:
                numbers = all(isinstance(told.get(name), int) for name in ("count", "decoded"))
                whole = numbers and told.get("bytes") == length and self._fill(content)
                if not whole:
                    raise VideoFileError(video, self._ending(late))
        except BaseException:  # also Ctrl-C: what is half read would be taken for the next answer
            self.close()
            raise
        finally:
            timer.cancel()
            timer.join()
        if late.is_set():  # it answered at the last moment
            self.close()
        if "failed" in told:
            raise VideoFileError(video, str(told["failed"]))
        return told, content

    def _start(self) -> None:
        self.close()
        self._log, self._owner = tempfile.TemporaryFile(), os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(self.memory_limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
        )
        told = self._answer()
        if "ready" in told:
            return
        why = f"the process that decodes videos does not start; something {self._ending()}"
        if "missing" in told:
            why = f"reading videos needs the package {told['missing']}: pip install 'slrfast[video]'"
        self.close()
        raise VideoDecoderError(one_line(why))

    def _answer(self) -> dict[str, Any]:
        """The next answer; empty if the process ended or what it says makes no sense."""
        assert self._process is not None and self._process.stdout is not None
        try:
            told = json.loads(self._process.stdout.readline(1 << 16))
        except (ValueError, RecursionError):
            return {}
        return told if isinstance(told, dict) else {}

    def _fill(self, content: bytearray) -> bool:
        assert self._process is not None and self._process.stdout is not None
        view, done = memoryview(content), 0
        while done < len(content):
            count = self._process.stdout.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                return False
            done += count
        return True

    def _ending(self, late: threading.Event | None = None) -> str:
        """What a video did to the process."""
        if late is not None and late.is_set():
            return f"took more than {self.time_limit:g} seconds"
        assert self._process is not None and self._log is not None
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "made the decoder answer nonsense"
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2048))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").split("\n")]
        said = next((line for line in reversed(lines) if line), "")[:160]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"ended the decoder by {how}" + (f" ({said})" if said else "")


def spread(count: int, frames: int) -> np.ndarray:
    """Numbers of ``frames`` frames evenly spread over ``count``, the middle of each part: int64 [frames].

    >>> spread(10, 4).tolist(), spread(2, 4).tolist()
    ([1, 3, 6, 8], [0, 0, 1, 1])
    """
    return (2 * np.arange(frames, dtype=np.int64) + 1) * count // (2 * frames)


def list_videos(folder: str | os.PathLike) -> dict[str, Path]:
    """Videos below a folder, by their path in it with "/"; hidden ones and links that lead out of it are left out.

    Raises:
        VideoFileError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise VideoFileError(folder, "there is no such folder of videos")
    inside, found = root.resolve(), {}
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.suffix.lower() in VIDEO_SUFFIXES and not hidden and file.is_file():
            try:
                linked = file.is_symlink() and not file.resolve().is_relative_to(inside)
            except (OSError, RuntimeError):
                linked = True
            if not linked:
                found[name.as_posix()] = file
    return found
