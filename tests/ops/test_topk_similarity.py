import math
import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from slrfast import ops
from slrfast.reference import topk_similarity as reference

OP = "topk_similarity"


def oracle(query, bank, k):
    """Values and indices, row by row, in Python floats; the stable sort keeps the lowest index of equal values."""
    values, indices = [], []
    for q in query.tolist():
        scores = [sum(a * b for a, b in zip(q, row, strict=True)) for row in bank.tolist()]
        indices.append(sorted(range(len(scores)), key=lambda i, s=scores: -s[i])[:k])
        values.append([scores[i] for i in indices[-1]])
    return torch.tensor(values, dtype=torch.float64), torch.tensor(indices)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 4)


def small_integers(randn, *shape, device):
    """Numbers whose inner products are exact in float32 and often equal."""
    return randn(*shape, device=device).round().clamp(-2, 2)


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    query = torch.tensor([[1.0, 2.0]], device=device)
    bank = torch.tensor([[1.0, 1.0], [0.0, 3.0], [3.0, 0.0], [-1.0, 0.0]], device=device)
    values, indices = ops.topk_similarity(query, bank, 3)
    assert values.tolist() == [[6.0, 3.0, 3.0]] and indices.tolist() == [[1, 0, 2]]


@pytest.mark.parametrize(
    ("query_type", "bank_type", "result_type"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_equals_loops(device, randn, query_type, bank_type, result_type):
    query, bank = randn(4, 6, dtype=query_type, device=device), randn(19, 6, dtype=bank_type, device=device)
    values, indices = ops.topk_similarity(query, bank, 5)
    expected, expected_indices = oracle(query, bank, 5)
    assert values.dtype == result_type and indices.dtype == torch.int64
    assert_close(values.double().cpu(), expected, rtol=1e-5, atol=1e-5)
    assert_close(indices.cpu(), expected_indices)


# ---- backward -------------------------------------------------------------------------------------------------------


def test_gradient_through_the_values(device, randn, small_chunks):
    query = randn(4, 6, device=device, requires_grad=True)
    bank, weight = randn(19, 6, device=device), randn(4, 5, device=device)
    values, indices = ops.topk_similarity(query, bank, 5)
    (values * weight).sum().backward()
    assert_close(query.grad, torch.einsum("bk,bkd->bd", weight, bank[indices]))
    assert not indices.requires_grad


def test_no_gradient_to_the_bank(randn):
    query, bank = randn(4, 6, requires_grad=True), randn(19, 6, requires_grad=True)
    with pytest.warns(UserWarning, match=re.escape("topk_similarity: bank requires grad, but no gradient flows to it")):
        values, _ = ops.topk_similarity(query, bank, 5)
    values.sum().backward()
    assert query.grad is not None and bank.grad is None


def test_gradient_of_many_neighbours_has_the_dtype_of_the_query(device, randn):
    query = randn(2, 6, device=device, dtype=torch.bfloat16, requires_grad=True)
    bank, weight = randn(700, 6, device=device), randn(2, 600, device=device)
    values, indices = ops.topk_similarity(query, bank, 600)
    (values * weight).sum().backward()
    assert_close(query.grad, torch.einsum("bk,bkd->bd", weight, bank[indices]).bfloat16())


def test_bank_overwritten_before_backward_is_an_error(randn):
    query, bank = randn(4, 6, requires_grad=True), randn(19, 6)
    values, _ = ops.topk_similarity(query, bank, 5)
    ops.enqueue_(bank, torch.tensor(0), randn(4, 6))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


def test_gradcheck(randn, small_chunks):
    query, bank = randn(3, 4, dtype=torch.float64, requires_grad=True), randn(9, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q: ops.topk_similarity(q, bank, 3)[0], query)


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sorted_", [True, False])
def test_opcheck(device, randn, sorted_):
    query, bank, grad = (randn(*s, device=device) for s in ((4, 6), (19, 6), (4, 5)))
    indices = torch.arange(20, device=device).remainder(19).view(4, 5)
    for move in (lambda tensor: tensor, lambda tensor: tensor.T.contiguous().T):
        torch.library.opcheck(torch.ops.slrfast.topk_similarity.default, (move(query), move(bank), 5, sorted_))
        torch.library.opcheck(torch.ops.slrfast.topk_similarity_grad.default, tuple(map(move, (grad, indices, bank))))


def test_one_graph_for_every_k(randn):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(ops.topk_similarity, fullgraph=True, backend=counter, dynamic=True)
    query, bank = randn(4, 6), randn(19, 6)
    for k in (5, 6, 7):
        assert_close(function(query, bank, k), ops.topk_similarity(query, bank, k))
    nodes = [node.target for node in counter.graphs[-1].graph.nodes if node.op == "call_function"]
    assert counter.frame_count <= 2 and nodes.count(torch.ops.slrfast.topk_similarity.default) <= 1


@pytest.mark.parametrize("sorted_", [True, False])
def test_compiles_whole_and_under_autocast(device, randn, compiled, small_chunks, sorted_):
    query, bank = randn(4, 6, device=device, requires_grad=True), randn(19, 6, device=device)
    expected, expected_indices = ops.topk_similarity(query, bank, 5, sorted=sorted_)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        values, indices = compiled(ops.topk_similarity)(query, bank, 5, sorted=sorted_)
    assert_close((values, indices), (expected, expected_indices))
    assert_close(torch.autograd.grad(values.sum(), query), torch.autograd.grad(expected.sum(), query))


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 4, 5, 11, 22, 23])
@pytest.mark.parametrize("rows", [4, 7, 65536])
def test_ties_take_the_lowest_index_across_chunks(device, randn, monkeypatch, rows, k):
    monkeypatch.setattr(reference, "CHUNK", rows)
    query, bank = small_integers(randn, 6, 3, device=device), small_integers(randn, 23, 3, device=device)
    values, indices = ops.topk_similarity(query, bank, k)
    expected, expected_indices = oracle(query, bank, k)
    assert_close(values.double().cpu(), expected)
    assert_close(indices.cpu(), expected_indices)


