"""Random calls of the memory-bank ops against float64: any shapes, strides, dtypes, ties, temperatures and norms.

An error may be 1.5 times that of the reference in the inputs' own dtypes, plus what ``Scores`` and the tests below
allow: FEW roundings of the largest logit. The rounding is that of the compute dtype, but a kernel may split queries
into two bfloat16 parts when the bank is bfloat16 (SPLIT), and round the weights of the bank's rows to bfloat16 before
it sums the rows up for the gradient (WEIGHT). In float64 the truth is the reference itself, which then has no error to
be measured by; there a sum over the bank may be wrong by half a rounding for every row.
"""

from __future__ import annotations

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slrfast.ops import _dispatch
from slrfast.reference import bank_losses, enqueue, feature_kl, info_nce, mined_bce, neighbor_kl, topk_similarity
from slrfast.reference.precision import accumulation_dtype

FEW = 8
SPLIT = 2.0**-16
WEIGHT = 2.0**-7
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = {
    "compact": lambda x: x,
    "transposed": lambda x: x.T.contiguous().T,
    "every second row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every second column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "unaligned": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    "one row expanded": lambda x: x[:1].expand(x.shape),
}
MATRIX = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "dtype": st.sampled_from(DTYPES),
        "layout": st.sampled_from(sorted(LAYOUTS)),
        "spoil": st.sampled_from((None,) * 9 + (math.nan, math.inf, -math.inf)),
    }
)
SIZES = st.fixed_dictionaries({"b": st.integers(0, 40), "n": st.integers(1, 300), "d": st.integers(1, 140)})
KIND = st.sampled_from(("unit", "norms", "integers"))
TEMPERATURE = st.floats(-2, 1).map(lambda exponent: 10.0**exponent)
FRACTION = st.floats(0, 1)


def random_calls(**strategies):
    """The same 100 calls in every run; the fixtures only force a backend, so they may outlive an example."""
    options = dict(max_examples=100, deadline=None, derandomize=True, database=None)
    # pytest makes a new object of the class for every backend; it has no state that examples could share
    stateless = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
    check = settings(**options, suppress_health_check=stateless)
    return lambda test: check(given(sizes=SIZES, kind=KIND, **strategies)(test))


def shrunk(op, sizes, device):
    """The sizes, smaller for Triton's interpreter."""
    factor = 8 if _dispatch.choose(op, device.type) == "triton" and device.type == "cpu" else 1
    return sizes["b"] // factor, -(-sizes["n"] // factor), -(-sizes["d"] // factor)


def matrix(rows, columns, kind, plan, device):
    """Unit rows, rows of length 1e-4 to 1e4, or small integers (exact products with many ties); one row spoiled."""
    generator = torch.Generator().manual_seed(plan["seed"])
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if kind == "integers":
        x = x.round().clamp(-2, 2)
    else:
        x = torch.nn.functional.normalize(x, dim=1)
    if kind == "norms":
        x *= 10 ** torch.empty(rows, 1, dtype=torch.float64).uniform_(-4, 4, generator=generator)
    if plan["spoil"] is not None and rows:
        x[plan["seed"] % rows, plan["seed"] % columns] = plan["spoil"]
    return LAYOUTS[plan["layout"]](x.to(device, plan["dtype"]))


def mined(rows, columns, count, seed, device):
    """Indices of the bank with repeats and padding."""
    return torch.randint(-1, columns, (rows, count), generator=torch.Generator().manual_seed(seed)).to(device)


class Scores:
    """float64 logits of queries against a bank, and how far a kernel's may be from them [B, N]."""

    def __init__(self, query, bank, temperature, compute):
        self.bank, self.temperature, self.eps = bank.double(), temperature, torch.finfo(compute).eps
        self.sum = self.eps * (FEW + (len(bank) / 2 if compute == torch.float64 else 0))
        narrow = bank.dtype == torch.bfloat16 and compute == torch.float32
        self.unit, self.weight = (SPLIT, WEIGHT) if narrow else (self.eps, 0.0)
        self.logits = query.double() @ self.bank.T / temperature
        self.size = query.double().abs() @ self.bank.abs().T / temperature
        self.delta = FEW * self.unit * self.size

    def gradient(self, weights, drift):
        """Allowed error [B, D] of sum_i weights_i bank_i / temperature, when a weight is wrong by up to ``drift``."""
        rows = self.bank.abs()
        return (drift @ rows + (self.sum + self.weight) * (weights @ rows)) / self.temperature


