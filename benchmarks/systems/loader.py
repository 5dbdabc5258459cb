"""From pose files to training views: the packed store and STC's views, against the loader as the field writes it.

- Two augmented 64-frame views of a batch of 64 clips. Ours: the clips are packed already, the batch is fetched from the
  store and both views are made at once. The field's: per sample a deep copy and four times cropping, frame by frame.
- Packing, per frame: boxes and crops of clips in memory; and the whole command, from the authors' pickle to the store
  on the disk, against reading the same pickle and cropping.
- An epoch through loader processes, with both views: batches per second, of which a training step of 60 ms wants 16.7.

Compared: positions, motion, confidence and visibility of both views, in float64 from the pixels, for the windows and
changes that ours drew; the crops; bit for bit what each loader delivers is not, as every epoch draws anew.
"""

from __future__ import annotations

import itertools
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import harness
from benchmarks.baselines import loader as field
from benchmarks.harness import OURS, Case, as_test, main
from slrfast import ops
from slrfast.data import PoseBatch, PoseStore, PreprocessOptions, SyntheticSigns, pack
from slrfast.data.preprocess import normalise, select
from slrfast.systems import STC, STCConfig
from slrfast.systems.stc import View
from slrfast.train.loading import load_batches

OP = "loader"
BATCH, CLASSES, CLIPS = 64, 16, 256
STEP = 0.06
SIZE = (640, 480)
TINY = {"gcn_channels": (8, 8, 16, 16, 16), "dim": 16, "heads": 2, "layers": 1, "bank_size": 8, "neighbors": 8}
"""Of a network that only says how STC's views are made."""
Views = Sequence[Any]


def make_videos(signs: SyntheticSigns) -> dict[str, dict[str, Any]]:
    """The authors' cache of a split: what a detector gives for every clip."""
    cache = {}
    for i, name in enumerate(signs.names):
        pose = signs.pose(i)
        keypoints = np.concatenate((pose.xy[:, 0], pose.confidence[:, 0, :, None]), -1).astype(np.float64)
        names = [f"{name}/img_{t:05d}.jpg" for t in range(len(keypoints))]
        video = {"keypoints": keypoints, "img_list": names}
        cache[name] = {"video_name": name, "video_data": video, "label": signs.labels[i], "img_size": np.array([SIZE])}
    return cache


def drawn(system: STC, batch: PoseBatch, seed: int) -> list[list[field.Change]]:
    """The windows and changes that ``system.views`` draws from a seed, per view and clip."""
    with mock.patch.object(ops, "pose_views", wraps=ops.pose_views) as spy:
        system.views(batch, torch.Generator(batch.xy.device).manual_seed(seed))
    start, length, plan = spy.call_args.args[3:6]
    told = zip(start.flatten().tolist(), length.flatten().tolist(), plan.linear, plan.drop, plan.swap, strict=True)
    changes = [
        field.Change(first, frames, linear[0].double().cpu().numpy(), drop.nonzero()[:, 0].cpu().numpy(), bool(swap))
        for first, frames, linear, drop, swap in told
    ]
    return [changes[: batch.size], changes[batch.size :]]


def compared(views: Views) -> list[Tensor]:
    """The tensors of both views, whichever class holds them."""
    return [getattr(view, name).cpu() for view in views for name in ("xy", "motion", "confidence", "visible")]


def views_case(store: PoseStore, videos: Sequence[dict], device: str) -> Case:
    system = STC(STCConfig.paper(**TINY)).to(device)
    order = np.random.default_rng(0).permutation(len(store))[:BATCH].tolist()
    chosen = [videos[i] for i in order]
    changes = drawn(system, store.batch(order).to(device), seed=0)
    generator, rng = torch.Generator(device).manual_seed(1), np.random.default_rng(1)

    def ours(generator: torch.Generator) -> tuple[View, View]:
        return system.views(store.batch(order).to(device), generator)

    def theirs(changes: Sequence[Sequence[field.Change]] | None, dtype: torch.dtype = torch.float32) -> Views:
        views = field.load_batch(chosen, 64, rng, changes, dtype)
        return [field.View(*(x.to(device) for x in view)) for view in views]

    frames = int(store.batch(order).offsets[-1])
    return Case(
        name=f"two 64-frame views of {BATCH} clips, {frames / BATCH:.0f} frames each",
        shapes={"frames": (frames, 133, 3), "view": (BATCH, 64, 49, 2)},
        candidates={OURS: lambda: ours(generator), "eager": lambda: theirs(None)},  # type: ignore[dict-item,return-value]
        checked={OURS: lambda: ours(torch.Generator(device).manual_seed(0)), "eager": lambda: theirs(changes)},  # type: ignore[dict-item,return-value]
        truth=lambda: compared(theirs(changes, torch.float64)),
        compared=compared,  # type: ignore[arg-type]
        flops=2 * BATCH * 64 * 49 * 20,
        bytes=4 * (frames * 49 * 3 + 2 * BATCH * 64 * 49 * 5),
        device=device,
    )


