"""Spatial augmentation of a batch, against clip-by-clip code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.harness import Case, as_test, main
from benchmarks.ops._gradients import with_gradients
from slrfast import ops
from slrfast.data import AugmentPlan
from slrfast.ops import AugmentTensors

CLIPS, FRAMES, JOINTS = 64, 64, 49


def field_augment(x: Tensor, confidence: Tensor, plan: AugmentTensors) -> list[Tensor]:
    """As a loader does it: one clip and one part after the other, then joint masking, then swapping the hands."""
    clips, confidences = [], []
    for b in range(x.shape[0]):
        clip, sure = x[b].clone(), confidence[b].clone()
        for part in range(plan.linear.shape[1]):
            joints = (plan.part == part) & plan.affected[b]
            points = clip[:, joints]
            moved = (points - plan.center[b, part]) @ plan.linear[b, part].T + plan.center[b, part]
            clip[:, joints] = torch.where(sure[:, joints, None] > 0, moved, points)
        clip[:, plan.drop[b]] = 0
        sure[:, plan.drop[b]] = 0
        if plan.swap[b]:
            clip, sure = clip[:, plan.swap_index], sure[:, plan.swap_index]
        clips.append(clip)
        confidences.append(sure)
    return [torch.stack(clips), torch.stack(confidences)]


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(CLIPS, FRAMES, JOINTS, 2, generator=generator)
    confidence = (torch.rand(CLIPS, FRAMES, JOINTS, generator=generator) - 0.1).clamp_min(0).to(device)
    x = x.to(device) * (confidence > 0)[..., None]
    for name in ("paper", "legacy"):
        plan = getattr(AugmentPlan, name)().draw(CLIPS, generator=torch.Generator().manual_seed(0))
        plan = AugmentTensors(*(tensor.to(device) for tensor in plan))
        wide = plan._replace(linear=plan.linear.double(), center=plan.center.double())
        yield Case(
            name=name,
            shapes={"x": x.shape},
            candidates={
                "slrfast": lambda p=plan: ops.augment(x, confidence, p),
                "eager": lambda p=plan: field_augment(x, confidence, p),
            },
            truth=lambda p=wide: field_augment(x.double(), confidence.double(), p),
            flops=8 * confidence.numel(),
            bytes=2 * (x.nbytes + confidence.nbytes),
            device=device,
        )
    grad = torch.randn(x.shape, generator=generator).to(device)
    yield Case(
        name="legacy, forward + backward",
        shapes={"x": x.shape},
        candidates={
            "slrfast": with_gradients(lambda x: ops.augment(x, confidence, plan)[0], x, grad=grad),
            "eager": with_gradients(lambda x: field_augment(x, confidence, plan)[0], x, grad=grad),
        },
        truth=with_gradients(lambda x: field_augment(x, confidence.double(), wide)[0], x.double(), grad=grad.double()),
        flops=16 * confidence.numel(),
        bytes=4 * x.nbytes + 3 * confidence.nbytes,
        device=device,
    )


test_augment = as_test("augment", cases)

if __name__ == "__main__":
    main("augment", cases)
