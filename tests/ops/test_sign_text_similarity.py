import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import slrfast
from slrfast import ops
from slrfast.kernels import native_text
from slrfast.ops import _dispatch
from slrfast.reference import sign_text_similarity as reference

OP = "sign_text_similarity"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(b=3, ls=5, m=4, lt=7, d=6, *, dtype=torch.float32, other=None, masked=True, device="cpu", seed=0):
    """Signs, texts and their masks; the first sign sequence and the second text are empty."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sign, text = randn(b, ls, d).to(dtype), randn(m, lt, d).to(other or dtype)
    masks = [torch.rand(shape, generator=generator) < 0.7 for shape in ((b, ls), (m, lt))] if masked else [None, None]
    if masked:
        masks[0][:1], masks[1][1:2] = False, False
    return [None if tensor is None else tensor.to(device) for tensor in (sign, text, *masks)]


def oracle(sign, text, sign_mask, text_mask, row_temperature=1.0):
    """Row by row and word by word, in Python floats."""
    sign, text = sign.tolist(), text.tolist()
    rows = [[True] * len(x) for x in sign] if sign_mask is None else sign_mask.tolist()
    words = [[True] * len(x) for x in text] if text_mask is None else text_mask.tolist()
    result = torch.zeros(len(sign), len(text), dtype=torch.float64)
    for i, j in ((i, j) for i in range(len(sign)) for j in range(len(text))):
        total, seen = 0.0, 0
        for a in (a for a, there in zip(sign[i], rows[i], strict=True) if there):
            z = [sum(x * y for x, y in zip(a, w, strict=True)) for w, k in zip(text[j], words[j], strict=True) if k]
            power = [math.exp((x - max(z)) / row_temperature) for x in z]
            total += sum(p * x for p, x in zip(power, z, strict=True)) / sum(power) if z else 0.0
            seen += 1
        result[i, j] = total / max(seen, 1)
    return result


def gradients(tensors, grad, **options):
    sign, text = (tensor.detach().requires_grad_() for tensor in tensors[:2])
    return torch.autograd.grad(ops.sign_text_similarity(sign, text, *tensors[2:], **options), (sign, text), grad)


def truth(tensors, grad, row_temperature=1.0):
    """The gradients by autograd of the equation, in float64."""
    sign, text = (tensor.detach().double().requires_grad_() for tensor in tensors[:2])
    similarity = reference.sign_text_similarity(sign, text, *tensors[2:], row_temperature)
    return torch.autograd.grad(similarity, (sign, text), grad.double())


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    sign = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [9.0, 9.0]]], device=device)
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], device=device)
    rows = torch.tensor([[True, True], [True, False]], device=device)
    e = math.e  # scores (1, 0), (0, 2); (3, 0)
    expected = [[(e / (e + 1) + 2 * e**2 / (e**2 + 1)) / 2], [3 * e**3 / (e**3 + 1)]]
    assert_close(ops.sign_text_similarity(sign, text, rows), torch.tensor(expected, device=device))
    words = torch.tensor([[True, False]], device=device)
    assert ops.sign_text_similarity(sign, text, rows, words).tolist() == [[0.5], [3.0]]
    cold = ops.sign_text_similarity(sign, text, rows, row_temperature=0.01)
    assert_close(cold, torch.tensor([[1.5], [3.0]], device=device))  # the best word of each row


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("dtype", "other", "result"),
    [
        *((dtype, dtype, torch.float64 if dtype == torch.float64 else torch.float32) for dtype in DTYPES),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
    ],
)
def test_equals_loops(device, dtype, other, result, masked):
    tensors = draw(dtype=dtype, other=other, masked=masked, device=device)
    for row_temperature in (1.0, 0.3):
        similarity = ops.sign_text_similarity(*tensors, row_temperature=row_temperature)
        assert similarity.dtype == result and similarity.shape == (3, 4) and similarity.is_contiguous()
        assert_close(similarity.double().cpu(), oracle(*tensors, row_temperature), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_exact_than_the_reference(device, dtype):
    tensors = draw(4, 33, 5, 40, 130, dtype=dtype, device=device)
    tensors[:2] = [torch.nn.functional.normalize(tensor, dim=-1) for tensor in tensors[:2]]
    wide = [tensor.double() for tensor in tensors[:2]]
    expected = reference.sign_text_similarity(*wide, *tensors[2:], 1.0)
    plain = reference.sign_text_similarity(*tensors, 1.0)
    error = (ops.sign_text_similarity(*tensors) - expected).abs().max()
    assert error <= 1.5 * (plain - expected).abs().max() + 1e-8


def test_is_deterministic(device):
    tensors = draw(4, 33, 5, 40, 30, device=device)
    grad = torch.ones(4, 5, device=device)
    assert torch.equal(ops.sign_text_similarity(*tensors), ops.sign_text_similarity(*tensors))
    assert all(map(torch.equal, gradients(tensors, grad), gradients(tensors, grad)))


# ---- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_equals_that_of_the_equation(device, dtype, masked):
    tensors = draw(dtype=dtype, masked=masked, device=device)
    grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).to(device)
    grad = grad.double() if dtype == torch.float64 else grad
    unit = 2**-8 if dtype in (torch.bfloat16, torch.float16) else 2e-6
    for got, expected, tensor in zip(gradients(tensors, grad), truth(tensors, grad), tensors, strict=False):
        assert got.dtype == dtype and got.shape == tensor.shape
        assert (got.double() - expected).abs().max() <= 2 * unit * expected.abs().max()


def test_gradient_of_mixed_types(device):
    tensors = draw(dtype=torch.float32, other=torch.bfloat16, device=device)
    grad = torch.ones(3, 4, device=device)
    got, expected = gradients(tensors, grad, row_temperature=0.5), truth(tensors, grad, 0.5)
    assert got[0].dtype == torch.float32 and got[1].dtype == torch.bfloat16
    assert_close(got[0].double(), expected[0].double(), rtol=1e-5, atol=1e-5)
    assert_close(got[1].double(), expected[1].double(), rtol=1e-2, atol=1e-2)


def test_gradient_with_and_without_kept_slopes(device):
    tensors = draw(4, 33, 5, 40, 30, device=device)
    grad = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).to(device)
    similarity, slopes = torch.ops.slrfast.sign_text_similarity(*tensors, 0.5, False)
    assert slopes.numel() == 0 and torch.equal(similarity, ops.sign_text_similarity(*tensors, row_temperature=0.5))
    again = torch.ops.slrfast.sign_text_similarity_grad(grad, *tensors, slopes, 0.5, True, True)
    for a, b in zip(again, gradients(tensors, grad, row_temperature=0.5), strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [0, 1])
def test_gradient_of_one_side(device, side):
    tensors = draw(device=device)
    both = gradients(tensors, torch.ones(3, 4, device=device))
    tensors[side].requires_grad_()
    similarity = ops.sign_text_similarity(*tensors)
    (got,) = torch.autograd.grad(similarity, tensors[side], torch.ones_like(similarity))
    assert torch.equal(got, both[side]) and tensors[1 - side].grad is None


def test_what_is_saved(saved_shapes):
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    sign, text, *masks = draw(2, 40, 3, 50, 4)
    sign.requires_grad_()
    with slrfast.backend("native"):  # few scores: their gradients are kept, in whole panels
        assert saved_shapes(lambda: ops.sign_text_similarity(sign, text, *masks))[4:] == [(96 * 152,)]
    with slrfast.backend("reference"):
        assert saved_shapes(lambda: ops.sign_text_similarity(sign, text, *masks))[4:] == [(0,)]
    sign, text = torch.zeros(64, 64, 4, requires_grad=True), torch.zeros(64, 64, 4)
    with slrfast.backend("native"):  # 64 MiB of them
        assert saved_shapes(lambda: ops.sign_text_similarity(sign, text)) == [(64, 64, 4), (64, 64, 4), (0,)]
    assert not ops.sign_text_similarity(sign.detach(), text).requires_grad


def test_backward_on_another_backend():
    """Slopes are read by the backend that kept them, whatever is chosen meanwhile."""
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    sign, text, *masks = draw()
    sign.requires_grad_()
    with slrfast.backend("native"):
        similarity = ops.sign_text_similarity(sign, text, *masks)
    with slrfast.backend("reference"):
        (got,) = torch.autograd.grad(similarity.sum(), sign)
    assert_close(got.double(), truth([sign, text, *masks], torch.ones(3, 4))[0], rtol=1e-5, atol=1e-5)


def test_no_second_derivative():
    sign, text, *masks = draw()
    similarity = ops.sign_text_similarity(sign.requires_grad_(), text, *masks)
    (grad,) = torch.autograd.grad(similarity.square().sum(), sign, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_backward_twice_through_one_graph():
    sign, text, *masks = draw()
    similarity = ops.sign_text_similarity(sign.requires_grad_(), text, *masks).sum()
    first, second = (torch.autograd.grad(similarity, sign, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(device, masked):
    sign, text, *masks = draw(2, 3, 2, 4, 3, dtype=torch.float64, masked=masked, device=device)
    inputs = sign.requires_grad_(), text.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ops.sign_text_similarity(a, b, *masks, row_temperature=0.4), inputs)


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(device, request, masked):
    keeps = [False, True] if request.node.callspec.params["device"][1] == "native" else [False]
    tensors = draw(masked=masked, device=device)
    strided = [None if t is None else t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors]
    for some in (tensors, strided):
        for keep in keeps:
            torch.library.opcheck(torch.ops.slrfast.sign_text_similarity.default, (*some, 0.5, keep))
            similarity, slopes = torch.ops.slrfast.sign_text_similarity(*some, 0.5, keep)
            for wanted in ((True, True), (True, False), (False, True)):
                arguments = similarity, *some, slopes, 0.5, *wanted
                torch.library.opcheck(torch.ops.slrfast.sign_text_similarity_grad.default, arguments)


def test_compiles_whole_with_dynamic_shapes_and_under_autocast(device, compiled):
    function = compiled(lambda a, b, *masks: ops.sign_text_similarity(a * 2, b, *masks).square().sum())
    for length in (5, 9):
        sign, text, *masks = draw(ls=length, device=device)
        leaves = sign.requires_grad_(), text.requires_grad_()
        expected = ops.sign_text_similarity(sign * 2, text, *masks).square().sum()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = function(*leaves, *masks)
        assert got.dtype == torch.float32
        assert_close(got, expected)
        assert_close(torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves))


def test_compiles_before_any_other_call(compiled, monkeypatch):
    """Which backend runs is looked up while the graph is traced, and not traced itself."""
    monkeypatch.setattr(_dispatch, "_chosen", {})
    sign, text, *masks = draw()
    got = compiled(ops.sign_text_similarity)(sign.requires_grad_(), text, *masks)
    assert_close(got, ops.sign_text_similarity(sign, text, *masks))
    assert got.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", _dispatch.TABLES[OP]["cuda"])
def test_captured_in_a_cuda_graph(name):
    if reason := _dispatch.unavailable(name, "cuda"):
        pytest.skip(reason)
    with slrfast.backend(name):
        tensors, grad = draw(device="cuda"), torch.ones(3, 4, device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            gradients(tensors, grad)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            similarity, grads = ops.sign_text_similarity(*tensors), gradients(tensors, grad)
        for tensor, other in zip(tensors, draw(device="cuda", seed=3), strict=True):
            tensor.copy_(other)
        graph.replay()
        assert_close(similarity.double().cpu(), oracle(*tensors), rtol=1e-5, atol=1e-5)
        assert_close(grads, gradients(tensors, grad))


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1, 1), (2, 9, 3, 70, 17), (1, 70, 2, 5, 3), (2, 3, 2, 4, 0), (5, 1, 1, 130, 2)],
    ids=str,
)
def test_ragged_sizes(device, sizes):
    for masked in (False, True):
        tensors = draw(*sizes, masked=masked, device=device)
        similarity = ops.sign_text_similarity(*tensors)
        assert_close(similarity.double().cpu(), oracle(*tensors), rtol=5e-6, atol=5e-6)
        grad = torch.ones_like(similarity)
        for got, expected in zip(gradients(tensors, grad), truth(tensors, grad), strict=True):
            assert_close(got.double(), expected.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(0, 5, 4, 7, 6), (3, 0, 4, 7, 6), (3, 5, 0, 7, 6), (3, 5, 4, 0, 6)], ids=str)
def test_nothing_to_compare_is_zero(device, sizes):
    tensors = draw(*sizes, masked=False, device=device)
    similarity = ops.sign_text_similarity(*tensors)
    assert similarity.shape == (sizes[0], sizes[2]) and not similarity.any()
    grads = gradients(tensors, torch.ones_like(similarity))
    assert all(got.shape == x.shape and not got.any() for got, x in zip(grads, tensors, strict=False))


def test_empty_sequences_and_texts_have_no_gradient(device):
    sign, text, rows, words = draw(device=device)
    similarity = ops.sign_text_similarity(sign, text, rows, words)
    assert not similarity[0].any() and not similarity[:, 1].any() and similarity[1, 0] != 0
    grads = gradients((sign, text, rows, words), torch.ones_like(similarity))
    for grad, mask in zip(grads, (rows, words), strict=True):
        assert not grad[~mask].any() and grad[mask].any()
    for masks in ((torch.zeros_like(rows), None), (None, torch.zeros_like(words))):
        assert not ops.sign_text_similarity(sign, text, *masks).any()
        assert not any(grad.any() for grad in gradients((sign, text, *masks), torch.ones_like(similarity)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_masked_out_is_not_looked_at(device, value):
    sign, text, rows, words = draw(device=device)
    dirty = sign.masked_fill(~rows[..., None], value), text.masked_fill(~words[..., None], value), rows, words
    expected, grad = ops.sign_text_similarity(sign, text, rows, words), torch.ones(3, 4, device=device)
    assert torch.equal(ops.sign_text_similarity(*dirty), expected)
    assert all(map(torch.equal, gradients(dirty, grad), gradients((sign, text, rows, words), grad)))


def test_a_nan_spoils_its_row_or_column(device):
    sign, text, rows, words = draw(masked=False, device=device)
    sign[1, 2, 3] = math.nan
    found = ops.sign_text_similarity(sign, text).isnan()
    assert found.any(1).tolist() == found.all(1).tolist() == [False, True, False]
    sign, text, rows, words = draw(masked=False, device=device)
    text[2, 6, 0] = math.nan
    found = ops.sign_text_similarity(sign, text).isnan()
    assert found.any(0).tolist() == found.all(0).tolist() == [False, False, True, False]


def test_scores_beyond_the_exponents(device):
    sign, text = torch.full((1, 2, 1), 1e3, device=device), torch.tensor([[[1.0], [-1.0], [0.5]]], device=device)
    assert ops.sign_text_similarity(sign, text).item() == 1e3
    assert ops.sign_text_similarity(-sign, text).item() == 1e3
    assert_close(ops.sign_text_similarity(sign, text, row_temperature=1e4).isfinite().all().item(), True)


def test_any_strides(device):
    sign, text, rows, words = draw(device=device)
    strided = (
        sign.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        torch.stack((text, text), 2)[:, :, 1],
        rows.T.contiguous().T,
        words[:1].expand_as(words),
    )
    assert not any(tensor.is_contiguous() for tensor in strided)
    compact = [tensor.contiguous() for tensor in strided]
    assert torch.equal(ops.sign_text_similarity(*strided), ops.sign_text_similarity(*compact))
    grad = torch.ones(4, 3, device=device).T
    assert all(map(torch.equal, gradients(strided, grad), gradients(compact, grad.contiguous())))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads):
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    tensors, grad, before = draw(6, 60, 5, 90, 64), torch.ones(6, 5), torch.get_num_threads()
    with slrfast.backend("native"):
        expected = ops.sign_text_similarity(*tensors), *gradients(tensors, grad)
        torch.set_num_threads(threads)
        try:
            got = ops.sign_text_similarity(*tensors), *gradients(tensors, grad)
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, got, expected))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(0, most) for most in (4, 40, 4, 40, 40))),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    flags=st.tuples(st.booleans(), st.booleans()),
    row_temperature=st.floats(0.05, 20),
    seed=st.integers(0, 2**31),
)
def test_random_calls_equal_the_reference(sizes, dtypes, flags, row_temperature, seed):
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    sign, text, *masks = draw(*sizes, dtype=dtypes[0], other=dtypes[1], masked=flags[0], seed=seed)
    sign, text = (x / max(sizes[4], 1) ** 0.5 for x in (sign, text))
    similarity, slopes = native_text.sign_text_similarity(sign, text, *masks, row_temperature, flags[1])
    grad = torch.randn(similarity.shape, generator=torch.Generator().manual_seed(seed)).to(similarity.dtype)
    got = native_text.sign_text_similarity_grad(grad, sign, text, *masks, slopes, row_temperature, True, True)
    wide = sign.double(), text.double(), *masks
    expected = reference.sign_text_similarity_grad(grad.double(), *wide, row_temperature, True, True)
    assert_close(similarity.double(), reference.sign_text_similarity(*wide, row_temperature), rtol=1e-5, atol=1e-5)
    unit = 2**-8 if dtypes == (torch.bfloat16,) * 2 else 2e-5
    for one, other in zip(got, expected, strict=True):
        if one.numel():
            assert (one.double() - other).abs().max() <= unit * other.abs().max() + 1e-6


# ---- errors ---------------------------------------------------------------------------------------------------------

S, T, SM, TM = torch.zeros(2, 3, 4), torch.zeros(5, 6, 4), torch.ones(2, 3).bool(), torch.ones(5, 6).bool()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((S[0], T), {}, ValueError, "sign must have shape [B, Ls, D], got [3, 4]"),
        ((S, T[..., :2]), {}, ValueError, "text must have shape [M, Lt, D] with D = 4, got [5, 6, 2]"),
        ((S, None), {}, TypeError, "text must be a torch.Tensor, got NoneType"),
        ((S, T, SM[:1]), {}, ValueError, "sign_mask must have shape [B, Ls] with B = 2, got [1, 3]"),
        ((S, T, SM, TM[:, :3]), {}, ValueError, "text_mask must have shape [M, Lt] with Lt = 6, got [5, 3]"),
        ((S.int(), T), {}, TypeError, "sign must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((S, T, SM.long()), {}, TypeError, "sign_mask must be torch.bool, got torch.int64"),
        ((S, T, None, TM.float()), {}, TypeError, "text_mask must be torch.bool, got torch.float32"),
        ((S, T.to("meta")), {}, ValueError, "text must be on the device of sign (cpu), got meta"),
        ((S, T, SM.to("meta")), {}, ValueError, "sign_mask must be on the device of sign (cpu), got meta"),
        ((S, T), {"row_temperature": 0.0}, ValueError, "row_temperature must be finite and > 0, got 0.0"),
        ((S, T), {"row_temperature": "1"}, TypeError, "row_temperature must be a number, got str"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(f"sign_text_similarity: {message}")):
        ops.sign_text_similarity(*arguments, **options)


@pytest.mark.parametrize(("shape", "slopes"), [((2, 4), 0), ((2, 5), 7)])
def test_raw_calls_with_other_shapes(shape, slopes):
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    with pytest.raises(ValueError, match="slopes"):
        native_text.sign_text_similarity_grad(
            torch.zeros(shape), S, T, None, None, torch.zeros(slopes), 1.0, True, True
        )