def crop_case(signs: SyntheticSigns, videos: Sequence[dict]) -> Case:
    poses = [signs.pose(i) for i in range(BATCH)]
    options, together = PreprocessOptions(), 16  # as many as the packing command reads at a time

    def ours() -> list[Tensor]:
        clips: list[Any] = []
        for i in range(0, BATCH, together):
            clips += normalise([select(pose, options) for pose in poses[i : i + together]], options)
        return [torch.from_numpy(array) for clip in clips for array in clip]

    def theirs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
        crops = [field.crop_video(video) for video in videos[:BATCH]]
        return [torch.from_numpy(array).to(dtype) for crop in crops for array in crop]

    frames = sum(pose.num_frames for pose in poses)
    return Case(
        name=f"crops of {BATCH} clips, {frames} frames",
        shapes={"frames": (frames, 133, 3)},
        candidates={OURS: ours, "eager": theirs},
        truth=lambda: theirs(torch.float64),
        flops=frames * 49 * 30,
        bytes=4 * frames * (133 * 3 + 49 * 3),
    )


def pack_case(cache: Path, folder: Path, frames: int) -> Case:
    numbers = itertools.count()

    def ours() -> list[Tensor]:
        store = pack(cache, folder / f"{next(numbers)}")
        return [torch.from_numpy(array) for array in (store._contents.xy, store._contents.confidence)]

    def theirs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
        with open(cache, "rb") as file:
            crops = [field.crop_video(video) for video in pickle.load(file).values()]
        return [torch.from_numpy(np.concatenate(arrays)).to(dtype) for arrays in zip(*crops, strict=True)]

    return Case(
        name=f"from a pickle of {CLIPS} videos to the store, {frames} frames",
        shapes={"frames": (frames, 133, 3)},
        candidates={OURS: ours, "eager": theirs},
        truth=lambda: theirs(torch.float64),
        flops=frames * 49 * 30,
        bytes=frames * (8 * 133 * 3 + 4 * 49 * 3),
    )


class FieldSamples(Dataset):
    """Two views of a video per sample, as the field's data set returns them."""

    def __init__(self, videos: Sequence[dict]) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, i: int) -> list[field.View]:
        return field.load_batch([self.videos[i]], 64, np.random.default_rng([i, 0]))


def field_collate(samples: Sequence[list[field.View]]) -> list[field.View]:
    """Stack the views of all samples."""
    return [
        field.View(*(torch.cat(parts) for parts in zip(*views, strict=True))) for views in zip(*samples, strict=True)
    ]


def epoch_result(store: PoseStore, videos: Sequence[dict], device: str) -> dict:
    """An epoch of both views: seconds and batches per second, with two loader processes and without any."""
    system = STC(STCConfig.paper(**TINY)).to(device)
    generator = torch.Generator(device).manual_seed(0)
    order = np.random.default_rng(0).permutation(len(store)).reshape(-1, BATCH).tolist()

    def ours(workers: int) -> list[Tensor]:
        for batch in load_batches(store, order, workers, device):
            views = system.views(batch.to(device), generator)
        return [torch.tensor(views[0].xy.shape)]

    def theirs() -> list[Tensor]:
        samples = FieldSamples(videos)
        for views in DataLoader(samples, batch_sampler=order, num_workers=2, collate_fn=field_collate):
            views = [field.View(*(x.to(device) for x in view)) for view in views]
        return [torch.tensor(views[0].xy.shape)]

    frames = sum(store.lengths)
    case = Case(
        name=f"an epoch of {len(order)} batches of {BATCH} clips",
        shapes={"frames": (frames, 133, 3), "view": (BATCH, 64, 49, 2)},
        candidates={
            OURS: lambda: ours(2),
            "slrfast, no loader processes": lambda: ours(0),
            "eager": theirs,
        },
        truth=lambda: [torch.tensor([BATCH, 64, 49, 2])],
        flops=2 * len(store) * 64 * 49 * 20,
        bytes=4 * (frames * 49 * 3 + 2 * len(store) * 64 * 49 * 5),
        device=device,
    )
    result = harness.measure(case)
    rate = {name: len(order) / seconds for name, seconds in result["seconds"].items()}
    fed = {name: STEP * per_second for name, per_second in rate.items()}
    return result | {"batches_per_second": rate, "times_a_step_of_60_ms": fed}


def cases(device: str) -> Iterator[Case | dict]:
    signs = SyntheticSigns(num_classes=CLASSES, clips_per_class=CLIPS // CLASSES, size=SIZE)
    cache = make_videos(signs)
    videos = list(cache.values())
    frames = sum(len(video["video_data"]["keypoints"]) for video in videos)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "split.pkl")
        file.write_bytes(pickle.dumps(cache, protocol=4))
        store = pack(file, Path(folder, "store"))
        yield views_case(store, videos, device)
        if device == "cpu":
            yield crop_case(signs, videos)
            yield pack_case(file, Path(folder, "packed"), frames)
        yield epoch_result(store, videos, device)


test_loader = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