def growth(delta):
    """The factor that exp(logit) may move by, less 1, when every logit of a softmax moves by ``delta``."""
    return torch.expm1((2 * delta).clamp(max=100.0))


def drift(weights, delta):
    """How far softmax weights [B, N] move when every logit moves by ``delta`` [B, 1]; never by more than all."""
    return (weights * growth(delta)).clamp(max=1.0)


def whole(query_side, banks):
    """Rows [B] whose own inputs are finite, all False when a bank is not."""
    rows = torch.stack([tensor.isfinite().all(1) for tensor in query_side]).all(0)
    return rows & all(bool(bank.isfinite().all()) for bank in banks)


def compare(got, reference, truth, allowed, rows):
    """The rule, row by row of ``rows``; a gradient's row is judged by its worst element."""
    assert got.shape == reference.shape == truth.shape and got.dtype == reference.dtype
    errors = [(x.double() - truth).abs() for x in (got, reference)]
    if truth.dim() == 2:
        errors, allowed = [error.amax(1) for error in errors], allowed.amax(1)
    wrong = rows & ~(errors[0] <= 1.5 * errors[1] + allowed)
    assert not wrong.any(), [x[wrong].tolist() for x in (*errors, allowed)]


def spoiled_where(truth, got):
    """A result that is not finite in float64 is not finite here either."""
    assert not got[~truth.isfinite()].isfinite().any()


def contrastive_rule(query, positive, bank, temperature, compute):
    """Allowed errors of InfoNCE's loss [B] and gradient [B, D], the own logit [B] and all scores."""
    scores = Scores(query, bank, temperature, compute)
    key = positive.double()
    own = (query.double() * key).sum(1) / temperature
    own_size = (query.double() * key).abs().sum(1) / temperature
    largest = torch.maximum(scores.size.amax(1), own_size)
    delta = FEW * scores.unit * largest + scores.sum * (1 + math.log(len(bank) + 1))
    weights = torch.cat((own[:, None], scores.logits), 1).softmax(1)
    moved = drift(weights, delta[:, None])
    own_part = key.abs() * (drift(torch.ones_like(weights[:, :1]), delta[:, None]) + FEW * scores.eps) / temperature
    return delta, scores.gradient(weights[:, 1:], moved[:, 1:]) + own_part, own, scores


def mined_rule(query, bank, positives, temperature, compute):
    """Allowed errors of the mined loss [B] and its gradient [B, D]."""
    scores = Scores(query, bank, temperature, compute)
    labels = torch.zeros(len(query), len(bank) + 1, dtype=torch.float64, device=query.device)
    labels = labels.scatter_(1, positives.where(positives >= 0, len(bank)), 1.0)[:, :-1]
    probability = scores.logits.sigmoid()
    moved = drift(probability, scores.delta)
    allowed = 2 * scores.delta.mean(1) + scores.sum * (1 + scores.size.mean(1))
    return allowed, scores.gradient(probability + labels, moved) / len(bank)


class TestInfoNCE:
    OP = "info_nce"

    @random_calls(query=MATRIX, positive=MATRIX, bank=MATRIX, temperature=TEMPERATURE)
    def test_random_calls(self, device, sizes, kind, query, positive, bank, temperature):
        b, n, d = shrunk(self.OP, sizes, device)
        q, k, m = (matrix(r, d, kind, p, device) for r, p in ((b, query), (b, positive), (n, bank)))
        got = torch.ops.slrfast.info_nce(q, k, m, temperature, True, True)
        reference = info_nce.info_nce_grad(q, k, m, temperature, True, True)
        truth = info_nce.info_nce_grad(q.double(), k.double(), m.double(), temperature, True, True)
        loss_error, grad_error, own, scores = contrastive_rule(q, k, m, temperature, accumulation_dtype(q, k, m))
        rows = whole((q, k), (m,))
        compare(got[0], reference[0], truth[0], loss_error, rows)
        compare(got[2], reference[2], truth[2], grad_error, rows)
        spoiled_where(truth[0], got[0])
        margin = loss_error[:, None] * 2
        bounds = [(scores.logits > own[:, None] + sign * margin).sum(1) for sign in (1, -1)]
        assert got[1].dtype == torch.int64
        assert ((bounds[0] <= got[1]) & (got[1] <= bounds[1]))[rows].all()


