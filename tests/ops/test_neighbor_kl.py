import math
import re

import pytest
import torch
from torch.testing import assert_close

import slrfast
from slrfast import ops
from slrfast.reference import neighbor_kl as reference

OP = "neighbor_kl"


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def log_softmax(row):
    top = max(row)
    return [value - top - math.log(sum(math.exp(v - top) for v in row)) for value in row]


def oracle(teacher, teacher_bank, student, student_bank, k, teacher_temperature, student_temperature):
    """Loss, row by row, in Python floats; Python's stable sort keeps the lowest index of equal similarities."""
    losses = []
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        similarity = [dot(t, row) for row in teacher_bank.tolist()]
        nearest = sorted(range(len(similarity)), key=lambda i: -similarity[i])[:k]
        log_p = log_softmax([similarity[i] / teacher_temperature for i in nearest])
        log_q = log_softmax([dot(s, student_bank[i].tolist()) / student_temperature for i in nearest])
        losses.append(sum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True)))
    return torch.tensor(losses, dtype=torch.float64)


@pytest.fixture
def draw(randn):
    """teacher [B, D], teacher_bank [N, D], student [B, D2], student_bank [N, D2]."""

    def make(b=4, n=13, d=6, d2=5, dtype=torch.float32, device="cpu"):
        return [randn(*shape, dtype=dtype, device=device) for shape in ((b, d), (n, d), (b, d2), (n, d2))]

    return make


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    bank = torch.tensor([[1.0], [0.0], [-5.0]], device=device)
    teacher, student = torch.tensor([[math.log(3.0)]], device=device), torch.tensor([[0.0]], device=device)
    # neighbours 0 and 1: P = (3/4, 1/4), Q = (1/2, 1/2)
    loss = ops.neighbor_kl(teacher, bank, student, bank, 2, teacher_temperature=1.0, student_temperature=1.0)
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 4, 13])
def test_equals_loops(device, draw, dtype, k):
    tensors = draw(dtype=dtype, device=device)
    options = dict(teacher_temperature=0.7, student_temperature=0.9)
    loss = ops.neighbor_kl(*tensors, k, reduction="none", **options)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(loss.double().cpu(), oracle(*tensors, k, 0.7, 0.9), rtol=1e-5, atol=1e-5)
    assert_close(ops.neighbor_kl(*tensors, k, **options), loss.mean())
    assert_close(ops.neighbor_kl(*tensors, k, reduction="sum", **options), loss.sum())


def test_mixed_dtypes(draw):
    teacher, teacher_bank, student, student_bank = draw()
    mixed = teacher.half(), teacher_bank.bfloat16(), student.bfloat16(), student_bank
    expected = ops.neighbor_kl(*(tensor.float() for tensor in mixed), 4)
    loss = ops.neighbor_kl(*mixed, 4)
    assert loss.dtype == torch.float32
    assert_close(loss, expected)


def test_equals_gather_of_topk(device, draw):
    teacher, teacher_bank, student, student_bank = draw(b=8, n=300, device=device)
    values, index = (teacher @ teacher_bank.T).topk(100)
    log_q = ((student @ student_bank.T).gather(1, index) / 0.1).log_softmax(1)
    expected = torch.nn.functional.kl_div(log_q, (values / 0.05).softmax(1), reduction="batchmean")
    assert_close(ops.neighbor_kl(teacher, teacher_bank, student, student_bank, 100), expected, rtol=1e-4, atol=1e-5)


def test_one_bank_for_both(randn):
    x, bank = randn(4, 6), randn(13, 6)
    loss = ops.neighbor_kl(x, bank, x, bank, 5, teacher_temperature=0.1, student_temperature=0.1)
    assert_close(loss, torch.tensor(0.0), rtol=0, atol=1e-5)


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, 13])
def test_gradient_equals_that_of_the_equation(device, draw, k):
    teacher, teacher_bank, student, student_bank = draw(device=device)
    student.requires_grad_()
    (got,) = torch.autograd.grad(ops.neighbor_kl(teacher, teacher_bank, student, student_bank, k), student)
    wide = [tensor.double() for tensor in (teacher, teacher_bank, student, student_bank)]
    (expected,) = torch.autograd.grad(reference.neighbor_kl(*wide, k, 0.05, 0.1).mean(), student)
    assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradient_flows_to_the_student_only(draw, saved_shapes):
    teacher, teacher_bank, student, student_bank = tensors = draw()
    teacher.requires_grad_()
    student.requires_grad_()
    assert saved_shapes(lambda: ops.neighbor_kl(*tensors, 4)) == [(4, 5)]
    ops.neighbor_kl(*tensors, 4).backward()
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize(("bank", "name"), [(1, "teacher_bank"), (3, "student_bank")])
def test_no_gradient_to_the_banks(draw, bank, name):
    tensors = draw()
    tensors[2].requires_grad_()
    tensors[bank].requires_grad_()
    with pytest.warns(UserWarning, match=re.escape(f"neighbor_kl: {name} requires grad, but no gradient flows to it")):
        ops.neighbor_kl(*tensors, 4).backward()
    assert tensors[bank].grad is None


def test_banks_may_be_overwritten_before_backward(device, draw):
    teacher, teacher_bank, student, student_bank = draw(device=device)
    student.requires_grad_()
    (expected,) = torch.autograd.grad(ops.neighbor_kl(teacher, teacher_bank, student, student_bank, 4), student)
    loss = ops.neighbor_kl(teacher, teacher_bank, student, student_bank, 4)
    for bank, keys in ((teacher_bank, teacher), (student_bank, student)):
        with slrfast.backend("reference"):
            ops.enqueue_(bank, torch.tensor(11, device=device), keys)
    assert_close(torch.autograd.grad(loss, student)[0], expected, rtol=0, atol=0)


