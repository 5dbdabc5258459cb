"""Putting what an encoder made of the visible frames back to their places, with a token on the masked ones."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.ops import _dispatch
from slrfast.reference import scatter_tokens as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "scatter_tokens(Tensor packed, Tensor offsets, Tensor token, Tensor mask) -> (Tensor out, Tensor source)"
)
_library.define("scatter_tokens_grad(Tensor grad, Tensor source, SymInt rows) -> (Tensor packed, Tensor token)")


def _fake(packed: Tensor, offsets: Tensor, token: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return packed.new_empty((*mask.shape, packed.shape[1])), offsets.new_empty(mask.shape)


def _fake_grad(grad: Tensor, source: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    return grad.new_empty((rows, grad.shape[2])), grad.new_empty(grad.shape[2], dtype=accumulation_dtype(grad))


# ---- backends: copies of rows, which torch makes as fast as memory --------------------------------------------------

_dispatch.register("scatter_tokens", cpu=("reference",), cuda=("reference",))
_FORWARD = {"reference": reference.scatter_rows}
_GRAD = {"reference": reference.scatter_rows_grad}


def _forward(packed: Tensor, *args) -> tuple[Tensor, Tensor]:
    return _FORWARD[_dispatch.choose("scatter_tokens", packed.device.type)](packed, *args)


def _grad(grad: Tensor, *args) -> tuple[Tensor, Tensor]:
    return _GRAD[_dispatch.choose("scatter_tokens", grad.device.type)](grad, *args)


_library.impl("scatter_tokens", _forward, "CompositeExplicitAutograd")
_library.impl("scatter_tokens_grad", _grad, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::scatter_tokens", _fake, lib=_library)
torch.library.register_fake("slrfast::scatter_tokens_grad", _fake_grad, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, packed: Tensor, offsets: Tensor, token: Tensor, mask: Tensor) -> Tensor:
        out, source = torch.ops.slrfast.scatter_tokens(packed, offsets, token, mask)
        ctx.save_for_backward(source)
        ctx.rows, ctx.dtype = packed.shape[0], token.dtype
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        packed, token = torch.ops.slrfast.scatter_tokens_grad(grad, *ctx.saved_tensors, ctx.rows)
        return packed, None, token.to(ctx.dtype), None


# ---- public ---------------------------------------------------------------------------------------------------------


def scatter_tokens(packed: Tensor, offsets: Tensor, token: Tensor, mask: Tensor) -> Tensor:
    """Put the packed visible frames of every clip back to their places and a learned token on the masked frames.

    The first offsets[b + 1] - offsets[b] frames of clip b that are not masked hold its rows in order, masked frames
    the token, and the rest, its padding, zeros. MASA section 1: the decoder's input, in the original order of frames.

    Args:
        packed: [S, D], any strides, float64, float32, bfloat16 or float16. Gradient flows.
        offsets: [B + 1] int64, 0 first, S last, rising (:func:`slrfast.ops.gather_visible`).
        token: [D]; the dtype may differ. Gradient flows.
        mask: [B, T] bool, True for a masked frame.
    Returns:
        [B, T, D] in the dtype and unit of ``packed``.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit; on CPU, and on CUDA under
            SLRFAST_DEBUG=1, but not inside torch.compile: offsets that do not rise from 0 to S, or a clip with more
            rows than frames that are not masked.
    Numerics:
        A copy; the gradient of the token is a sum over the masked frames in float32 (float64 for float64). No
        synchronisation; once differentiable; the B T positions are saved.

    >>> packed, offsets = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 2, 3])
    >>> mask = torch.tensor([[True, False, False], [False, True, False]])
    >>> scatter_tokens(packed, offsets, torch.tensor([9.0]), mask)[:, :, 0]
    tensor([[9., 1., 2.],
            [3., 9., 0.]])
    """
    op = "scatter_tokens"
    tensors = {"packed": packed, "token": token, "mask": mask, "offsets": offsets}
    patterns = {"packed": "S D", "token": "D", "mask": "B T", "offsets": "B+1"}
    sizes = checks.shapes(op, **{name: (tensor, patterns[name]) for name, tensor in tensors.items()})
    checks.require(sizes["B+1"] == sizes["B"] + 1, op, "offsets", f"have {sizes['B'] + 1} entries", sizes["B+1"])
    checks.floating(op, packed=packed, token=token)
    checks.dtype(op, torch.int64, offsets=offsets)
    checks.dtype(op, torch.bool, mask=mask)
    checks.same_device(op, **tensors)
    if checks.may_read(offsets):
        _check_rows(packed, offsets, mask)
    return _Scatter.apply(packed, offsets, token, mask)


def _check_rows(packed: Tensor, offsets: Tensor, mask: Tensor) -> None:
    checks.rising("scatter_tokens", packed.shape[0], offsets=offsets.tolist())
    rows, free = offsets.diff(), mask.shape[1] - mask.sum(1)
    if bool((rows > free).any()):
        b = int((rows > free).nonzero()[0])
        got = f"{int(rows[b])} for clip {b} with {int(free[b])} visible frames"
        checks.require(False, "scatter_tokens", "offsets", "give no clip more rows than visible frames", got)
