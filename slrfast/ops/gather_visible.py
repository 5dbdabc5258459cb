"""Packing the frames that an encoder sees: those of each clip that are not masked."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.ops import _dispatch
from slrfast.reference import gather_visible as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define("gather_visible(Tensor mask, Tensor? lengths) -> (Tensor index, Tensor offsets)")


def _fake(mask: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    visible = torch.library.get_ctx().new_dynamic_size()
    return mask.new_empty(visible, dtype=torch.int64), mask.new_empty(mask.shape[0] + 1, dtype=torch.int64)


# ---- backends: the copy of the rows is torch's own, as fast as memory -----------------------------------------------

_dispatch.register("gather_visible", cpu=("reference",), cuda=("reference",))
_FORWARD = {"reference": reference.visible_frames}


def _forward(mask: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    return _FORWARD[_dispatch.choose("gather_visible", mask.device.type)](mask, lengths)


_library.impl("gather_visible", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::gather_visible", _fake, lib=_library)


# ---- autograd: indices are distinct, so the gradient is a copy too --------------------------------------------------


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = rows.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.count, grad.shape[1]).index_copy_(0, index, grad), None


# ---- public ---------------------------------------------------------------------------------------------------------


def gather_visible(x: Tensor, mask: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pack the frames of every clip that are not masked, one after the other, for an encoder that sees nothing else.

    MASA section 1: masked frames are dropped in front of the encoder. :func:`slrfast.ops.scatter_tokens` undoes it.

    Args:
        x: [B, T, D], any strides, any floating dtype. Gradient flows.
        mask: [B, T] bool, True for a masked frame.
        lengths: [B] int64, the frames of every clip, in [0, T]; what follows is padding. None: all T.
    Returns:
        packed [S, D], the S visible frames in order, clip after clip, in the dtype and unit of ``x``; and offsets
        [B + 1] int64: clip b is packed[offsets[b] : offsets[b + 1]].
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit; on CPU, and on CUDA under
            SLRFAST_DEBUG=1, but not inside torch.compile: a length out of range.
    Numerics:
        A copy. S depends on the values of ``mask``: a CUDA device is waited for, and no CUDA graph can hold it. The
        gradient is a copy too; the S positions are saved.

    >>> x, mask = torch.arange(6.0).reshape(2, 3, 1), torch.tensor([[True, False, False], [False, True, False]])
    >>> packed, offsets = gather_visible(x, mask, torch.tensor([3, 2]))
    >>> packed.flatten(), offsets
    (tensor([1., 2., 3.]), tensor([0, 2, 3]))
    """
    op = "gather_visible"
    tensors = {"x": x, "mask": mask}
    sizes = checks.shapes(op, x=(x, "B T D"), mask=(mask, "B T"))
    checks.floating(op, x=x)
    checks.dtype(op, torch.bool, mask=mask)
    if lengths is not None:
        checks.shapes(op, x=(x, "B T D"), lengths=(lengths, "B"))
        checks.dtype(op, torch.int64, lengths=lengths)
        tensors["lengths"] = lengths
    checks.same_device(op, **tensors)
    if lengths is not None:
        checks.lengths(op, sizes["T"], lengths)
    index, offsets = torch.ops.slrfast.gather_visible(mask, lengths)
    return _Gather.apply(x.flatten(0, 1), index), offsets
