"""InfoNCE against a memory bank: the contrastive loss of MoCo, STC, MASA and CCL-SLR."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native
from slrfast.ops import _dispatch
from slrfast.ops._losses import REDUCTIONS, attach, reduce, wants_grad
from slrfast.reference import info_nce as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "info_nce(Tensor query, Tensor positive, Tensor bank, float temperature, bool want_grad, bool want_rank)"
    " -> (Tensor loss, Tensor rank, Tensor grad)"
)


def _fake(
    query: Tensor, positive: Tensor, bank: Tensor, temperature: float, want_grad: bool, want_rank: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss = query.new_empty(query.shape[0], dtype=accumulation_dtype(query, positive, bank))
    rank = loss.new_empty(query.shape[0] if want_rank else 0, dtype=torch.int64)
    return loss, rank, loss.new_empty(query.shape if want_grad else 0)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor, Tensor]:
    from slrfast.kernels.triton import info_nce as kernel

    return kernel.info_nce(*args)


_dispatch.register("info_nce", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.info_nce, "triton": _triton, "reference": reference.info_nce_grad}


def _forward(query: Tensor, *args) -> tuple[Tensor, Tensor, Tensor]:
    device = query.device.type
    with torch.autocast(device, enabled=False):
        return _FORWARD[_dispatch.choose("info_nce", device)](query, *args)


_library.impl("info_nce", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::info_nce", _fake, lib=_library)


# ---- public; the gradient that the op returns is attached by _losses.attach -----------------------------------------


@overload
def info_nce(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    *,
    temperature: float = ...,
    reduction: str = ...,
    return_rank: Literal[False] = ...,
) -> Tensor: ...
@overload
def info_nce(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    *,
    temperature: float = ...,
    reduction: str = ...,
    return_rank: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def info_nce(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    *,
    temperature: float = 0.07,
    reduction: str = "mean",
    return_rank: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Contrast every query with its positive against all rows of a memory bank.

    loss[b] = -log(exp(s_b0) / (exp(s_b0) + sum_i exp(s_bi))), s_b0 = <query[b], positive[b]> / temperature,
    s_bi = <query[b], bank[i]> / temperature. STC Eq. 2 (whose printed exp(.)/tau is read as exp(./tau)), MASA Eq. 8,
    CCL-SLR Eq. 3. Rows are taken as they are; normalise them first for cosine similarities.

    Args:
        query: [B, D], any strides, float64, float32, bfloat16 or float16. Gradient flows.
        positive: [B, D], the key of every query; dtypes may differ. Gradient flows if it requires one.
        bank: [N, D] negatives, for example ``queue.T`` of a MoCo queue; no gradient, even if it requires one (that is a
            warning). It is neither copied nor saved and may be overwritten before the backward pass. With N = 0 the
            loss is 0.
        temperature: > 0.
        reduction: "mean" (of no rows: nan), "sum" or "none" over the B rows.
        return_rank: also return each positive's rank.
    Returns:
        The loss, [] or [B], float32 (float64 if an input is), also under autocast; with ``return_rank`` a pair with
        the int64 [B] number of bank rows that score strictly above the positive (0: top-1 hit).
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, temperature <= 0 or an
            unknown reduction.
    Numerics:
        Accumulates in the loss's dtype, deterministic; every gradient is computed in the forward pass (once
        differentiable) and [B, D] is all that is saved. An inf or NaN in a query or positive spoils its row only, in
        the bank every row. The kernels read the bank once and hold no [B, N] buffer (the reference two); on a CPU 32
        [B, D] buffers at most. A bfloat16 bank is multiplied in pairs where the processor can (AVX512-BF16): a float32
        query is split in two bfloat16 parts, which keeps the scores to 2^-16 of sum |q||n|, and the weights of the
        gradient's sum are rounded to bfloat16, 2^-9 relative.

    >>> query = torch.tensor([[1.0, 0.0]])
    >>> loss, rank = info_nce(query, query, torch.tensor([[0.0, 1.0]]), temperature=1.0, return_rank=True)
    >>> round(loss.item(), 4), rank  # log(e + 1) - 1
    (0.3133, tensor([0]))
    """
    checks.shapes("info_nce", query=(query, "B D"), positive=(positive, "B D"), bank=(bank, "N D"))
    checks.floating("info_nce", query=query, positive=positive, bank=bank)
    checks.same_device("info_nce", query=query, positive=positive, bank=bank)
    checks.positive("info_nce", temperature=temperature)
    checks.choice("info_nce", REDUCTIONS, reduction=reduction)
    checks.no_gradient("info_nce", bank=bank)
    loss, rank, grad = torch.ops.slrfast.info_nce(
        query.detach(), positive.detach(), bank.detach(), temperature, wants_grad(query), return_rank
    )
    if wants_grad(positive):
        loss = attach(loss, positive, torch.expm1(-loss)[:, None] * query.detach() / temperature)
    if wants_grad(query):
        loss = attach(loss, query, grad)
    loss = reduce(loss, reduction)
    return (loss, rank) if return_rank else loss
