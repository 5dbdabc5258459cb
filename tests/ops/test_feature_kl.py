import math
import re

import pytest
import torch
from torch.testing import assert_close

from slrfast import ops
from slrfast.reference import feature_kl as reference

OP = "feature_kl"


def softmax(row, temperature):
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def oracle(teacher, student, temperature):
    """Loss, row by row, in Python floats."""
    losses = []
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        pairs = zip(softmax(t, temperature), softmax(s, temperature), strict=True)
        losses.append(sum(p * math.log(p / q) for p, q in pairs))
    return torch.tensor(losses, dtype=torch.float64)


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    teacher = torch.tensor([[0.0, 0.0]], device=device)
    student = torch.tensor([[math.log(3.0), 0.0]], device=device)
    # P = (1/2, 1/2), Q = (3/4, 1/4)
    expected = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert ops.feature_kl(teacher, student, temperature=1.0).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("teacher_type", "student_type", "result_type"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_equals_loops(device, randn, teacher_type, student_type, result_type):
    teacher, student = (randn(5, 7, dtype=dtype, device=device) for dtype in (teacher_type, student_type))
    loss = ops.feature_kl(teacher, student, temperature=0.6, reduction="none")
    assert loss.dtype == result_type
    assert_close(loss.double().cpu(), oracle(teacher, student, 0.6), rtol=1e-5, atol=1e-6)
    assert_close(ops.feature_kl(teacher, student, temperature=0.6), loss.mean())
    assert_close(ops.feature_kl(teacher, student, temperature=0.6, reduction="sum"), loss.sum())


def test_zero_for_equal_distributions(randn):
    x = randn(4, 6)
    assert_close(ops.feature_kl(x, x + 3.0, reduction="none"), torch.zeros(4), rtol=0, atol=1e-5)


# ---- backward -------------------------------------------------------------------------------------------------------


def test_gradient_equals_that_of_the_equation(device, randn):
    teacher, student = (randn(5, 7, device=device, requires_grad=True) for _ in range(2))
    (got,) = torch.autograd.grad(ops.feature_kl(teacher, student), student)
    loss = reference.feature_kl(teacher.double(), student.double(), 0.1).mean()
    assert_close(got, torch.autograd.grad(loss, student)[0], rtol=1e-4, atol=1e-6)


def test_gradient_flows_to_the_student_only(randn, saved_shapes):
    teacher, student = (randn(5, 7, requires_grad=True) for _ in range(2))
    assert saved_shapes(lambda: ops.feature_kl(teacher, student)) == [(5, 7)]
    ops.feature_kl(teacher, student).backward()
    assert teacher.grad is None and student.grad is not None
    assert not ops.feature_kl(teacher, student.detach()).requires_grad


def test_gradient_has_the_dtype_of_the_student(randn):
    student = randn(3, 5, dtype=torch.bfloat16, requires_grad=True)
    ops.feature_kl(randn(3, 5), student).backward()
    assert student.grad.dtype == torch.bfloat16


def test_gradcheck(randn):
    teacher, student = randn(3, 4, dtype=torch.float64), randn(3, 4, dtype=torch.float64, requires_grad=True)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda s, r=reduction: ops.feature_kl(teacher, s, temperature=0.5, reduction=r), student
        )


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want_grad", [True, False])
def test_opcheck(device, randn, want_grad):
    teacher, student = (randn(5, 7, device=device) for _ in range(2))
    for tensors in ((teacher, student), (teacher.T.contiguous().T, student.T.contiguous().T)):
        torch.library.opcheck(torch.ops.slrfast.feature_kl.default, (*tensors, 0.1, want_grad))


def test_compiles_whole_and_under_autocast(device, randn, compiled):
    teacher, student = randn(5, 7, device=device), randn(5, 7, device=device, requires_grad=True)
    expected = ops.feature_kl(teacher, student)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = compiled(ops.feature_kl)(teacher, student)
    assert_close(got, expected)
    assert_close(torch.autograd.grad(got, student), torch.autograd.grad(expected, student))


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "d"), [(1, 1), (1, 252), (3, 507), (2, 123), (0, 4)])
def test_ragged_sizes_and_strides(device, randn, b, d):
    teacher, student = randn(d, b, device=device).T, randn(b, 2 * d, device=device)[:, ::2].requires_grad_()
    loss = ops.feature_kl(teacher, student, temperature=1.0, reduction="none")
    assert_close(loss.double().cpu(), oracle(teacher, student, 1.0), rtol=1e-5, atol=1e-6)
    (got,) = torch.autograd.grad(loss.sum(), student)
    (expected,) = torch.autograd.grad(reference.feature_kl(teacher, student, 1.0).sum(), student)
    assert_close(got, expected)


def test_large_logits_do_not_overflow(device):
    teacher, student = torch.tensor([[1e4, 0.0]], device=device), torch.tensor([[0.0, 1e4]], device=device)
    assert ops.feature_kl(teacher, student, temperature=0.1).item() == pytest.approx(1e5)


def test_no_rows_have_no_mean(device, randn):
    assert ops.feature_kl(randn(0, 4, device=device), randn(0, 4, device=device)).isnan()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_value_spoils_its_row_only(device, randn, value):
    teacher, student = randn(3, 4, device=device), randn(3, 4, device=device)
    student[1, 2] = value
    assert ops.feature_kl(teacher, student, reduction="none").isnan().tolist() == [False, True, False]


def test_no_features_no_divergence(device):
    assert ops.feature_kl(torch.zeros(2, 0, device=device), torch.zeros(2, 0, device=device)).item() == 0


# ---- errors ---------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, X[:1]), {}, ValueError, "student must have shape [B, D] with B = 2, got [1, 3]"),
        ((X[0], X), {}, ValueError, "teacher must have shape [B, D], got [3]"),
        ((X.int(), X), {}, TypeError, "teacher must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((X, X.to("meta")), {}, ValueError, "student must be on the device of teacher (cpu), got meta"),
        ((X, X.bool()), {}, TypeError, "student must be float64, float32, bfloat16 or float16, got torch.bool"),
        ((X, X), {"temperature": math.nan}, ValueError, "temperature must be finite and > 0, got nan"),
        ((X, X), {"temperature": -1.0}, ValueError, "temperature must be finite and > 0, got -1.0"),
        ((X, X), {"reduction": "batch"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'batch'"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(f"feature_kl: {message}")):
        ops.feature_kl(*arguments, **options)
