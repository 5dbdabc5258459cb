"""Clips of different lengths through one branch of an encoder, forward and backward: packed, against padded clips.

The branch is STC's over the trunk: graph network, two temporal blocks, transformer, attention pooling. Both candidates
are the same modules with the same weights. "padded" pads the clips and masks as the field does: the frames behind a
clip's end are zeroed before every convolution, hidden from attention and left out of the pooling.

Timed in training mode, with dropout and statistics of the batch, which the frames of padding are part of in "padded".
Compared in evaluation mode, where both must give what the clips give one by one in float64: values, and gradients of
the coordinates and of all parameters but the pooling's.

    SLRFAST_DATA=... python -m benchmarks.systems.packed     # lengths of real clips, $SLRFAST_DATA/wlasl_hands

Without that variable the lengths are spaced evenly over the 25 to 150 frames that the papers name.
"""

from __future__ import annotations

import copy
import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Case, as_test, main, root_mean_square_error
from slrfast import graphs
from slrfast.nn import AttentionPool, PartGCN, PoseTransformer, TemporalBlock
from slrfast.nn.attention import TransformerBlock
from slrfast.nn.packed import Packing

OP = "packed"
CLIPS = {"cpu": 16, "cuda": 64}
DIM, FFN = 512, 1024
KINKS = 1e-2
FRAME_FLOPS = 45.4e6  # one frame forward: 18.8 M graph network, 13.6 M temporal blocks, 13.0 M transformer
SCORE = (
    "pool.score."  # gradients not compared: differences between the frames of a clip, nearly equal after three layers
)


def lengths(count: int) -> tuple[str, list[int]]:
    """What the lengths are, and ``count`` of them: the middles of equal shares of all, so no draw is lucky."""
    shares = (np.arange(count) + 0.5) / count
    table = Path(os.environ.get("SLRFAST_DATA", "")) / "wlasl_hands" / "wlasl_hands.csv"
    if not table.is_file():
        return "evenly spaced lengths", (25 + 125 * shares).round().astype(int).tolist()
    with table.open(newline="") as file:
        frames = [int(row["n_frames"]) for row in csv.DictReader(file)]
    return "lengths of WLASL", np.quantile(frames, shares, method="nearest").tolist()


class Branch(nn.Module):
    """Coordinates of packed or padded clips -> one vector per clip."""

    def __init__(self) -> None:
        super().__init__()
        self.gcn = PartGCN(graphs.TRUNK7, out_channels=DIM)
        self.temporal = nn.ModuleList((TemporalBlock(DIM), TemporalBlock(DIM)))
        self.transformer = PoseTransformer(DIM, ffn=FFN)
        self.pool = AttentionPool(DIM)

    def packed(self, x: Tensor, offsets: Tensor) -> Tensor:
        """slrfast: [S, V, 2] -> [B, DIM]."""
        packing = Packing.of(offsets)
        frames = self.gcn(x)
        for block in self.temporal:
            frames = block(frames, packing)
        return self.pool(self.transformer(frames, packing), offsets=packing)

    def padded(self, x: Tensor, present: Tensor) -> Tensor:
        """The field: [B, T, V, 2], bool [B, T] -> [B, DIM]."""
        frames, real = self.gcn(x).mT, present.unsqueeze(1)
        for block in self.temporal:
            frames = frames * real
            narrow = block.narrow2(block.narrow1(frames).relu() * real).relu()
            frames = block.join(torch.cat((block.wide(frames).relu(), narrow), 1)).relu()
        frames = self.transformer.norm(frames.mT)
        for block in self.transformer.blocks:
            frames = masked_block(block, frames, real.unsqueeze(1))
        return self.pool(frames, present)


def masked_block(block: TransformerBlock, x: Tensor, keys: Tensor) -> Tensor:
    """A transformer block whose attention sees ``keys`` (bool [B, 1, 1, T]) only."""
    query, key, value = block.qkv(x).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
    dropout = block.dropout.p if block.training else 0.0
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys, dropout_p=dropout)
    x = block.norm_attention(x + block.dropout(block.out(attended.transpose(1, 2).flatten(2))))
    return block.norm_ffn(x + block.dropout(block.ffn_out(F.gelu(block.ffn_in(x)))))


def one_by_one(branch: Branch, x: Tensor, clips: list[int]) -> Tensor:
    """The dense form of every module on one clip after the other."""
    vectors = []
    for clip in x.split(clips):
        frames = branch.gcn(clip.unsqueeze(0)).mT
        for block in branch.temporal:
            frames = block(frames)
        vectors.append(branch.pool(branch.transformer(frames.mT)))
    return torch.cat(vectors)


def step(branch: Branch, forward: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, train: bool) -> list[Tensor]:
    """Vectors, and the gradients of coordinates and parameters where the vectors' own is ``gradient``."""
    branch.train(train)
    vectors = forward(x)
    wanted = [x, *(parameter for name, parameter in branch.named_parameters() if not name.startswith(SCORE))]
    return [vectors, *torch.autograd.grad(vectors, wanted, gradient)]


def cases(device: str) -> Iterator[Case]:
    torch.manual_seed(0)
    kind, clips = lengths(CLIPS[device])
    branch = Branch().to(device)
    offsets = torch.tensor([0, *clips], device=device).cumsum(0)
    packing = Packing.of(offsets)
    x = torch.rand(sum(clips), graphs.TRUNK7.num_nodes, 2, device=device)
    gradient = torch.randn(len(clips), DIM, device=device)
    inputs = {"slrfast": x.clone().requires_grad_(), "padded": packing.pad(x).requires_grad_()}
    forwards = {
        "slrfast": lambda x: branch.packed(x, offsets),
        "padded": lambda x: branch.padded(x, packing.present),
    }

    def calls(train: bool) -> dict[str, Callable[[], list[Tensor]]]:
        return {
            name: lambda name=name: step(branch, forwards[name], inputs[name], gradient, train)  # type: ignore[misc]
            for name in forwards
        }

    def in_float64(forward: Callable[[Branch, Tensor], Tensor]) -> list[Tensor]:
        wide = copy.deepcopy(branch).double()
        return step(wide, lambda x: forward(wide, x), x.double().requires_grad_(), gradient.double(), False)

    def compared(results: list[Tensor]) -> list[Tensor]:
        vectors, coordinates, *parameters = results
        return [vectors, packing.unpad(coordinates) if coordinates.dim() == 4 else coordinates, *parameters]

    parameters = sum(parameter.nbytes for parameter in branch.parameters())
    yield Case(
        name=f"{len(clips)} clips, {kind}, forward + backward",
        shapes={"lengths": clips, "packed": tuple(x.shape), "padded": tuple(inputs["padded"].shape)},
        candidates=calls(train=True),
        checked=calls(train=False),
        truth=lambda: in_float64(lambda wide, x: one_by_one(wide, x, clips)),
        # In float32 rounding moves some ReLUs and maxima across their kinks, and which ones decides about the error of
        # all gradients; so ours has to be right in float64.
        exact=lambda: in_float64(lambda wide, x: wide.packed(x, offsets)),
        tolerance=KINKS,
        tolerances={"slrfast": KINKS},
        compared=compared,
        baseline="padded",
        error=root_mean_square_error,
        flops=3 * sum(clips) * FRAME_FLOPS,
        bytes=3 * parameters + 2 * x.nbytes,  # weights read twice, their gradients written
        device=device,
    )


test_packed = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
