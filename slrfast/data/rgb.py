"""Clips with pictures, for CCL-SLR: videos of a folder found by the clips' names, frames in step with the poses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from slrfast import checks
from slrfast.data.dataset import ClipDataset
from slrfast.data.motion_masks import MotionMasks
from slrfast.data.preprocess import PreprocessOptions, frame_stride, kept_frames
from slrfast.data.sources import open_source
from slrfast.data.video import VideoFileError, VideoReader, list_videos, spread
from slrfast.data.wrapped import WrappedDataset, match, some
from slrfast.errors import DatasetError, PoseFileError

_SLACK = 0.02  # of a video's frames; containers and detectors do not always agree on the last one
_FEWEST = 0.25  # of a video's frames; a pose that has less is of another video, unless clip_frames say otherwise


class PictureDataset(WrappedDataset):
    """Clips with pictures and, if wanted, their motion masks; made to be derived from.

    Args:
        dataset: any ClipDataset.
        masks: makes or remembers the masks.
    """

    def __init__(self, dataset: ClipDataset, masks: MotionMasks | None = None) -> None:
        super().__init__(dataset)
        self.masks = masks

    def pictures(self, index: int) -> Tensor:
        """Frames of the clip at this position, uint8 [3, T, H, W]."""
        raise NotImplementedError

    def added(self, index: int) -> dict[str, Any]:
        """``rgb`` and, with masks, ``rgb_mask``."""
        rgb = self.pictures(index)
        return {"rgb": rgb} if self.masks is None else {"rgb": rgb, "rgb_mask": self.masks(rgb)}

    def added_to_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The same of a batch."""
        added = [self.added(i) for i in indices]
        return {name: torch.stack([one[name] for one in added]) for name in added[0]}


class RGBDataset(PictureDataset):
    """The clips of a data set for which there is a video, with ``frames`` pictures each.

    Picture t shows what the clip's frame ``spread(F, T)[t]`` was detected in. For that it must be known which of a
    video's frames the clip consists of: pre-processing drops those that show no hand, and every other one of a long
    clip. :func:`clip_frames` reads it off the pose files; without it, clips that dropped some are in step only roughly.

    Args:
        dataset: any ClipDataset or packed store.
        videos: a folder with a video for every clip, at the clip's path with any extension, or anywhere if its name is
            the only one; or paths by such names.
        frames: pictures of every clip, T.
        size: of a picture in pixels, (height, width) or one number for both; videos are stretched to it.
        masks: makes or remembers motion masks.
        clip_frames: by clip name, which frames of its video a clip consists of.
        reader: decodes the videos; None takes one with the default limits.
        progress: show a progress bar.
    Attributes:
        skipped: also the clips without a video, with one that cannot be used, or with one of another length.
        notes: also how many clips are in step only roughly.
    Raises:
        DatasetError: not one clip has a video that can be used. VideoFileError: there is no such folder; later, a video
            that could be opened before no longer can.

    >>> RGBDataset(ClipDataset([]), {}, frames=8, size=112)
    Traceback (most recent call last):
    slrfast.errors.DatasetError: no clip has a video; videos are none, clips are none
    """

    def __init__(
        self,
        dataset: ClipDataset,
        videos: str | os.PathLike | Mapping[str, str | os.PathLike],
        *,
        frames: int = 32,
        size: int | tuple[int, int] = 256,
        masks: MotionMasks | None = None,
        clip_frames: Mapping[str, Sequence[int] | np.ndarray] | None = None,
        reader: VideoReader | None = None,
        progress: bool = False,
    ) -> None:
        checks.integer_between("RGBDataset", 1, 4096, frames=frames)
        height, width = (size, size) if isinstance(size, int) else size
        checks.integer_between("RGBDataset", 8, 4096, height=height, width=width)
        found = videos if isinstance(videos, Mapping) else list_videos(videos)
        names, lengths = dataset.names, dataset.lengths
        paths = match(names, found)
        if not any(path is not None for path in paths):
            theirs, ours = some(list(found), 2) or "none", some(names, 2) or "none"
            raise DatasetError(f"no clip has a video; videos are {theirs}, clips are {ours}")
        self.frames, self.size, self.reader = frames, (height, width), reader or VideoReader()
        options = dataset.options or PreprocessOptions()
        skipped: list[tuple[str, str]] = []
        kept: list[int] = []
        self._wanted: list[tuple[os.PathLike | str, np.ndarray | int]] = []
        roughly = 0
        for i in tqdm(range(len(names)), "opening videos", unit=" videos", disable=not progress):
            path, known = paths[i], None if clip_frames is None else clip_frames.get(names[i])
            try:
                if path is None:
                    raise VideoFileError(names[i], "there is no video of this name")
                count = self.reader.probe(path).frames
                wanted, exact = _in_step(path, count, lengths[i], known, frames, options)
            except VideoFileError as error:
                skipped.append((names[i], error.reason))
                continue
            kept.append(i)
            roughly += not exact
            self._wanted.append((path, wanted))
        if not kept:
            name, reason = skipped[0]
            raise DatasetError(f"none of {len(names)} clips has a video that can be used; the first, {name}: {reason}")
        super().__init__(dataset if len(kept) == len(names) else dataset.subset(kept), masks)
        self.skipped, self.notes = [*dataset.skipped, *skipped], list(dataset.notes)
        if roughly:
            many = f"{roughly} of {len(kept)} clips lack frames of their video, and it is not known which"
            self.notes.append(f"{many}: picture and pose are in step only roughly; give clip_frames")

    def pictures(self, index: int) -> Tensor:
        """Frames of the clip's video, uint8 [3, T, H, W]; what a damaged video lacks repeats its last frame."""
        path, wanted = self._wanted[index]
        return self.reader.read(path, wanted if isinstance(wanted, int) else wanted.tolist(), self.size).rgb

    def _select(self, indices: Sequence[int]) -> None:
        self._wanted = [self._wanted[i] for i in indices]


