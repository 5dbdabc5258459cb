"""Lists of classes, and the text files that they and the split files come in."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slrfast.data.wrapped import some
from slrfast.errors import DatasetError

MAX_BYTES = 1 << 28
_NUMBERED = re.compile(r"([0-9]{1,9})(?:\t|,| +)(\S.*)")


def read_class_names(path: str | os.PathLike) -> tuple[str, ...]:
    """Class names: a JSON list, one name a line, or a number from 0 and a name a line.

    A name of several classes gets their numbers: "go (3)", "go (17)".

    Raises:
        DatasetError: the file cannot be read, is empty, or leaves out a number.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        names = read_json(path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f"{path}: must be a list of class names")
    else:
        names = list(lines(path))
        numbered = [_NUMBERED.fullmatch(name) for name in names]
        if all(numbered):
            by_number = {int(match[1]): match[2] for match in numbered if match}
            if sorted(by_number) != list(range(len(names))):
                raise DatasetError(f"{path}: must number its {len(names)} classes from 0 to {len(names) - 1}")
            names = [by_number[i] for i in range(len(names))]
    if not names:
        raise DatasetError(f"{path}: names no classes")
    times = Counter(names)
    return tuple(f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names))


def read_class_set(path: str | os.PathLike, class_names: Sequence[str]) -> list[int]:
    """Some of the classes, by number or by name, one a line; for NMFs-CSL's confusing words.

    Raises:
        DatasetError: the file cannot be read, or a line is no class.
    """
    path = Path(path)
    by_name = {name: i for i, name in enumerate(class_names)}
    chosen = set()
    for i, line in enumerate(lines(path)):
        label = by_name.get(line)
        if label is None and line.isascii() and line.isdigit() and len(line) < 10:
            label = int(line)
        if label is None or label >= len(class_names):
            raise DatasetError(f"{path}: line {i + 1} is {line!r:.60}, none of the {len(class_names)} classes")
        chosen.add(label)
    return sorted(chosen)


def lines(path: str | os.PathLike) -> Iterator[str]:
    """Lines that are not blank, without blanks around them."""
    return (line.strip() for line in _text(Path(path)).splitlines() if line.strip())


def read_json(path: Path) -> Any:
    """What a JSON file holds; a key that occurs twice in one object is refused."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            twice = [key for key, times in Counter(key for key, _ in items).items() if times > 1]
            raise DatasetError(f"{path}: has entries more than once: {some(twice)}")
        return made

    try:
        return json.loads(_text(path), object_pairs_hook=pairs)
    except DatasetError:
        raise
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is no JSON ({' '.join(str(error).split())[:80]})") from error


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{path}: is too large for a split file")
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from error
