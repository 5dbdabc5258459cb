"""What a system is trained on beside poses: the pictures of CCL-SLR, the texts of SLP."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slrfast.data import ClipDataset, looks_packed
from slrfast.data.motion_masks import MotionMasks
from slrfast.data.render import RenderedDataset
from slrfast.data.rgb import RGBDataset, clip_frames
from slrfast.data.text import (
    Caption,
    CaptionedDataset,
    TextEncoder,
    gloss_captions,
    read_captions,
    tiny_text_encoder,
)
from slrfast.errors import SlrfastError
from slrfast.nn import Flow, IdentityFlow, MotionPreservingMask
from slrfast.train.config import RunError, keypoints_of, preprocess_options
from slrfast.train.options import Parser

OPTIONS: dict[str, dict[str, str]] = {
    "ccl": {
        "videos": "folder with the video of every clip, or 'rendered': pictures drawn from the poses",
        "flow": "what the motion masks are made with: folder of slrfast fit-flow, or 'identity'",
    },
    "slp": {
        "captions": "CSV or JSON with the sentence of every clip, or 'glosses': class names through a template",
        "language": "of captions that do not name theirs and of glosses, such as de_DE",
        "text_encoder": "mBART-50: folder or name on the hub; 'tiny': a small one with random weights, for trials",
    },
}
"""The options of each system's inputs, with their help."""
EXAMPLES = {
    "ccl": (" --videos videos/ --flow flows/first", " --videos rendered --flow identity"),
    "slp": (" --captions captions.csv --text_encoder mbart-large-50/", " --captions glosses --text_encoder tiny"),
}
"""The inputs in each system's examples: of real data, of a trial."""
TRIAL: dict[str, dict[str, str]] = {
    "ccl": {"videos": "rendered", "flow": "identity"},
    "slp": {"captions": "glosses", "text_encoder": "tiny"},
}
"""What stands in for the inputs where there are poses alone: pictures drawn from them, a template with the gloss."""
_SOURCES = ("synthetic", "fingerspelling")


def add_options(parser: Parser, name: str) -> list[str]:
    """Add the options of a system's inputs to a command; their names."""
    for option, text in OPTIONS.get(name, {}).items():
        parser.add_argument(f"--{option}", type=str, help=text)
    return list(OPTIONS.get(name, {}))


def with_inputs(
    name: str,
    dataset: ClipDataset,
    values: Mapping[str, Any],
    system: Any,
    *,
    train: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> ClipDataset:
    """The clips with all that a system takes of them.

    Args:
        name: of the system.
        dataset: its clips.
        values: of the options above, and "data", "split" and "preprocess" of the command.
        system: gets its text encoder.
        train: False leaves out what only pre-training reads, masks and texts, and pictures where no videos are given.
        say: told what was found.
    Raises:
        RunError: the clips have another layout than the system takes, or an option is missing.
    """
    got, wanted = dataset[0].xy.shape[1], keypoints_of(name)
    if got != wanted:
        raise RunError(f"{name} takes clips of {wanted} keypoints, these have {got}; use --preprocess.layout {wanted}")
    made = dataset
    try:
        if name == "ccl" and "rgb" in system.config.modalities and (train or values.get("videos")):
            made = _with_pictures(dataset, values, system.config, train)
        elif name == "slp" and train and "contrast" in system.config.tasks:
            made = _with_texts(dataset, values, system)
    except SlrfastError:
        raise
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
    for note in made.notes[len(dataset.notes) :]:
        say(note)
    return made


def cache_folder(*names: str) -> Path:
    """Where what can be made again is kept: in $SLRFAST_CACHE, else with the user's other caches."""
    own, caches = os.environ.get("SLRFAST_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own or Path(caches or Path.home() / ".cache", "slrfast"), *names)  # some users have no home


def _with_pictures(dataset: ClipDataset, values: Mapping[str, Any], config: Any, train: bool) -> ClipDataset:
    videos, flow = values.get("videos"), values.get("flow")
    if not videos:
        raise RunError("--videos must name the folder of the clips' videos, or 'rendered'")
    masks, made_of = None, {}
    if train and config.mask_probability > 0:
        if not flow:
            raise RunError(
                "--flow must name what slrfast fit-flow wrote, or 'identity'; or --system.mask_probability 0"
            )
        maker = MotionPreservingMask(*_flow(flow))
        masks = MotionMasks(maker, cache_folder("masks", maker.fingerprint()))
        made_of = {"flow": maker.fingerprint()}
    shape: dict[str, Any] = {"frames": 2 * config.frames, "size": -(-config.image_size * 8 // 7 // 16) * 16}
    made: ClipDataset
    if videos == "rendered":
        made = RenderedDataset(dataset, masks=masks, **shape)
    else:
        data, known = values["data"], None
        if data not in _SOURCES and not looks_packed(data):
            options = preprocess_options(values["preprocess"], keypoints_of("ccl"))
            known = clip_frames(data, split=values.get("split"), options=options, progress=True)
        made = RGBDataset(dataset, videos, masks=masks, clip_frames=known, progress=True, **shape)
    made.made_of = made_of
    return made


def _flow(flow: str) -> tuple[Any, float, bool]:
    """The flow, and which of its latents are kept: the identity's are pixels, whose deviations are small."""
    return (IdentityFlow(), 0.9, True) if flow == "identity" else (Flow.from_pretrained(flow), 0.5, False)


def _with_texts(dataset: ClipDataset, values: Mapping[str, Any], system: Any) -> ClipDataset:
    source, encoder = values.get("captions"), values.get("text_encoder")
    if not source or not encoder:
        missing = "--captions" if not source else "--text_encoder"
        raise RunError(f"{missing} is needed; or reconstruct poses alone: --system.tasks [reconstruction]")
    captions = captions_of(dataset, values)
    if not any(caption.text.strip() for caption in captions.values()):
        raise RunError(
            f"--captions {source}: every text is empty; or reconstruct poses alone: --system.tasks [reconstruction]"
        )
    system.text = open_text_encoder(encoder, system.config.text_dim, captions)
    return captioned(dataset, captions, system.text)


def captions_of(dataset: ClipDataset, values: Mapping[str, Any]) -> dict[str, Caption]:
    """The captions that --captions and --language name, of these clips where they are glosses."""
    source, language = values["captions"], values.get("language")
    if source == "glosses":
        return gloss_captions(dataset, language=language or "en_XX")
    return read_captions(source, language=language)


def open_text_encoder(encoder: str, width: int, captions: Mapping[str, Caption]) -> TextEncoder:
    """The text encoder that --text_encoder names, with features of this width; a tiny one is made of the captions."""
    if encoder == "tiny":
        sentences = sorted({caption.text for caption in captions.values()})
        mark = hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16]
        return tiny_text_encoder(cache_folder("tiny", f"{mark}-{width}"), sentences, dim=width)
    found = TextEncoder(encoder)
    if found.dim != width:
        raise RunError(
            f"--text_encoder {encoder}: its features have {found.dim} numbers, not {width}; "
            f"use --system.text_dim {found.dim}"
        )
    found.keep_in(cache_folder("texts", found.fingerprint))
    return found


def captioned(dataset: ClipDataset, captions: Mapping[str, Caption], encoder: TextEncoder) -> CaptionedDataset:
    """The clips with their tokens, marked with what made them."""
    told = CaptionedDataset(dataset, captions, encoder)
    tokens = hashlib.sha256(repr([text.tolist() for text in told.tokens]).encode()).hexdigest()[:16]
    told.made_of = {"text encoder": encoder.fingerprint[:16], "texts": tokens}
    return told
