"""Class scores of any model in a file, so that it can be fused with another: who made them does not matter.

    .npz    names [N] text, scores [N, C] float; if known, class_names [C] text
    .csv    a header ``name,<class>,<class>...`` and a row a clip; classes 0, 1, 2 ... are unnamed
    .json   {"scores": {name: [C numbers]}, "class_names": [C texts] or null}

Scores are logits or probabilities, higher is better; -inf rules a class out. Nothing in a file is unpickled.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slrfast import checks
from slrfast.data.formats.base import reading
from slrfast.data.formats.npz import read_array
from slrfast.data.wrapped import some
from slrfast.errors import PoseFileError, SlrfastError, one_line
from slrfast.files import replacing

MAX_BYTES = 1 << 30
_NAME = "name"


class ScoreFileError(SlrfastError, ValueError):
    """A file of scores cannot be used, or not with another; the message is one sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass(frozen=True)
class Scores:
    """Class scores of clips.

    Attributes:
        names: one per clip, no two the same.
        values: [N, C] float64 on the CPU, N and C >= 1; no NaN, no +inf, something finite in every row.
        class_names: one per class, no two the same; empty if unknown.
        source: the file, for messages.
    Raises:
        ScoreFileError: names, values and class names do not fit, or a value is none.
    """

    names: tuple[str, ...]
    values: Tensor
    class_names: tuple[str, ...] = ()
    source: str = "scores"

    def __post_init__(self) -> None:
        values, source = self.values, self.source
        if values.dim() != 2 or values.dtype != torch.float64 or values.device.type != "cpu":
            got = f"{values.dtype} {list(values.shape)} on {values.device}"
            raise ScoreFileError(f"{source}: the scores must be float64 [clips, classes] on the CPU, got {got}")
        clips, classes = values.shape
        if not clips or not classes:
            raise ScoreFileError(f"{source}: holds scores of {clips} clips and {classes} classes")
        if len(self.names) != clips:
            raise ScoreFileError(f"{source}: has {len(self.names)} names for the scores of {clips} clips")
        if self.class_names and len(self.class_names) != classes:
            raise ScoreFileError(f"{source}: names {len(self.class_names)} classes, its scores are of {classes}")
        for what, texts in (("clip", self.names), ("class", self.class_names)):
            if any(not isinstance(text, str) or not text for text in texts):
                raise ScoreFileError(f"{source}: has a {what} without a name")
            twice = [name for name, times in Counter(texts).items() if times > 1]
            if twice:
                raise ScoreFileError(f"{source}: names a {what} more than once: {some(twice)}")
        wrong = (values.isnan() | (values == math.inf)).any(1) | ~values.isfinite().any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            rule = "must be finite, or -inf for some classes"
            raise ScoreFileError(f"{source}: the scores of {self.names[row]!r:.80} {rule}, got {_odd(values[row])}")

    @classmethod
    def of(cls, names: Sequence[str], values: Tensor, class_names: Sequence[str] = ()) -> Scores:
        """From what a model says: values [N, C] of any float type and device, without gradient.

        >>> Scores.of(["a"], torch.tensor([[1.0, 2.0]])).values
        tensor([[1., 2.]], dtype=torch.float64)
        """
        checks.shapes("Scores.of", values=(values, "N C"))
        checks.floating("Scores.of", values=values)
        return cls(tuple(names), values.detach().double().cpu(), tuple(class_names))


def write_scores(path: str | os.PathLike, scores: Scores) -> None:
    """Write scores as the path's extension says; :func:`read_scores` gives them back exactly.

    Out of CSV, classes that are called 0, 1, 2 ... come back unnamed.

    Raises:
        ValueError: another extension than .npz, .csv and .json. CheckpointError: the file cannot be written; one that
            stood there before is left whole.
    """
    path = Path(path)
    _check_suffix("write_scores", path)
    with replacing(path) as temporary:
        if path.suffix.lower() == ".npz":
            short = scores.values.float()  # half the size, where nothing is lost
            values = short if torch.equal(short.double(), scores.values) else scores.values
            arrays: dict[str, Any] = {"names": np.array(scores.names), "scores": values.numpy()}
            if scores.class_names:
                arrays["class_names"] = np.array(scores.class_names)
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)
            return
        with open(temporary, "w", encoding="utf-8", newline="") as text:
            if path.suffix.lower() == ".json":
                rows = {
                    name: [value if math.isfinite(value) else "-inf" for value in row]
                    for name, row in zip(scores.names, scores.values.tolist(), strict=True)
                }
                json.dump({"class_names": list(scores.class_names) or None, "scores": rows}, text)
                return
            writer = csv.writer(text, lineterminator="\n")
            try:
                writer.writerow([_NAME, *(scores.class_names or range(scores.values.shape[1]))])
                writer.writerows([n, *map(repr, r)] for n, r in zip(scores.names, scores.values.tolist(), strict=True))
            except UnicodeEncodeError as error:
                raise ScoreFileError(f"{path}: UTF-8 has no such name as {error.object!r:.80}; write .npz") from error


