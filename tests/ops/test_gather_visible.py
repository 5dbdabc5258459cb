import math
import re

import pytest
import torch
from torch.testing import assert_close

from slrfast import ops
from slrfast.reference import gather_visible as reference

OP = "gather_visible"


@pytest.fixture
def draw(randn):
    """Four clips of 9, 0, 4 and 7 of 9 frames; everything is masked in the third."""

    def make(d=5, *, dtype=torch.float32, device="cpu", requires_grad=False):
        mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.5
        mask[2] = True
        lengths = torch.tensor([9, 0, 4, 7], device=device)
        return randn(4, 9, d, dtype=dtype, device=device, requires_grad=requires_grad), mask.to(device), lengths

    return make


def oracle(x, mask, lengths):
    """Frame by frame."""
    rows, offsets = [], [0]
    for b in range(len(x)):
        rows += [x[b, t] for t in range(int(lengths[b])) if not mask[b, t]]
        offsets.append(len(rows))
    return torch.stack(rows) if rows else x.new_zeros(0, x.shape[2]), torch.tensor(offsets)


# ---- forward and backward -------------------------------------------------------------------------------------------


def test_by_hand(device):
    x = torch.arange(6.0, device=device).reshape(2, 3, 1)
    mask = torch.tensor([[True, False, False], [False, True, False]], device=device)
    packed, offsets = ops.gather_visible(x, mask, None)
    assert packed.tolist() == [[1.0], [2.0], [3.0], [5.0]] and offsets.tolist() == [0, 2, 4]
    packed, offsets = ops.gather_visible(x, mask, torch.tensor([2, 0], device=device))
    assert packed.tolist() == [[1.0]] and offsets.tolist() == [0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_equals_loops(device, draw, randn, dtype):
    x, mask, lengths = draw(dtype=dtype, device=device, requires_grad=True)
    packed, offsets = ops.gather_visible(x, mask, lengths)
    expected = oracle(x, mask, lengths)
    assert packed.dtype == dtype and packed.is_contiguous() and torch.equal(packed, expected[0])
    assert offsets.dtype == torch.int64 and not offsets.requires_grad and torch.equal(offsets.cpu(), expected[1])
    grad = randn(*packed.shape, dtype=dtype, device=device)
    (got,) = torch.autograd.grad(packed, x, grad)
    assert torch.equal(got, torch.autograd.grad(expected[0], x, grad)[0])
    plain = reference.gather_visible(x, mask, lengths)
    assert torch.equal(plain[0], packed) and torch.equal(plain[1], offsets)


def test_gradcheck(draw):
    x, mask, lengths = draw(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.gather_visible(x, mask, lengths)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: ops.gather_visible(x, mask, lengths)[0], x)


def test_saves_positions_only(draw, saved_shapes):
    x, mask, lengths = draw(requires_grad=True)
    count = len(ops.gather_visible(x, mask, lengths)[0])
    assert saved_shapes(lambda: ops.gather_visible(x, mask, lengths)) == [(count,)]
    assert not ops.gather_visible(x.detach(), mask, lengths)[0].requires_grad


def test_masked_frames_and_padding_do_not_reach_what_follows(device, draw):
    x, mask, lengths = draw(device=device, requires_grad=True)
    packed, _ = ops.gather_visible(x, mask, lengths)
    unseen = mask | (torch.arange(9, device=device) >= lengths[:, None])
    dirty = x.detach().masked_fill(unseen[..., None], math.nan)
    assert torch.equal(ops.gather_visible(dirty, mask, lengths)[0], packed)
    (grad,) = torch.autograd.grad(packed.square().sum(), x)
    assert not grad[unseen].any() and grad[~unseen].all()


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(device, draw):
    _, mask, lengths = draw(device=device)
    for some in ((mask, lengths), (mask.T.contiguous().T, None)):
        torch.library.opcheck(torch.ops.slrfast.gather_visible.default, some)


def test_compiles_whole_with_any_number_of_visible_frames(device, draw, compiled):
    x, mask, lengths = draw(device=device, requires_grad=True)

    def pooled(x, mask, lengths):
        packed, offsets = ops.gather_visible(x * 2, mask, lengths)
        return packed.square().sum(0) / offsets[-1]

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):  # torch < 2.9 asks for it
        function = compiled(pooled)
        for some in (mask, ~mask, torch.zeros_like(mask)):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                got = function(x, some, lengths)
            expected = pooled(x, some, lengths)
            assert_close(got, expected)
            assert_close(torch.autograd.grad(got.sum(), x), torch.autograd.grad(expected.sum(), x))


# ---- edges ----------------------------------------------------------------------------------------------------------


def test_nothing_visible_everything_visible_and_no_sizes(device, randn):
    for b, t, d in ((3, 4, 5), (1, 1, 1), (0, 4, 5), (3, 0, 5), (3, 4, 0), (1, 507, 3)):
        x = randn(b, t, d, device=device, requires_grad=True)
        for masked in (False, True):
            mask = torch.full((b, t), masked, device=device)
            packed, offsets = ops.gather_visible(x, mask, None)
            count = 0 if masked else t
            assert packed.shape == (b * count, d) and offsets.tolist() == [i * count for i in range(b + 1)]
            (grad,) = torch.autograd.grad(packed.sum(), x)
            assert (grad == (not masked)).all()


def test_any_strides(device, draw):
    x, mask, lengths = draw(device=device)
    expected = ops.gather_visible(x, mask, lengths)
    strided = x.permute(2, 1, 0).contiguous().permute(2, 1, 0), mask.T.contiguous().T, lengths.repeat_interleave(2)[::2]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert all(map(torch.equal, ops.gather_visible(*strided), expected))
    same = ops.gather_visible(x[:1].expand_as(x), mask, lengths)
    assert all(map(torch.equal, same, ops.gather_visible(x[:1].repeat(4, 1, 1), mask, lengths)))


def test_inputs_are_left_alone(device, draw):
    tensors = draw(device=device)
    copies = [tensor.clone() for tensor in tensors]
    for tensor in ops.gather_visible(*tensors):
        tensor.fill_(7)
    assert all(map(torch.equal, tensors, copies))


# ---- errors ---------------------------------------------------------------------------------------------------------

X, M, L = torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool), torch.tensor([5, 4])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], M, L), ValueError, "x must have shape [B, T, D], got [5, 3]"),
        ((X, M[:, :4], L), ValueError, "mask must have shape [B, T] with T = 5, got [2, 4]"),
        ((X, M, L[:1]), ValueError, "lengths must have shape [B] with B = 2, got [1]"),
        ((X.int(), M, L), TypeError, "x must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((X, M.long(), L), TypeError, "mask must be torch.bool, got torch.int64"),
        ((X, None, L), TypeError, "mask must be a torch.Tensor, got NoneType"),
        ((X, M, L.int()), TypeError, "lengths must be torch.int64, got torch.int32"),
        ((X, M, L.to("meta")), ValueError, "lengths must be on the device of x (cpu), got meta"),
        ((X, M, L + 1), ValueError, "lengths must be in [0, 5], got 6 for clip 0"),
        ((X, M, torch.tensor([0, -1])), ValueError, "lengths must be in [0, 5], got -1 for clip 1"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(f"gather_visible: {message}")):
        ops.gather_visible(*arguments)
