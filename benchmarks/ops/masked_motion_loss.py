"""MASA's motion loss alone, and after motion_mask as in a training step, against the same part by part."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baselines import motion_mask as field
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._clips import clips
from benchmarks.ops._gradients import with_gradients
from slrfast import ops

SHAPES = {"one clip": (1, 64), "paper": (64, 64), "long": (16, 2048)}


def ours(prediction: Tensor, *tensors: Tensor) -> Tensor:
    return ops.masked_motion_loss(prediction, *ops.motion_mask(*tensors))


def eager(prediction: Tensor, *tensors: Tensor) -> Tensor:
    return field.masked_motion_loss(prediction, *field.motion_mask(*tensors))


def by_clip(prediction: Tensor, *tensors: Tensor) -> Tensor:
    return field.masked_motion_loss(prediction, *field.motion_mask_by_clip(*tensors))


def cases(device: str) -> Iterator[Case]:
    torch.compiler.reset()
    compiled, compiled_step = (torch.compile(f, dynamic=False) for f in (field.masked_motion_loss, eager))
    for name, (count, frames) in SHAPES.items():
        tensors = clips(count, frames, device)
        x, confidence, lengths, keys = tensors
        prediction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(device)
        wide = x.double(), confidence.double(), lengths, keys
        target, parts, wide_parts = ops.motion_mask(*tensors), field.motion_mask(*tensors), field.motion_mask(*wide)
        read = int(target.mask.sum()) * (2 * x[0, 0].nbytes + confidence[0, 0].nbytes)
        flops = 6 * int(target.mask.sum()) * x[0, 0].numel()
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"prediction": x.shape},
            candidates={
                "slrfast": with_gradients(lambda y, t=target: ops.masked_motion_loss(y, *t), prediction),
                "eager": with_gradients(lambda y, p=parts: field.masked_motion_loss(y, *p), prediction),
                "torch.compile": with_gradients(lambda y, p=parts: compiled(y, *p), prediction),
            },
            truth=with_gradients(lambda y, p=wide_parts: field.masked_motion_loss(y, *p), prediction.double()),
            flops=flops,
            bytes=read + prediction.nbytes,
            device=device,
        )
        yield Case(
            name=f"{name}, motion_mask + loss, forward + backward",
            shapes={"x": x.shape},
            candidates={
                "slrfast": with_gradients(lambda y, t=tensors: ours(y, *t), prediction),
                "eager": with_gradients(lambda y, t=tensors: eager(y, *t), prediction),
                "eager, clip by clip": with_gradients(lambda y, t=tensors: by_clip(y, *t), prediction),
                "torch.compile": with_gradients(lambda y, t=tensors: compiled_step(y, *t), prediction),
            },
            truth=with_gradients(lambda y, t=wide: eager(y, *t), prediction.double()),
            flops=flops + 3 * x.numel() + 3 * confidence.numel(),
            bytes=read + prediction.nbytes + 2 * (x.nbytes + confidence.nbytes) + keys.nbytes,
            device=device,
        )


test_masked_motion_loss = as_test("masked_motion_loss", cases)

if __name__ == "__main__":
    main("masked_motion_loss", cases)
