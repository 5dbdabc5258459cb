"""The public data sets of isolated signs by name: what is read, how many classes, which split trains and which tests.

Papers train on train and validation clips together and test on the test clips. The numbers of clips are those of the
data sets' papers; a file that lists others is noted, not refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from slrfast import checks
from slrfast.data.isolated_lists import Listing, read_lists, read_msasl, read_wlasl
from slrfast.errors import DatasetError

NMFS_CONFUSING = range(610)
"""NMFs-CSL's 610 confusing words come first, its 457 normal ones behind (so in public code that evaluates them)."""


@dataclass(frozen=True)
class Preset:
    """A data set of isolated signs.

    Attributes:
        name: such as "wlasl100".
        kind: "wlasl", "msasl" or "lists": who reads its split files.
        classes: C.
        train, test: the splits that papers train and test on.
        published: how many clips the data set's paper counts, by split; empty where only parts of it are known.
        confusing: NMFs-CSL's confusing classes, empty elsewhere.
    """

    name: str
    kind: str
    classes: int
    train: tuple[str, ...] = ("train", "val")
    test: tuple[str, ...] = ("test",)
    published: dict[str, int] = field(default_factory=dict)
    confusing: Sequence[int] = ()


_WLASL = {"train": 14_289, "val": 3_916, "test": 2_878}
_MSASL = {"train": 16_054, "val": 5_287, "test": 4_172}
_NMFS, _SLR500 = {"train": 25_608, "test": 6_402}, {"train": 90_000, "test": 35_000}
PRESETS = {
    preset.name: preset
    for preset in (
        *(Preset(f"wlasl{k}", "wlasl", k, published=_WLASL if k == 2000 else {}) for k in (100, 300, 1000, 2000)),
        *(Preset(f"msasl{k}", "msasl", k, published=_MSASL if k == 1000 else {}) for k in (100, 200, 500, 1000)),
        Preset("nmfs", "lists", 1067, ("train",), published=_NMFS, confusing=NMFS_CONFUSING),
        Preset("slr500", "lists", 500, ("train",), published=_SLR500),
    )
}


def open_preset(
    name: str,
    path: str | os.PathLike,
    *,
    class_list: str | os.PathLike | None = None,
    clip_name: str = "{split}/{index:05d}",
) -> Listing:
    """The split of a public data set, read from where its split files are.

    Args:
        name: one of ``PRESETS``.
        path: a folder with the data set's split files; for WLASL also one of its files. For WLASL and MSASL a folder
            ``traintestlist`` as MASA's authors keep it will do too (WLASL's with a folder ``WLASL100`` a subset).
        class_list: class names where the split files have none, as for :func:`read_lists`.
        clip_name: of MSASL's clips, as for :func:`read_msasl`.
    Raises:
        DatasetError: the split files cannot be used, or have fewer classes than the data set.

    >>> open_preset("wlasl50", "lists/")
    Traceback (most recent call last):
    ValueError: open_preset: name must be one of 'wlasl100', 'wlasl300', 'wlasl1000', 'wlasl2000', 'msasl100', \
'msasl200', 'msasl500', 'msasl1000', 'nmfs', 'slr500', got 'wlasl50'
    """
    checks.choice("open_preset", list(PRESETS), name=name)
    preset, path = PRESETS[name], Path(path)
    file = _wlasl_file(path, preset.classes) if preset.kind == "wlasl" else None
    if file is not None:
        listing = read_wlasl(file, class_list)
    elif preset.kind == "msasl" and not (path / "traintestlist").is_dir():
        listing = read_msasl(path, clip_name=clip_name)
    elif preset.kind == "msasl":
        listing = read_lists(path, None, class_list)
    else:
        own = path / "traintestlist" / f"WLASL{preset.classes}"
        listing = read_lists(own if own.is_dir() else path, preset.classes, class_list)
    if len(listing.class_names) < preset.classes:
        raise DatasetError(f"{listing.name}: has {len(listing.class_names)} classes, {name} needs {preset.classes}")
    listing = listing.first(preset.classes)
    found = Counter(clip.split for clip in listing.clips)
    odd = [
        f"{listing.name}: lists {found[split]} {split} clips, {name} is published with {count}"
        for split, count in preset.published.items()
        if found[split] != count
    ]
    return replace(listing, notes=(*listing.notes, *odd))


def _wlasl_file(path: Path, classes: int) -> Path | None:
    """The JSON file that is meant; None for a folder without one."""
    if not path.is_dir():
        return path
    names = ("WLASL_v0.3.json", f"nslt_{classes}.json")
    return next((path / name for name in names if (path / name).is_file()), None)
