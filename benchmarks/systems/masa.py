"""MASA at the paper's widths on real clips: a training step with packed visible frames, against all frames padded.

Both run the same modules with the same weights, masks and random keys; "padded" sends every frame of clips padded to
the longest through every layer, and masks hide what must not be seen: MASA's step written without packing. Timed in
training mode with dropout; compared in evaluation mode (in training mode the statistics of "padded" include masked
frames and padding) against float64: the losses and the gradients of all parameters.

    SLRFAST_DATA=... python -m benchmarks.systems.masa     # clips of $SLRFAST_DATA/wlasl_hands, else fingerspelling
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.baselines.masa import padded_step
from benchmarks.harness import Case, as_test, main, root_mean_square_error
from benchmarks.real_clips import real_clips
from slrfast.data import PoseBatch
from slrfast.systems import MASA, MASAConfig
from slrfast.systems.padded_clips import PaddedClips

OP = "masa_step"
CLIPS = {"cpu": 8, "cuda": 64}
EMBEDDING, ENCODER, DECODER = 2 * 43.17e6 + 18.77e6, 95.6e6, 63.7e6 + 0.8e6  # forward per frame that goes through


def keys_of(clips: PaddedClips, seed: int = 0) -> Tensor:
    """What the first ``training_step`` with this seed draws."""
    generator = torch.Generator(clips.xy.device).manual_seed(seed)
    return torch.rand((2, 1, *clips.xy.shape[:2]), generator=generator, device=clips.xy.device)


def step(system: MASA, losses: Callable[[], dict[str, Tensor]], train: bool) -> list[Tensor]:
    """The losses and all gradients."""
    system.train(train)
    system.zero_grad(set_to_none=True)
    found = losses()
    found["loss"].backward()
    gradients = [p.grad for p in system.autoencoder.parameters() if p.grad is not None]
    return [found["motion"], found["contrast"], torch.cat([gradient.flatten() for gradient in gradients])]


def visible_share(system: MASA, clips: PaddedClips) -> tuple[float, float]:
    """The shares of the frames that the encoder and the momentum encoder see."""
    hidden = system.autoencoder.masked(clips, keys_of(clips)[0]).mask.sum()
    left_out = clips.hide(system.config.view_ratio, keys_of(clips)[1, 0]).sum()
    total = clips.packing.num_rows
    return 1 - float(hidden) / total, 1 - float(left_out) / total


def cases(device: str) -> Iterator[Case]:
    torch.manual_seed(0)
    kind, found = real_clips(CLIPS[device])
    batch = PoseBatch.collate(found).to(device)
    clips = PaddedClips.of(batch)
    systems = {name: MASA(MASAConfig.paper()).to(device) for name in ("slrfast", "padded")}
    systems["padded"].load_state_dict(systems["slrfast"].state_dict())
    for system in systems.values():
        system.epoch = 100.0

    def ours(system: MASA, batch: PoseBatch) -> dict[str, Tensor]:
        cursor, features = system.contrast.bank.cursor.clone(), system.contrast.bank.features.clone()
        losses = system.training_step(batch, torch.Generator(device).manual_seed(0))
        system.contrast.bank.cursor.copy_(cursor)  # every round starts from the same bank
        system.contrast.bank.features.copy_(features)
        return losses

    def calls(train: bool) -> dict[str, Callable[[], list[Tensor]]]:
        return {
            "slrfast": lambda: step(systems["slrfast"], lambda: ours(systems["slrfast"], batch), train),
            "padded": lambda: step(systems["padded"], lambda: padded_step(systems["padded"], clips, *keys), train),
        }

    keys = keys_of(clips)
    seen, sampled = visible_share(systems["slrfast"], clips)

    def truth() -> list[Tensor]:
        wide = copy.deepcopy(systems["padded"]).double()
        double = PaddedClips.of(
            PoseBatch(batch.xy.double(), batch.confidence.double(), batch.offsets, batch.label, batch.index)
        )
        return step(wide, lambda: padded_step(wide, double, *keys), False)

    frames = clips.packing.num_rows
    encoder = EMBEDDING + ENCODER
    parameters = sum(p.nbytes for p in systems["slrfast"].autoencoder.parameters())
    yield Case(
        name=f"{kind}, {seen:.0%} and {sampled:.0%} of the frames visible, forward + backward",
        shapes={"lengths": list(clips.packing.lengths), "padded": tuple(clips.xy.shape)},
        candidates=calls(train=True),
        checked=calls(train=False),
        truth=truth,
        baseline="padded",
        error=root_mean_square_error,
        flops=frames * (3 * seen * encoder + sampled * encoder + 3 * DECODER),
        bytes=4 * parameters,  # weights read in both passes and by the momentum encoder, gradients written
        device=device,
    )


test_masa = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
