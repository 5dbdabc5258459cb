"""SLP's training step on clips of real lengths, packed, against the same model with all clips padded to the longest.

Both run the same modules with the same weights, masks and features of texts (random, of mBART's width 1024, in place
of the frozen encoder's); "padded" sends every frame of padded clips and every padded word through every layer, and
masks hide what is not real. On a CPU the widths are a quarter of the paper's, with its 8 blocks.

Two collections of lengths: real clips (WLASL's where $SLRFAST_DATA names them, else the fingerspelling corpus), the
middles of equal shares of all lengths; and SL-1.5M as its paper describes it, most clips between 25 and 100 frames and
some of over 300, of which SLP uses 256: here one clip in 16 has these 256, the others are spread evenly over 25 to 100.

Timed in training mode with dropout; compared in evaluation mode (in training mode the statistics of "padded" include
padding) against float64: the losses and the gradients of all parameters.

    SLRFAST_DATA=... python -m benchmarks.systems.slp
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.baselines.slp import padded_step
from benchmarks.harness import Case, as_test, main, root_mean_square_error
from benchmarks.real_clips import real_clips
from slrfast import graphs
from slrfast.data import Clip, PoseBatch
from slrfast.nn import Packing
from slrfast.systems.slp import SLP
from slrfast.systems.slp_config import SLPConfig

OP = "slp_step"
CLIPS = {"cpu": (64, 16), "cuda": (64, 64)}  # of either collection; 64 is the paper's share of one GPU
QUARTER = {
    "gcn_channels": (32, 32, 64, 128, 128), "dim": 128, "branch_dim": 128, "manual_ffn": 512, "non_manual_ffn": 384,
    "decoder_hidden": 256, "embedding": 128,
}  # fmt: skip
WORDS = (8, 24)  # tokens of a template or a short sentence, with <eos> and the language


class RandomText:
    """Random features of every token, in place of a frozen text encoder."""

    def __init__(self, dim: int, device: str) -> None:
        self.dim = dim
        self.table = torch.randn(1000, dim, generator=torch.Generator().manual_seed(1)).to(device)

    def to(self, device: object) -> RandomText:
        return self

    def __call__(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        real = torch.arange(tokens.shape[1], device=tokens.device) < token_lengths[:, None]
        return self.table[tokens] * real.unsqueeze(-1)


def with_all_joints(clip: Clip) -> Clip:
    """A clip of 49 joints as one of SLP's 79, of which it has no face, mouth, eyes and ears."""
    names = graphs.layout(79).names
    rows = torch.tensor([names.index(name) for name in graphs.layout(49).names])
    xy, confidence = clip.xy.new_zeros(clip.num_frames, 79, 2), clip.xy.new_zeros(clip.num_frames, 79)
    return replace(clip, xy=xy.index_copy(1, rows, clip.xy), confidence=confidence.index_copy(1, rows, clip.confidence))


def with_texts(batch: PoseBatch) -> PoseBatch:
    """Random tokens for every clip."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(WORDS[0], WORDS[1] + 1, (batch.size,), generator=generator)
    tokens = torch.randint(1, 1000, (batch.size, int(lengths.max())), generator=generator)
    return replace(batch, tokens=tokens * (torch.arange(tokens.shape[1]) < lengths[:, None]), token_lengths=lengths)


def collections(real: int, count: int) -> Iterator[tuple[str, PoseBatch]]:
    kind, clips = real_clips(real)
    yield f"{kind} lengths", PoseBatch.collate([with_all_joints(clip) for clip in clips])
    long = count // 16
    lengths = [*torch.linspace(25, 100, count - long).round().long().tolist(), *[256] * long]
    noise = [PoseBatch.random(1, min_frames=n, max_frames=n, seed=i, keypoints=79) for i, n in enumerate(lengths)]
    yield "SL-1.5M lengths", PoseBatch.collate([Clip(one.xy, one.confidence) for one in noise])


def step(system: SLP, losses: Callable[[], dict[str, Tensor]], train: bool) -> list[Tensor]:
    """The losses and all gradients."""
    system.train(train)
    system.zero_grad(set_to_none=True)
    found = losses()
    found["loss"].backward()
    gradients = [p.grad.flatten() for p in system.parameters() if p.grad is not None]
    return [found["reconstruction"], found["contrast"], torch.cat(gradients)]


def frame_flops(config: SLPConfig) -> float:
    """One frame forward, without attention's products: the graph networks scale as the paper's 150 M do."""
    both = [(config.width("manual"), config.manual_ffn), (config.width("non_manual"), config.non_manual_ffn)]
    transformers = sum(config.layers * (8 * d * d + 4 * d * ffn) + 2 * d * config.branch_dim for d, ffn in both)
    return 150e6 * (config.dim / 512) ** 2 + transformers + 4 * config.branch_dim * config.decoder_hidden


def cases(device: str) -> Iterator[Case]:
    for kind, found in collections(*CLIPS[device]):
        yield case(kind, with_texts(found).to(device), device)


def case(kind: str, batch: PoseBatch, device: str) -> Case:
    torch.manual_seed(0)
    config = SLPConfig.paper(**(QUARTER if device == "cpu" else {}))
    text = RandomText(config.text_dim, device)
    systems = {name: SLP(config).to(device) for name in ("slrfast", "padded")}
    systems["padded"].load_state_dict(systems["slrfast"].state_dict())
    for system in systems.values():
        system.text = text
    packing = Packing.of(batch.offsets)
    padded = [packing.pad(batch.xy), packing.pad(batch.confidence)]
    assert batch.tokens is not None and batch.token_lengths is not None
    words = text(batch.tokens, batch.token_lengths)
    generator = torch.Generator(device).manual_seed(0)
    keys = torch.rand((batch.size, packing.longest, 81), generator=generator, device=device)  # as training_step draws

    def ours(train: bool) -> list[Tensor]:
        system = systems["slrfast"]
        return step(system, lambda: system.training_step(batch, torch.Generator(device).manual_seed(0)), train)

    def theirs(system: SLP, poses: list[Tensor], features: Tensor, train: bool) -> list[Tensor]:
        lengths = batch.token_lengths
        return step(system, lambda: padded_step(system, *poses, packing, features, lengths, keys), train)  # type: ignore[arg-type]

    def calls(train: bool) -> dict[str, Callable[[], list[Tensor]]]:
        return {"slrfast": lambda: ours(train), "padded": lambda: theirs(systems["padded"], padded, words, train)}

    def truth() -> list[Tensor]:
        wide = copy.deepcopy(systems["padded"]).double()
        return theirs(wide, [pose.double() for pose in padded], words.double(), False)

    frames, all_frames = packing.num_rows, packing.num_clips * packing.longest
    share = 1 - frames / all_frames
    return Case(
        name=f"{kind}, {share:.0%} of the padded frames are padding, forward + backward",
        shapes={"lengths": list(packing.lengths), "padded": tuple(padded[0].shape), "words": tuple(words.shape)},
        candidates=calls(train=True),
        checked=calls(train=False),
        truth=truth,
        baseline="padded",
        error=root_mean_square_error,
        flops=3 * frames * frame_flops(config),
        bytes=3 * sum(p.nbytes for p in systems["slrfast"].parameters()),  # read in both passes, gradients written
        device=device,
    )


test_slp = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
