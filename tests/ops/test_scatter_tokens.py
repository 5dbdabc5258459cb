import math
import re

import pytest
import torch
from torch.testing import assert_close

from slrfast import ops
from slrfast.reference import scatter_tokens as reference

OP = "scatter_tokens"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture
def draw(randn):
    """Rows of four clips of 9, 0, 4 and 7 of 9 frames; everything is masked in the third."""

    def make(d=5, *, dtype=torch.float32, token_dtype=None, device="cpu", requires_grad=False):
        mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.5
        mask[2] = True
        visible = ~mask & (torch.arange(9) < torch.tensor([9, 0, 4, 7])[:, None])
        offsets = torch.nn.functional.pad(visible.sum(1).cumsum(0), (1, 0)).to(device)
        packed = randn(int(offsets[-1]), d, dtype=dtype, device=device, requires_grad=requires_grad)
        token = randn(d, dtype=token_dtype or dtype, device=device, requires_grad=requires_grad)
        return packed, offsets, token, mask.to(device)

    return make


def oracle(packed, offsets, token, mask):
    """Frame by frame."""
    clips = []
    for b, masked in enumerate(mask.tolist()):
        rows = list(packed[offsets[b] : offsets[b + 1]])
        empty = torch.zeros_like(token, dtype=packed.dtype)
        clips.append([token.to(packed.dtype) if m else rows.pop(0) if rows else empty for m in masked])
    return torch.stack([torch.stack(clip) for clip in clips])


# ---- forward and backward -------------------------------------------------------------------------------------------


def test_by_hand(device):
    packed = torch.tensor([[1.0], [2.0], [3.0]], device=device, requires_grad=True)
    token = torch.tensor([9.0], device=device, requires_grad=True)
    mask = torch.tensor([[True, False, True, False], [False, True, False, False]], device=device)
    out = ops.scatter_tokens(packed, torch.tensor([0, 2, 3], device=device), token, mask)
    assert out[..., 0].tolist() == [[9.0, 1.0, 9.0, 2.0], [3.0, 9.0, 0.0, 0.0]]
    grad = torch.arange(1.0, 9.0, device=device).reshape(2, 4, 1)
    grads = torch.autograd.grad(out, (packed, token), grad)
    assert grads[0].tolist() == [[2.0], [4.0], [5.0]] and grads[1].tolist() == [1 + 3 + 6]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("token_dtype", [torch.float32, torch.bfloat16])
def test_equals_loops(device, draw, randn, dtype, token_dtype):
    packed, offsets, token, mask = draw(dtype=dtype, token_dtype=token_dtype, device=device, requires_grad=True)
    out = ops.scatter_tokens(packed, offsets, token, mask)
    assert out.dtype == dtype and out.is_contiguous() and torch.equal(out, oracle(packed, offsets, token, mask))
    assert torch.equal(reference.scatter_tokens(packed, offsets, token, mask), out)
    grad = randn(4, 9, 5, dtype=dtype, device=device)
    got = torch.autograd.grad(out, (packed, token), grad)
    wide = [tensor.detach().double().requires_grad_() for tensor in (packed, token)]
    truth = torch.autograd.grad(oracle(wide[0], offsets, wide[1], mask), wide, grad.double())
    assert [tensor.dtype for tensor in got] == [dtype, token_dtype]
    assert torch.equal(got[0].double(), truth[0])
    assert_close(got[1].double(), truth[1], rtol=2 * torch.finfo(token_dtype).eps, atol=1e-6)


def test_undoes_gather_visible(device, randn):
    x, token = randn(3, 8, 4, device=device), randn(4, device=device)
    mask, lengths = randn(3, 8, device=device) > 0, torch.tensor([8, 5, 0], device=device)
    inside = torch.arange(8, device=device) < lengths[:, None]
    out = ops.scatter_tokens(*ops.gather_visible(x, mask & inside, lengths), token, mask & inside)
    assert torch.equal(out, torch.where((mask & inside)[..., None], token, torch.where(inside[..., None], x, 0.0)))


def test_gradcheck(draw):
    packed, offsets, token, mask = draw(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, t: ops.scatter_tokens(p, offsets, t, mask), (packed, token))


