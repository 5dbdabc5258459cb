"""Resampling the windows of packed clips, against torch's interpolate clip by clip."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, as_test, main
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


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(25, 151, (CLIPS,), generator=generator)
    offsets = F.pad(counts.cumsum(0), (1, 0))
    length = (counts * (0.3 + 0.7 * torch.rand(CLIPS, generator=generator))).long()
    start = ((counts - length) * torch.rand(CLIPS, generator=generator)).long()
    frames = torch.rand(int(offsets[-1]), JOINTS, 2, generator=generator).to(device)
    windows = [window.to(device) for window in (offsets, start, length)]
    yield Case(
        name="paper, linear",
        shapes={"frames": frames.shape, "result": (CLIPS, FRAMES, JOINTS, 2)},
        candidates={
            "slrfast": lambda: [ops.resample(frames, *windows, FRAMES)],
            "eager": lambda: [field_resample(frames, *windows, FRAMES)],
        },
        truth=lambda: [field_resample(frames.double(), *windows, FRAMES)],
        flops=3 * CLIPS * FRAMES * JOINTS * 2,
        bytes=4 * (int(length.sum()) + CLIPS * FRAMES) * JOINTS * 2,
        device=device,
    )


test_resample = as_test("resample", cases)

if __name__ == "__main__":
    main("resample", cases)
