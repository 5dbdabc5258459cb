"""KL divergence over the teacher's nearest rows of a memory bank: STC's knowledge transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native
from slrfast.ops import _dispatch
from slrfast.ops._losses import REDUCTIONS, attach, reduce, wants_grad
from slrfast.reference import neighbor_kl as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "neighbor_kl(Tensor teacher, Tensor teacher_bank, Tensor student, Tensor student_bank, SymInt k,"
    " float teacher_temperature, float student_temperature, bool want_grad) -> (Tensor loss, Tensor grad)"
)


def _fake(
    teacher: Tensor,
    teacher_bank: Tensor,
    student: Tensor,
    student_bank: Tensor,
    k: int,
    teacher_temperature: float,
    student_temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(teacher, teacher_bank, student, student_bank)
    loss = student.new_empty(student.shape[0], dtype=dtype)
    return loss, loss.new_empty(student.shape if want_grad else 0)


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, Tensor]:
    from slrfast.kernels.triton import neighbor_kl as kernel

    return kernel.neighbor_kl(*args)


_dispatch.register("neighbor_kl", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.neighbor_kl, "triton": _triton, "reference": reference.neighbor_kl_grad}


def _forward(teacher: Tensor, *args) -> tuple[Tensor, Tensor]:
    device = teacher.device.type
    with torch.autocast(device, enabled=False):
        return _FORWARD[_dispatch.choose("neighbor_kl", device)](teacher, *args)


_library.impl("neighbor_kl", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::neighbor_kl", _fake, lib=_library)


# ---- public; the gradient that the op returns is attached by _losses.attach -----------------------------------------


def neighbor_kl(
    teacher: Tensor,
    teacher_bank: Tensor,
    student: Tensor,
    student_bank: Tensor,
    k: int,
    *,
    teacher_temperature: float = 0.05,
    student_temperature: float = 0.1,
    reduction: str = "mean",
) -> Tensor:
    """Pull the student's similarities to the teacher's k nearest bank rows towards the teacher's own.

    I_b = the k largest <teacher[b], teacher_bank[i]>; P_b and Q_b = softmax over i in I_b of
    <teacher[b], teacher_bank[i]> / teacher_temperature and <student[b], student_bank[i]> / student_temperature;
    loss[b] = sum_i P_bi (log P_bi - log Q_bi). STC Eq. 5-6, with the teacher's index set on both sides (the journal
    version prints the student's for Q, which would leave the divergence undefined).

    Args:
        teacher: [B, D], any strides, float64, float32, bfloat16 or float16; no gradient, even if it requires one.
        teacher_bank: [N, D], N >= 1; no gradient, even if it requires one (that is a warning).
        student: [B, D'], where D' may differ from D. Gradient flows.
        student_bank: [N, D'], row i the same instance as row i of ``teacher_bank``, or that very tensor; no gradient
            either. Banks are neither copied nor saved and may be overwritten before the backward pass.
        k: number of neighbours, in [1, N]; of equal similarities at the border the lowest indices count.
        teacher_temperature: > 0.
        student_temperature: > 0.
        reduction: "mean" (of no rows: nan), "sum" or "none" over the B rows.
    Returns:
        The loss in nats, [] or [B], float32 (float64 if an input is), also under autocast.
    Raises:
        TypeError: a tensor of another dtype, or a ``k`` that is no integer. ValueError: shapes or devices that do not
            fit, k outside [1, N], a temperature <= 0 or an unknown reduction.
    Numerics:
        Accumulates in the loss's dtype, deterministic; the gradient is computed in the forward pass (once
        differentiable) and is the one [B, D'] tensor that is saved. A NaN in a teacher or student spoils its row, in a
        bank every row. The k nearest are found by their border, without sorting; the scores of some 100 rows of the
        batch at a time are held (the reference holds about a dozen [B, N] buffers). A bfloat16 bank is multiplied in
        pairs where the processor can (AVX512-BF16): a float32 query is split in two bfloat16 parts, which keeps the
        scores to 2^-16 of sum |q||n|, and the weights of the gradient's sum are rounded to bfloat16, 2^-9 relative.

    >>> bank = torch.tensor([[1.0], [0.0], [-9.0]])
    >>> teacher, student = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    >>> loss = neighbor_kl(teacher, bank, student, bank, 2, teacher_temperature=1.0)
    >>> round(loss.item(), 4)  # P = (e, 1) / (e + 1), Q = (1, 1) / 2
    0.1109
    """
    op = "neighbor_kl"
    sizes = checks.shapes(
        op,
        teacher=(teacher, "B D"),
        teacher_bank=(teacher_bank, "N D"),
        student=(student, "B D'"),
        student_bank=(student_bank, "N D'"),
    )
    tensors = dict(teacher=teacher, teacher_bank=teacher_bank, student=student, student_bank=student_bank)
    checks.floating(op, **tensors)
    checks.same_device(op, **tensors)
    checks.integer_between(op, 1, sizes["N"], k=k)
    checks.positive(op, teacher_temperature=teacher_temperature, student_temperature=student_temperature)
    checks.choice(op, REDUCTIONS, reduction=reduction)
    checks.no_gradient(op, teacher_bank=teacher_bank, student_bank=student_bank)
    detached = [tensor.detach() for tensor in tensors.values()]
    loss, grad = torch.ops.slrfast.neighbor_kl(
        *detached, k, teacher_temperature, student_temperature, wants_grad(student)
    )
    if wants_grad(student):
        loss = attach(loss, student, grad)
    return reduce(loss, reduction)