def clip_frames(
    source: str | os.PathLike,
    *,
    format: str = "auto",
    split: str | None = None,
    options: PreprocessOptions | None = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Which frames of its video every clip consists of, from the pose files that a data set was made of.

    Args:
        source, format, split, options: as they were given to ``PoseDataset`` or ``pack``.
        progress: show a progress bar.
    Returns:
        By clip name, rising int64 [F]; files that cannot be used are left out.
    Raises:
        DatasetError: there is no such source.
    """
    options = options or PreprocessOptions()
    listed = open_source(source, format, split, options=options)
    reader: Any = listed.reader
    found = {}
    for entry in tqdm(listed.entries, "reading poses", unit=" clips", disable=not progress):
        try:
            found[entry.name] = kept_frames(reader.pose(entry), options)
        except PoseFileError:
            continue
    return found


def _in_step(
    path: object, count: int, length: int, known: Any, frames: int, options: PreprocessOptions
) -> tuple[np.ndarray | int, bool]:
    """Which frames of a video of ``count`` belong to a clip of ``length``, and whether that is known exactly."""
    slack = max(1, round(_SLACK * count))
    if known is not None:
        numbers = np.asarray(known, np.int64).reshape(-1)
        if len(numbers) != length:
            raise VideoFileError(path, f"the pose has {length} frames, clip_frames name {len(numbers)}")
        if numbers[0] < 0 or (np.diff(numbers) < 0).any() or numbers[-1] >= count + slack:
            last = int(numbers[-1])
            raise VideoFileError(path, f"the pose goes to frame {last}, but the video has {count} frames only")
        return np.minimum(numbers[spread(length, frames)], count - 1), True
    stride = frame_stride(count, options)
    whole = -(-count // stride)
    if length > whole + slack:
        raise VideoFileError(path, f"the pose has {length} frames, but the video only {count}")
    if length < _FEWEST * whole:
        raise VideoFileError(path, f"the pose has only {length} frames, but the video {count}; is it another one?")
    if length >= whole:
        return np.minimum(spread(length, frames) * stride, count - 1), True
    return frames, False
