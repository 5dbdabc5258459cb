"""``slrfast fit-flow``: train the invertible map of CCL-SLR's Motion-Preserving Masking on videos."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from slrfast.data import SyntheticSigns
from slrfast.data.render import RenderedDataset
from slrfast.data.video import VideoFileError, VideoReader, list_videos
from slrfast.errors import CheckpointError, one_line
from slrfast.nn.flow import Flow, FlowConfig
from slrfast.nn.moving import MotionPreservingMask
from slrfast.train.config import RunError, choose_device
from slrfast.train.loop import TrainingDiverged
from slrfast.train.options import Parser
from slrfast.train.pictures import save_figure
from slrfast.train.report import STOPPED, speaker
from slrfast.train.runs import write_json

DESCRIPTION = """Train a small Glow on frames of videos, for the Motion-Preserving Masking of CCL-SLR: VIDEO are files,
or folders that are searched for them. Frames are spread evenly over each video; every eighth video is held out to tell
the bits per dimension before and after. OUT gets the flow (config.json, model.safetensors), fit.json and masked.png.
Ctrl-C saves and ends; --start goes on with a saved flow."""
SETTINGS = ("levels", "steps", "hidden")
WARM_UP = 50  # iterations until the learning rate is reached
SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class FlowFit:
    """What came of :func:`fit_flow`.

    Attributes:
        iterations: that were done.
        seconds: that they took.
        before, after: bits per dimension of the held-out frames.
        stopped: why it ended early: "time", "SIGINT" or None.
    """

    iterations: int
    seconds: float
    before: float
    after: float
    stopped: str | None


def fit_flow(
    flow: Flow,
    frames: Tensor,
    held_out: Tensor,
    *,
    iterations: int = 2000,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    time_limit: float = math.inf,
    initialize: bool = True,
    seed: int = 0,
    save: Callable[[], None] = lambda: None,
    progress: bool = False,
) -> FlowFit:
    """Train a flow to the greatest likelihood of 8-bit frames, by Adam with a warm-up and a cosine to 0.

    Args:
        flow: is trained where it is.
        frames: [M, 3, H, W] uint8, on any device.
        held_out: [M', 3, H, W] uint8, for the bits before and after.
        iterations: at most so many.
        batch_size: frames of one iteration.
        learning_rate: of Adam.
        time_limit: seconds after which training ends, its cosine as well.
        initialize: fit the actnorms to a first batch.
        seed: of batches and of the noise that makes 8-bit numbers continuous.
        save: is called every minute and at the end.
        progress: show a bar.
    Raises:
        TrainingDiverged: the loss is no longer finite; what was saved is from before.
    """
    device = next(flow.parameters()).device
    generator, noise = torch.Generator().manual_seed(seed), torch.Generator(device).manual_seed(seed)

    def batch() -> Tensor:
        return frames[torch.randint(len(frames), (batch_size,), generator=generator).to(frames.device)].to(device)

    if initialize:
        count = min(len(frames), 4 * batch_size)
        some = frames[torch.randperm(len(frames), generator=generator)[:count].to(frames.device)].to(device)
        flow.initialize(some.float() / 255)
    before, done, stopped = held_out_bits(flow, held_out, batch_size), 0, None
    optimizer = torch.optim.Adam(flow.parameters(), learning_rate)
    began = saved = time.monotonic()
    bar = tqdm(total=iterations, desc="fitting", unit=" iterations", disable=None if progress else True)
    try:
        for done in range(1, iterations + 1):
            elapsed = time.monotonic() - began
            part = max((done - 1) / iterations, min(elapsed / time_limit, 1.0))
            rate = learning_rate * min(1.0, done / WARM_UP) * 0.5 * (1 + math.cos(math.pi * part))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = flow.bits_per_dim(batch(), noise).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(flow.parameters(), 50.0)
            bits = loss.item()
            if not math.isfinite(bits) or not math.isfinite(norm.item()):
                raise TrainingDiverged(
                    f"fit-flow: the loss is {bits} after {done} iterations; take a smaller --learning_rate"
                )
            optimizer.step()
            bar.update()
            bar.set_postfix_str(f"{bits:.3f} bits/dim")
            if time.monotonic() - began > time_limit:
                stopped = "time" if done < iterations else None
                break
            if time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        stopped = "SIGINT"
    finally:
        bar.close()
    seconds = time.monotonic() - began
    after = held_out_bits(flow, held_out, batch_size)
    save()
    return FlowFit(done, round(seconds, 2), before, after, stopped)


@torch.no_grad()
def held_out_bits(flow: Flow, frames: Tensor, batch_size: int = 16) -> float:
    """Mean bits per dimension of uint8 frames, without noise."""
    device = next(flow.parameters()).device
    return torch.cat([flow.bits_per_dim(part.to(device)) for part in frames.split(batch_size)]).mean().item()


def fit_flow_command(argv: Sequence[str]) -> int:
    """Run the fit-flow command and return its exit code."""
    parser = Parser(
        "fit-flow",
        DESCRIPTION,
        [
            "fit-flow videos/ --out flows/first",
            "fit-flow a.mp4 b.mp4 --out flows/first --size 224 --minutes 30",
            "fit-flow videos/ --out flows/second --start flows/first",
            "fit-flow --synthetic --out flows/try --minutes 1",
        ],
    )
    parser.add_argument("video", nargs="*", type=str, metavar="VIDEO", help="video files, or folders of them")
    parser.add_argument("--out", type=str, required=True, help="folder for the flow")
    parser.add_argument("--synthetic", action="store_true", help="rendered skeletons instead of videos")
    parser.add_argument("--size", type=int, default=112, help="height and width that frames are resized to")
    parser.add_argument("--frames", type=int, default=16, help="of each video")
    parser.add_argument("--videos", type=int, default=500, help="take at most so many, spread over all")
    for name in SETTINGS:
        default = getattr(FlowConfig(), name)
        parser.add_argument(f"--{name}", type=int | None, help=f"of the flow (default: {default})")
    parser.add_argument("--start", type=str, help="folder of a flow to go on with")
    parser.add_argument("--iterations", type=int, default=2000, help="at most so many")
    parser.add_argument("--batch_size", type=int, default=16, help="frames of one iteration")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="of Adam")
    parser.add_argument("--minutes", type=float | None, help="end after so many minutes")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--overwrite", action="store_true", help="replace a flow that is in OUT already")
    parser.add_json()
    options = parser.read(argv)
    flow = _flow(options)
    out = Path(options.out)
    _check(options, flow, out)
    device, say = choose_device(options.device), speaker(options.json)
    clips, skipped = _synthetic_clips(options) if options.synthetic else _read_clips(options, say)
    training, held_out = _parted(clips)
    frames = torch.cat([clip.transpose(0, 1) for clip in training])
    still = torch.cat([clip.transpose(0, 1) for clip in held_out])
    size = sum(parameter.numel() for parameter in flow.parameters())
    say(
        f"fit-flow: {len(frames)} frames of {len(training)} clips, {len(still)} held out; {size / 1e3:.0f} k parameters"
    )
    _make(out)
    flow.to(device)
    fit = fit_flow(
        flow, frames, still, iterations=options.iterations, batch_size=options.batch_size,
        learning_rate=options.learning_rate, time_limit=60 * options.minutes if options.minutes else math.inf,
        initialize=options.start is None, seed=options.seed, save=lambda: flow.save_pretrained(out), progress=True,
    )  # fmt: skip
    masked = draw_masked(MotionPreservingMask(flow), held_out[0].to(device), out / "masked.png")
    results = {
        "out": str(out), "fingerprint": flow.fingerprint(), "bits_before": round(fit.before, 4),
        "bits_after": round(fit.after, 4), "iterations": fit.iterations, "seconds": fit.seconds, "stopped": fit.stopped,
        "clips": len(clips), "frames": len(frames), "held_out_frames": len(still), "size": options.size,
        "moving_share": round(masked, 4), "skipped": [list(pair) for pair in skipped],
    }  # fmt: skip
    write_json(out / "fit.json", results)
    why = {"time": ", the time was up", "SIGINT": ", interrupted", None: ""}[fit.stopped]
    say(
        f"bits/dim of held-out frames: {fit.before:.3f} before, {fit.after:.3f} after {fit.iterations} iterations in "
        f"{fit.seconds:.0f} s{why}"
    )
    say(f"the flow, fit.json and masked.png are in {out}; {100 * masked:.0f} % of the clip drawn is taken to move")
    if fit.stopped == "SIGINT":
        say(f"go on with: slrfast fit-flow ... --start {out} --out NEW")
    if options.json:
        print(json.dumps(results))
    return STOPPED["SIGINT"] if fit.stopped == "SIGINT" else 0


def _flow(options: Any) -> Flow:
    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    if options.start is not None:
        if given:
            raise RunError(f"--{next(iter(given))} is that of the flow in {options.start}; leave it out with --start")
        return Flow.from_pretrained(options.start)
    torch.manual_seed(options.seed)
    try:
        return Flow(FlowConfig(**given))
    except ValueError as error:
        raise RunError(f"--{str(error).removeprefix('FlowConfig: ')}") from error


def _check(options: Any, flow: Flow, out: Path) -> None:
    """Refuse what cannot work before any video is read."""
    for name, low, high in (("size", 8, 1024), ("frames", 2, 512), ("videos", 1, 10**6), ("batch_size", 1, 4096)):
        value = getattr(options, name)
        if not low <= value <= high:
            raise RunError(f"--{name} must be in [{low}, {high}], got {value}")
    if options.iterations < 1:
        raise RunError(f"--iterations must be >= 1, got {options.iterations}")
    for name in ("learning_rate", "minutes"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise RunError(f"--{name} must be finite and > 0, got {value}")
    if options.size % flow.multiple:
        raise RunError(
            f"--size must be a multiple of {flow.multiple} for {flow.config.levels} levels, got {options.size}"
        )
    if bool(options.video) == options.synthetic:
        raise RunError("give VIDEO, files or folders, or --synthetic" + (", not both" if options.video else ""))
    if (out / "config.json").exists() and not options.overwrite:
        raise RunError(f"{out}: there is a flow already; take another --out, or --overwrite")


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be created ({error.strerror})") from error


def _read_clips(options: Any, say: Callable[[str], None]) -> tuple[list[Tensor], list[tuple[str, str]]]:
    """uint8 [3, T, S, S] of every video that can be decoded, and what is wrong with the others."""
    paths: list[Path] = []
    for source in map(Path, options.video):
        found = list(list_videos(source).values()) if source.is_dir() else [source]
        if not found:
            raise RunError(f"{source}: there are no videos in this folder")
        if not source.exists():
            raise RunError(f"{source}: there is no such file or folder")
        paths += [path for path in found if path not in paths]
    step = max(1.0, len(paths) / options.videos)
    paths = [paths[int(i * step)] for i in range(min(len(paths), options.videos))]
    clips, skipped = [], []
    with VideoReader() as reader, tqdm(paths, "reading", unit=" videos", disable=None) as bar:
        for path in bar:
            try:
                clips.append(reader.read(path, options.frames, options.size).rgb)
            except VideoFileError as error:
                skipped.append((error.path, error.reason))
    if not clips:
        path, reason = skipped[0]
        raise RunError(f"none of the {len(paths)} videos could be used; the first, {path}: {reason}")
    for path, reason in skipped:
        say(f"skipped: {one_line(f'{path}: {reason}')}")
    return clips, skipped


def _synthetic_clips(options: Any) -> tuple[list[Tensor], list[tuple[str, str]]]:
    """uint8 [3, T, S, S] of signs that are drawn."""
    signs = SyntheticSigns(num_classes=8, clips_per_class=max(1, min(options.videos, 64) // 8), seed=options.seed)
    rendered = RenderedDataset(signs, frames=options.frames, size=options.size, seed=options.seed)
    return [rendered.pictures(index) for index in range(min(len(signs), options.videos))], []


def _parted(clips: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Clips to train on, and every eighth to hold out; of a single one, its last eighth."""
    if len(clips) == 1:
        cut = max(1, clips[0].shape[1] * 7 // 8)
        return [clips[0][:, :cut]], [clips[0][:, cut:]]
    held_out = set(range(0, len(clips), 8))
    return [clip for i, clip in enumerate(clips) if i not in held_out], [clips[i] for i in sorted(held_out)]


def draw_masked(mask: MotionPreservingMask, clip: Tensor, path: str | Path, moments: int = 6) -> float:
    """Frames of a clip, what the flow keeps of them, and what the mask leaves; returns the share that is left.

    Args:
        mask: with its flow, on the device of the clip.
        clip: [3, T, H, W] uint8.
        path: PNG to write.
        moments: frames to draw.
    """
    moving, kept = mask.explain(clip)
    kept = kept.clamp(0, 1) / kept.clamp(0, 1).amax().clamp_min(1e-6)
    rows = {"frames": clip.float() / 255, "kept in the latents": kept, "masked": clip.float() / 255 * moving}
    at = torch.linspace(0, clip.shape[1] - 1, min(moments, clip.shape[1])).round().long().tolist()
    figure = Figure(figsize=(1.7 * len(at) + 0.5, 1.85 * len(rows)), layout="constrained")
    figure.suptitle("Motion-Preserving Masking: what moves in a held-out clip", fontsize=11)
    for row, (name, frames) in enumerate(rows.items()):
        for column, t in enumerate(at):
            axes = figure.add_subplot(len(rows), len(at), row * len(at) + column + 1)
            axes.imshow(frames[:, t].permute(1, 2, 0).cpu().numpy())
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(name, fontsize=9)
    save_figure(figure, path)
    return moving.float().mean().item()
