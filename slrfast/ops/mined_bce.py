"""Binary cross-entropy against mined positives of a memory bank: CCL-SLR's semantic positives."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native
from slrfast.ops import _dispatch
from slrfast.ops._losses import REDUCTIONS, attach, check_positives, reduce, wants_grad
from slrfast.reference import mined_bce as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "mined_bce(Tensor query, Tensor bank, Tensor positives, float temperature, bool want_grad)"
    " -> (Tensor loss, Tensor grad)"
)


def _fake(query: Tensor, bank: Tensor, positives: Tensor, temperature: float, want_grad: bool) -> tuple[Tensor, Tensor]:
    loss = query.new_empty(query.shape[0], dtype=accumulation_dtype(query, bank))
    return loss, loss.new_empty(query.shape if want_grad else 0)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import mined_bce as kernel

    return kernel.mined_bce(*args)


_dispatch.register("mined_bce", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.mined_bce, "triton": _triton, "reference": reference.mined_bce_grad}


def _forward(query: Tensor, *args) -> tuple[Tensor, Tensor]:
    device = query.device.type
    with torch.autocast(device, enabled=False):
        return _FORWARD[_dispatch.choose("mined_bce", device)](query, *args)


_library.impl("mined_bce", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::mined_bce", _fake, lib=_library)


# ---- public; the gradient that the op returns is attached by _losses.attach -----------------------------------------


def mined_bce(
    query: Tensor, bank: Tensor, positives: Tensor, *, temperature: float = 0.02, reduction: str = "mean"
) -> Tensor:
    """Tell the mined positives of every query from all other rows of a memory bank.

    loss[b] = -1/N sum_i [y_bi log sigmoid(z_bi) + (1 - y_bi) log(1 - sigmoid(z_bi))], z_bi = <query[b], bank[i]> /
    temperature, y_bi = 1 for the rows i named in positives[b] and 0 for the others. CCL-SLR Eq. 7-8, computed as
    1/N [sum_i softplus(z_bi) - sum over the positives of z_bi], so that y is never formed. Rows are taken as they are;
    normalise them first for cosine similarities.

    Args:
        query: [B, D], any strides, float64, float32, bfloat16 or float16. Gradient flows.
        bank: [N, D]; the dtype may differ; no gradient, even if it requires one (that is a warning). It is neither
            copied nor saved and may be overwritten before the backward pass.
        positives: [B, M] int64, bank indices, for example of ``topk_similarity`` in one or more banks side by side;
            repeats count once, -1 is padding. M may be 0.
        temperature: > 0.
        reduction: "mean" (of no rows: nan), "sum" or "none" over the B rows.
    Returns:
        The loss in nats, [] or [B], float32 (float64 if an input is), also under autocast.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, an empty bank, temperature
            <= 0 or an unknown reduction; on CPU, and on CUDA under SLRFAST_DEBUG=1, but not inside torch.compile:
            a positive outside [-1, N - 1] (unchecked, it counts as padding).
    Numerics:
        Accumulates in the loss's dtype, deterministic; the gradient is computed in the forward pass (once
        differentiable) and is the one [B, D] tensor that is saved. An inf or NaN in a query spoils its row only, in
        the bank every row. The kernels hold no [B, N] buffer (the reference two). bfloat16 banks: as for
        :func:`~slrfast.ops.info_nce`.

    >>> bank = torch.tensor([[0.0], [2.0]])
    >>> loss = mined_bce(torch.tensor([[1.0]]), bank, torch.tensor([[1, 1, -1]]), temperature=1.0)
    >>> round(loss.item(), 4)  # (log 2 + log(1 + e^-2)) / 2
    0.41
    """
    op = "mined_bce"
    sizes = checks.shapes(op, query=(query, "B D"), bank=(bank, "N D"), positives=(positives, "B M"))
    checks.floating(op, query=query, bank=bank)
    checks.dtype(op, torch.int64, positives=positives)
    checks.same_device(op, query=query, bank=bank, positives=positives)
    checks.require(sizes["N"] >= 1, op, "bank", "have at least one row", list(bank.shape))
    checks.positive(op, temperature=temperature)
    checks.choice(op, REDUCTIONS, reduction=reduction)
    check_positives(op, positives, sizes["N"])
    checks.no_gradient(op, bank=bank)
    want_grad = wants_grad(query)
    loss, grad = torch.ops.slrfast.mined_bce(query.detach(), bank.detach(), positives, temperature, want_grad)
    if want_grad:
        loss = attach(loss, query, grad)
    return reduce(loss, reduction)
