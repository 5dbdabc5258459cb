"""CTC prefix beam search against plain Python, over the whole vocabulary and with the pruning that changes nothing, and
on one short clip against fast-ctc-decode (Rust, made for alphabets of a few letters) where that is installed.

The vocabulary is Phoenix14's (1,200 classes with the blank). Frames are sure, as those of a trained network, except in
the case of noise. A GPU only adds the copy to the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.baselines import ctc as field
from benchmarks.harness import Case, as_test, main
from slrfast import ops

OP = "ctc_beam_search"
RUST = "fast-ctc-decode"
BEAM = 10
# B, T, C, the size of the logits, whether Python tries the whole vocabulary
SHAPES = {
    "one short clip, whole vocabulary in Python": (1, 12, 1200, 2.0, True),
    "8 clips of 100 frames": (8, 100, 1200, 2.0, False),
    "8 clips of 100 frames, noise": (8, 100, 1200, 1.0, False),
}


def frames(clips: int, length: int, classes: int, spread: float, device: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, T, C] of a random labelling, a token or blank every few frames, and lengths [B]."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(clips, length, classes, generator=generator)
    if spread > 1:
        held = torch.randint(classes, (clips, length // 4 + 1), generator=generator).repeat_interleave(4, 1)[:, :length]
        held[:, ::3] = 0
        logits.scatter_add_(2, held[..., None], torch.full((clips, length, 1), 9.0))
    return logits.log_softmax(2).to(device), torch.full((clips,), length, device=device)


def ours(log_probs: Tensor, lengths: Tensor) -> Sequence[Tensor]:
    tokens, _, scores = ops.ctc_beam_search(log_probs, lengths, beam=BEAM)
    return [tokens.cpu(), scores.cpu()]


def python(log_probs: Tensor, lengths: Tensor, whole: bool) -> Sequence[Tensor]:
    return field.beam_search(log_probs.cpu(), lengths.cpu(), BEAM, None if whole else 2 * BEAM + 1)


def rust(log_probs: Tensor, lengths: Tensor) -> Callable[[], Sequence[Tensor]]:
    """It gives no scores; ours stand in for them, so that its tokens are what is compared."""
    from fast_ctc_decode import beam_search

    alphabet = [chr(0x4E00 + i) for i in range(log_probs.shape[2])]
    scores = ours(log_probs, lengths)[1]

    def run() -> Sequence[Tensor]:
        tokens = torch.full(log_probs.shape[:2], -1)
        for row, clip, length in zip(tokens, log_probs.exp().cpu().numpy(), lengths.tolist(), strict=True):
            found = beam_search(clip[:length], alphabet, beam_size=BEAM, beam_cut_threshold=0.0)[0]
            row[: len(found)] = torch.tensor([ord(letter) - 0x4E00 for letter in found])
        return [tokens, scores]

    return run


def cases(device: str) -> Iterator[Case]:
    installed = importlib.util.find_spec("fast_ctc_decode") is not None
    for name, (*sizes, spread, whole) in SHAPES.items():
        tensors = frames(*sizes, spread, device)
        candidates = {
            "slrfast": lambda tensors=tensors: ours(*tensors),
            "eager": lambda tensors=tensors, whole=whole: python(*tensors, whole),
        }
        yield Case(
            name=name,
            shapes={"log_probs": tensors[0].shape},
            candidates=candidates | ({RUST: rust(*tensors)} if installed and whole else {}),
            truth=lambda tensors=tensors: [t.double() for t in python(*tensors, False)],
            flops=4 * BEAM * tensors[0].shape[0] * tensors[0].shape[1] * 2 * BEAM,
            bytes=tensors[0].nbytes,
            rounding=1e-12,
            skipped={} if installed or not whole else {RUST: "the package fast-ctc-decode is not installed"},
            device=device,
        )


test_ctc_beam_search = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
