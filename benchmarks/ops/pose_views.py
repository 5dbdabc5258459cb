"""Two augmented views of packed clips, against NumPy clip by clip and against our own ops one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, as_test, main
from slrfast import ops
from slrfast.data import AugmentPlan
from slrfast.ops import AugmentTensors

CLIPS, FRAMES, JOINTS = 64, 64, 49


def field_views(
    xy: np.ndarray, confidence: np.ndarray, offsets: np.ndarray, start: np.ndarray, length: np.ndarray, plan: list
) -> list[Tensor]:
    """As a loader does it: sample by sample, copying the clip, then stacking; the plan says what was drawn."""
    samples = []
    for n, (first, count) in enumerate(zip(start.ravel(), length.ravel(), strict=True)):
        b = n % CLIPS
        clip = slice(offsets[b], offsets[b + 1])
        change = plan[:2] + plan[3:6]
        sample = (xy[clip].copy(), confidence[clip].copy(), first, count, *(each[n] for each in change))
        samples.append(field_view(*sample, plan[2], plan[6]))
    return [
        torch.from_numpy(np.stack(each).reshape(*start.shape, FRAMES, *each[0].shape[1:]))
        for each in zip(*samples, strict=True)
    ]


def field_view(xy, confidence, first, count, linear, center, affected, drop, swap, part, swap_index):
    """One view of one clip: motion, crop, resampling, then the map of each part, dropped joints, swapped hands."""
    motion = np.zeros_like(xy)
    motion[1:] = xy[1:] - xy[:-1]
    position = np.maximum((np.arange(FRAMES) + 0.5) * count / FRAMES - 0.5, 0).astype(xy.dtype)
    early = position.astype(np.int64)
    late, share = np.minimum(early + 1, count - 1), position - early
    nearest = np.arange(FRAMES) * count // FRAMES
    seen = np.stack([confidence[first + nearest][:, part == p].max(1) > 0 for p in range(2)], 1)
    views = []
    for x in (xy, motion, confidence[..., None]):
        x = x[first : first + count]
        views.append(x[early] * (1 - share)[:, None, None] + x[late] * share[:, None, None])
    xy, motion, confidence = views
    for p in range(len(linear)):
        joints = (part == p) & affected
        seen_now = confidence[:, joints] > 0
        xy[:, joints] = np.where(seen_now, (xy[:, joints] - center[p]) @ linear[p].T + center[p], xy[:, joints])
        motion[:, joints] = motion[:, joints] @ linear[p].T
    for x in (xy, motion, confidence):
        x[:, drop] = 0
    if swap:
        xy, motion, confidence, seen = (
            xy[:, swap_index],
            motion[:, swap_index],
            confidence[:, swap_index],
            seen[:, ::-1],
        )
    return xy, motion, confidence[..., 0], seen


def op_by_op(
    xy: Tensor, confidence: Tensor, offsets: Tensor, start: Tensor, length: Tensor, plan: AugmentTensors
) -> list[Tensor]:
    """resample and augment, each for both views at once, on frames that are prepared once."""
    motion = ops.motion(xy).index_fill(0, offsets[:-1], 0.0)
    windows = offsets, start, length, FRAMES
    points, moves = (ops.resample(x, *windows).flatten(0, 1) for x in (xy, motion))
    sure = ops.resample(confidence[..., None], *windows).flatten(0, 1)[..., 0]
    seen = torch.stack([confidence[:, plan.part == p].amax(1) for p in range(2)], -1)[..., None] > 0
    seen = ops.resample(seen, *windows, mode="nearest").flatten(0, 1)[..., 0]
    about_zero = plan._replace(center=torch.zeros_like(plan.center))
    moves, _ = ops.augment(moves, torch.ones_like(sure), about_zero)
    results = (*ops.augment(points, sure, plan), torch.where(plan.swap[:, None, None], seen.flip(-1), seen))
    points, sure, seen = (x.unflatten(0, start.shape) for x in results)
    return [points, moves.unflatten(0, start.shape), sure, seen]


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(25, 91, (CLIPS,), generator=generator)
    offsets = F.pad(counts.cumsum(0), (1, 0))
    length = ((0.1 + 0.9 * torch.rand(2, CLIPS, generator=generator)) * counts).long().clamp(min=32).minimum(counts)
    start = ((counts - length + 1) * torch.rand(2, CLIPS, generator=generator)).long()
    confidence = (torch.rand(int(offsets[-1]), JOINTS, generator=generator) - 0.1).clamp_min(0)
    xy = torch.rand(*confidence.shape, 2, generator=generator) * (confidence > 0)[..., None]
    plan = AugmentPlan.paper().draw(2 * CLIPS, generator=generator)
    arguments = [tensor.to(device) for tensor in (xy, confidence, offsets, start, length)]
    on_device = AugmentTensors(*(tensor.to(device) for tensor in plan))
    plain = [tensor.numpy() for tensor in (xy, confidence, offsets, start, length)]
    changes = [tensor.numpy() for tensor in plan]

    def ours() -> list[Tensor]:
        views = ops.pose_views(*arguments, on_device, FRAMES)
        return [views.xy, views.motion, views.confidence, views.visible[..., :2]]

    def truth() -> list[Tensor]:
        wide = [each.astype(np.float64) if each.dtype == np.float32 else each for each in (*plain, *changes)]
        return [view.to(device) for view in field_views(*wide[:5], wide[5:])]

    yield Case(
        name="two views, paper",
        shapes={"xy": xy.shape, "result": (2, CLIPS, FRAMES, JOINTS, 2)},
        candidates={
            "slrfast": ours,
            "slrfast, op by op": lambda: op_by_op(*arguments, on_device),
            "numpy, sample by sample": lambda: [view.to(device) for view in field_views(*plain, changes)],
        },
        truth=truth,
        baseline="numpy, sample by sample",
        flops=2 * CLIPS * FRAMES * JOINTS * (2 * (3 + 4 + 8) + 3),
        bytes=4 * (3 * confidence.numel() + 5 * 2 * CLIPS * FRAMES * JOINTS),
        device=device,
    )


test_pose_views = as_test("pose_views", cases)

if __name__ == "__main__":
    main("pose_views", cases)
