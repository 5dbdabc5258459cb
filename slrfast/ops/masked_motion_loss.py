"""The loss of MASA's motion prediction on masked frames."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_clips
from slrfast.ops import _dispatch
from slrfast.ops._losses import REDUCTIONS, attach, reduce, wants_grad
from slrfast.reference import masked_motion_loss as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "masked_motion_loss(Tensor prediction, Tensor residual, Tensor weight, Tensor mask, float scale, bool squared, "
    "bool average, bool want_grad) -> (Tensor loss, Tensor grad)"
)


def _fake(
    prediction: Tensor,
    residual: Tensor,
    weight: Tensor,
    mask: Tensor,
    scale: float,
    squared: bool,
    average: bool,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    loss = prediction.new_empty(prediction.shape[0], dtype=accumulation_dtype(prediction, residual, weight))
    return loss, loss.new_empty(prediction.shape if want_grad else 0)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import masked_motion_loss as kernel

    return kernel.masked_motion_loss(*args)


_dispatch.register("masked_motion_loss", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {
    "native": native_clips.masked_motion_loss,
    "triton": _triton,
    "reference": reference.masked_motion_loss_grad,
}


def _forward(prediction: Tensor, *args) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return _FORWARD[_dispatch.choose("masked_motion_loss", prediction.device.type)](prediction, *args)


_library.impl("masked_motion_loss", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::masked_motion_loss", _fake, lib=_library)


# ---- public; the gradient that the op returns is attached by _losses.attach -----------------------------------------


def masked_motion_loss(
    prediction: Tensor,
    residual: Tensor,
    weight: Tensor,
    mask: Tensor,
    *,
    kind: str = "l2",
    scale: float = 1 / 256,
    reduction: str = "mean",
) -> Tensor:
    """Pull the predicted motion of masked frames towards their residuals.

    loss[b] = (1 / |M_b|) sum over i in M_b, joints and coordinates of ((y_bi - scale m_bi) w_bi)^2, or of the absolute
    value for "l1", where M_b are the masked frames of clip b; 0 for a clip without any. MASA Eq. 4; in which unit the
    paper predicts is not said: ``scale`` converts the residual's to the prediction's, 1 / 256 from pixels to the box.

    Args:
        prediction: [B, T, V, 2], y, any strides, float64, float32, bfloat16 or float16. Gradient flows.
        residual: [B, T, V, 2], m in pixels (:func:`motion_mask`); the dtype may differ; no gradient.
        weight: [B, T, V] or, for weights per coordinate, [B, T, V, 2]; no gradient.
        mask: [B, T] bool, True for a masked frame. Frames that are not masked are not looked at.
        kind: "l2" or "l1".
        scale: finite and > 0.
        reduction: "mean" of the B clips (of none: nan), "none", or "sum": over every masked entry, not divided by
            the number of masked frames.
    Returns:
        The loss, [] or [B], float32 (float64 if an input is), also under autocast.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, scale <= 0, or an unknown
            kind or reduction.
    Numerics:
        Accumulates in the loss's dtype or wider, deterministic; the gradient is computed in the forward pass (once
        differentiable) and is the one [B, T, V, 2] tensor that is saved. An inf or NaN spoils its clip only.

    >>> prediction, residual = torch.zeros(1, 3, 1, 2), torch.full((1, 3, 1, 2), 128.0)
    >>> mask = torch.tensor([[True, False, True]])
    >>> masked_motion_loss(prediction, residual, torch.ones(1, 3, 1), mask)  # (4 * 0.5^2) / 2
    tensor(0.5000)
    """
    op = "masked_motion_loss"
    per_joint = isinstance(weight, Tensor) and weight.dim() == 3
    checks.shapes(
        op,
        prediction=(prediction, "B T V 2"),
        residual=(residual, "B T V 2"),
        weight=(weight, "B T V" if per_joint else "B T V 2"),
        mask=(mask, "B T"),
    )
    checks.floating(op, prediction=prediction, residual=residual, weight=weight)
    checks.dtype(op, torch.bool, mask=mask)
    checks.same_device(op, prediction=prediction, residual=residual, weight=weight, mask=mask)
    checks.choice(op, ("l2", "l1"), kind=kind)
    checks.positive(op, scale=scale)
    checks.choice(op, REDUCTIONS, reduction=reduction)
    wanted = wants_grad(prediction)
    loss, grad = torch.ops.slrfast.masked_motion_loss(
        prediction.detach(), residual.detach(), weight.detach(), mask, scale, kind == "l2", reduction != "sum", wanted
    )
    return attach(loss, prediction, grad, reduction) if wanted else reduce(loss, reduction)
