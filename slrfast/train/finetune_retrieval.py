"""``slrfast finetune retrieval``: texts find their clips, and clips their texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slrfast.data import ClipDataset
from slrfast.data.text import CaptionedDataset
from slrfast.errors import SlrfastError
from slrfast.tasks.retrieval import PLACES
from slrfast.tasks.retriever import Retriever
from slrfast.train import inputs
from slrfast.train.config import RunError, read_yaml
from slrfast.train.finetune import Data, Say, Task, hold_out, name_of, open_clips
from slrfast.train.options import Parser
from slrfast.train.runs import RunFolder
from slrfast.train.scoring import aligned, in_batches


def _add_options(parser: Parser) -> list[str]:
    own = inputs.add_options(parser, "slp")
    parser.add_argument("--folds", type=int, default=4, help="without test clips: one of so many parts of the signers")
    return [*own, "folds"]


def open_data(values: Mapping[str, Any], system: Any, say: Say) -> Data:
    """Clips with texts to train and test on: by split, by file, or with whole groups held out."""
    name = name_of(system)
    if name != "slp" or "contrast" not in system.config.tasks:
        got = f"{name} has no texts" if name != "slp" else "this one reconstructed poses alone"
        raise RunError(f"retrieval takes an encoder that slp pre-trained with texts, {got}")
    values = {**values, "text_encoder": text_encoder_name(values)}
    for key in ("captions", "text_encoder"):
        if not values.get(key):
            raise RunError(f"--{key} is needed: {inputs.OPTIONS['slp'][key]}")
    train, test, skipped = open_clips(values, system)
    captions = with_encoder(train, values, system)
    kept, notes = paired(train, "training", captions, system)
    if test is None:
        rest, tested, note = hold_out(kept, values["folds"])
        return Data(rest, tested, notes=[*notes, note], skipped=skipped)
    if values["captions"] == "glosses":
        captions = inputs.captions_of(test, values)
    tested, more = paired(test, "test", captions, system)
    return Data(kept, tested, notes=[*notes, *more], skipped=skipped)


def text_encoder_name(values: Mapping[str, Any]) -> str | None:
    """The text encoder that the options of a run name, else that of the run which its encoder comes from."""
    if values.get("text_encoder") or not values.get("encoder"):
        return values.get("text_encoder")
    folder = RunFolder(values["encoder"])
    return text_encoder_name(read_yaml(folder.config)) if folder.config.is_file() else None


def with_encoder(dataset: ClipDataset, values: Mapping[str, Any], system: Any) -> dict[str, Any]:
    """The captions of the clips; the system gets its text encoder.

    Raises:
        RunError: they are all empty, or the text encoder does not fit.
    """
    try:
        captions = inputs.captions_of(dataset, values)
        if not any(caption.text.strip() for caption in captions.values()):
            raise RunError(f"--captions {values['captions']}: every text is empty")
        system.text = inputs.open_text_encoder(values["text_encoder"], system.config.text_dim, captions)
    except SlrfastError:
        raise
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
    return captions


def paired(
    dataset: ClipDataset, what: str, captions: Mapping[str, Any], system: Any
) -> tuple[CaptionedDataset, list[str]]:
    """The clips that have a text, with it, and notes on the others; RunError if there is none."""
    told = inputs.captioned(dataset, captions, system.text)
    kept = told.subset([i for i, tokens in enumerate(told.tokens) if len(tokens)])
    if not len(kept):
        raise RunError(f"no {what} clip has a text")
    left = len(told) - len(kept)
    notes = [f"{left} of {len(told)} {what} clips have no text and are left out"] if left else []
    return kept, notes + [note for note in told.notes[len(dataset.notes) :] if "unpaired" not in note]


def _test(model: Retriever, data: Data, folder: RunFolder | None) -> tuple[dict[str, Any], str]:
    texts = data.test.tokens  # type: ignore[attr-defined]
    metrics = model.test(in_batches(model, data.test), texts)
    cells = [["per cent", *(f"R@{k}" for k in PLACES), "median rank"]]
    for way, name in (("t2v", "text to clip"), ("v2t", "clip to text")):
        shares = (f"{100 * metrics[f'{way}_r{k}']:.1f}" for k in PLACES)
        cells.append([name, *shares, f"{metrics[f'{way}_median_rank']:.1f}"])
    distinct = len({tuple(text.tolist()) for text in texts})
    note = f"{len(texts)} clips, {distinct} texts; equal texts are one, and all its clips are its own."
    return {"metrics": metrics, "texts": distinct}, f"{aligned(cells, text_columns=1)}\n\n{note}"


TASK = Task(
    Retriever,
    "Find the clips of a text and the texts of a clip. Fine-tunes the encoder of a run of pretrain slp by contrasting\n"
    "clips and texts; tells R@1, R@5, R@10 and the median rank both ways.",
    [
        "retrieval --encoder runs/slp --data poses/ --captions captions.csv --run runs/retrieval",
        "retrieval --encoder runs/slp --data index.csv --train_split train --test_split test --captions captions.csv",
        "retrieval --encoder slp:small --data synthetic --captions glosses --text_encoder tiny --task.epochs 5",
    ],
    ("slp",),
    _add_options,
    open_data,
    _test,
)