class TestMinedBCE:
    OP = "mined_bce"

    @random_calls(query=MATRIX, bank=MATRIX, count=st.integers(0, 30), temperature=TEMPERATURE)
    def test_random_calls(self, device, sizes, kind, query, bank, count, temperature):
        b, n, d = shrunk(self.OP, sizes, device)
        q, m = matrix(b, d, kind, query, device), matrix(n, d, kind, bank, device)
        positives = mined(b, n, count, query["seed"], device)
        got = torch.ops.slrfast.mined_bce(q, m, positives, temperature, True)
        reference = mined_bce.mined_bce_grad(q, m, positives, temperature, True)
        truth = mined_bce.mined_bce_grad(q.double(), m.double(), positives, temperature, True)
        rows = whole((q,), (m,))
        for mine, theirs, exact, allowed in zip(
            got, reference, truth, mined_rule(q, m, positives, temperature, accumulation_dtype(q, m)), strict=True
        ):
            compare(mine, theirs, exact, allowed, rows)
        spoiled_where(truth[0], got[0])


class TestBankLosses:
    OP = "bank_losses"

    @random_calls(
        query=MATRIX, positive=MATRIX, bank=MATRIX, count=st.none() | st.integers(0, 30), t=TEMPERATURE, s=TEMPERATURE
    )
    def test_random_calls(self, device, sizes, kind, query, positive, bank, count, t, s):
        b, n, d = shrunk(self.OP, sizes, device)
        q, k, m = (matrix(r, d, kind, p, device) for r, p in ((b, query), (b, positive), (n, bank)))
        positives = None if count is None else mined(b, n, count, query["seed"], device)
        got = torch.ops.slrfast.bank_losses(q, k, m, positives, t, s, True)
        reference = bank_losses.bank_losses_grad(q, k, m, positives, t, s, True)
        truth = bank_losses.bank_losses_grad(q.double(), k.double(), m.double(), positives, t, s, True)
        compute, rows = accumulation_dtype(q, k, m), whole((q, k), (m,))
        loss_error, grad_error, *_ = contrastive_rule(q, k, m, t, compute)
        compare(got[0], reference[0], truth[0], loss_error, rows)
        compare(got[2], reference[2], truth[2], grad_error, rows)
        spoiled_where(truth[0], got[0])
        if positives is None:
            assert not got[1].any() and got[3].shape == (0,)
            return
        loss_error, grad_error = mined_rule(q, m, positives, s, compute)
        compare(got[1], reference[1], truth[1], loss_error, rows)
        compare(got[3], reference[3], truth[3], grad_error, rows)
        spoiled_where(truth[1], got[1])


def divergence_rule(p, log_ratio, teacher_delta, student_delta):
    """Allowed error [B] of sum_i P_i log(P_i / Q_i) when the logits of either side move by a delta [B]."""
    moved = growth(teacher_delta) * (p * log_ratio.abs()).sum(1)
    return 2 * (teacher_delta + student_delta) + torch.minimum(moved, 2 * log_ratio.abs().amax(1))


