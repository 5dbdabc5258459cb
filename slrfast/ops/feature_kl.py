"""KL divergence between the feature distributions of two embeddings: STC's consistency constraint."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native
from slrfast.ops import _dispatch
from slrfast.ops._losses import REDUCTIONS, attach, reduce, wants_grad
from slrfast.reference import feature_kl as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "feature_kl(Tensor teacher, Tensor student, float temperature, bool want_grad) -> (Tensor loss, Tensor grad)"
)


def _fake(teacher: Tensor, student: Tensor, temperature: float, want_grad: bool) -> tuple[Tensor, Tensor]:
    loss = student.new_empty(student.shape[0], dtype=accumulation_dtype(teacher, student))
    return loss, loss.new_empty(student.shape if want_grad else 0)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import feature_kl as kernel

    return kernel.feature_kl(*args)


_dispatch.register("feature_kl", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.feature_kl, "triton": _triton, "reference": reference.feature_kl_grad}


def _forward(teacher: Tensor, student: Tensor, temperature: float, want_grad: bool) -> tuple[Tensor, Tensor]:
    device = student.device.type
    with torch.autocast(device, enabled=False):
        return _FORWARD[_dispatch.choose("feature_kl", device)](teacher, student, temperature, want_grad)


_library.impl("feature_kl", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::feature_kl", _fake, lib=_library)


# ---- public; the gradient that the op returns is attached by _losses.attach -----------------------------------------


def feature_kl(teacher: Tensor, student: Tensor, *, temperature: float = 0.1, reduction: str = "mean") -> Tensor:
    """Pull the student's distribution over its D features towards the teacher's.

    loss[b] = sum_d P_bd (log P_bd - log Q_bd), P_b = softmax(teacher[b] / temperature), Q_b likewise of the student.
    STC Eq. 3; the paper does not say whether embeddings are normalised first, so rows are taken as they are.

    Args:
        teacher: [B, D], any strides, float64, float32, bfloat16 or float16; no gradient, even if it requires one.
        student: [B, D]; the dtype may differ. Gradient flows.
        temperature: > 0.
        reduction: "mean" (of no rows: nan), "sum" or "none" over the B rows.
    Returns:
        The loss in nats, [] or [B], float32 (float64 if an input is), also under autocast.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, temperature <= 0 or an
            unknown reduction.
    Numerics:
        Accumulates in the loss's dtype, deterministic; the gradient is computed in the forward pass (once
        differentiable) and is the one [B, D] tensor that is saved. An inf or NaN spoils its row only.

    >>> teacher, student = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(feature_kl(teacher, student, temperature=1.0).item(), 4)  # log((e + 1) / 2) - 1 / 2
    0.1201
    """
    checks.shapes("feature_kl", teacher=(teacher, "B D"), student=(student, "B D"))
    checks.floating("feature_kl", teacher=teacher, student=student)
    checks.same_device("feature_kl", teacher=teacher, student=student)
    checks.positive("feature_kl", temperature=temperature)
    checks.choice("feature_kl", REDUCTIONS, reduction=reduction)
    loss, grad = torch.ops.slrfast.feature_kl(teacher.detach(), student.detach(), temperature, wants_grad(student))
    if wants_grad(student):
        loss = attach(loss, student, grad)
    return reduce(loss, reduction)
