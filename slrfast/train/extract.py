"""``slrfast extract``: keypoints of the people in videos, one pose file a video."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from slrfast.data import FORMATS
from slrfast.data.extract import BACKENDS, MODES, Extracted, Extractor
from slrfast.errors import PoseFileError
from slrfast.train.config import RunError
from slrfast.train.options import Parser
from slrfast.train.overlay import draw_overlay
from slrfast.train.report import STOPPED, one_line, speaker

DESCRIPTION = """Find the 133 keypoints of COCO-WholeBody in every frame of videos: VIDEO are files, or folders that are
searched for them. Every video gives a pose file of the same name, in the same sub-folder, and a picture with the
skeleton over a few frames. What is there already is left alone, so that the same command goes on after a stop."""
VIDEOS = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ogv .ts .mts .3gp .gif".split())
"""What folders are searched for."""
SUFFIX = {"npz": "npz", "json": "mmpose_json"}


@dataclass
class _Tally:
    done: int = 0
    frames: int = 0
    there: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    short: list[str] = field(default_factory=list)


def extract(argv: Sequence[str]) -> int:
    """Run the extract command and return its exit code."""
    parser = Parser(
        "extract",
        DESCRIPTION,
        [
            "extract videos/ --out poses/",
            "extract a.mp4 b.mp4 --out poses/ --det yolox.onnx --pose rtmw.onnx",
            "extract videos/ --out poses/ --backend mediapipe --python mp/bin/python",
        ],
    )
    parser.add_argument("video", nargs="+", type=str, metavar="VIDEO", help="video files, or folders of them")
    parser.add_argument("--out", type=str, required=True, help="folder for the pose files")
    parser.add_argument("--backend", type=Literal[tuple(BACKENDS)], default="rtmlib", help=", ".join(BACKENDS))
    parser.add_argument("--python", type=str, help="Python of the environment that has the backend (default: this one)")
    parser.add_argument("--pose", type=str, help="keypoint model: ONNX file (rtmlib), config or alias (mmpose)")
    parser.add_argument("--det", type=str, help="person detector: ONNX file (rtmlib), config or alias (mmpose)")
    parser.add_argument("--pose_weights", type=str, help="checkpoint of --pose (mmpose)")
    parser.add_argument("--det_weights", type=str, help="checkpoint of --det (mmpose)")
    parser.add_argument("--mode", type=Literal[MODES], default="balanced", help="size of rtmlib's default models")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or what else the backend knows")
    parser.add_argument("--format", type=Literal[tuple(SUFFIX)], default="npz", help="npz, or MMPose 1.x json")
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds without a new frame that mean a hang, 0: none"
    )
    parser.add_argument("--preview", type=bool, default=True, help="a picture for every video")
    parser.add_argument("--overwrite", action="store_true", help="replace pose files that are there already")
    parser.add_json()
    options = parser.read(argv)
    say = speaker(options.json)
    if not 0 <= options.timeout < 1e6:
        raise RunError(f"--timeout must be 0 or more seconds, got {options.timeout:g}")
    out, tally, began = Path(options.out), _Tally(), time.perf_counter()
    jobs, refused = _jobs(options.video, out, options.format)
    for video, reason in refused:
        _fail(tally, str(video), reason, say)
    pending = [(video, target) for video, target in jobs if options.overwrite or not target.exists()]
    tally.there = len(jobs) - len(pending)
    interrupted = False
    if pending:
        names = ("python", "det", "pose", "det_weights", "pose_weights", "mode", "device")
        settings = {name: options[name] for name in names} | {"timeout": options.timeout or None}
        try:
            with Extractor(options.backend, **settings) as extractor:
                versions = ", ".join(f"{name} {version}" for name, version in extractor.versions.items())
                say(f"extract: {len(pending)} videos to go, {tally.there} there already; {versions}")
                _run(extractor, pending, options.format, options.preview, tally, say)
        except KeyboardInterrupt:
            interrupted = True
    return _report(tally, len(jobs) + len(refused), out, time.perf_counter() - began, interrupted, options.json)


def _jobs(sources: Sequence[str], out: Path, form: str) -> tuple[list[tuple[Path, Path]], list[tuple[Path, str]]]:
    """Every video with its pose file, and the links that are not followed.

    Raises:
        RunError: there is no such file or folder or no video in it, or two videos would give the same pose file.
    """
    jobs: dict[Path, Path] = {}
    refused: list[tuple[Path, str]] = []
    for source in map(Path, sources):
        if source.is_dir():
            root = source.resolve()
            videos = sorted(
                p for p in source.rglob("*")
                if p.suffix.lower() in VIDEOS and not any(part.startswith(".") for part in p.relative_to(source).parts)
            )  # fmt: skip
            if not videos:
                raise RunError(f"{source}: there are no videos in this folder")
        elif source.exists():
            videos, root = [source], None
        else:
            raise RunError(f"{source}: there is no such file or folder")
        for video in videos:
            if root is not None and not _inside(video, root):
                refused.append((video, "is a symbolic link that leads out of the folder or nowhere"))
                continue
            target = out / (video.relative_to(source) if root is not None else Path(video.name)).with_suffix(f".{form}")
            if target in jobs and jobs[target].resolve() != video.resolve():
                raise RunError(f"{jobs[target]} and {video} would both give {target}; extract them into two folders")
            jobs.setdefault(target, video)
    return [(video, target) for target, video in jobs.items()], refused


def _inside(video: Path, root: Path) -> bool:
    try:
        return video.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # a broken link, or one in a circle
        return False


def _run(
    extractor: Extractor,
    jobs: Sequence[tuple[Path, Path]],
    form: str,
    preview: bool,
    tally: _Tally,
    say: Callable[[str], None],
) -> None:
    with tqdm(jobs, "extracting", unit=" videos", disable=None) as bar:
        for video, target in bar:

            def show(frame: int, total: int, name: str = one_line(video.name)) -> None:
                bar.set_postfix_str(f"{name}: frame {frame}" + (f" of {total}" if total else ""))

            try:
                found = extractor.read(video, show)
                _save(found, target, form, preview)
            except PoseFileError as error:
                with bar.external_write_mode():
                    _fail(tally, str(video), error.reason, say)
                continue
            tally.done += 1
            tally.frames += found.pose.num_frames
            if found.pose.num_frames < 0.8 * found.expected:  # whole videos, too, often count a few too many
                tally.short.append(f"{video}: only {found.pose.num_frames} of {found.expected} frames could be decoded")


def _save(found: Extracted, target: Path, form: str, preview: bool) -> None:
    """The picture first: where the pose file is, everything is."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{target.parent}: this folder cannot be made ({error.strerror})") from error
    if preview:
        draw_overlay(found.pose, found.images, found.image_frames, target.with_suffix(".png"))
    FORMATS[SUFFIX[form]].write(target, found.pose)


