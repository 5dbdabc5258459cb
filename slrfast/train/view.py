"""``slrfast view``: what a pose file holds, as a strip of frames (PNG) or an animation (GIF)."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from slrfast import graphs, ops
from slrfast.data import Clip, Pose, PoseStore, PreprocessOptions, load_pose, looks_packed, preprocess
from slrfast.data.formats import FORMATS
from slrfast.errors import PoseFileError
from slrfast.files import replacing
from slrfast.train.config import RunError
from slrfast.train.options import Parser
from slrfast.train.pictures import save_figure
from slrfast.train.report import one_line, speaker
from slrfast.train.skeleton import CONFIDENCE, INK, draw_pose

BOX = 256
_DPI = 110
_MOST_FRAMES = 1000  # of a GIF, which is held in memory


def view(argv: Sequence[str]) -> int:
    """Run the view command and return its exit code."""
    parser = Parser(
        "view",
        "Draw a pose file as the systems see it: joints coloured by confidence, the hands enlarged from their\n"
        "boxes, the motion of MASA as arrows, and of its 49 joints the frames that MASA would mask shaded.",
        ["view clip.pose", "view clip.json --size 640x480 --out clip.gif", "view clip.npz --frames 16 --masks false"],
    )
    parser.add_argument("file", type=str, help="a pose file, or a packed store with --clip")
    parser.add_argument("--clip", type=str, help="name or number of the clip, if FILE is a packed store")
    parser.add_argument("--out", type=str, help="PNG or GIF to write (default: the file's name with .png, here)")
    parser.add_argument("--format", type=str, default="auto", help=f"auto, {', '.join(FORMATS)}")
    parser.add_argument("--frames", type=int, default=8, help="frames of the strip, evenly spread")
    parser.add_argument("--fps", type=float, help="speed of the animation (default: the file's, else 25)")
    parser.add_argument("--interval", type=int, default=3, help="frames between the two ends of an arrow, 0 for none")
    parser.add_argument("--masks", type=bool, default=True, help="shade the frames that MASA would mask")
    parser.add_argument("--seed", type=int, default=0, help="of the choice among MASA's candidates")
    parser.add_class_arguments(PreprocessOptions, "preprocess", help="pre-processing")
    parser.add_argument("--size", type=tuple[int, int] | None, help="width and height, for files that do not say")
    parser.add_json()
    options = parser.read(argv)
    say = speaker(options.json)
    out = Path(options.out or Path(options.file).with_suffix(".png").name)
    if out.suffix.lower() not in (".png", ".gif"):
        raise RunError(f"--out must end in .png or .gif, got {out.name!r}")
    if options.frames < 1 or options.interval < 0 or (options.fps is not None and not 0 < options.fps <= 100):
        raise RunError("--frames must be at least 1, --interval at least 0, --fps in (0, 100]")
    try:
        preprocessing = PreprocessOptions(**options.preprocess.as_dict())
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
    stored = looks_packed(options.file)
    if (options.clip is not None) != stored:
        raise RunError("--clip names a clip of a packed store, and only of one; give it the clip's name or number")
    pose, clip = _from_store(options, preprocessing) if stored else _from_file(options, preprocessing)
    layout = graphs.layout(clip.xy.shape[1])
    if len(layout.names) == 133:
        raise RunError("layout 133 cannot be drawn; --preprocess.layout 79 has face and mouth too")
    motion, masked = _motion(clip, options.interval, options.seed)
    shaded = masked if options.masks else np.zeros_like(masked)
    shown = clip.name if pose is None else Path(options.file).name
    count = f"{clip.num_frames} frames" if pose is None else f"{clip.num_frames} of {pose.num_frames} frames"
    title = f"{one_line(shown)[-60:]}: {count} show a hand"
    if out.suffix.lower() == ".png":
        _strip(clip, motion, shaded, title, options.frames, out)
    else:
        _animation(clip, motion, shaded, title, options.fps or (pose and pose.fps) or 25.0, out)
    facts = {
        "file": options.file, "picture": str(out), **({"clip": clip.name} if pose is None else {
            "layout": pose.layout, "people": pose.num_people, "frames": pose.num_frames,
        }), "frames_with_hands": clip.num_frames, "masked_frames": int(masked.sum()),
        **{f"{side}_seen": _share(clip, layout.parts[f"{side}_hand"]) for side in ("right", "left")},
    }  # fmt: skip
    say(title)
    say(f"right hand in {facts['right_seen']:.0%} of them, left hand in {facts['left_seen']:.0%}; "
        f"MASA would mask {facts['masked_frames']}")  # fmt: skip
    say(f"wrote {out}")
    if options.json:
        print(json.dumps(facts))
    return 0


def _from_file(options: Any, preprocessing: PreprocessOptions) -> tuple[Pose, Clip]:
    try:
        pose = load_pose(options.file, options.format, size=options.size or preprocessing.size)
    except PoseFileError:
        raise
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
    return pose, preprocess(pose, preprocessing)


def _from_store(options: Any, preprocessing: PreprocessOptions) -> tuple[None, Clip]:
    """The clip of a store by its name, else by its number from 0 on."""
    store = PoseStore(options.file, options=None if preprocessing == PreprocessOptions() else preprocessing)
    names, wanted = store.names, options.clip
    if wanted in names:
        return None, store[names.index(wanted)]
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 18 and int(wanted) < len(store):
        return None, store[int(wanted)]
    raise RunError(f"{options.file}: has no clip {wanted!r}; its {len(store)} clips begin with {names[0]!r}")


def _share(clip: Clip, part: slice) -> float:
    return float((clip.confidence[:, part] > 0).any(1).float().mean())


def _motion(clip: Clip, interval: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The arrows [F, V, 2] in the unit of the coordinates, of joints seen at both ends, and MASA's mask [F]."""
    keys = torch.rand((1, clip.num_frames), generator=torch.Generator().manual_seed(seed))
    xy, confidence = clip.xy.float()[None], clip.confidence.float()[None]
    mask = ops.motion_mask(BOX * xy, confidence, None, keys).mask[0].numpy() & (xy.shape[2] == 49)
    if interval == 0:
        return np.zeros(clip.xy.shape, np.float32), mask
    motion = ops.motion_mask(xy, confidence, None, keys, interval=interval)
    return (motion.residual[0] * (motion.weight[0] > 0).unsqueeze(-1)).numpy(), mask


