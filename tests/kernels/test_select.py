"""The choice of the k largest where the tests of the ops do not reach: long rows, many groups of rows, many chunks."""

import os

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from slrfast.kernels.triton import _select, neighbor_kl, topk_similarity
from slrfast.reference import neighbor_kl as neighbor_reference
from slrfast.reference import topk_similarity as topk_reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.fixture
def draw():
    """Seeded numbers; ``levels`` of them, so that inner products are exact and many are equal."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape, levels=None, dtype=torch.float32):
        if levels:
            return torch.randint(-levels, levels + 1, shape, generator=generator).to(DEVICE, dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    return make


@pytest.fixture(params=["whole rows", "blocks"])
def reading(request, monkeypatch):
    """Rows of 1,200 scores (600 in float64) that fit the registers, and rows that do not."""
    if request.param == "blocks":
        monkeypatch.setattr(_select, "WHOLE_ROW", 4096)


def expected(scores, k):
    """The k largest of every row, NaN as +inf, by index; a stable sort keeps the lowest of equals."""
    order = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return order.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(1).values


def choose(scores, k):
    values = scores.new_full((scores.shape[0], k), torch.nan)
    indices = torch.full(values.shape, -1, device=DEVICE)
    reading, options = _select.row_reading(scores.shape[1], scores.dtype == torch.float64)
    topk_similarity.write_chosen[(scores.shape[0],)](scores, values, indices, scores.shape[1], k, *reading, **options)
    return values, indices


@pytest.mark.parametrize(
    ("dtype", "n", "k"),
    [(torch.float32, 1200, 1), (torch.float32, 1200, 600), (torch.float32, 1200, 1199), (torch.float64, 600, 300)],
)
def test_any_bit_pattern(draw, reading, dtype, n, k):
    """Infinities, both zeros, subnormal numbers, NaN, runs of equal numbers, and a row that is all the same."""
    scores = draw(6, n, dtype=dtype)
    scores[1] = scores[1].round()
    scores[2] *= torch.finfo(dtype).tiny
    scores[3, ::7], scores[3, 1::7], scores[3, 2::7] = torch.inf, -torch.inf, torch.nan
    scores[4], scores[4, ::2] = 0.0, -0.0
    scores[5] = -1.5
    scores = scores.contiguous()
    values, indices = choose(scores, k)
    assert indices.equal(expected(scores, k))
    assert values.view(BITS[dtype]).equal(scores.gather(1, indices).view(BITS[dtype]))


@pytest.mark.parametrize("k", [129, 400])
def test_neighbours_of_groups_of_rows(draw, monkeypatch, k):
    monkeypatch.setattr(_select, "SCRATCH", 3 * 2 * 400 * 4)
    teacher, teacher_bank, student, student_bank = (
        draw(*shape, levels=2) for shape in ((7, 3), (400, 3), (7, 37), (400, 37))
    )
    arguments = teacher, teacher_bank.bfloat16(), student, student_bank.bfloat16(), k, 3.0, 20.0
    got = neighbor_kl.neighbor_kl(*arguments, True)
    assert_close(got, neighbor_reference.neighbor_kl_grad(*arguments, True), rtol=1e-4, atol=1e-5)
    assert neighbor_kl.neighbor_kl(*arguments, False)[1].shape == (0,)


@pytest.mark.parametrize(
    ("rows", "chunks", "k", "dtype"),
    [(17, 128, 3, torch.bfloat16), (17, 128, 20, torch.float64), (5, 2, 50, torch.float32), (5, 2, 70, torch.float16)],
)
def test_best_of_many_chunks(draw, monkeypatch, rows, chunks, k, dtype):
    """Chunks of one tile of scores, and fewer chunks than tiles."""
    monkeypatch.setattr(topk_similarity, "CHUNKS", chunks)
    query, bank = draw(rows, 5, levels=3, dtype=dtype), draw(300, 5, levels=3, dtype=dtype)
    got = topk_similarity.topk_similarity(query, bank, k, True)
    wide = query.double() @ bank.double().T
    order = wide.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert_close(got[0].double(), wide.gather(1, order), rtol=0, atol=0)
    assert got[1].equal(order)


def test_rising_scores_replace_all_that_was_kept(monkeypatch):
    monkeypatch.setattr(topk_similarity, "CHUNKS", 2)
    query = torch.ones(1, 1, device=DEVICE)
    bank = torch.arange(400.0, device=DEVICE)[:, None]
    values, indices = topk_similarity.topk_similarity(query, bank, 20, True)
    assert values.equal(399 - torch.arange(20.0, device=DEVICE)[None]) and indices.equal(values.long())


def test_many_of_groups_of_rows(draw, monkeypatch):
    monkeypatch.setattr(_select, "SCRATCH", 3 * 500 * 4)
    query, bank = draw(7, 4, levels=3), draw(500, 4, levels=3)
    for sort in (True, False):
        got = topk_similarity.topk_similarity(query, bank, 200, sort)
        assert_close(got[0].sort(1).values, topk_reference.topk_similarity(query, bank, 200, True)[0].sort(1).values)
        assert got[1].sort(1).values.equal(topk_reference.topk_similarity(query, bank, 200, True)[1].sort(1).values)


def test_gradient_in_splits(draw):
    weight, bank = draw(2, 900), draw(1000, 70)
    indices = torch.randint(0, 1000, (2, 900), device=DEVICE)
    got = topk_similarity.topk_similarity_grad(weight, indices, bank.T.contiguous().T)
    assert_close(got, topk_reference.topk_similarity_grad(weight, indices, bank), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spoiled", [torch.inf, -torch.inf, torch.nan])
def test_bfloat16_bank_with_infinities(spoiled):
    """A float32 query is split into three parts; what is not finite must come through as in one product."""
    bank = torch.tensor([[1.0], [spoiled], [-2.0]], device=DEVICE, dtype=torch.bfloat16)
    query = torch.tensor([[1.0], [1.1], [-3.3], [torch.inf]], device=DEVICE)
    values, indices = topk_similarity.topk_similarity(query, bank, 3, True)
    assert_close(values, (query @ bank.float().T).gather(1, indices), equal_nan=True)