def _fail(tally: _Tally, video: str, reason: str, say: Callable[[str], None]) -> None:
    tally.failed.append((video, reason))
    say(f"failed: {one_line(video)}: {one_line(reason)}")


def _report(tally: _Tally, asked: int, out: Path, seconds: float, interrupted: bool, as_json: bool) -> int:
    say = speaker(as_json)
    if asked == len(tally.failed) and not interrupted:
        video, reason = tally.failed[0]
        raise RunError(f"none of the {asked} videos could be used; the first, {video}: {reason}")
    for line in tally.short:
        say(f"warning: {one_line(line)}")
    rate = f" ({tally.frames / seconds:.1f} frames/s)" if tally.frames else ""
    how = "interrupted" if interrupted else "done"
    say(
        f"{how}: {tally.done} videos, {tally.frames} frames in {seconds:.0f} s{rate}; "
        f"{tally.there} were there already, {len(tally.failed)} failed; pose files are in {out}"
    )
    if interrupted:
        say("the same command goes on where this one stopped")
    if as_json:
        results = {
            "out": str(out), "videos": tally.done, "frames": tally.frames, "there": tally.there,
            "failed": [list(pair) for pair in tally.failed], "short": tally.short,
            "seconds": round(seconds, 2), "interrupted": interrupted,
        }  # fmt: skip
        print(json.dumps(results))
    return STOPPED["SIGINT"] if interrupted else 0
