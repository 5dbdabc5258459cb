"""SLP's reconstruction loss, forward and backward, against the same in masked sums."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.baselines import text as field
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._gradients import with_gradients
from slrfast import ops

OP = "masked_pose_loss"
KEYPOINTS, MASKED = 79, 0.4
SHAPES = {"one clip": (1, 64), "paper": (64, 256), "packed": (1, 64 * 62)}  # clips and frames


def cases(device: str) -> Iterator[Case]:
    torch.compiler.reset()
    compiled = torch.compile(field.masked_pose_loss, dynamic=False)
    for name, (clips, frames) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        shape = clips, frames, KEYPOINTS
        prediction, target = (torch.randn(*shape, 2, generator=generator).to(device) for _ in range(2))
        mask = (torch.rand(shape, generator=generator) < MASKED).to(device)
        confidence = torch.rand(shape, generator=generator).pow(0.2).to(device)
        rest, wide = (target, mask, confidence), (target.double(), mask, confidence.double())
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"prediction": prediction.shape},
            candidates={
                "slrfast": with_gradients(lambda y, r=rest: ops.masked_pose_loss(y, *r), prediction),
                "eager": with_gradients(lambda y, r=rest: field.masked_pose_loss(y, *r), prediction),
                "torch.compile": with_gradients(lambda y, r=rest: compiled(y, *r), prediction),
            },
            truth=with_gradients(lambda y, r=wide: field.masked_pose_loss(y, *r), prediction.double()),
            flops=5 * int(mask.sum()) * 2,
            bytes=2 * prediction.nbytes + target.nbytes + mask.nbytes + confidence.nbytes,
            device=device,
        )


test_masked_pose_loss = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
