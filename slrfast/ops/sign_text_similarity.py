"""SLP's fine-grained similarity of sign sequences and texts."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_text
from slrfast.ops import _dispatch
from slrfast.ops._losses import wants_grad
from slrfast.reference import sign_text_similarity as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "sign_text_similarity(Tensor sign, Tensor text, Tensor? sign_mask, Tensor? text_mask, float row_temperature, "
    "bool keep) -> (Tensor similarity, Tensor slopes)"
)
_library.define(
    "sign_text_similarity_grad(Tensor grad, Tensor sign, Tensor text, Tensor? sign_mask, Tensor? text_mask, "
    "Tensor slopes, float row_temperature, bool want_sign, bool want_text) -> (Tensor grad_sign, Tensor grad_text)"
)


def _fake(
    sign: Tensor, text: Tensor, sign_mask: Tensor | None, text_mask: Tensor | None, row_temperature: float, keep: bool
) -> tuple[Tensor, Tensor]:
    similarity = sign.new_empty((sign.shape[0], text.shape[0]), dtype=accumulation_dtype(sign, text))
    return similarity, similarity.new_empty(native_text.kept(sign, text) if keep else 0)


def _fake_grad(
    grad: Tensor,
    sign: Tensor,
    text: Tensor,
    sign_mask: Tensor | None,
    text_mask: Tensor | None,
    slopes: Tensor,
    row_temperature: float,
    want_sign: bool,
    want_text: bool,
) -> tuple[Tensor, Tensor]:
    compute = accumulation_dtype(sign, text)
    return (
        sign.new_empty(sign.shape if want_sign else 0, dtype=compute),
        text.new_empty(text.shape if want_text else 0, dtype=compute),
    )


# ---- backends -------------------------------------------------------------------------------------------------------


KEPT_BYTES, KEPT_ROWS = 4 << 20, 4096  # of what the forward pass may keep, and of either side's rows


def _reference(*args) -> tuple[Tensor, Tensor]:
    similarity = reference.sign_text_similarity(*args[:5])
    return similarity, similarity.new_empty(0)


def _reference_grad(*args) -> tuple[Tensor, Tensor]:
    return reference.sign_text_similarity_grad(*args[:5], *args[6:])


def _triton(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import sign_text_similarity as kernel

    similarity = kernel.sign_text_similarity(*args[:5])
    return similarity, similarity.new_empty(0)


def _triton_grad(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import sign_text_similarity as kernel

    return kernel.sign_text_similarity_grad(*args[:5], *args[6:])


_dispatch.register("sign_text_similarity", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native_text.sign_text_similarity, "triton": _triton, "reference": _reference}
_GRAD = {"native": native_text.sign_text_similarity_grad, "triton": _triton_grad, "reference": _reference_grad}


def _forward(sign: Tensor, text: Tensor, *args) -> tuple[Tensor, Tensor]:
    device = sign.device.type
    name = "native" if args[-1] else _dispatch.choose("sign_text_similarity", device)
    with torch.autocast(device, enabled=False), torch.no_grad():
        return _FORWARD[name](sign, text, *args)


def _grad(grad: Tensor, sign: Tensor, text: Tensor, sign_mask, text_mask, slopes: Tensor, *args):
    device = grad.device.type
    name = "native" if slopes.numel() else _dispatch.choose("sign_text_similarity", device)  # which kept them
    with torch.autocast(device, enabled=False), torch.no_grad():
        return _GRAD[name](grad, sign, text, sign_mask, text_mask, slopes, *args)


def _keeps(sign: Tensor, text: Tensor) -> bool:
    """Whether the forward pass keeps the scores' gradients: where a backward pass may come and they are few."""
    if sign.device.type != "cpu" or not (wants_grad(sign) or wants_grad(text)):
        return False
    if max(sign.shape[0] * sign.shape[1], text.shape[0] * text.shape[1]) > KEPT_ROWS:
        return False
    size = native_text.kept(sign, text) * accumulation_dtype(sign, text).itemsize
    return size <= KEPT_BYTES and _runs_native()


def _runs_native() -> bool:
    return _dispatch.choose("sign_text_similarity", "cpu") == "native"