def read_scores(path: str | os.PathLike) -> Scores:
    """Read a file of scores; see the head of this module for what it may look like.

    Raises:
        ScoreFileError: the file cannot be read, is damaged, or its scores cannot be used.
        ValueError: another extension than .npz, .csv and .json.
    """
    path = Path(path)
    _check_suffix("read_scores", path)
    if path.suffix.lower() == ".npz":
        return _from_npz(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ScoreFileError(f"{path}: is too large for a file of scores")
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ScoreFileError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ScoreFileError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    return (_from_json if path.suffix.lower() == ".json" else _from_csv)(path, content)


def _check_suffix(op: str, path: Path) -> None:
    fits = path.suffix.lower() in (".npz", ".csv", ".json")
    checks.require(fits, op, "path", "end in .npz, .csv or .json", repr(path.name)[:80])


def _from_npz(path: Path) -> Scores:
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            known = [member.filename for member in archive.infolist()]
            keys = ["names", "scores", *(["class_names"] if "class_names.npy" in known else [])]
            arrays = {key: read_array(path, archive, key, MAX_BYTES, "file of scores") for key in keys}
    except PoseFileError as error:
        raise ScoreFileError(str(error)) from error
    for key, array in arrays.items():
        kinds, size = ("fiu", 2) if key == "scores" else ("U", 1)
        if array.dtype.kind not in kinds or array.ndim != size:
            what = "numbers [clips, classes]" if key == "scores" else "a row of texts"
            raise ScoreFileError(f"{path}: {key} must be {what}, got {array.dtype} {list(array.shape)}")
    texts = {key: tuple(map(str, arrays[key])) if key in arrays else () for key in ("names", "class_names")}
    return Scores(values=torch.from_numpy(arrays["scores"].astype(np.float64)), source=str(path), **texts)


def _from_csv(path: Path, content: str) -> Scores:
    try:
        rows = [row for row in csv.reader(io.StringIO(content, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ScoreFileError(f"{path}: is no file of comma-separated values ({error})") from error
    if not rows or rows[0][0] != _NAME:
        raise ScoreFileError(f"{path}: must begin with a header 'name,<class>,<class>', got {(rows or [[]])[0]!r:.60}")
    classes = rows[0][1:]
    unnamed = classes == [str(i) for i in range(len(classes))]
    return _scores(path, rows[1:], () if unnamed else classes, len(classes))


def _from_json(path: Path, content: str) -> Scores:
    try:
        told = json.loads(content, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise ScoreFileError(f"{path}: is no JSON ({' '.join(str(error).split())[:80]})") from error
    pairs = dict(told) if isinstance(told, list) and all(isinstance(pair, tuple) for pair in told) else {}
    rows, classes = pairs.get("scores"), pairs.get("class_names") or []
    if not isinstance(rows, list) or not rows or not all(isinstance(pair, tuple) for pair in rows):
        raise ScoreFileError(f'{path}: must be {{"scores": {{name: [numbers]}}, "class_names": [texts]}}')
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ScoreFileError(f"{path}: class_names must be texts, got {classes!r:.60}")
    lists = [[name, *(row if isinstance(row, list) else [])] for name, row in rows]
    return _scores(path, lists, classes, len(lists[0]) - 1)


def _scores(path: Path, rows: Sequence[Sequence[Any]], classes: Sequence[str], count: int) -> Scores:
    values = np.empty((len(rows), count))
    for i, (name, *row) in enumerate(rows):
        if len(row) != count:
            raise ScoreFileError(f"{path}: {name!r:.80} has {len(row)} scores, there are {count} classes")
        try:
            values[i] = [_number(value) for value in row]
        except (ValueError, TypeError, OverflowError):
            odd = next(value for value in row if not _is_number(value))
            raise ScoreFileError(f"{path}: the scores of {name!r:.80} must be numbers, got {odd!r:.40}") from None
    return Scores(tuple(name for name, *_ in rows), torch.from_numpy(values), tuple(classes), str(path))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    return float(value)


def _is_number(value: Any) -> bool:
    try:
        _number(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _odd(row: Tensor) -> str:
    odd = row[row.isnan() | (row == math.inf)]
    return str(float(odd[0])) if len(odd) else "-inf for all"
