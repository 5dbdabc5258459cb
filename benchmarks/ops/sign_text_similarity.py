"""SLP's similarity of sign sequences and texts, forward and backward, against all scores at once: time, and the memory
that a call takes beyond its inputs. The ragged case has rows and words masked out, of clips and sentences in real
lengths; the others have all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import memory
from benchmarks.baselines import text as field
from benchmarks.harness import Case, as_test, main
from benchmarks.ops._gradients import with_gradients
from slrfast import ops

OP = "sign_text_similarity"
MODULE = f"benchmarks.ops.{OP}"
BF16, FIELD_BF16 = "slrfast, bf16", "eager, bf16"
D = 512
# B = M, Ls, Lt, whether clips and sentences have lengths of their own
SHAPES = {"small": (32, 32, 32, False), "paper": (64, 64, 128, False), "ragged": (64, 64, 128, True)}
FUNCTIONS = {"slrfast": ops.sign_text_similarity, "eager": field.similarity}


def inputs(device: str, batch: int, rows: int, words: int, ragged: bool) -> tuple[Tensor, ...]:
    """Unit rows that bfloat16 holds, the gradient of the similarity, and masks if ragged."""
    generator = torch.Generator().manual_seed(0)
    sign, text = (
        F.normalize(torch.randn(batch, length, D, generator=generator), dim=-1).bfloat16().float().to(device)
        for length in (rows, words)
    )
    grad = torch.randn(batch, batch, generator=generator).to(device)
    if not ragged:
        return sign, text, grad
    # 25 to 100 frames in windows of four, sentences of 5 to 40 words
    masks = []
    for length, least, most in ((rows, 6, 25), (words, 5, 40)):
        lengths = torch.randint(min(least, length), min(most, length) + 1, (batch,), generator=generator)
        masks.append((torch.arange(length)[None] < lengths[:, None]).to(device))
    return sign, text, grad, *masks


def prepared(name: str, device: str, *shape: int) -> Callable[[], list[Tensor]]:
    """A call whose memory is to be measured, see :func:`benchmarks.memory.peaks`."""
    tensors = inputs(device, *shape)
    _call(FUNCTIONS[name], torch.float32, *(t[:2] for t in tensors[:2]), tensors[2][:2, :2])()
    return _call(FUNCTIONS[name], torch.float32, *tensors)


def _call(function: Callable, dtype: torch.dtype, sign: Tensor, text: Tensor, grad: Tensor, *masks: Tensor):
    leaves = sign.to(dtype), text.to(dtype)
    result = torch.float32 if function is ops.sign_text_similarity and dtype != torch.float64 else dtype
    return with_gradients(lambda a, b: function(a, b, *masks), *leaves, grad=grad.to(result))


def cases(device: str) -> Iterator[Case]:
    torch.compiler.reset()
    compiled = torch.compile(field.similarity, dynamic=False)
    for name, shape in SHAPES.items():
        tensors = sign, text, _, *masks = inputs(device, *shape)
        pairs = sign[..., 0].numel() * text[..., 0].numel()
        if masks:
            pairs = int(masks[0].sum()) * int(masks[1].sum())
        yield Case(
            name=f"{name}, forward + backward",
            shapes={"sign": sign.shape, "text": text.shape},
            candidates={
                "slrfast": _call(ops.sign_text_similarity, torch.float32, *tensors),
                "eager": _call(field.similarity, torch.float32, *tensors),
                "torch.compile": _call(compiled, torch.float32, *tensors),
                BF16: _call(ops.sign_text_similarity, torch.bfloat16, *tensors),
                FIELD_BF16: _call(field.similarity, torch.bfloat16, *tensors),
            },
            truth=_call(field.similarity, torch.float64, *tensors),
            flops=6 * pairs * D,
            bytes=2 * (sign.nbytes + text.nbytes),
            tolerances={FIELD_BF16: 0.1},
            held_to={BF16: FIELD_BF16},
            memory=lambda shape=shape: memory.peaks(MODULE, FUNCTIONS, device, *shape),
            device=device,
        )


test_sign_text_similarity = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
