"""The nearest rows of a memory bank."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native
from slrfast.ops import _dispatch
from slrfast.ops._losses import wants_grad
from slrfast.reference import topk_similarity as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define("topk_similarity(Tensor query, Tensor bank, SymInt k, bool sorted) -> (Tensor values, Tensor indices)")
_library.define("topk_similarity_grad(Tensor grad, Tensor indices, Tensor bank) -> Tensor")


def _fake(query: Tensor, bank: Tensor, k: int, sorted: bool) -> tuple[Tensor, Tensor]:
    values = query.new_empty(query.shape[0], k, dtype=accumulation_dtype(query, bank))
    return values, torch.empty_like(values, dtype=torch.int64)


def _fake_grad(grad: Tensor, indices: Tensor, bank: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], bank.shape[1], dtype=accumulation_dtype(grad, bank))


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import topk_similarity as kernel

    return kernel.topk_similarity(*args)


def _triton_grad(*args) -> Tensor:
    from slrfast.kernels.triton import topk_similarity as kernel

    return kernel.topk_similarity_grad(*args)


_dispatch.register("topk_similarity", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.topk_similarity, "triton": _triton, "reference": reference.topk_similarity}
_GRAD = {"native": native.topk_similarity_grad, "triton": _triton_grad, "reference": reference.topk_similarity_grad}


def _forward(query: Tensor, *args) -> tuple[Tensor, Tensor]:
    device = query.device.type
    with torch.autocast(device, enabled=False):
        return _FORWARD[_dispatch.choose("topk_similarity", device)](query, *args)


def _grad(grad: Tensor, *args) -> Tensor:
    device = grad.device.type
    with torch.autocast(device, enabled=False):
        return _GRAD[_dispatch.choose("topk_similarity", device)](grad, *args)


_library.impl("topk_similarity", _forward, "CompositeExplicitAutograd")
_library.impl("topk_similarity_grad", _grad, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::topk_similarity", _fake, lib=_library)
torch.library.register_fake("slrfast::topk_similarity_grad", _fake_grad, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _TopKSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, bank: Tensor, k: int, sorted: bool) -> tuple[Tensor, Tensor]:
        values, indices = torch.ops.slrfast.topk_similarity(query, bank, k, sorted)
        ctx.save_for_backward(bank, indices)
        ctx.mark_non_differentiable(indices)
        ctx.dtype = query.dtype
        return values, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, _):
        bank, indices = ctx.saved_tensors
        return torch.ops.slrfast.topk_similarity_grad(grad, indices, bank).to(ctx.dtype), None, None, None


# ---- public ---------------------------------------------------------------------------------------------------------


def topk_similarity(query: Tensor, bank: Tensor, k: int, *, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """Find the k bank rows with the largest inner product with every query.

    values[b, j] = <query[b], bank[indices[b, j]]>. Of rows with equal values the lowest index comes first, and is the
    one that is kept when not all fit. STC Eq. 5 (the set N+), CCL-SLR's semantic positives, k-nearest-neighbour
    evaluation.

    Args:
        query: [B, D], any strides, float64, float32, bfloat16 or float16. Gradient flows through the values.
        bank: [N, D], N >= 1; the dtype may differ; no gradient, even if it requires one (that is a warning).
        k: number of rows, in [1, N].
        sorted: order each row by falling value; otherwise the order is unspecified (but deterministic).
    Returns:
        values [B, k], float32 (float64 if an input is), also under autocast, and indices [B, k] int64.
    Raises:
        TypeError: a tensor of another dtype, or a ``k`` that is no integer. ValueError: shapes or devices that do not
            fit, or k outside [1, N].
    Numerics:
        Accumulates in the values' dtype, deterministic. A NaN ranks beside +inf. A long bank needs no [B, N] buffer:
        the CPU kernel keeps the best so far for k <= 64 (k <= 1024 in a bank of over 2^18 rows) and else the scores of
        some rows of the batch at a time; the reference reads 65,536 rows of the bank (or k, if larger) at a time. For
        the gradient (once differentiable) the bank itself is saved, not a copy: do not overwrite it before the backward
        pass.

    >>> values, indices = topk_similarity(torch.tensor([[1.0]]), torch.tensor([[2.0], [5.0], [2.0]]), 2)
    >>> values.tolist(), indices.tolist()
    ([[5.0, 2.0]], [[1, 0]])
    """
    sizes = checks.shapes("topk_similarity", query=(query, "B D"), bank=(bank, "N D"))
    checks.floating("topk_similarity", query=query, bank=bank)
    checks.same_device("topk_similarity", query=query, bank=bank)
    checks.integer_between("topk_similarity", 1, sizes["N"], k=k)
    checks.no_gradient("topk_similarity", bank=bank)
    if wants_grad(query):
        return _TopKSimilarity.apply(query, bank.detach(), k, sorted)
    return torch.ops.slrfast.topk_similarity(query.detach(), bank.detach(), k, sorted)
