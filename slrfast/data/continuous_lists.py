"""Lists of continuous signing: who signs which glosses in a clip, and the sentence that they mean.

Read as their authors publish them: RWTH-PHOENIX-Weather 2014 and 2014-T, CSL-Daily, and parallel text files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from slrfast.data.formats.base import reading
from slrfast.data.formats.unpickle import load
from slrfast.data.wrapped import some
from slrfast.errors import DatasetError, PoseFileError

MAX_BYTES = 1 << 30
_FOLDERS = ("", "annotations/manual", "sentence_label")
_CSL_LABELS, _CSL_SPLITS = "csl2020ct_v2.pkl", "split_1.txt"
_COLUMNS = {
    "Phoenix14": ("id", "signer", "annotation", ""),
    "Phoenix14-T": ("name", "speaker", "orth", "translation"),
}
_HINT = "train.corpus.csv, PHOENIX-2014-T.train.corpus.csv, csl2020ct_v2.pkl or train.files with train.gloss"


class Sentence(NamedTuple):
    """What is signed in a clip.

    Attributes:
        name: of the clip, as the list has it.
        signer: "" unknown.
        glosses: in the order in which they are signed; empty where the list has none.
        sentence: in the spoken language, "" where the list has none.
    """

    name: str
    signer: str
    glosses: tuple[str, ...]
    sentence: str


@dataclass(frozen=True)
class SentenceList:
    """One split.

    Attributes:
        format: "Phoenix14", "Phoenix14-T", "CSL-Daily" or "parallel files".
        sentences: by clip name, in the list's order.
        notes: what the reader has to say, such as names without annotation.
    """

    format: str
    sentences: dict[str, Sentence]
    notes: tuple[str, ...] = ()


def read_sentences(source: str | os.PathLike, split: str) -> SentenceList:
    """One split of a list of continuous signing.

    ============== ==================================================== ===========================================
    Phoenix14      train.corpus.csv                                     id | folder | signer | annotation
    Phoenix14-T    PHOENIX-2014-T.train.corpus.csv                      name | video | start | end | speaker | orth
                                                                        | translation
    CSL-Daily      csl2020ct_v2.pkl and split_1.txt                     info: name, signer, label_gloss, label_char;
                                                                        name | split
    parallel files train.files, train.gloss and, if any, train.text     a clip a line
    ============== ==================================================== ===========================================

    Glosses are what stands between blanks. The signer of CSL-Daily is its number, or the P0000 of the clip's name.
    The pickle is read without running it.

    Args:
        source: the folder, or one above its annotations/manual or sentence_label; or the file itself, whose split is
            then not asked for unless it holds several.
        split: "train", "dev" or "test"; "train.SI5" ... of Phoenix14's signer-independent part.
    Raises:
        DatasetError: no such list or split, a damaged line, or two annotations of one clip that differ.
    """
    path = Path(source)
    if path.is_file():
        return _read(path, split)
    if not path.is_dir():
        raise DatasetError(f"{path}: there is no such list; give a folder with {_HINT}")
    for folder in _FOLDERS:
        for name in (f"{split}.corpus.csv", f"PHOENIX-2014-T.{split}.corpus.csv", _CSL_LABELS, f"{split}.files"):
            if (path / folder / name).is_file():
                return _read(path / folder / name, split)
    raise DatasetError(f"{path}: holds no list of the split {split!r}; a list is {_HINT}")


def _read(path: Path, split: str) -> SentenceList:
    if path.suffix == ".pkl":
        format, rows, notes = "CSL-Daily", *_csl_daily(path, split)
    elif path.suffix == ".files":
        format, rows, notes = "parallel files", list(_parallel(path)), []
    else:
        format, rows, notes = *_bars(path), []
    if not rows:
        raise DatasetError(f"{path}: holds no sentences of the split {split!r}")
    return SentenceList(format, _by_name(path, rows), tuple(notes))


def _by_name(path: Path, rows: Sequence[Sentence]) -> dict[str, Sentence]:
    sentences: dict[str, Sentence] = {}
    for i, row in enumerate(rows):
        if not row.name:
            raise DatasetError(f"{path}: row {i + 1} has no name")
        if sentences.setdefault(row.name, row) != row:
            raise DatasetError(f"{path}: holds a second, other annotation of {row.name!r}")
    return sentences


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{path}: is too large for a list of sentences")
        return path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from error


def _table(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a file separated by bars, by the names in its header; there is no quoting."""
    header, *lines = _lines(path)
    columns = [column.strip() for column in header.split("|")]
    for i, line in enumerate(lines):
        cells = [cell.strip() for cell in line.split("|")]
        if cells == [""]:
            continue
        if len(cells) != len(columns):
            raise DatasetError(f"{path}: line {i + 2} must have {len(columns)} cells, got {len(cells)}")
        yield dict(zip(columns, cells, strict=True))


