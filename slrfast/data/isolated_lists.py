"""The split files of the public data sets of isolated signs, as their authors publish them, read into one form.

Checked against the published files: WLASL's ``WLASL_v0.3.json`` and ``nslt_100.json`` with ``wlasl_class_list.txt``,
MSASL's ``MSASL_train.json`` and ``MSASL_classes.json``, each in part. NMFs-CSL and SLR500 are handed out against a
signature, so that their files were checked only against public code that reads them: ``trainlist01.txt`` and
``testlist01.txt`` (MASA's loaders), NMFs-CSL's ``uni_trainlist01.csv``, SLR500's ``dictionary.txt``. AUTSL's
form, ``train_labels.csv``, was not checked.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from slrfast import checks
from slrfast.data.class_names import lines, read_class_names, read_json
from slrfast.data.sources import MAX_CLASSES
from slrfast.data.wrapped import some
from slrfast.errors import DatasetError

SPLITS = ("train", "val", "test")
_CLASS_LIST = "wlasl_class_list.txt"
_LIST_FILES = ("{}list01.txt", "uni_{}list01.csv", "{}_labels.csv")
_LABELLED = re.compile(r"(.*\S)[ \t,]+([0-9]{1,9})")
_SIGNER = re.compile(r"(?:^|/)(P[0-9]+|signer[0-9]+)_[^/]*$")
_YOUTUBE = re.compile(r"(?:v=|youtu\.be/)([\w-]{11})")


class Listed(NamedTuple):
    """A clip as a split file lists it.

    Attributes:
        name: what its pose file is called, perhaps with folders and another extension.
        label: class, 0 to C - 1.
        gloss: the class's name.
        split: "train", "val" or "test".
        signer: "" unknown.
        frames: first frame and the one behind the last in the source video, from 0; None behind the last is its end,
            None instead of both unknown or senseless. Published clips are cut already; nothing is cut here.
        box: the signer in pixels of the source video, (left, top, right, bottom), or None.
    """

    name: str
    label: int
    gloss: str
    split: str
    signer: str = ""
    frames: tuple[int, int | None] | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Listing:
    """The clips of a data set by split file.

    Attributes:
        name: of the file or folder, for messages.
        clips: in the order of the file.
        class_names: one per class.
        notes: what is odd about the file.
    Raises:
        DatasetError: a label outside the class list, an unknown split, a clip that is listed twice, no clips.
    """

    name: str
    clips: tuple[Listed, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if not self.clips:
            raise DatasetError(f"{self.name}: lists no clips")
        for clip in self.clips:
            if not 0 <= clip.label < classes:
                raise DatasetError(
                    f"{self.name}: the label {clip.label} of {clip.name!r:.80} is outside the list of {classes} classes"
                )
            if clip.split not in SPLITS:
                known = ", ".join(map(repr, SPLITS))
                raise DatasetError(f"{self.name}: {clip.name!r:.80} is in the split {clip.split!r:.40}, not in {known}")
        twice = [name for name, times in Counter(clip.name for clip in self.clips).items() if times > 1]
        if twice:
            raise DatasetError(f"{self.name}: lists clips more than once: {some(twice)}")

    def first(self, classes: int) -> Listing:
        """The clips of the first so many classes, as the subsets of WLASL and MSASL are made.

        >>> clips = Listed("a", 0, "book", "train"), Listed("b", 1, "drink", "test")
        >>> Listing("list", clips, ("book", "drink")).first(1).clips[0].gloss
        'book'
        """
        checks.integer_between("Listing.first", 1, len(self.class_names), classes=classes)
        kept = tuple(clip for clip in self.clips if clip.label < classes)
        return replace(self, clips=kept, class_names=self.class_names[:classes])


def read_wlasl(path: str | os.PathLike, class_list: str | os.PathLike | None = None) -> Listing:
    """WLASL's ``WLASL_v0.3.json`` or one of ``nslt_100.json``, 300, 1000 and 2000.

    The first is ``[{gloss, instances: [{video_id, split, signer_id, frame_start, frame_end, bbox}]}]``; a gloss's place
    is its label, and WLASL100 is the first 100. The others are ``{video_id: {subset, action: [label, first, last]}}``
    without glosses. Frames are counted there from 1, the last one included; -1 is the end of the video.

    Args:
        path: the file.
        class_list: glosses for the second form, :func:`read_class_names`; None takes ``wlasl_class_list.txt`` beside
            the file, or numbers.
    Raises:
        DatasetError: as :class:`Listing`; the file is neither of these, or an entry lacks something.
    """
    path = Path(path)
    told = read_json(path)
    if isinstance(told, dict):
        return _from_nslt(path, told, class_list)
    if not isinstance(told, list):
        raise DatasetError(f"{path}: must be a list of glosses or a dict of clips, got {type(told).__name__}")
    clips, glosses = [], []
    for label, entry in enumerate(told):
        where = f"{path}: gloss {label + 1}"
        gloss, instances = _get(where, entry, "gloss", str), _get(where, entry, "instances", list)
        glosses.append(gloss)
        for i, instance in enumerate(instances):
            place = f"{where} ({gloss[:40]}), instance {i + 1},"
            frames = [instance.get(key) for key in ("frame_start", "frame_end")] if isinstance(instance, dict) else []
            clips.append(
                Listed(
                    _get(place, instance, "video_id", str),
                    label,
                    gloss,
                    _get(place, instance, "split", str),
                    _signer(instance.get("signer_id")),
                    _from_one(place, *frames),
                    _box(place, instance.get("bbox")),
                )
            )
    twice = [gloss for gloss, times in Counter(glosses).items() if times > 1]
    if twice:
        raise DatasetError(f"{path}: has glosses more than once: {some(twice)}")
    return Listing(str(path), tuple(clips), tuple(glosses))


def read_msasl(folder: str | os.PathLike, *, clip_name: str = "{split}/{index:05d}") -> Listing:
    """MSASL's ``MSASL_train.json``, ``MSASL_val.json``, ``MSASL_test.json`` and ``MSASL_classes.json``.

    Entries are ``{label, signer_id, start, end, box, width, height, url, ...}``; MSASL100 is the labels below 100.
    Frames count from 0, without ``end``; ``box`` is (top, left, bottom, right) as fractions.

    Args:
        folder: with all four files.
        clip_name: MSASL does not name its clips. This says how the pose files are called, from split, index (from 0 in
            its file), video (YouTube's 11 letters), label, gloss, start and end.
    Raises:
        DatasetError: as :class:`Listing`; a file is missing or no such list, or an entry lacks something.
        ValueError: ``clip_name`` cannot be filled in.
    """
    folder = Path(folder)
    names = read_class_names(folder / "MSASL_classes.json")
    clips = []
    for split in SPLITS:
        path = folder / f"MSASL_{split}.json"
        told = read_json(path)
        if not isinstance(told, list):
            raise DatasetError(f"{path}: must be a list of clips, got {type(told).__name__}")
        for index, entry in enumerate(told):
            where = f"{path}: clip {index + 1}"
            label, start, end = (_get(where, entry, key, int) for key in ("label", "start", "end"))
            if not 0 <= label < len(names):
                raise DatasetError(f"{where} has the label {label}, outside the list of {len(names)} classes")
            video = _YOUTUBE.search(str(entry.get("url")))
            about = dict(
                split=split, index=index, video=video[1] if video else "", label=label, gloss=names[label],
                start=start, end=end,
            )  # fmt: skip
            try:
                name = clip_name.format(**about)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                known = ", ".join(about)
                raise ValueError(
                    checks.message("read_msasl", "clip_name", f"be filled in from {known}", repr(clip_name)[:80])
                ) from error
            size = [entry.get(key) for key in ("width", "height")]
            signer, box = _signer(entry.get("signer_id")), _box_of_fractions(where, entry.get("box"), size)
            clips.append(Listed(name, label, names[label], split, signer, _frames(start, end), box))
    return Listing(str(folder), tuple(clips), names)


def read_lists(
    folder: str | os.PathLike, classes: int | None = None, class_list: str | os.PathLike | None = None
) -> Listing:
    """Lists of one clip a line, as for NMFs-CSL and SLR500: ``trainlist01.txt``, ``testlist01.txt``, perhaps ``val``.

    A line is ``name label`` or a name alone, whose first folder then is the label (``012/P03_01_12_0._color.mp4``). A
    file may also be called ``uni_trainlist01.csv`` or ``train_labels.csv``, with a comma. A signer is read off names
    such as ``P03_...`` and ``signer3_...``.

    Args:
        folder: with the lists, or with a folder ``traintestlist`` that has them.
        classes: C; None takes the number of names, or the largest label + 1.
        class_list: :func:`read_class_names`; None takes ``dictionary.txt`` or ``gloss.txt`` beside the lists, or
            numbers.
    Raises:
        DatasetError: as :class:`Listing`; a list of train or test clips is missing, or a line has no label.
    """
    top = Path(folder)
    inner = top / "traintestlist" if (top / "traintestlist").is_dir() else top
    clips = []
    for split in SPLITS:
        files = [inner / pattern.format(split) for pattern in _LIST_FILES]
        path = next((file for file in files if file.is_file()), None)
        if path is None and split != "val":
            wanted = ", ".join(file.name for file in files)
            raise DatasetError(f"{inner}: there is no list of {split} clips; it must be called one of {wanted}")
        for i, line in enumerate(lines(path) if path else ()):
            name, label = _name_and_label(f"{path}: line {i + 1}", line)
            clips.append(Listed(name, label, "", split, _signer_in(name)))
    beside = [place / name for place in (inner, top) for name in ("dictionary.txt", "gloss.txt")]
    found = class_list or next((path for path in beside if path.is_file()), None)
    names = read_class_names(found) if found else _numbers(clips, classes)
    if classes is not None and len(names) != classes:
        raise DatasetError(f"{found}: names {len(names)} classes, there are {classes}")
    return _with_glosses(str(top), clips, names)


def list_by_signer(
    names: Sequence[str], test_signers: Sequence[str], class_names: Sequence[str] | None = None
) -> Listing:
    """A split by signers, from the clips' names alone: ``012/P03_01_12_0.npz`` is class 12 and signer P03.

    SLR500's 90,000 and 35,000 clips are those of 36 and 14 of its 50 signers; which 14 is not published with it.

    Raises:
        DatasetError: as :class:`Listing`; a name has no label or signer. ValueError: a test signer has no clip.

    >>> listing = list_by_signer(["000/P01_0.npz", "000/P02_0.npz", "001/P01_0.npz"], ["P02"])
    >>> [clip.split for clip in listing.clips], listing.class_names
    (['train', 'test', 'train'], ('0', '1'))
    """
    clips = []
    for name in names:
        label, signer = _folder_label(name), _signer_in(name)
        if label is None or not signer:
            raise DatasetError(f"{name!r:.80} does not say label and signer, as '012/P03_01_12_0' does")
        clips.append(Listed(name, label, "", "test" if signer in test_signers else "train", signer))
    unseen = sorted(set(test_signers) - {clip.signer for clip in clips})
    checks.require(not unseen, "list_by_signer", "test_signers", "have clips", some(unseen))
    return _with_glosses("the clips' names", clips, tuple(class_names or _numbers(clips, None)))


def _from_nslt(path: Path, told: Mapping[str, Any], class_list: str | os.PathLike | None) -> Listing:
    clips = []
    for name, entry in told.items():
        where = f"{path}: the clip {name[:40]!r}"
        action = _get(where, entry, "action", list)
        if len(action) != 3 or any(type(value) is not int for value in action):
            raise DatasetError(f"{where} must have action = [label, first frame, last frame], got {action!r:.60}")
        clips.append(Listed(name, action[0], "", _get(where, entry, "subset", str), "", _from_one(where, *action[1:])))
    found = class_list or (path.parent / _CLASS_LIST if (path.parent / _CLASS_LIST).is_file() else None)
    if found is None:
        return _with_glosses(str(path), clips, _numbers(clips, None))
    names = read_class_names(found)
    return _with_glosses(str(path), clips, names[: max(len(_numbers(clips, None)), 1)])


def _with_glosses(name: str, clips: Sequence[Listed], names: Sequence[str]) -> Listing:
    """Glosses put in; a label outside the names is left for Listing to refuse."""
    named = (clip._replace(gloss=names[clip.label]) if 0 <= clip.label < len(names) else clip for clip in clips)
    return Listing(name, tuple(named), tuple(names))


def _numbers(clips: Sequence[Listed], classes: int | None) -> tuple[str, ...]:
    most = max((clip.label for clip in clips), default=-1) + 1
    return tuple(map(str, range(min(most, MAX_CLASSES) if classes is None else classes)))


def _name_and_label(where: str, line: str) -> tuple[str, int]:
    match = _LABELLED.fullmatch(line)
    if match:
        return match[1], int(match[2])
    label = _folder_label(line)
    if label is None:
        raise DatasetError(f"{where} has no label: it must be 'name label' or 'label/name', got {line!r:.60}")
    return line, label


def _folder_label(name: str) -> int | None:
    folder, _, rest = name.partition("/")
    return int(folder) if rest and folder.isascii() and folder.isdigit() and len(folder) < 10 else None


def _signer_in(name: str) -> str:
    match = _SIGNER.search(name)
    return match[1] if match else ""


def _signer(value: object) -> str:
    return str(value) if type(value) is int and value >= 0 else ""


def _from_one(where: str, first: object = None, last: object = None) -> tuple[int, int | None] | None:
    """Frames counted from 1 with the last one, as a range from 0 without it; -1 is the end."""
    if first is None and last is None:
        return None
    if type(first) is not int or type(last) is not int:
        raise DatasetError(f"{where} must have whole numbers as frames, got {first!r:.20} and {last!r:.20}")
    return _frames(max(first - 1, 0), None if last == -1 else last)


def _frames(start: int, end: int | None) -> tuple[int, int | None] | None:
    """None where no frame is between them."""
    return (start, end) if start >= 0 and (end is None or end > start) else None


def _box(where: str, box: Any) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    if not checks.are_numbers(box, 4):
        raise DatasetError(f"{where} must have a box of four numbers, got {box!r:.60}")
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom


def _box_of_fractions(where: str, box: Any, size: Sequence[Any]) -> tuple[float, float, float, float] | None:
    found = _box(where, box)
    if found is None or not checks.are_numbers(size, 2):
        return None
    width, height = map(float, size)
    top, left, bottom, right = found  # in this order
    return left * width, top * height, right * width, bottom * height


def _get(where: str, entry: object, key: str, kind: type) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind or value == "":
        kinds: dict[type, str] = {str: "a text", int: "a whole number", list: "a list"}
        raise DatasetError(f"{where} must have {kinds[kind]} {key!r}, got {value!r:.60}")
    return value
