"""A detector in a process of its own, so that it may have its own environment and take nobody with it when it dies."""

from __future__ import annotations

import json
import os
import queue
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from slrfast import checks
from slrfast.data.extract.backends import BACKENDS, MODES, WORKERS, pose_of
from slrfast.data.pose import Pose
from slrfast.errors import PoseFileError, SlrfastError

_SETTINGS = {"PYTHONUNBUFFERED": "1", "GLOG_minloglevel": "2", "TF_CPP_MIN_LOG_LEVEL": "2", "OPENCV_LOG_LEVEL": "ERROR"}
_LONGEST_LINE = 1 << 16
_OWN = ("PYTHONPATH", "PYTHONHOME")  # of this environment, not of the detector's


class ExtractionError(SlrfastError, ValueError):
    """No keypoints can be extracted from any video; the message is one sentence with what to do."""


class _Silent(Exception):
    """The process has not answered for too long."""


def _listen(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Pass on the lines of a process, None for their end or a line that is none; a thread, so that waiting can end."""
    with stream:
        try:
            while (line := stream.readline(_LONGEST_LINE)).endswith("\n"):
                lines.put(line)
        except (OSError, ValueError):
            pass
        lines.put(None)


class Extracted(NamedTuple):
    """What a video gave.

    Attributes:
        pose: layout "coco133".
        images: uint8 [K, h, w, 3], a few frames in RGB, made smaller.
        image_frames: int64 [K], which frames they are.
        expected: how many frames the video says to have, 0 if it does not say.
    """

    pose: Pose
    images: np.ndarray
    image_frames: np.ndarray
    expected: int


class Extractor:
    """Finds people in videos; a context manager, since it holds a process.

    Args:
        backend: "rtmlib", "mmpose" or "mediapipe".
        python: the Python of the environment that has the backend; None is this one.
        det: ONNX file of the person detector (rtmlib), or its config or alias (mmpose); None downloads the default.
        pose: the same of the keypoint model; it must be a whole-body one.
        det_weights, pose_weights: checkpoints for configs (mmpose).
        mode: of rtmlib's default models: "lightweight", "balanced" or "performance".
        device: "auto", or as the backend names it.
        timeout: seconds without a new frame after which the process counts as hanging and is ended; while it loads its
            models, what it prints about a download counts as life. None waits for ever.
    Raises:
        ExtractionError: on entering: the backend is not installed there, hangs, cannot load or download its models.

    >>> with Extractor("rtmlib", pose="nowhere.onnx") as extractor:
    ...     extractor.read("signs.mp4").pose.layout
    Traceback (most recent call last):
    slrfast.data.extract.process.ExtractionError: --pose nowhere.onnx: there is no such file
    """

    def __init__(
        self,
        backend: str = "rtmlib",
        *,
        python: str | os.PathLike | None = None,
        det: str | None = None,
        pose: str | None = None,
        det_weights: str | None = None,
        pose_weights: str | None = None,
        mode: str = "balanced",
        device: str = "auto",
        timeout: float | None = 300.0,
    ) -> None:
        checks.choice("Extractor", tuple(BACKENDS), backend=backend)
        checks.choice("Extractor", MODES, mode=mode)
        if timeout is not None:
            checks.positive("Extractor", timeout=timeout)
            checks.require(timeout <= threading.TIMEOUT_MAX, "Extractor", "timeout", "be None or some days", timeout)
        self.timeout = timeout
        self.backend, self.python = backend, str(python or sys.executable)
        self.options: dict[str, Any] = {
            "det": det, "pose": pose, "det_weights": det_weights, "pose_weights": pose_weights,
            "mode": mode, "device": device,
        }  # fmt: skip
        self.versions: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._scratch: tempfile.TemporaryDirectory | None = None
        self._log: IO[bytes] | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __enter__(self) -> Extractor:
        files = ["det_weights", "pose_weights", *(["det", "pose"] if BACKENDS[self.backend].own_files else [])]
        for name in files:
            if self.options[name] is not None and not Path(self.options[name]).is_file():
                raise ExtractionError(f"--{name} {self.options[name]}: there is no such file")
        self._scratch = tempfile.TemporaryDirectory(prefix="slrfast-extract-")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def read(self, video: str | os.PathLike, on_frame: Callable[[int, int], None] | None = None) -> Extracted:
        """The people in a video; ``on_frame(frames so far, frames in all or 0)`` is called now and then.

        Raises:
            PoseFileError: the video cannot be decoded, has no frames or shows nobody, or the detector dies of it or
                hangs.
            ExtractionError: the detector cannot be started again.
        """
        path = Path(video)
        try:
            status = path.stat()
        except OSError as error:
            raise PoseFileError(video, f"cannot be opened: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise PoseFileError(video, "is not a file")
        if status.st_size == 0:
            raise PoseFileError(video, "is empty")
        if self._process is None:
            self._start()
        assert self._scratch is not None
        out = Path(self._scratch.name) / "video.npz"
        out.unlink(missing_ok=True)
        self._ask({"video": self._plain(path), "out": str(out)})
        frames = 0
        while True:
            try:
                answer = self._answer()
            except _Silent:
                self._stop()
                reason = f"the decoder or detector hangs after frame {frames}: {self._silence()}"
                raise PoseFileError(video, reason) from None
            if answer is None:
                reason = f"the detector's process ended {self._ending()}"
                self._stop()
                raise PoseFileError(video, reason)
            if "frame" in answer:
                frames = answer["frame"]
                if on_frame is not None:
                    on_frame(answer["frame"], answer["of"])
            elif "failed" in answer:
                raise PoseFileError(video, answer["failed"])
            else:
                break
        with np.load(out, allow_pickle=False) as content:
            arrays = dict(content)
        pose = pose_of(self.backend, str(video), arrays)
        return Extracted(pose, arrays["images"], arrays["image_frames"], int(arrays["total"]))

    def _start(self) -> None:
        backend = BACKENDS[self.backend]
        foreign = _OWN if self.python != sys.executable else ()
        environment = {key: value for key, value in os.environ.items() if key not in foreign} | _SETTINGS
        environment.pop("PYTHONSAFEPATH", None)  # a worker imports the script beside it
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [self.python, str(WORKERS / backend.worker), json.dumps(self.options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        except OSError as error:
            raise ExtractionError(f"--python {self.python}: cannot be run ({error.strerror})") from error
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(self._process.stdout, self._lines), daemon=True).start()
        try:
            answer = self._answer(starting=True)
        except _Silent:
            raise ExtractionError(f"{self.backend} hangs while it starts: {self._silence()}") from None
        if answer is None:
            ending = self._ending()
            raise ExtractionError(f"{self.backend} does not start with {self.python}: its process ended {ending}")
        if "missing" in answer:
            lacking = f"{self.backend} cannot be used: {self.python} has no module {answer['missing']}"
            raise ExtractionError(f"{lacking}; {backend.missing(self.python)}")
        if "offline" in answer:
            why = answer["offline"]
            raise ExtractionError(f"{self.backend} cannot download its weights ({why}); {backend.offline}")
        if "refused" in answer:
            raise ExtractionError(f"{self.backend} cannot load its models ({answer['refused']})")
        self.versions = answer["ready"]

    def _ask(self, job: dict[str, str]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it is dead, and its answers will end
            pass

    def _answer(self, starting: bool = False) -> dict[str, Any] | None:
        """The next answer; None if the process ended or what it says makes no sense; _Silent if it says nothing."""
        assert self._log is not None
        since, logged = time.monotonic(), 0
        while True:
            try:
                line = self._lines.get(timeout=None if self.timeout is None else min(self.timeout, 1.0))
                break
            except queue.Empty:
                size = os.fstat(self._log.fileno()).st_size
                if starting and size > logged:
                    since, logged = time.monotonic(), size
                if time.monotonic() - since >= (self.timeout or 0):
                    raise _Silent from None
        try:
            answer = json.loads(line or "")
        except ValueError:
            return None
        return answer if isinstance(answer, dict) else None

    def _silence(self) -> str:
        return f"nothing came from it for {self.timeout:g} s (--timeout)"

    def _ending(self) -> str:
        """How the process ended, with the last thing it said."""
        assert self._process is not None and self._log is not None
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "with answers that make no sense"
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4096))
        lines = self._log.read().decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return how + (f" ({''.join(c if c.isprintable() else '?' for c in said[:200])})" if said else "")

    def _stop(self) -> None:
        if self._process is not None:
            if hasattr(os, "killpg") and self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)  # and whatever it has started, as its session's leader
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                try:
                    self._process.stdin.close()
                except BrokenPipeError:
                    pass
        if self._log is not None:
            self._log.close()
        self._process = self._log = None

    def _plain(self, video: Path) -> str:
        """The path, or a link to it: names that are no text, or look like a pattern or an address, stop at OpenCV."""
        assert self._scratch is not None
        plain = video.suffix.isascii() and video.suffix[1:].isalnum()
        link = Path(self._scratch.name) / f"video{video.suffix if plain else ''}"
        link.unlink(missing_ok=True)
        link.symlink_to(video.absolute())
        return str(link)