def _bars(path: Path) -> tuple[str, list[Sentence]]:
    header = [column.strip() for column in _lines(path)[0].split("|")]
    for format, (name, signer, glosses, sentence) in _COLUMNS.items():
        if {name, signer, glosses, sentence} <= {*header, ""}:
            rows = _table(path)
            return format, [
                Sentence(row[name], row[signer], tuple(row[glosses].split()), row.get(sentence, "")) for row in rows
            ]
    wanted = " or ".join("|".join(filter(None, columns)) for columns in _COLUMNS.values())
    raise DatasetError(f"{path}: must have the columns {wanted}, got {'|'.join(header)[:80]!r}")


def _parallel(path: Path) -> Iterator[Sentence]:
    files = [_stripped(path)]
    for suffix in (".gloss", ".text"):
        other = path.with_suffix(suffix)
        found = [""] * len(files[0]) if suffix == ".text" and not other.is_file() else _stripped(other)
        if len(found) != len(files[0]):
            raise DatasetError(f"{other}: must have {len(files[0])} lines as {path.name} has, got {len(found)}")
        files.append(found)
    for name, glosses, sentence in zip(*files, strict=True):
        yield Sentence(name, "", tuple(glosses.split()), sentence)


def _stripped(path: Path) -> list[str]:
    lines = [line.strip() for line in _lines(path)]
    return lines[:-1] if lines[-1] == "" else lines


def _csl_daily(path: Path, split: str) -> tuple[list[Sentence], list[str]]:
    try:
        with reading(path):
            if path.stat().st_size > MAX_BYTES:
                raise PoseFileError(path, "is too large for a list of sentences")
            content = load(str(path), path.read_bytes())
    except PoseFileError as error:
        raise DatasetError(str(error)) from error
    info = content.get("info") if isinstance(content, dict) else None
    if not isinstance(info, list):
        raise DatasetError(f"{path}: must be a dict with the list 'info' of CSL-Daily's annotations")
    annotated = _by_name(path, [_csl_row(path, i, row) for i, row in enumerate(info)])
    listed = path.with_name(_CSL_SPLITS)
    splits: dict[str, list[str]] = {}
    for row in _table(listed):
        if not {"name", "split"} <= row.keys():
            raise DatasetError(f"{listed}: must have the columns name|split, got {'|'.join(row)[:80]!r}")
        splits.setdefault(row["split"], []).append(row["name"])
    if split not in splits:
        known = ", ".join(map(repr, list(splits)[:8])) or "none"
        raise DatasetError(f"{listed}: there is no split {split!r}; there are {known}")
    lost = [name for name in splits[split] if name not in annotated]
    notes = [f"{len(lost)} names of {listed.name} have no annotation: {some(lost)}"] if lost else []
    return [annotated[name] for name in splits[split] if name in annotated], notes


def _csl_row(path: Path, i: int, row: Any) -> Sentence:
    row = row if isinstance(row, dict) else {}
    name, signer = row.get("name"), row.get("signer")
    glosses, letters = row.get("label_gloss"), row.get("label_char", [])
    if not isinstance(name, str) or not _texts(glosses) or not _texts(letters):
        raise DatasetError(f"{path}: info {i} must have a name and lists of texts label_gloss and label_char")
    if not isinstance(signer, (str, int)):
        found = re.search(r"_P(\d+)_", name)
        signer = int(found[1]) if found else ""
    return Sentence(name, str(signer), tuple(glosses), "".join(letters))


def _texts(found: Any) -> bool:
    return isinstance(found, Sequence) and not isinstance(found, str) and all(isinstance(text, str) for text in found)
