"""Batches of clips from any data set, in this process or in workers."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from slrfast.data import ClipDataset, PoseBatch
from slrfast.data.sources import end_with_parent
from slrfast.errors import SlrfastError


class _Batches(Dataset):
    """Clip indices -> their batch, or what is wrong with a clip, which a loader's worker would bury in a traceback."""

    def __init__(self, clips: Dataset) -> None:
        self.clips = clips

    def __getitem__(self, indices: list[int]) -> PoseBatch | SlrfastError:
        try:
            if isinstance(self.clips, ClipDataset):
                return self.clips.batch(indices)
            return PoseBatch.collate([self.clips[i] for i in indices])
        except SlrfastError as error:
            return error


def load_batches(
    dataset: Dataset,
    order: Iterable[list[int]],
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[PoseBatch]:
    """The batches of clips at these indices, in order, pinned for a GPU.

    Args:
        dataset: map-style dataset of data.Clip; a data.ClipDataset packs a batch itself.
        order: the indices of every batch.
        workers: loader processes; 0 loads here.
        device: where the batches will go; they stay on the CPU.
    Raises:
        SlrfastError: a clip cannot be read; the message is its own, whichever process read it.
    """
    loader = DataLoader(
        _Batches(dataset),
        batch_size=None,
        sampler=order,
        collate_fn=_as_is,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_trainer,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # else the loader would draw its own seed from the global generator
    )
    for batch in loader:
        if isinstance(batch, SlrfastError):
            raise batch
        yield batch


def _as_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_trainer(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, but only the training process decides when to stop its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
