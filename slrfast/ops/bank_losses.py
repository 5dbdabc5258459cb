"""InfoNCE and mined binary cross-entropy from one pass over a memory bank: the losses of CCL-SLR."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native
from slrfast.ops import _dispatch
from slrfast.ops._losses import attach, check_positives, wants_grad
from slrfast.reference import bank_losses as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "bank_losses(Tensor query, Tensor positive, Tensor bank, Tensor? positives, float temperature,"
    " float mined_temperature, bool want_grad)"
    " -> (Tensor info_nce, Tensor mined_bce, Tensor grad_info_nce, Tensor grad_mined_bce)"
)


def _fake(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    positives: Tensor | None,
    temperature: float,
    mined_temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = query.new_empty(query.shape[0], dtype=accumulation_dtype(query, positive, bank))
    grad = loss.new_empty(query.shape if want_grad else 0)
    if positives is None:
        return loss, torch.empty_like(loss), grad, loss.new_empty(0)
    rows = positives.shape[0]
    return loss, loss.new_empty(rows), grad, loss.new_empty((rows, query.shape[1]) if want_grad else 0)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from slrfast.kernels.triton import bank_losses as kernel

    return kernel.bank_losses(*args)


_dispatch.register("bank_losses", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.bank_losses, "triton": _triton, "reference": reference.bank_losses_grad}


def _forward(query: Tensor, *args) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device = query.device.type
    with torch.autocast(device, enabled=False):
        return _FORWARD[_dispatch.choose("bank_losses", device)](query, *args)


_library.impl("bank_losses", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::bank_losses", _fake, lib=_library)


# ---- public; the gradients that the op returns are attached by _losses.attach ---------------------------------------


def bank_losses(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    positives: Tensor | None,
    *,
    temperature: float = 0.07,
    mined_temperature: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """Both losses of a batch against one memory bank, from one pass over it.

    info_nce[r] is the loss of ``info_nce`` (CCL-SLR Eq. 3) and mined_bce[r] that of ``mined_bce`` (Eq. 7-8) for the
    same rows; the inner products with the bank are computed once. In CCL-SLR the queries of both modalities share a
    bank, so R = 2B rows yield an intra-modal, a cross-modal (Eq. 11-12) and a mined term; mean over the rows of each.
    Only the first P rows need have a mined term.

    Args:
        query: [R, D], any strides, float64, float32, bfloat16 or float16. Gradient flows.
        positive: [R, D], the key of every query; dtypes may differ. Gradient flows if it requires one.
        bank: [N, D]; no gradient, even if it requires one (that is a warning). It is neither copied nor saved and may
            be overwritten before the backward pass.
        positives: [P, M] int64, P <= R, of the first P queries: bank indices, repeats count once, -1 is padding (a row
            of nothing else has no positive); None: no mined term.
        temperature: > 0, of InfoNCE.
        mined_temperature: > 0, of the mined term.
    Returns:
        info_nce [R] and mined_bce [P] in nats, float32 (float64 if an input is), also under autocast. Without
        ``positives`` the second is zero [R] and carries no gradient.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, an empty bank or a
            temperature <= 0; on CPU, and on CUDA under SLRFAST_DEBUG=1, but not inside torch.compile: a positive
            outside [-1, N - 1] (unchecked, it counts as padding).
    Numerics:
        Accumulates in the losses' dtype, deterministic; every gradient is computed in the forward pass (once
        differentiable) and one [R, D] tensor per loss and argument is all that is saved. An inf or NaN in a query or
        positive spoils its row only, in the bank every row. The kernels read the bank once for both losses and hold no
        [R, N] buffer (the reference three). bfloat16 banks: as for :func:`~slrfast.ops.info_nce`.

    >>> query, bank = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> losses = bank_losses(query, query, bank, torch.tensor([[0]]), temperature=1.0, mined_temperature=1.0)
    >>> [round(loss.item(), 4) for loss in losses]  # log(e + 1) - 1, log 2
    [0.3133, 0.6931]
    """
    op = "bank_losses"
    sizes = checks.shapes(op, query=(query, "R D"), positive=(positive, "R D"), bank=(bank, "N D"))
    tensors = dict(query=query, positive=positive, bank=bank)
    checks.floating(op, **tensors)
    if positives is not None:
        rows = checks.shapes(op, positives=(positives, "P M"))["P"]
        rule = f"have at most the {sizes['R']} rows of query"
        checks.require(rows <= sizes["R"], op, "positives", rule, list(positives.shape))
        checks.dtype(op, torch.int64, positives=positives)
        tensors["positives"] = positives
    checks.same_device(op, **tensors)
    checks.require(sizes["N"] >= 1, op, "bank", "have at least one row", list(bank.shape))
    checks.positive(op, temperature=temperature, mined_temperature=mined_temperature)
    if positives is not None:
        check_positives(op, positives, sizes["N"])
    checks.no_gradient(op, bank=bank)
    want_grad = wants_grad(query)
    contrastive, mined, grad, mined_grad = torch.ops.slrfast.bank_losses(
        query.detach(), positive.detach(), bank.detach(), positives, temperature, mined_temperature, want_grad
    )
    if wants_grad(positive):
        weight = torch.expm1(-contrastive)[:, None] / temperature
        contrastive = attach(contrastive, positive, weight * query.detach())
    if want_grad:
        contrastive = attach(contrastive, query, grad)
        if positives is not None:
            mined = attach(mined, query[: len(positives)], mined_grad)
    return contrastive, mined
