"""Texts of clips, for SLP: captions by clip name, glosses through a template, and the tokens that a batch carries."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from slrfast import checks
from slrfast.data.dataset import ClipDataset
from slrfast.data.text_encoder import TextEncoder, tiny_text_encoder
from slrfast.data.text_files import TextEncoderError
from slrfast.data.wrapped import WrappedDataset, match, some
from slrfast.errors import DatasetError

__all__ = [
    "GLOSS_TEMPLATES",
    "Caption",
    "CaptionedDataset",
    "TextEncoder",
    "TextEncoderError",
    "gloss_captions",
    "read_captions",
    "tiny_text_encoder",
]

GLOSS_TEMPLATES = {
    "en_XX": "This word is {gloss}.",
    "de_DE": "Dieses Wort ist {gloss}.",
    "zh_CN": "这个词是{gloss}。",
    "tr_TR": "Bu kelime {gloss}.",
    "es_XX": "Esta palabra es {gloss}.",
    "fr_XX": "Ce mot est {gloss}.",
    "pt_XX": "Esta palavra é {gloss}.",
    "ru_RU": "Это слово {gloss}.",
}
"""The sentence that an isolated sign stands for, by the language of its gloss."""
_DELIMITERS = ",|\t;"
MAX_BYTES = 1 << 30
_EMPTY = torch.zeros(0, dtype=torch.int64)


class Caption(NamedTuple):
    """What is signed in a clip, as a sentence and the sentence's language ("de_DE" or "de")."""

    text: str
    language: str


class Tokenizer(Protocol):
    """What :class:`CaptionedDataset` asks of a :class:`TextEncoder`."""

    max_tokens: int

    def cut(self, sentence: str, language: str) -> tuple[Tensor, int]:
        """Token ids and how many were left out."""
        ...