def _strip(clip: Clip, motion: np.ndarray, shaded: np.ndarray, title: str, count: int, out: Path) -> None:
    moments = np.unique(np.linspace(0, clip.num_frames - 1, count).round().astype(int))
    columns = min(len(moments), 8)
    rows = -(-len(moments) // columns)
    figure = Figure(figsize=(1.75 * columns + 0.9, 2.15 * rows + 0.7), layout="constrained")
    axes = [_frame(figure, (rows, columns, place + 1), clip, motion, shaded, t) for place, t in enumerate(moments)]
    _finish(figure, axes, title, bool(shaded.any()))
    save_figure(figure, out)


def _animation(clip: Clip, motion: np.ndarray, shaded: np.ndarray, title: str, fps: float, out: Path) -> None:
    if clip.num_frames > _MOST_FRAMES:
        raise RunError(f"a GIF of {clip.num_frames} frames is too long, at most {_MOST_FRAMES}; write a .png")
    images = []
    for t in tqdm(range(clip.num_frames), "drawing", unit=" frames"):
        figure = Figure(figsize=(4.2, 4.6), layout="constrained", dpi=_DPI)
        _finish(figure, [_frame(figure, (1, 1, 1), clip, motion, shaded, t)], title, bool(shaded.any()))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        images.append(Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE))
    with replacing(out) as temporary:
        images[0].save(temporary, "GIF", save_all=True, append_images=images[1:], duration=1000 / fps, loop=0)


def _frame(
    figure: Figure, place: tuple[int, int, int], clip: Clip, motion: np.ndarray, shaded: np.ndarray, t: int
) -> Any:
    axes = figure.add_subplot(*place)
    xy, confidence = clip.xy[t].float().numpy(), clip.confidence[t].float().numpy()
    draw_pose(axes, xy, confidence, motion=motion[t], by_confidence=True, shaded=bool(shaded[t]))
    axes.set_title(f"frame {t + 1}", fontsize=8, color=INK)
    return axes


def _finish(figure: Figure, axes: list[Any], title: str, any_shaded: bool) -> None:
    note = "\nshaded: masked by MASA; arrows: its motion residuals" if any_shaded else ""
    figure.suptitle(title.replace("$", r"\$") + note, fontsize=9, color=INK)
    bar = figure.colorbar(ScalarMappable(cmap=CONFIDENCE), ax=axes, fraction=0.02, pad=0.01)
    bar.set_label("confidence", fontsize=7)
    bar.ax.tick_params(labelsize=6)