def test_gradcheck(draw):
    teacher, teacher_bank, student, student_bank = draw(b=3, n=9, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda s, r=reduction: ops.neighbor_kl(teacher, teacher_bank, s, student_bank, 4, reduction=r),
            student.requires_grad_(),
        )


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want_grad", [True, False])
def test_opcheck(device, draw, want_grad):
    tensors = draw(device=device)
    for arguments in (tensors, [tensor.T.contiguous().T for tensor in tensors]):
        torch.library.opcheck(torch.ops.slrfast.neighbor_kl.default, (*arguments, 4, 0.05, 0.1, want_grad))


def test_compiles_whole_and_under_autocast(device, draw, compiled):
    teacher, teacher_bank, student, student_bank = draw(device=device)
    student.requires_grad_()
    expected = ops.neighbor_kl(teacher, teacher_bank, student, student_bank, 4)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = compiled(ops.neighbor_kl)(teacher, teacher_bank, student, student_bank, 4)
    assert_close(got, expected)
    assert_close(torch.autograd.grad(got, student), torch.autograd.grad(expected, student))


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "n", "d", "d2", "k"), [(1, 1, 1, 1, 1), (1, 252, 7, 3, 252), (2, 507, 123, 5, 60)])
def test_ragged_sizes(device, draw, b, n, d, d2, k):
    tensors = draw(b, n, d, d2, device=device)
    options = dict(teacher_temperature=5.0, student_temperature=4.0)
    loss = ops.neighbor_kl(*tensors, k, reduction="none", **options)
    assert_close(loss.double().cpu(), oracle(*tensors, k, 5.0, 4.0), rtol=1e-4, atol=1e-5)


def test_no_rows(device, draw):
    tensors = draw(b=0, device=device)
    assert ops.neighbor_kl(*tensors, 4, reduction="none").shape == (0,)
    assert ops.neighbor_kl(*tensors, 4).isnan()


def test_transposed_queues(device, draw):
    tensors = draw(device=device)
    views = [tensor.T.contiguous().T for tensor in tensors]
    assert_close(ops.neighbor_kl(*views, 4), ops.neighbor_kl(*tensors, 4))


@pytest.mark.parametrize("k", range(1, 9))
def test_ties_take_the_lowest_index(device, randn, k):
    teacher = torch.ones(1, 1, device=device)
    teacher_bank = torch.tensor([0.0, 2.0, 1.0, 1.0, 2.0, 1.0, 0.0, 1.0], device=device)[:, None]
    student, student_bank = randn(1, 3, device=device), randn(8, 3, device=device)
    loss = ops.neighbor_kl(teacher, teacher_bank, student, student_bank, k, reduction="none")
    expected = oracle(teacher, teacher_bank, student, student_bank, k, 0.05, 0.1)
    assert_close(loss.double().cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("argument", [0, 2])
def test_nan_in_a_row_spoils_that_row_only(device, draw, argument):
    tensors = draw(b=3, device=device)
    tensors[argument][1, 0] = math.nan
    assert ops.neighbor_kl(*tensors, 4, reduction="none").isnan().tolist() == [False, True, False]


def test_nan_in_the_teacher_bank_spoils_every_row(device, draw):
    tensors = draw(b=3, device=device)
    tensors[1][5] = math.nan
    assert ops.neighbor_kl(*tensors, 4, reduction="none").isnan().all()


# ---- errors ---------------------------------------------------------------------------------------------------------

T, TB, S, SB = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, 4), torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((T, TB, S, SB, 6), {}, ValueError, "k must be in [1, 5], got 6"),
        ((T, TB, S, SB, 0), {}, ValueError, "k must be in [1, 5], got 0"),
        ((T, TB[:0], S, SB[:0], 1), {}, ValueError, "k must be in [1, 0], got 1"),
        ((T, TB, S, SB, 2.0), {}, TypeError, "k must be an integer, got float"),
        ((T, TB, S, SB[:4], 2), {}, ValueError, "student_bank must have shape [N, D'] with N = 5, got [4, 4]"),
        ((T, TB, S[:1], SB, 2), {}, ValueError, "student must have shape [B, D'] with B = 2, got [1, 4]"),
        ((T, SB, S, SB, 2), {}, ValueError, "teacher_bank must have shape [N, D] with D = 3, got [5, 4]"),
        ((T, TB, S.bool(), SB, 2), {}, TypeError, "student must be float64, float32, bfloat16 or float16"),
        (
            (T.int(), TB, S, SB, 2),
            {},
            TypeError,
            "teacher must be float64, float32, bfloat16 or float16, got torch.int32",
        ),
        ((T, TB, S.to("meta"), SB, 2), {}, ValueError, "student must be on the device of teacher (cpu), got meta"),
        (
            (T, TB, S, SB, 2),
            {"teacher_temperature": math.nan},
            ValueError,
            "teacher_temperature must be finite and > 0",
        ),
        ((T, TB.to("meta"), S, SB, 2), {}, ValueError, "teacher_bank must be on the device of teacher (cpu), got meta"),
        (
            (T, TB, S, SB, 2),
            {"teacher_temperature": 0},
            ValueError,
            "teacher_temperature must be finite and > 0, got 0",
        ),
        (
            (T, TB, S, SB, 2),
            {"student_temperature": math.inf},
            ValueError,
            "student_temperature must be finite and > 0",
        ),
        (
            (T, TB, S, SB, 2),
            {"reduction": None},
            ValueError,
            "reduction must be one of 'mean', 'sum', 'none', got None",
        ),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(f"neighbor_kl: {message}")):
        ops.neighbor_kl(*arguments, **options)
