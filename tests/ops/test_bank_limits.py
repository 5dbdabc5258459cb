"""What holds for all memory-bank ops: the same bits in every run and with any thread count, and sizes past 2^31."""

import math

import pytest
import torch

import slrfast
from slrfast.ops import _dispatch

LONG, WIDE = 2**24 + 8, 128  # a bank of 2^31 + 1024 elements
LAST = torch.tensor([[LONG - 1, 2**24, LONG - 1, -1]])


def calls(randn, device="cpu", b=70, n=3000, d=64):
    """One call of every op with all its outputs, on fresh copies of the same tensors."""
    query, positive, bank, other = (randn(*s, device=device) for s in ((b, d), (b, d), (n, d), (n, d)))
    positives = torch.arange(b * 20, device=device).mul(37).remainder(n).view(b, 20)
    run = torch.ops.slrfast

    def enqueue():
        state = bank.clone(), torch.tensor(n - 9, device=device)
        run.enqueue_(*state, query, True)
        return state

    return {
        "info_nce": lambda: run.info_nce(query, positive, bank, 0.5, True, True),
        "neighbor_kl": lambda: run.neighbor_kl(query, bank, positive, other, n // 2, 1.0, 2.0, True),
        "feature_kl": lambda: run.feature_kl(bank, other, 0.5, True),
        "topk_similarity": lambda: (
            *run.topk_similarity(query, bank, 10, True),
            *run.topk_similarity(query, bank, n // 2, False),
            run.topk_similarity_grad(query[:, :20], positives, bank),
        ),
        "mined_bce": lambda: run.mined_bce(query, bank, positives, 0.5, True),
        "bank_losses": lambda: run.bank_losses(query, positive, bank, positives, 0.5, 0.2, True),
        "enqueue_": enqueue,
    }


BACKENDS = [
    (op, name)
    for op in ("info_nce", "neighbor_kl", "feature_kl", "topk_similarity", "mined_bce", "bank_losses", "enqueue_")
    for name in _dispatch.TABLES[op]["cpu"]
]


@pytest.mark.parametrize(("op", "name"), BACKENDS)
def test_same_bits_in_every_run_and_with_any_thread_count(randn, op, name):
    if reason := _dispatch.unavailable(name, "cpu"):
        pytest.skip(reason)
    small = dict(b=9, n=200, d=24) if name == "triton" else {}
    call, before, results = calls(randn, **small)[op], torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1, 2, 3):
            torch.set_num_threads(threads)
            with slrfast.backend(name):
                results.append([tensor.clone() for tensor in call()])
    finally:
        torch.set_num_threads(before)
    assert all(tensor.isfinite().all() for tensor in results[0])
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


@pytest.fixture
def native(request):
    """Only the native kernels hold no [B, N] buffer, so only they can take these sizes."""
    op = request.function.__name__.removeprefix("test_").split("_of_")[0]
    reason = _dispatch.unavailable("native", "cpu")
    if "native" not in _dispatch.TABLES[op]["cpu"]:
        reason = f"{op} has no native kernel"
    if reason:
        pytest.skip(reason)
    with slrfast.backend("native"):
        yield torch.ops.slrfast


ROWS = torch.ones(1, 1).expand(LONG, WIDE)  # no memory: all rows are the same one


def query(product):
    """[1, D] with this inner product with every row of the long bank."""
    return torch.full((1, WIDE), product / WIDE)


@pytest.mark.slow
def test_info_nce_of_a_long_bank(native):
    loss, rank, grad = native.info_nce(query(0.0), query(1.0), ROWS, 1.0, True, True)
    assert loss.item() == pytest.approx(math.log(LONG + 1), rel=1e-5) and rank.item() == 0
    torch.testing.assert_close(grad, torch.full_like(grad, 1 - 1 / WIDE), rtol=1e-4, atol=0)
    assert native.info_nce(query(1.0), query(1.0), ROWS, 1.0, False, True)[1].item() == LONG


@pytest.mark.slow
def test_mined_bce_of_a_long_bank(native):
    loss, grad = native.mined_bce(query(-50.0), ROWS, LAST, 1.0, True)
    assert loss.item() == pytest.approx(100 / LONG)
    torch.testing.assert_close(grad, torch.full_like(grad, -2 / LONG), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_bank_losses_of_a_long_bank(native):
    losses = native.bank_losses(query(-50.0), torch.zeros(1, WIDE), ROWS, LAST, 50.0, 1.0, True)
    assert losses[0].item() == pytest.approx(math.log(1 + LONG * math.exp(-1)), rel=1e-5)
    assert losses[1].item() == pytest.approx(100 / LONG)
    torch.testing.assert_close(losses[3], torch.full_like(losses[3], -2 / LONG), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_topk_similarity_of_a_long_bank(native):
    values, indices = native.topk_similarity(query(0.5), ROWS, 3, True)
    assert values.tolist() == [[0.5] * 3] and indices.tolist() == [[0, 1, 2]]


MANY = 2**19 + 1


@pytest.fixture
def crowd(randn):
    """One query, the same one 2^19 + 1 times, and 4096 rows of a bank: 2^31 + 4096 scores."""
    query = randn(1, 1)
    return query, query.expand(MANY, 1), randn(4096, 1)


def same_rows(many, one):
    """Every row of the results is that of the single query."""
    for got, expected in zip(many, one, strict=True):
        torch.testing.assert_close(got, expected.expand(got.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_info_nce_of_many_queries(native, crowd):
    one, many, bank = crowd
    same_rows(native.info_nce(many, many, bank, 0.5, True, True), native.info_nce(one, one, bank, 0.5, True, True))


@pytest.mark.slow
def test_mined_bce_of_many_queries(native, crowd):
    one, many, bank = crowd
    positives = torch.tensor([[7, 4095, -1]])
    got = native.mined_bce(many, bank, positives.expand(MANY, 3), 0.5, True)
    same_rows(got, native.mined_bce(one, bank, positives, 0.5, True))


@pytest.mark.slow
def test_topk_similarity_of_many_queries(native, crowd):
    one, many, bank = crowd
    same_rows(native.topk_similarity(many, bank, 2, True), native.topk_similarity(one, bank, 2, True))


@pytest.mark.slow
def test_neighbor_kl_of_many_queries(native, crowd):
    one, many, bank = crowd
    got = native.neighbor_kl(many, bank, many, bank, 9, 0.5, 1.0, True)
    same_rows(got, native.neighbor_kl(one, bank, one, bank, 9, 0.5, 1.0, True))
