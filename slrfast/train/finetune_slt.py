"""``slrfast finetune slt``: gloss-free translation into sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slrfast.data import ClipDataset
from slrfast.data.continuous_lists import read_sentences
from slrfast.data.subwords import UNK, Subwords, TranslationDataset
from slrfast.data.synthetic_sentences import SyntheticSentences
from slrfast.data.text import Caption, gloss_captions, read_captions
from slrfast.data.wrapped import match, some
from slrfast.errors import SlrfastError, one_line
from slrfast.tasks.finetuned import check_frames
from slrfast.tasks.translation import Translator
from slrfast.tasks.translation_metrics import translation_metrics
from slrfast.train.config import RunError
from slrfast.train.finetune import SYNTHETIC, Data, Say, Task, check_count, hold_out, open_clips
from slrfast.train.options import Parser
from slrfast.train.report import write_sentences
from slrfast.train.runs import RunFolder
from slrfast.train.scoring import aligned, in_batches

SHOWN = 3
"""Translations that are printed."""
_HAN = re.compile("[\u3400-\u9fff]")
_COLUMNS = {"bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L"}


def _add_options(parser: Parser) -> list[str]:
    """The task's own options."""
    texts = "CSV or JSON with the sentence of every clip, annotations of Phoenix14-T or CSL-Daily, or 'glosses'"
    parser.add_argument("--captions", type=str, help=texts)
    parser.add_argument("--test_captions", type=str, help="the same of the test clips (default: --captions)")
    parser.add_argument("--train_list", type=str, default="train", help="split of the annotations to train on")
    parser.add_argument("--test_list", type=str, default="test", help="split of the annotations to test on")
    parser.add_argument("--vocabulary", type=int, default=8000, help="most subwords that are learned")
    parser.add_argument("--lowercase", action="store_true", help="drop capital letters, also of what is compared with")
    parser.add_argument("--folds", type=int, default=4, help="without test clips: one of so many parts of the signers")
    return ["captions", "test_captions", "train_list", "test_list", "vocabulary", "lowercase", "folds"]


def open_data(values: Mapping[str, Any], system: Any, say: Say) -> Data:
    """Clips with sentences to train and test on, and the vocabulary of those to train on.

    Test clips are those of --test_data or --test_split, else those that --test_captions or the annotations' test split
    name, else whole groups that are held out.
    """
    try:
        check_frames("finetune slt", system)
    except ValueError as error:
        raise RunError(str(error)) from error
    check_count(vocabulary=values["vocabulary"], folds=values["folds"])
    translation_metrics(["a"], ["a"])  # what it needs is missed now, not after training
    if not values["captions"] and values["data"] != SYNTHETIC:
        raise RunError("--captions is needed: the file or the annotations that say what the clips mean")
    train, test, skipped = open_clips(values, system, sentences=not values["captions"])
    try:
        return replace(_with_sentences(values, train, test), skipped=skipped)
    except SlrfastError:
        raise
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error


def _with_sentences(values: Mapping[str, Any], train: ClipDataset, test: ClipDataset | None) -> Data:
    source, notes = values["captions"] or SYNTHETIC, list[str]()
    captions = _captions(source, values["train_list"], train, notes)
    other = values["test_captions"] or (source if _has_splits(source) else None)
    test_captions = captions
    if other:
        test_captions = _captions(other, values["test_list"], train if test is None else test, notes)
        test = train if test is None else test
    elif test is None:
        train, test, note = hold_out(train, values["folds"])
        notes.append(note)
    if not captions:
        raise RunError(f"--captions {source}: there is no sentence for any clip")
    # of captions that belong to no clip, for the sentence about that, which TranslationDataset has
    texts = [caption.text for caption in match(train.names, captions) if caption is not None]
    vocabulary = Subwords.train(
        texts or [caption.text for caption in captions.values()],
        size=values["vocabulary"], lowercase=values["lowercase"], max_tokens=values["task"].max_tokens,
    )  # fmt: skip
    told = []
    for what, clips, theirs in (("training", train, captions), ("test", test, test_captions)):
        try:
            data = TranslationDataset(clips, theirs, vocabulary)
        except SlrfastError as error:
            raise RunError(f"{what} clips: {error}") from error
        told.append(data.with_sentences())
        notes += [f"{what}: {note}" for note in data.notes[len(clips.notes) :]]
    both = sorted(set(told[0].names) & set(told[1].names)) if test is train else []
    if both:
        raise RunError(f"{len(both)} clips have sentences to train on and to test on: {some(both)}")
    tokens = torch.cat(told[0].tokens)
    if unknown := int((tokens == UNK).sum()):
        notes.append(
            f"{unknown} of {len(tokens)} training tokens are <unk>: --vocabulary has no room for all characters"
        )
    notes.append(f"{len(vocabulary)} subwords of {len(set(told[0].sentences))} different training sentences")
    return Data(told[0], told[1], {"vocabulary": vocabulary.to_json()}, notes)