class TestNeighborKL:
    OP = "neighbor_kl"

    @random_calls(
        teacher=MATRIX, teacher_bank=MATRIX, student=MATRIX, student_bank=MATRIX, width=st.integers(1, 140),
        fraction=FRACTION, t=TEMPERATURE, s=TEMPERATURE,
    )  # fmt: skip
    def test_random_calls(
        self, device, sizes, kind, teacher, teacher_bank, student, student_bank, width, fraction, t, s
    ):
        b, n, d = shrunk(self.OP, sizes, device)
        k, width = 1 + round(fraction * (n - 1)), min(width, d + 7)
        shapes = ((b, d, teacher), (n, d, teacher_bank), (b, width, student), (n, width, student_bank))
        tensors = [matrix(rows, columns, kind, plan, device) for rows, columns, plan in shapes]
        wide = [tensor.double() for tensor in tensors]
        got = torch.ops.slrfast.neighbor_kl(*tensors, k, t, s, True)
        reference = neighbor_kl.neighbor_kl_grad(*tensors, k, t, s, True)
        truth = neighbor_kl.neighbor_kl_grad(*wide, k, t, s, True)
        compute = accumulation_dtype(*tensors)
        ours, theirs = Scores(*tensors[:2], t, compute), Scores(*tensors[2:], s, compute)
        rows = whole(tensors[::2], tensors[1::2])
        if kind != "integers":
            rows = rows & clear_border(ours, k)
        p, log_ratio, q = neighbor_kl._distributions(*wide, k, t, s)
        teacher_delta, student_delta = (
            (side.delta.amax(1) + side.sum * (1 + math.log(k)))[:, None] for side in (ours, theirs)
        )
        allowed = divergence_rule(p, log_ratio, teacher_delta[:, 0], student_delta[:, 0])
        compare(got[0], reference[0], truth[0], allowed, rows)
        moved = drift(p, teacher_delta) + drift(q, student_delta)
        compare(got[1], reference[1], truth[1], theirs.gradient(p + q, moved), rows)
        if not any(bank.isinf().any() for bank in tensors[1::2]):
            spoiled_where(truth[0], got[0])


def clear_border(scores, k):
    """Rows [B] whose k-th and (k + 1)-th scores are too far apart to change places by rounding."""
    if k == scores.logits.shape[1]:
        return torch.ones_like(scores.logits[:, 0], dtype=torch.bool)
    ordered = scores.logits.nan_to_num(nan=math.inf).sort(1, descending=True).values
    return ordered[:, k - 1] - ordered[:, k] > 2 * scores.delta.amax(1)


class TestFeatureKL:
    OP = "feature_kl"

    @random_calls(teacher=MATRIX, student=MATRIX, temperature=TEMPERATURE)
    def test_random_calls(self, device, sizes, kind, teacher, student, temperature):
        b, _, d = shrunk(self.OP, sizes, device)
        x, y = matrix(b, d, kind, teacher, device), matrix(b, d, kind, student, device)
        got = torch.ops.slrfast.feature_kl(x, y, temperature, True)
        reference = feature_kl.feature_kl_grad(x, y, temperature, True)
        truth = feature_kl.feature_kl_grad(x.double(), y.double(), temperature, True)
        eps, rows = torch.finfo(accumulation_dtype(x, y)).eps, whole((x, y), ())
        log_p, log_q = ((side.double() / temperature).log_softmax(1) for side in (x, y))
        deltas = [FEW * eps * (side.double().abs().amax(1) / temperature + 1 + math.log(d)) for side in (x, y)]
        compare(got[0], reference[0], truth[0], divergence_rule(log_p.exp(), log_p - log_q, *deltas), rows)
        p, q = log_p.exp(), log_q.exp()
        moved = drift(p, deltas[0][:, None]) + drift(q, deltas[1][:, None])
        compare(got[1], reference[1], truth[1], (moved + FEW * eps * (p + q)) / temperature, rows)
        spoiled_where(truth[0], got[0])