def test_saves_positions_only(draw, saved_shapes):
    packed, offsets, token, mask = draw(requires_grad=True)
    assert saved_shapes(lambda: ops.scatter_tokens(packed, offsets, token, mask)) == [(4, 9)]
    only = ops.scatter_tokens(packed.detach(), offsets, token, mask)
    assert torch.autograd.grad(only.sum(), token)[0].eq(mask.sum()).all()
    assert not ops.scatter_tokens(packed.detach(), offsets, token.detach(), mask).requires_grad


def test_no_second_derivative(draw):
    packed, offsets, token, mask = draw(requires_grad=True)
    loss = ops.scatter_tokens(packed, offsets, token, mask).square().sum()
    (grad,) = torch.autograd.grad(loss, token, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_of_padding_go_nowhere(device, draw, value):
    packed, offsets, token, mask = draw(device=device, requires_grad=True)
    out = ops.scatter_tokens(packed, offsets, token, mask)
    padding = (out == 0).all(-1)
    assert padding.any() and not (padding & mask).any()
    grad = torch.ones_like(out).masked_fill(padding[..., None], value)
    assert all(
        (tensor > 0).all() and tensor.isfinite().all() for tensor in torch.autograd.grad(out, (packed, token), grad)
    )


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(device, draw, randn):
    packed, offsets, token, mask = draw(device=device)
    _, source = torch.ops.slrfast.scatter_tokens(packed, offsets, token, mask)
    grad = randn(4, 9, 5, device=device)
    for turned in (lambda x: x, lambda x: x.mT.contiguous().mT):
        torch.library.opcheck(torch.ops.slrfast.scatter_tokens.default, (turned(packed), offsets, token, turned(mask)))
        arguments = turned(grad), turned(source), len(packed)
        torch.library.opcheck(torch.ops.slrfast.scatter_tokens_grad.default, arguments)


def test_compiles_whole_with_dynamic_shapes_and_under_autocast(device, draw, randn, compiled):
    function = compiled(lambda p, o, t, m: ops.scatter_tokens(p * 2, o, t, m))
    for d in (5, 8):
        packed, offsets, token, mask = draw(d, device=device, requires_grad=True)
        grad = randn(4, 9, d, device=device)
        expected = ops.scatter_tokens(packed * 2, offsets, token, mask)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = function(packed, offsets, token, mask)
        assert torch.equal(got, expected)
        grads = [torch.autograd.grad(out, (packed, token), grad) for out in (got, expected)]
        assert_close(*grads)


def test_compiles_together_with_gather_visible(device, randn, compiled):
    x, token = randn(3, 8, 4, device=device, requires_grad=True), randn(4, device=device, requires_grad=True)
    mask = randn(3, 8, device=device) > 0

    def there_and_back(x, token, mask):
        packed, offsets = ops.gather_visible(x, mask, None)
        return ops.scatter_tokens(packed.tanh(), offsets, token, mask).square().sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        got = compiled(there_and_back)(x, token, mask)
    expected = there_and_back(x, token, mask)
    assert_close(got, expected)
    assert_close(torch.autograd.grad(got, (x, token)), torch.autograd.grad(expected, (x, token)))


@pytest.mark.slow
def test_masking_of_masa_lowered_to_machine_code(randn):
    """Mask, gather, scatter and loss in one graph, whose number of visible frames is known only when it runs."""
    x, token = 9 * randn(3, 12, 5, 2), randn(10, requires_grad=True)
    weight = randn(10, 10, requires_grad=True)
    confidence, lengths, keys = torch.ones(3, 12, 5), torch.tensor([12, 7, 0]), randn(3, 12)

    def step(x, confidence, lengths, keys, token, weight):
        target = ops.motion_mask(x, confidence, lengths, keys)
        packed, offsets = ops.gather_visible(x.flatten(2), target.mask, lengths)
        frames = ops.scatter_tokens((packed @ weight).tanh(), offsets, token, target.mask)
        return ops.masked_motion_loss((frames @ weight).unflatten(2, (5, 2)), *target)

    torch._dynamo.reset()
    results = []
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for function in (step, torch.compile(step, fullgraph=True)):
            loss = function(x, confidence, lengths, keys, token, weight)
            results.append((loss, *torch.autograd.grad(loss, (token, weight))))
    assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_captured_in_a_cuda_graph(draw):
    packed, offsets, token, mask = draw(device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.autograd.grad(ops.scatter_tokens(packed, offsets, token, mask).sum(), (packed, token))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.scatter_tokens(packed, offsets, token, mask)
        grads = torch.autograd.grad(out.square().sum(), (packed, token))
    with torch.no_grad():
        packed.mul_(2)
    graph.replay()
    assert torch.equal(out, oracle(packed, offsets, token, mask))
    assert_close(grads, (2 * packed, 2 * token * mask.sum()))


# ---- edges ----------------------------------------------------------------------------------------------------------


def test_no_sizes(device, randn):
    for b, t, d in ((0, 4, 5), (3, 0, 5), (3, 4, 0), (1, 1, 1)):
        for masked in (False, True):
            mask = torch.full((b, t), masked, device=device)
            count = 0 if masked else t
            offsets = torch.arange(b + 1, device=device) * count
            packed, token = (randn(*shape, device=device, requires_grad=True) for shape in ((b * count, d), (d,)))
            out = ops.scatter_tokens(packed, offsets, token, mask)
            assert torch.equal(out, token.expand(b, t, d) if masked else packed.reshape(b, t, d))
            grads = torch.autograd.grad(out.sum(), (packed, token))
            assert (grads[0] == 1).all() and (grads[1] == mask.sum()).all()


def test_any_strides(device, draw):
    packed, offsets, token, mask = draw(device=device)
    strided = packed.T.contiguous().T, offsets.repeat_interleave(2)[::2], token[:1].expand(5), mask.T.contiguous().T
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(ops.scatter_tokens(*strided), oracle(packed, offsets, token[:1].repeat(5), mask))


def test_rows_beyond_the_visible_frames_are_dropped_where_values_are_not_read(device, draw, compiled):
    """Inside torch.compile, where no error can be raised."""
    packed, token = torch.ones(5, 2, device=device, requires_grad=True), torch.zeros(2, device=device)
    mask = torch.tensor([[False, True, False], [True, True, False]], device=device)
    out = compiled(ops.scatter_tokens)(packed, torch.tensor([0, 3, 5], device=device), token, mask)
    assert out[..., 0].tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    (grad,) = torch.autograd.grad(out.sum(), packed)
    assert grad[:, 0].tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]


# ---- errors ---------------------------------------------------------------------------------------------------------

P, F, T, M = torch.zeros(6, 3), torch.tensor([0, 2, 6]), torch.zeros(3), torch.zeros(2, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((P[0], F, T, M), ValueError, "packed must have shape [S, D], got [3]"),
        ((P, F, T[:2], M), ValueError, "token must have shape [D] with D = 3, got [2]"),
        ((P, F, T, M[0]), ValueError, "mask must have shape [B, T], got [5]"),
        ((P, F[:2], T, M), ValueError, "offsets must have 3 entries, got 2"),
        ((P.int(), F, T, M), TypeError, "packed must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((P, F, T.long(), M), TypeError, "token must be float64, float32, bfloat16 or float16, got torch.int64"),
        ((P, F.int(), T, M), TypeError, "offsets must be torch.int64, got torch.int32"),
        ((P, F, T, M.int()), TypeError, "mask must be torch.bool, got torch.int32"),
        ((P, F, T, None), TypeError, "mask must be a torch.Tensor, got NoneType"),
        ((P, F, T.to("meta"), M), ValueError, "token must be on the device of packed (cpu), got meta"),
        ((P, F - 1, T, M), ValueError, "offsets must rise from 0 to the 6 frames, got [-1, 1, 5]"),
        ((P, torch.tensor([0, 7, 6]), T, M), ValueError, "offsets must rise from 0 to the 6 frames, got [0, 7, 6]"),
        ((P, F, T, M.logical_or(torch.tensor([0, 0, 0, 1, 1]))), ValueError,
         "offsets must give no clip more rows than visible frames, got 4 for clip 1 with 3 visible frames"),
    ],
)  # fmt: skip
def test_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(f"scatter_tokens: {message}")):
        ops.scatter_tokens(*arguments)
