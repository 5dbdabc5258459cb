"""The loss of SLP's reconstruction of masked keypoints."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_text
from slrfast.ops import _dispatch
from slrfast.ops._losses import REDUCTIONS, attach, wants_grad
from slrfast.reference import masked_pose_loss as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "masked_pose_loss(Tensor prediction, Tensor target, Tensor mask, Tensor confidence, bool want_grad) "
    "-> (Tensor loss, Tensor count, Tensor grad)"
)


def _fake(
    prediction: Tensor, target: Tensor, mask: Tensor, confidence: Tensor, want_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss = prediction.new_empty(prediction.shape[0], dtype=accumulation_dtype(prediction, target, confidence))
    count = loss.new_empty(prediction.shape[0], dtype=torch.int64)
    return loss, count, loss.new_empty(prediction.shape if want_grad else 0)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor, Tensor]:
    from slrfast.kernels.triton import masked_pose_loss as kernel

    return kernel.masked_pose_loss(*args)


_dispatch.register("masked_pose_loss", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {
    "native": native_text.masked_pose_loss,
    "triton": _triton,
    "reference": reference.masked_pose_loss_grad,
}


def _forward(prediction: Tensor, *args) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return _FORWARD[_dispatch.choose("masked_pose_loss", prediction.device.type)](prediction, *args)


_library.impl("masked_pose_loss", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::masked_pose_loss", _fake, lib=_library)


# ---- public; the gradient that the op returns is attached by _losses.attach -----------------------------------------


def masked_pose_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, confidence: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """Pull the reconstruction of masked keypoints towards where they are, by how sure the detector is.

    loss = sum over M of c |y - x|^2 / max(1, |M|), M the masked keypoints of all clips. SLP Eq. 3; the paper's text
    gives the terms (mask, confidence, squared error), not the divisor.

    Args:
        prediction: [B, T, V, 2], y, any strides, float64, float32, bfloat16 or float16. Gradient flows. Packed clips
            go in as one, [1, F, V, 2].
        target: [B, T, V, 2], x in the prediction's unit; the dtype may differ; no gradient.
        mask: [B, T, V] bool, True for a masked keypoint. What is not masked is not looked at.
        confidence: [B, T, V], c >= 0; no gradient.
        reduction: "mean" over the masked keypoints of all clips (of none: 0), "none": over those of each clip, or
            "sum", not divided.
    Returns:
        The loss in squared units, [] or [B], float32 (float64 if an input is), also under autocast.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, or an unknown reduction.
    Numerics:
        Accumulates in the loss's dtype or wider, deterministic; the gradient is computed in the forward pass (once
        differentiable) and is the one [B, T, V, 2] tensor that is saved. An inf or NaN in what is masked spoils its
        clip, and what is reduced with it.

    >>> prediction, target = torch.zeros(1, 1, 3, 2), torch.tensor([[[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]]])
    >>> mask, confidence = torch.tensor([[[True, True, False]]]), torch.tensor([[[0.5, 1.0, 1.0]]])
    >>> masked_pose_loss(prediction, target, mask, confidence)  # (0.5 * 25 + 1) / 2
    tensor(6.7500)
    """
    op = "masked_pose_loss"
    checks.shapes(
        op,
        prediction=(prediction, "B T V 2"),
        target=(target, "B T V 2"),
        mask=(mask, "B T V"),
        confidence=(confidence, "B T V"),
    )
    checks.floating(op, prediction=prediction, target=target)
    checks.dtype(op, torch.bool, mask=mask)
    checks.floating(op, confidence=confidence)
    checks.same_device(op, prediction=prediction, target=target, mask=mask, confidence=confidence)
    checks.choice(op, REDUCTIONS, reduction=reduction)
    loss, count, grad = torch.ops.slrfast.masked_pose_loss(
        prediction.detach(), target.detach(), mask, confidence.detach(), wants_grad(prediction)
    )
    if wants_grad(prediction):
        loss = attach(loss, prediction.flatten(1), grad.flatten(1))
    if reduction == "none":
        return loss / count.clamp_min(1)
    return loss.sum() / count.sum().clamp_min(1) if reduction == "mean" else loss.sum()