class TestTopKSimilarity:
    OP = "topk_similarity"

    @random_calls(query=MATRIX, bank=MATRIX, fraction=FRACTION, sorted_=st.booleans())
    def test_random_calls(self, device, sizes, kind, query, bank, fraction, sorted_):
        b, n, d = shrunk(self.OP, sizes, device)
        k = 1 + round(fraction * (n - 1))
        q, m = matrix(b, d, kind, query, device), matrix(n, d, kind, bank, device)
        values, indices = torch.ops.slrfast.topk_similarity(q, m, k, sorted_)
        compute, rows = accumulation_dtype(q, m), whole((q,), (m,))
        assert values.shape == indices.shape == (b, k)
        assert values.dtype == compute and indices.dtype == torch.int64
        assert ((indices >= 0) & (indices < n)).all() and (indices.sort(1).values.diff(dim=1) > 0).all()
        scores = Scores(q, m, 1.0, compute)
        if sorted_:
            assert (values.diff(dim=1) <= 0)[rows].all()
        allowed = scores.delta.amax(1, keepdim=True)
        if kind == "integers":
            allowed = torch.zeros_like(allowed)
            expected = topk_similarity.topk_similarity(q.double(), m.double(), k, True)[1]
            chosen, expected = (indices, expected) if sorted_ else (indices.sort(1).values, expected.sort(1).values)
            assert chosen[rows].equal(expected[rows])
        largest = scores.logits.sort(1, descending=True).values[:, :k]
        found = values.double().sort(1, descending=True).values
        assert ((found - largest).abs() <= allowed)[rows].all()
        assert ((values.double() - scores.logits.gather(1, indices)).abs() <= allowed)[rows].all()
        nan_rows = m.isnan().any(1).nonzero().flatten()
        if q.isfinite().all() and m.isinf().sum() == 0:  # a NaN in the bank counts as +inf, so it comes first
            missing = [row for row in nan_rows[:k].tolist() if not (indices == row).any(1).all()]
            assert not missing

    @random_calls(bank=MATRIX, weight=MATRIX, count=st.integers(0, 400))
    def test_random_gradients(self, device, sizes, kind, bank, weight, count):
        b, n, d = shrunk(self.OP, sizes, device)
        m, grad = matrix(n, d, kind, bank, device), matrix(b, max(count, 1), "unit", weight, device)[:, :count]
        indices = torch.randint(0, n, (b, count), generator=torch.Generator().manual_seed(bank["seed"])).to(device)
        got = torch.ops.slrfast.topk_similarity_grad(grad, indices, m)
        reference = topk_similarity.topk_similarity_grad(grad, indices, m)
        truth = topk_similarity.topk_similarity_grad(grad.double(), indices, m.double())
        size = topk_similarity.topk_similarity_grad(grad.double().abs(), indices, m.double().abs())
        allowed = FEW * torch.finfo(accumulation_dtype(grad, m)).eps * size
        compare(got, reference, truth, allowed, whole((grad,), (m,)))


class TestEnqueue:
    OP = "enqueue_"

    @random_calls(bank=MATRIX, keys=MATRIX, start=st.integers(0, 2**31), normalize=st.booleans())
    def test_random_calls(self, device, sizes, kind, bank, keys, start, normalize):
        b, n, d = shrunk(self.OP, sizes, device)
        n = -(-n // 8)  # some batches are longer than the bank
        plan = bank if bank["layout"] != "one row expanded" else {**bank, "layout": "compact"}
        m, k = matrix(n, d, kind, plan, device), matrix(b, d, kind, keys, device)
        results = []
        for target in (m.clone(memory_format=torch.preserve_format), m.double()):
            cursor = torch.tensor(start % n, device=device)
            enqueue.enqueue_(target, cursor, k if target.dtype == m.dtype else k.double(), normalize)
            results.append(target)
        cursor = torch.tensor(start % n, device=device)
        torch.ops.slrfast.enqueue_(m, cursor, k, normalize)
        assert cursor.item() == (start + b) % n
        reference, truth = results
        written = (torch.arange(n, device=device) - start) % n < b
        exact = ~written if normalize else torch.ones_like(written)
        assert torch.equal(m[exact].nan_to_num(nan=7.0), reference[exact].nan_to_num(nan=7.0))
        if normalize:
            rows = written & truth.isfinite().all(1)
            assert not m[written & ~truth.isfinite().all(1)].isfinite().all(1).any()
            eps = FEW * torch.finfo(accumulation_dtype(k)).eps
            compare(m, reference, truth, eps * truth.abs(), rows)
