"""The losses with a bank inside, against the same equations in plain torch."""

import pytest
import torch
from torch.nn import functional as F

from slrfast.nn import FactoredBank, FeatureConsistency, InfoNCE, KnowledgeTransfer, MemoryBank, SemanticPositives

DTYPES = [torch.float32, torch.bfloat16]


def unit(*shape, grad=False):
    return F.normalize(torch.randn(shape, dtype=torch.float64), dim=-1).requires_grad_(grad)


def same(ours, expected, *leaves):
    torch.testing.assert_close(ours, expected)
    for a, b in zip(*(torch.autograd.grad(x.sum(), leaves, retain_graph=True) for x in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_info_nce(dtype):
    torch.manual_seed(0)
    loss = InfoNCE(MemoryBank(12, 4, dtype=dtype), temperature=0.2)
    for _ in range(3):
        query, key, rows = unit(5, 4, grad=True), unit(5, 4), loss.bank.features.double().clone()
        value, rank = loss(query, key, return_rank=True)
        loss.enqueue(key)  # before the backward pass
        logits = torch.cat(((query * key).sum(1, keepdim=True), query @ rows.T), 1)
        same(value, F.cross_entropy(logits / 0.2, torch.zeros(5, dtype=torch.int64)), query)
        assert torch.equal(rank, (logits[:, 1:] > logits[:, :1]).sum(1))
    assert loss.bank.cursor == 15 % 12 and set(loss.state_dict()) == {"bank.features", "bank.cursor"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_info_nce_against_a_sum(dtype):
    torch.manual_seed(0)
    loss = InfoNCE(FactoredBank(12, 4, dtype=dtype), reduction="none")
    loss.enqueue(unit(7, 4), trunk=unit(7, 4))
    query, key = unit(5, 4, grad=True), unit(5, 4)
    rows = (loss.bank["hand"].features.float() + loss.bank["trunk"].features.float()).to(dtype).double()
    logits = torch.cat(((query * key).sum(1, keepdim=True), query @ rows.T), 1) / 0.07
    same(loss(query, key), -logits.log_softmax(1)[:, 0], query)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["two", "one", "sums"])
def test_knowledge_transfer(kind, dtype):
    torch.manual_seed(0)
    teacher_bank, student_bank = MemoryBank(12, 4, dtype=dtype), MemoryBank(12, 6, dtype=dtype)
    if kind == "sums":
        teacher_bank, student_bank = FactoredBank(12, 4, dtype=dtype), FactoredBank(12, 6, dtype=dtype)
    student_bank = None if kind == "one" else student_bank
    loss = KnowledgeTransfer(teacher_bank, student_bank, 5, teacher_temperature=0.3, student_temperature=0.7)
    width = 4 if kind == "one" else 6
    teacher, student = unit(3, 4, grad=True), unit(3, width, grad=True)
    rows = (student_bank or teacher_bank).features.double()
    similar, index = (teacher @ teacher_bank.features.double().T).topk(5)
    log_q = ((student @ rows.T).gather(1, index) / 0.7).log_softmax(1)
    expected = F.kl_div(log_q, (similar / 0.3).softmax(1).detach(), reduction="batchmean")
    same(loss(teacher, student), expected, student)
    assert not torch.autograd.grad(loss(teacher, student), teacher, allow_unused=True)[0]


def test_one_bank_given_twice_is_saved_once():
    bank = MemoryBank(12, 4)
    assert set(KnowledgeTransfer(bank, bank, 5).state_dict()) == {"teacher_bank.features", "teacher_bank.cursor"}


def test_feature_consistency():
    torch.manual_seed(0)
    teacher, student = unit(5, 8), unit(5, 8, grad=True)
    p, log_q = (teacher / 0.3).softmax(1), (student / 0.3).log_softmax(1)
    same(FeatureConsistency(temperature=0.3)(teacher, student), F.kl_div(log_q, p, reduction="batchmean"), student)
    same(
        FeatureConsistency(temperature=0.3, reduction="none")(teacher, student),
        F.kl_div(log_q, p, reduction="none").sum(1),
        student,
    )


def spm(dtype=torch.float32, **options):
    labels = {"rgb": MemoryBank(20, 7, dtype=dtype), "pose": MemoryBank(20, 5, dtype=dtype)}
    return SemanticPositives(labels, {m: MemoryBank(20, 4, dtype=dtype) for m in labels}, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_semantic_positives_are_the_dense_labels_of_ccl(dtype):
    torch.manual_seed(0)
    mine = spm(dtype, k=3, temperature=0.1)
    for size in (6, 6, 6, 6, 23):
        g = {"rgb": unit(size, 7, grad=True), "pose": unit(size, 5, grad=True)}
        f = {m: unit(size, 4, grad=True) for m in g}
        rows = {m: bank.features.double().clone() for m, bank in mine.banks.items()}
        dense = torch.zeros(size, 20, dtype=torch.float64)
        for m, bank in mine.label_banks.items():
            dense.scatter_(1, (g[m] @ bank.features.double().T).topk(3).indices, 1.0)
        losses = mine(g, f)
        mine.enqueue(g, f)
        assert list(losses) == ["rgb", "pose"]
        for m, loss in losses.items():
            expected = F.binary_cross_entropy_with_logits(f[m] @ rows[m].T / 0.1, dense)
            same(loss, expected, f[m])
            other = [*g.values(), *(f[n] for n in f if n != m)]
            assert all(x is None for x in torch.autograd.grad(loss, other, allow_unused=True, retain_graph=True))
    cursors = {bank.cursor.item() for banks in (mine.banks, mine.label_banks) for bank in banks.values()}
    assert cursors == {47 % 20}


def test_semantic_positives_are_written_together_or_not_at_all():
    mine = spm()
    before = {name: buffer.clone() for name, buffer in mine.state_dict().items()}
    assert set(before) == {
        f"{kind}.{m}.{x}" for kind in ("label_banks", "banks") for m in ("rgb", "pose") for x in ("features", "cursor")
    }
    g, f = {"rgb": unit(2, 7), "pose": unit(2, 5)}, {"rgb": unit(2, 4), "pose": unit(2, 4)}
    with pytest.raises(ValueError, match=r"SemanticPositives: keys\['pose'\] must have shape \[B, 4\] with B = 2, got"):
        mine.enqueue(g, {**f, "pose": unit(3, 4)})
    with pytest.raises(TypeError, match=r"SemanticPositives: keys\['pose'\] must be float64"):
        mine.enqueue(g, {**f, "pose": torch.ones(2, 4, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"labels must have a tensor for each of \['pose', 'rgb'\], got \['rgb'\]"):
        mine.enqueue({"rgb": g["rgb"]}, f)
    with pytest.raises(ValueError, match=r"queries must have a tensor for each of \['pose', 'rgb'\], got \['face'"):
        mine(g, {**f, "face": f["pose"]})
    assert all(torch.equal(before[name], buffer) for name, buffer in mine.state_dict().items())


def test_losses_with_other_settings_compile_one_after_the_other():
    torch.manual_seed(0)
    torch.compiler.reset()
    query, key = unit(3, 4, grad=True), unit(3, 4)
    losses = [InfoNCE(MemoryBank(12, 4), temperature=t) for t in (0.07, 0.5, 0.2)]
    losses += [KnowledgeTransfer(MemoryBank(12, 4), None, k, student_temperature=k / 10) for k in (3, 5, 12)]
    losses += [FeatureConsistency(temperature=t) for t in (0.1, 0.3)]
    for loss in losses:
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        pair = (query, key) if isinstance(loss, InfoNCE) else (key, query)
        same(compiled(*pair), loss(*pair), query)


def bank(rows=6):
    return MemoryBank(rows, 4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: InfoNCE(bank(), temperature=0.0), "InfoNCE: temperature must be finite and > 0, got 0.0"),
        (lambda: FeatureConsistency(temperature=float("nan")), "FeatureConsistency: temperature must be finite"),
        (lambda: KnowledgeTransfer(bank(), bank(), 7), r"KnowledgeTransfer: k must be in \[1, 6\], got 7"),
        (lambda: KnowledgeTransfer(bank(), bank(5), 2), "student_bank must have the teacher's 6 rows, got 5"),
        (lambda: KnowledgeTransfer(bank(), None, 2, teacher_temperature=-1.0), "teacher_temperature must be finite"),
        (lambda: KnowledgeTransfer(bank(), None, 2, student_temperature=0.0), "student_temperature must be finite"),
        (lambda: SemanticPositives({}, {}), r"SemanticPositives: banks must name at least one modality, got \[\]"),
        (lambda: SemanticPositives({"a": bank()}, {"b": bank()}), r"label_banks must name \['b'\], got \['a'\]"),
        (lambda: SemanticPositives({"a": bank()}, {"a": bank(5)}), r"all have the same number of rows, got \[5, 6\]"),
        (lambda: SemanticPositives({"a": bank()}, {"a": bank()}), r"SemanticPositives: k must be in \[1, 6\], got 10"),
    ],
)
def test_settings_that_do_not_fit(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
