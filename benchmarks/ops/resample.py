"""Resampling the windows of packed clips, against torch's interpolate clip by clip."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, as_test, main
from benchmarks.ops._gradients import with_gradients
from slrfast import ops

CLIPS, FRAMES, JOINTS = 64, 64, 49


def field_resample(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int) -> Tensor:
    """As a loader does it: cut, flatten the joints, interpolate, stack."""
    clips = []
    for first, skip, count in zip(offsets.tolist(), start.tolist(), length.tolist(), strict=False):
        clip = frames[first + skip : first + skip + count]
        flat = clip.reshape(1, count, -1).permute(0, 2, 1)
        flat = F.interpolate(flat, size=out_frames, mode="linear", align_corners=False)
        clips.append(flat.permute(0, 2, 1).reshape(out_frames, *frames.shape[1:]))
    return torch.stack(clips)


def field_views(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int) -> Tensor:
    """One view after the other."""
    return torch.stack([field_resample(frames, offsets, *view, out_frames) for view in zip(start, length, strict=True)])


def field_nearest(frames: Tensor, offsets: Tensor, start: Tensor, length: Tensor, out_frames: int) -> Tensor:
    """Clip by clip, by index."""
    clips = []
    for first, skip, count in zip(offsets.tolist(), start.tolist(), length.tolist(), strict=False):
        clips.append(frames[first + skip + torch.arange(out_frames, device=frames.device) * count // out_frames])
    return torch.stack(clips)


def windows(views: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets of clips of 25 to 150 frames, and windows of 0.3 to all of them."""
    counts = torch.randint(25, 151, (CLIPS,), generator=generator)
    length = (counts * (0.3 + 0.7 * torch.rand(views, CLIPS, generator=generator))).long()
    start = ((counts - length) * torch.rand(views, CLIPS, generator=generator)).long()
    return F.pad(counts.cumsum(0), (1, 0)), start, length


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    offsets, *both = (window.to(device) for window in windows(2, generator))
    one = offsets, *(window[0] for window in both)
    two = offsets, *both
    frames = torch.rand(int(offsets[-1]), JOINTS, 2, generator=generator).to(device)
    grad = torch.randn(CLIPS, FRAMES, JOINTS, 2, generator=generator).to(device)
    seen = torch.rand(int(offsets[-1]), 2, 1, generator=generator).to(device) < 0.9
    row, result = 4 * JOINTS * 2, (CLIPS, FRAMES, JOINTS, 2)
    read = [int(window.sum()) for window in (one[2], two[2])]
    yield Case(
        name="paper, linear",
        shapes={"frames": frames.shape, "result": result},
        candidates={
            "slrfast": lambda: [ops.resample(frames, *one, FRAMES)],
            "eager": lambda: [field_resample(frames, *one, FRAMES)],
        },
        truth=lambda: [field_resample(frames.double(), *one, FRAMES)],
        flops=3 * grad.numel(),
        bytes=row * (read[0] + CLIPS * FRAMES),
        device=device,
    )
    yield Case(
        name="two views, linear",
        shapes={"frames": frames.shape, "result": (2, *result)},
        candidates={
            "slrfast": lambda: [ops.resample(frames, *two, FRAMES)],
            "eager": lambda: [field_views(frames, *two, FRAMES)],
        },
        truth=lambda: [field_views(frames.double(), *two, FRAMES)],
        flops=6 * grad.numel(),
        bytes=row * (read[1] + 2 * CLIPS * FRAMES),
        device=device,
    )
    yield Case(
        name="paper, linear, forward + backward",
        shapes={"frames": frames.shape, "result": result},
        candidates={
            "slrfast": with_gradients(lambda x: ops.resample(x, *one, FRAMES), frames, grad=grad),
            "eager": with_gradients(lambda x: field_resample(x, *one, FRAMES), frames, grad=grad),
        },
        truth=with_gradients(lambda x: field_resample(x, *one, FRAMES), frames.double(), grad=grad.double()),
        flops=7 * grad.numel(),
        bytes=row * (read[0] + 2 * CLIPS * FRAMES + len(frames)),
        device=device,
    )
    yield Case(
        name="visibility, nearest",
        shapes={"frames": seen.shape, "result": (CLIPS, FRAMES, 2, 1)},
        candidates={
            "slrfast": lambda: [ops.resample(seen, *one, FRAMES, mode="nearest")],
            "eager": lambda: [field_nearest(seen, *one, FRAMES)],
        },
        truth=lambda: [field_nearest(seen, *one, FRAMES)],
        flops=0,
        bytes=2 * (read[0] + CLIPS * FRAMES),
        device=device,
    )


test_resample = as_test("resample", cases)

if __name__ == "__main__":
    main("resample", cases)