# torch.compiler.assume_constant_result, without its import of the whole compiler
_runs_native._dynamo_marked_constant = True  # type: ignore[attr-defined]


_library.impl("sign_text_similarity", _forward, "CompositeExplicitAutograd")
_library.impl("sign_text_similarity_grad", _grad, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::sign_text_similarity", _fake, lib=_library)
torch.library.register_fake("slrfast::sign_text_similarity_grad", _fake_grad, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        sign: Tensor,
        text: Tensor,
        sign_mask: Tensor | None,
        text_mask: Tensor | None,
        row_temperature: float,
        keep: bool,
    ) -> Tensor:
        similarity, slopes = torch.ops.slrfast.sign_text_similarity(
            sign, text, sign_mask, text_mask, row_temperature, keep
        )
        ctx.save_for_backward(sign, text, sign_mask, text_mask, slopes)
        ctx.row_temperature = row_temperature
        return similarity

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        sign, text, *rest = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        grads = torch.ops.slrfast.sign_text_similarity_grad(grad, sign, text, *rest, ctx.row_temperature, *wanted)
        pairs = zip(grads, (sign, text), wanted, strict=True)
        return *(g.to(x.dtype) if want else None for g, x, want in pairs), None, None, None, None


# ---- public ---------------------------------------------------------------------------------------------------------


def sign_text_similarity(
    sign: Tensor,
    text: Tensor,
    sign_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    row_temperature: float = 1.0,
) -> Tensor:
    """Score every sign sequence against every text: each row of signs by the words that it is nearest to.

    z_ab = <sign[i, a], text[j, b]>; p_ab = softmax over the words b of z_ab / row_temperature;
    S_ij = (1 / rows of i) sum_a sum_b p_ab z_ab. SLP Eq. 4, whose rows are of length one: normalise them before
    (``torch.nn.functional.normalize``). The paper names no temperature inside the softmax, and no masks.

    Args:
        sign: [B, Ls, D], any strides, float64, float32, bfloat16 or float16. Gradient flows.
        text: [M, Lt, D]; the dtype may differ. Gradient flows.
        sign_mask: [B, Ls] bool, True for a row of the sequence; None: all are.
        text_mask: [M, Lt] bool, True for a word; None: all are. What is masked out is not looked at and costs nothing.
        row_temperature: finite and > 0.
    Returns:
        S [B, M], float32 (float64 if an input is), also under autocast; 0 where the sequence or the text is empty.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, a temperature <= 0.
    Numerics:
        Accumulates in the result's dtype, deterministic, once differentiable. Scores are made tile by tile, and again
        in the backward pass: on a CPU 4 MiB of them are there at a time (what belongs to them in the gradient is saved
        where all of it fits in that), on a GPU 8 MiB in the backward pass; the reference holds all of them. Two
        bfloat16 inputs are multiplied in pairs where the processor can (AVX512-BF16); their scores are exact to
        float32, the weights of the gradients' sums rounded to bfloat16, 2^-9 relative. A NaN spoils the row or column
        of its sequence.

    >>> sign, text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> sign_text_similarity(sign, text)  # e / (e + 1)
    tensor([[0.7311]])
    >>> sign_text_similarity(sign, text, text_mask=torch.tensor([[True, False]]))  # (1 + 0) / 2
    tensor([[0.5000]])
    """
    op = "sign_text_similarity"
    tensors = {"sign": sign, "text": text}
    masks = {name: m for name, m in (("sign_mask", sign_mask), ("text_mask", text_mask)) if m is not None}
    patterns = {"sign": "B Ls D", "text": "M Lt D", "sign_mask": "B Ls", "text_mask": "M Lt"}
    checks.shapes(op, **{name: (tensor, patterns[name]) for name, tensor in (tensors | masks).items()})
    checks.floating(op, **tensors)
    checks.dtype(op, torch.bool, **masks)
    checks.same_device(op, **tensors, **masks)
    checks.positive(op, row_temperature=row_temperature)
    return _Similarity.apply(sign, text, sign_mask, text_mask, float(row_temperature), _keeps(sign, text))