@pytest.mark.parametrize("rows", [4, 65536])
def test_unsorted_keeps_the_same_rows(device, randn, monkeypatch, rows):
    monkeypatch.setattr(reference, "CHUNK", rows)
    query, bank = small_integers(randn, 6, 3, device=device), small_integers(randn, 23, 3, device=device)
    values, indices = ops.topk_similarity(query, bank, 9, sorted=False)
    assert_close(values, (query @ bank.T).gather(1, indices))
    assert_close(indices.sort().values, ops.topk_similarity(query, bank, 9)[1].sort().values)


@pytest.mark.parametrize(
    ("b", "n", "d", "k"), [(1, 1, 1, 1), (1, 252, 7, 252), (2, 507, 123, 31), (0, 5, 4, 2), (2, 5, 0, 3)]
)
def test_ragged_sizes(device, randn, b, n, d, k):
    query, bank = randn(b, d, device=device), randn(n, d, device=device)
    values, indices = ops.topk_similarity(query, bank, k)
    expected, expected_indices = oracle(query, bank, k)
    assert_close(values.double().cpu(), expected.view(b, k), rtol=1e-4, atol=1e-4)
    assert_close(indices.cpu(), expected_indices.to(torch.int64).view(b, k))


def test_any_strides(device, randn, small_chunks):
    query, bank = randn(6, 4, device=device), randn(6, 46, device=device)
    got = ops.topk_similarity(query.T, bank.T[::2], 5)
    assert_close(got, ops.topk_similarity(query.T.contiguous(), bank.T[::2].contiguous(), 5))


class Widths(TorchDispatchMode):
    """Records the width of every matrix with ``rows`` rows that an operation returns."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.seen = rows, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[0] == self.rows:
                self.seen.add(tensor.shape[1])
        return out


def test_no_buffer_as_long_as_the_bank(randn, small_chunks):
    query, bank = randn(3, 5, requires_grad=True), randn(410, 5)
    with Widths(rows=3) as widths:
        ops.topk_similarity(query, bank, 2)[0].sum().backward()
    assert 2 in widths.seen and max(widths.seen) <= 5


def test_infinities_and_nan_rank_as_in_torch(device):
    query = torch.ones(1, 1, device=device)
    bank = torch.tensor([-math.inf, 1.0, math.inf, math.nan, 2.0], device=device)[:, None]
    values, indices = ops.topk_similarity(query, bank, 4)
    assert set(indices[0, :2].tolist()) == {2, 3} and indices[0, 2:].tolist() == [4, 1]
    assert values.isnan().sum() == 1


# ---- errors ---------------------------------------------------------------------------------------------------------

Q, N = torch.zeros(2, 3), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Q, N, 6), ValueError, "k must be in [1, 5], got 6"),
        ((Q, N, 0), ValueError, "k must be in [1, 5], got 0"),
        ((Q, N, True), TypeError, "k must be an integer, got bool"),
        ((Q, N.T, 2), ValueError, "bank must have shape [N, D] with D = 3, got [3, 5]"),
        ((Q.long(), N, 2), TypeError, "query must be float64, float32, bfloat16 or float16, got torch.int64"),
        ((Q, N[:0], 1), ValueError, "k must be in [1, 0], got 1"),
        ((Q, N.int(), 2), TypeError, "bank must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((Q, N.to("meta"), 2), ValueError, "bank must be on the device of query (cpu), got meta"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(f"topk_similarity: {message}")):
        ops.topk_similarity(*arguments)
