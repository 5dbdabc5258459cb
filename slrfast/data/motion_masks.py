"""Where clips move, found once: masks of CCL-SLR's Motion-Preserving Masking, kept on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from slrfast import checks
from slrfast.data.cache import Cache, CacheError


class MaskMaker(Protocol):
    """What :class:`MotionMasks` keeps the results of, such as ``nn.MotionPreservingMask``."""

    def __call__(self, rgb: Tensor) -> Tensor:
        """uint8 [3, T, H, W] -> bool [T, H, W]."""
        ...

    def fingerprint(self) -> str:
        """A text that changes with whatever the masks depend on: the flow's weights, the options."""
        ...


class MotionMasks:
    """Masks of clips, made once and kept, a bit a pixel, under the checksum of the clip's pictures.

    A clip whose pictures change, by another video, size or number of frames, so gets another mask. Several processes
    may read and write.

    Args:
        maker: makes the mask of a clip; it stays on the device it is on.
        folder: created if missing; None keeps nothing.
    Raises:
        CacheError: the masks there were made with another flow or other options, or are damaged.

    >>> class Bright:
    ...     def __call__(self, rgb):
    ...         return rgb.float().mean(0) > 128
    ...     def fingerprint(self):
    ...         return "brighter than 128"
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     masks = MotionMasks(Bright(), folder)
    ...     masks(torch.full((3, 2, 4, 4), 200, dtype=torch.uint8)).sum(), len(masks)
    (tensor(32), 1)
    """

    def __init__(self, maker: MaskMaker, folder: str | os.PathLike | None = None) -> None:
        self.maker = maker
        made_by = {"flow or other options": maker.fingerprint()}
        self._cache = None if folder is None else Cache(folder, "motion masks", made_by)

    def __len__(self) -> int:
        return 0 if self._cache is None else len(self._cache)

    def __call__(self, rgb: Tensor) -> Tensor:
        """The mask of a clip; all True where nothing moves, since nothing is then worth more than the rest.

        Args:
            rgb: uint8 [3, T, H, W].
        Returns:
            bool [T, H, W], on the CPU.
        """
        checks.shapes("MotionMasks", rgb=(rgb, "3 T H W"))
        checks.dtype("MotionMasks", torch.uint8, rgb=rgb)
        shape = tuple(rgb.shape[1:])
        if self._cache is None:
            return self._make(rgb, shape)
        key = Cache.key(repr(shape).encode(), np.ascontiguousarray(rgb.cpu().numpy()).tobytes())
        kept = self._cache.get(key)
        if kept is None:
            mask = self._make(rgb, shape)
            self._cache.put({key: np.packbits(mask.numpy()).tobytes()})
            return mask
        pixels = int(np.prod(shape))
        if len(kept) != -(-pixels // 8):
            raise CacheError(f"{self._cache.folder}: is damaged, a mask has another size than its clip")
        return torch.from_numpy(np.unpackbits(np.array(kept), count=pixels).reshape(shape).astype(bool))

    def fill(self, clips: Iterable, progress: bool = False) -> list[str]:
        """Make the masks of clips that have ``rgb``, so that loading them later needs no flow.

        Returns:
            The names of clips in which nothing, or everything, moves.
        """
        still = []
        for clip in tqdm(clips, "motion masks", unit=" clips", disable=not progress):
            checks.require(clip.rgb is not None, "MotionMasks.fill", "clips", "have rgb", None)
            if self(clip.rgb).all():
                still.append(clip.name)
        return still

    def _make(self, rgb: Tensor, shape: tuple[int, ...]) -> Tensor:
        mask = self.maker(rgb).cpu()
        fits = mask.dtype == torch.bool and tuple(mask.shape) == shape
        got = f"{mask.dtype} {list(mask.shape)}"
        checks.require(fits, "MotionMasks", "maker", f"give torch.bool {list(shape)}", got)
        return mask if mask.any() else torch.ones_like(mask)