def _has_splits(source: str) -> bool:
    """Whether this is annotations of several splits."""
    return Path(source).is_dir() or Path(source).suffix == ".pkl"


def _captions(source: str, split: str, clips: ClipDataset, notes: list[str]) -> Mapping[str, Caption]:
    """Sentences by clip name; what their reader has to say is added to the notes."""
    if source == "glosses":
        return gloss_captions(clips)
    if isinstance(clips, SyntheticSentences):
        return {name: Caption(one.sentence, "und") for name, one in clips.sentences.items()}
    if not _has_splits(source) and not source.endswith((".corpus.csv", ".files")):
        return read_captions(source, language="und")
    found = read_sentences(source, split)
    if not any(one.sentence for one in found.sentences.values()):
        raise RunError(f"{source}: lists of {found.format} have glosses but no sentences here; use finetune cslr")
    notes += found.notes
    return {name: Caption(one.sentence, "und") for name, one in found.sentences.items()}


def tokenizer_for(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer of the metrics: "zh" if most references have Chinese characters, else "13a".

    >>> tokenizer_for(["es regnet"]), tokenizer_for(["下雨"])
    ('13a', 'zh')
    """
    chinese = sum(bool(_HAN.search(text)) for text in references)
    return "zh" if 2 * chinese > len(references) else "13a"


def _test(model: Translator, data: Data, folder: RunFolder | None) -> tuple[dict[str, Any], str]:
    clips = data.test
    assert isinstance(clips, TranslationDataset)
    order = np.argsort(clips.lengths, kind="stable").tolist()
    found = [text for batch in in_batches(model, clips, order) for text in model.translate(batch)]
    hypotheses = [text for _, text in sorted(zip(order, found, strict=True))]
    metrics = translation_metrics(hypotheses, clips.sentences, tokenizer=tokenizer_for(clips.sentences))
    tested = {"metrics": metrics, "subwords": len(model.vocabulary), "empty_translations": hypotheses.count("")}
    numbers = [f"{metrics[key]:.2f}" for key in _COLUMNS]
    table = aligned([["", *_COLUMNS.values()], [f"{len(clips)} clips", *numbers]], text_columns=1)
    text = [table, str(metrics["bleu_signature"]), str(metrics["rouge_variant"])]
    rows = zip(clips.names, clips.sentences, hypotheses, strict=True)
    for name, reference, hypothesis in islice(rows, SHOWN):
        text.append(f"\n{one_line(name)}\n  {reference}\n  {hypothesis or '(nothing)'}")
    if folder is not None:
        text.append(f"\n{write_sentences(folder, clips.names, clips.sentences, hypotheses)}")
    return tested, "\n".join(text)


TASK = Task(
    Translator,
    "Translate continuous signing into sentences, without glosses. Fine-tunes the encoder of a run (slp or masa) with\n"
    "an MLP and a transformer decoder; translates the test clips with beam search, scored by BLEU and ROUGE-L.",
    [
        "slt --encoder runs/slp --data poses/ --captions PHOENIX-2014-T/annotations/manual --run runs/words",
        "slt --encoder runs/slp --data index.csv --train_split train --test_split test --captions captions.csv",
        "slt --encoder slp:small --data synthetic --preset small --task.epochs 20",
    ],
    ("slp", "small"),
    _add_options,
    open_data,
    _test,
)