def read_captions(
    path: str | os.PathLike,
    *,
    language: str | None = None,
    name_column: str = "name",
    text_column: str = "text",
    language_column: str = "language",
) -> dict[str, Caption]:
    """Captions by clip name, from a CSV or JSON file in UTF-8.

    A CSV file has a header and is separated by commas, bars, tabs or semicolons, whichever its header has most of. A
    JSON file is ``{name: sentence}``, ``{name: {text, language}}`` or ``[{name, text, language}]``.

    Args:
        path: the file; ".json" is JSON, anything else CSV.
        language: of sentences for which the file names none.
        name_column, text_column, language_column: the names of columns or keys.
    Returns:
        Sentences as they stand there, empty ones too.
    Raises:
        DatasetError: the file cannot be read, a column is missing, a clip has two sentences, or a sentence no language.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{path}: is too large for a file of captions")
        content = path.read_text("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    columns = name_column, text_column, language_column
    rows = (_json_rows if path.suffix.lower() == ".json" else _csv_rows)(path, content, columns)
    captions: dict[str, Caption] = {}
    for where, (name, text, code) in rows:
        if not name:
            raise DatasetError(f"{path}: {where} has no {name_column}")
        if not code and text.strip():
            code = language or ""
            if not code:
                raise DatasetError(
                    f"{path}: {where} ({name}) has no {language_column}; give language='de_DE' (--language de_DE)"
                )
        caption = Caption(text, code)
        if captions.setdefault(name, caption) != caption:
            raise DatasetError(f"{path}: {where} is a second, other sentence for {name!r}")
    if not captions:
        raise DatasetError(f"{path}: holds no captions")
    return captions


def gloss_captions(dataset: ClipDataset, template: str | None = None, language: str = "en_XX") -> dict[str, Caption]:
    """A sentence for every labelled clip of isolated signs: its class name through a constant template (SLP III-A).

    Args:
        dataset: its ``class_names`` are the glosses; "_" becomes a blank.
        template: with ``{gloss}`` in it; None takes that of the language in ``GLOSS_TEMPLATES``.
        language: of the template and the glosses.
    Returns:
        Captions by clip name; an unlabelled clip has none.

    >>> from slrfast.data import SyntheticSigns
    >>> gloss_captions(SyntheticSigns(num_classes=1, clips_per_class=1))
    {'sign00/000': Caption(text='This word is sign00.', language='en_XX')}
    """
    if template is None:
        alike = [key for key in GLOSS_TEMPLATES if language in (key, key.split("_")[0])]
        known = ", ".join(GLOSS_TEMPLATES)
        checks.require(
            len(alike) == 1, "gloss_captions", "language", f"be one of {known}", repr(language), "give a template"
        )
        template = GLOSS_TEMPLATES[alike[0]]
    checks.require("{gloss}" in template, "gloss_captions", "template", "contain {gloss}", repr(template))
    named = zip(dataset.names, dataset.labels, strict=True)
    return {
        name: Caption(template.replace("{gloss}", dataset.class_names[label].replace("_", " ")), language)
        for name, label in named
        if 0 <= label < len(dataset.class_names)
    }


class CaptionedDataset(WrappedDataset):
    """Clips with the tokens of their captions; a clip without one has none and takes part unpaired.

    Args:
        dataset: any ClipDataset or packed store.
        captions: by clip name, with or without folders and extension; :func:`read_captions`, :func:`gloss_captions`.
        encoder: what tokenizes: a TextEncoder.
    Attributes:
        notes: also how many clips have no text, an empty one or one that was cut.
    Raises:
        DatasetError: no caption belongs to any clip, or one is in a language that the encoder has not.

    >>> import tempfile
    >>> from slrfast.data import SyntheticSigns
    >>> signs = SyntheticSigns(num_classes=2, clips_per_class=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     encoder = tiny_text_encoder(folder, ["This word is sign00."])
    >>> CaptionedDataset(signs, gloss_captions(signs), encoder).batch([0, 3]).token_lengths.shape
    torch.Size([2])
    """

    WITHOUT: ClassVar[str] = "have no text and are unpaired"

    def __init__(self, dataset: ClipDataset, captions: Mapping[str, Caption], encoder: Tokenizer) -> None:
        super().__init__(dataset)
        names = dataset.names
        matched = match(names, captions)
        if not any(matched):
            theirs, ours = some(list(captions), 2) or "none", some(names, 2)
            raise DatasetError(f"no caption belongs to any clip; captions are of {theirs}, clips are {ours}")
        known: dict[Caption, tuple[Tensor, int]] = {}
        self.tokens: list[Tensor] = []
        empty, cut = [], []
        for name, caption in zip(names, matched, strict=True):
            if caption is None or not caption.text.strip():
                self.tokens.append(_EMPTY)
                empty += [] if caption is None else [name]
                continue
            if caption not in known:
                try:
                    known[caption] = encoder.cut(*caption)
                except ValueError as error:
                    raise DatasetError(f"the caption of {name!r}: {error}") from error
            tokens, left_out = known[caption]
            self.tokens.append(tokens)
            cut += [name] if left_out else []
        unpaired = sum(not len(tokens) for tokens in self.tokens)
        notes = [f"{unpaired} of {len(names)} clips {self.WITHOUT}"] if unpaired else []
        notes += [f"{len(empty)} captions are empty: {some(empty)}"] if empty else []
        if cut:
            notes.append(f"{len(cut)} texts were cut to {encoder.max_tokens} tokens: {some(cut)}")
        self.notes = [*self.notes, *notes]

    def added(self, index: int) -> dict[str, Any]:
        """``tokens``."""
        return {"tokens": self.tokens[index]}

    def added_to_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """``tokens`` and ``token_lengths``."""
        texts = [self.tokens[i] for i in indices]
        tokens = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return {"tokens": tokens, "token_lengths": torch.tensor([len(text) for text in texts])}

    def _select(self, indices: Sequence[int]) -> None:
        self.tokens = [self.tokens[i] for i in indices]


def _csv_rows(path: Path, content: str, columns: Sequence[str]) -> list[tuple[str, tuple[str, str, str]]]:
    header = content.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter)
        names, rows = reader.fieldnames or [], list(reader)
    except csv.Error as error:
        raise DatasetError(f"{path}: is no file of separated values ({error})") from error
    for column in columns[:2]:
        if column not in names:
            raise DatasetError(f"{path}: the column {column!r} is missing, found {', '.join(map(repr, names[:8]))}")
    found = []
    for i, row in enumerate(rows):
        if None in row:
            rule = f"has more cells than the header; put texts that contain {delimiter!r} in quotes"
            raise DatasetError(f"{path}: row {i + 1} {rule}")
        name, text, code = ((row.get(column) or "").strip() for column in columns)
        found.append((f"row {i + 1}", (name, text, code)))
    return found


def _json_rows(path: Path, content: str, columns: Sequence[str]) -> list[tuple[str, tuple[str, str, str]]]:
    name_column, text_column, language_column = columns
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is no JSON ({' '.join(str(error).split())[:80]})") from error
    if isinstance(told, dict):
        items: list[Any] = [
            {name_column: name, **value} if isinstance(value, dict) else {name_column: name, text_column: value}
            for name, value in told.items()
        ]
    else:
        items = told if isinstance(told, list) else []
    found = []
    for i, item in enumerate(items):
        where = f"entry {i + 1}"
        values = [item.get(column) for column in columns] if isinstance(item, dict) else [None]
        if len(values) != 3 or not all(isinstance(v, str) for v in values[:2]) or not isinstance(values[2], str | None):
            rule = f"a text {name_column}, {text_column} and, if any, {language_column}"
            raise DatasetError(f"{path}: {where} must have {rule}, got {item!r:.60}")
        found.append((where, (str(values[0]), str(values[1]), str(values[2] or ""))))
    return found
