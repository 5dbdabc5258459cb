import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import slrfast
from slrfast import ops
from slrfast.ops import _dispatch
from slrfast.reference.ctc_beam_search import either

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Uninitialised memory is NaN, so an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=_dispatch.TABLES["ctc_beam_search"]["cpu"])
def backend(request):
    if reason := _dispatch.unavailable(request.param, "cpu"):
        pytest.skip(reason)
    with slrfast.backend(request.param):
        yield request.param


def draw(b=3, t=7, c=4, *, scale=2.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(b, t, c, generator=generator)).log_softmax(2).to(dtype)


def full(log_probs):
    return torch.full((log_probs.shape[0],), log_probs.shape[1], dtype=torch.int64)


def merged(alignment, blank):
    return tuple(token for token, _ in itertools.groupby(alignment) if token != blank)


def exhaustive(frames, blank):
    """The log-probability of every labelling, from all alignments one by one."""
    found = {}
    for alignment in itertools.product(range(frames.shape[1]), repeat=len(frames)):
        labels = merged(alignment, blank)
        log_prob = sum(frames[t, token].item() for t, token in enumerate(alignment))
        found[labels] = either(found.get(labels, -math.inf), log_prob)
    return found


def labels_of(tokens, counts):
    return [tuple(row[:count].tolist()) for row, count in zip(tokens, counts, strict=True)]


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(backend):
    """The best alignment is all blank; the best labelling is one token (Graves 2012, figure 7.5)."""
    frames = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    tokens, counts, scores = ops.ctc_beam_search(frames, torch.tensor([2]))
    assert tokens.tolist() == [[1, -1]] and counts.tolist() == [1]
    assert scores.exp().item() == pytest.approx(1 - 0.36)


@pytest.mark.parametrize(("t", "c"), [(1, 2), (2, 5), (5, 3), (6, 3), (4, 4)])
@pytest.mark.parametrize("blank", [0, 1])
def test_equals_trying_every_labelling(backend, t, c, blank):
    for seed in range(6):
        log_probs = draw(2, t, c, scale=1.0, dtype=torch.float64, seed=seed)
        tokens, counts, scores = ops.ctc_beam_search(log_probs, full(log_probs), beam=4096, blank=blank)
        for frames, labels, score in zip(log_probs, labels_of(tokens, counts), scores, strict=True):
            every = exhaustive(frames, blank)
            best = max(every, key=every.__getitem__)
            assert labels == best and score.item() == pytest.approx(every[best], abs=1e-12)


def test_the_score_is_minus_the_ctc_loss_where_nothing_is_cut(backend):
    log_probs = draw(4, 6, 3, dtype=torch.float64)
    tokens, counts, scores = ops.ctc_beam_search(log_probs, full(log_probs), beam=5000)
    loss = F.ctc_loss(log_probs.transpose(0, 1), tokens.clamp_min(0), full(log_probs), counts, reduction="none")
    torch.testing.assert_close(scores, -loss, rtol=1e-12, atol=1e-12)


def test_a_wider_beam_finds_no_worse_labelling_and_a_narrow_one_only_sees_less():
    log_probs = draw(8, 20, 6, scale=1.0, dtype=torch.float64)
    lengths = full(log_probs)
    for beam in (1, 3, 10, 100):
        tokens, counts, scores = ops.ctc_beam_search(log_probs, lengths, beam=beam)
        loss = F.ctc_loss(log_probs.transpose(0, 1), tokens.clamp_min(0), lengths, counts, reduction="none")
        assert (scores <= -loss + 1e-9).all() and (beam > 3 or (scores < -loss - 1e-6).any())


def test_tokens_that_repeat_need_a_blank_between(backend):
    sure = torch.full((1, 5, 3), -20.0).double()
    for t, token in enumerate((1, 0, 1, 1, 2)):
        sure[0, t, token] = -1e-9
    tokens, counts, _ = ops.ctc_beam_search(sure, torch.tensor([5]))
    assert labels_of(tokens, counts) == [(1, 1, 2)]


def test_a_prefix_that_falls_out_and_comes_back_is_one_prefix(backend):
    """With a beam of 2 prefixes leave and return; their alignments still add up as in the reference."""
    for seed in range(40):
        log_probs = draw(2, 12, 3, scale=0.7, dtype=torch.float64, seed=seed)
        found = ops.ctc_beam_search(log_probs, full(log_probs), beam=2)
        with slrfast.backend("reference"):
            assert all(map(torch.equal, found, ops.ctc_beam_search(log_probs, full(log_probs), beam=2)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 14), st.integers(1, 40)),
    beam=st.integers(1, 30),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from((0.0, 0.3, 3.0, 30.0)),
    gaps=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_calls_equal_the_reference_bit_by_bit(sizes, beam, dtype, scale, gaps, seed):
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(seed)
    log_probs = draw(*sizes, scale=scale, dtype=dtype, seed=seed)  # scale 0 and half types: many ties
    if gaps:
        log_probs[torch.rand(log_probs.shape, generator=generator) < 0.3] = -math.inf
    lengths = torch.randint(0, sizes[1] + 1, (sizes[0],), generator=generator)
    arguments = dict(beam=beam, blank=seed % sizes[2])
    with slrfast.backend("reference"):
        expected = ops.ctc_beam_search(log_probs, lengths, **arguments)
    with slrfast.backend("native"):
        assert all(map(torch.equal, ops.ctc_beam_search(log_probs, lengths, **arguments), expected))


def test_a_large_vocabulary_is_not_cut():
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    log_probs = draw(2, 6, 700, scale=0.5)
    with slrfast.backend("reference"):
        expected = ops.ctc_beam_search(log_probs, full(log_probs), beam=7)
    assert all(map(torch.equal, ops.ctc_beam_search(log_probs, full(log_probs), beam=7), expected))


def test_no_gradient_and_inputs_left_alone(backend):
    log_probs = draw().requires_grad_()
    before = log_probs.detach().clone()
    tokens, _, scores = ops.ctc_beam_search(log_probs, full(log_probs))
    assert not scores.requires_grad and tokens.dtype == torch.int64 and torch.equal(log_probs, before)


# ---- registration ---------------------------------------------------------------------------------------------------


def test_opcheck(backend):
    log_probs = draw()
    strided = log_probs.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for tensor in (log_probs, strided):
        torch.library.opcheck(torch.ops.slrfast.ctc_beam_search.default, (tensor, full(tensor), 4, 0))


def test_compiles_whole(backend, compiled):
    function = compiled(lambda x, n: ops.ctc_beam_search(x.log_softmax(2), n, beam=3))
    for t in (7, 9):
        logits = draw(t=t)
        expected = ops.ctc_beam_search(logits.log_softmax(2), full(logits), beam=3)
        assert all(map(torch.equal, function(logits, full(logits)), expected))


def test_fake_tensors_never_reach_a_kernel():
    from torch._subclasses.fake_tensor import FakeTensorMode

    log_probs = draw()
    with FakeTensorMode() as mode:
        tokens, counts, scores = ops.ctc_beam_search(mode.from_tensor(log_probs), mode.from_tensor(full(log_probs)))
    assert tokens.shape == (3, 7) and counts.shape == (3,) and scores.dtype == torch.float64
    assert ops.ctc_beam_search(log_probs.to("meta"), full(log_probs).to("meta"))[0].shape == (3, 7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_a_gpu_are_searched_on_the_cpu():
    log_probs = draw()
    expected = ops.ctc_beam_search(log_probs, full(log_probs))
    found = ops.ctc_beam_search(log_probs.cuda(), full(log_probs).cuda())
    assert all(tensor.is_cuda and torch.equal(tensor.cpu(), same) for tensor, same in zip(found, expected, strict=True))


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(0, 5, 3), (2, 0, 3), (1, 1, 1), (2, 5, 1)], ids=str)
def test_nothing_to_find(backend, sizes):
    log_probs = draw(*sizes)
    tokens, counts, scores = ops.ctc_beam_search(log_probs, full(log_probs))
    assert tokens.shape == sizes[:2] and (tokens == -1).all() and (counts == 0).all() and (scores == 0).all()


def test_padding_is_not_read(backend):
    log_probs = draw(3, 9, 5)
    lengths = torch.tensor([4, 0, 9])
    expected = ops.ctc_beam_search(log_probs, lengths)
    spoiled = log_probs.clone()
    spoiled[0, 4:], spoiled[1] = math.nan, math.inf
    assert all(map(torch.equal, ops.ctc_beam_search(spoiled, lengths), expected))
    alone = ops.ctc_beam_search(log_probs[:1, :4], torch.tensor([4]))
    assert alone[0].tolist()[0] == expected[0][0, :4].tolist() and alone[2][0] == expected[2][0]


@pytest.mark.parametrize("beam", [3, 5, 1000, 65536])
def test_a_beam_larger_than_the_vocabulary(backend, beam):
    """It counts prefixes: with two classes and three frames there are four labellings, and that is all."""
    log_probs = draw(1, 3, 2, dtype=torch.float64)
    tokens, counts, scores = ops.ctc_beam_search(log_probs, torch.tensor([3]), beam=beam)
    every = exhaustive(log_probs[0], 0)
    best = max(every, key=every.__getitem__)
    assert labels_of(tokens, counts) == [best] and scores.item() == pytest.approx(every[best])


def test_frames_in_which_nothing_is_possible(backend):
    log_probs = draw(2, 4, 3)
    log_probs[0, 2] = -math.inf
    tokens, counts, scores = ops.ctc_beam_search(log_probs, full(log_probs))
    assert tokens[0].tolist() == [-1] * 4 and counts[0] == 0 and scores[0] == -math.inf and scores[1] > -math.inf


def test_ties_go_to_the_prefix_that_stays_and_then_to_the_lower_token(backend):
    even = torch.full((1, 1, 4), 0.25).log()
    assert ops.ctc_beam_search(even, torch.tensor([1]))[1].item() == 0
    even[0, 0, 0] = -math.inf
    assert ops.ctc_beam_search(even, torch.tensor([1]), beam=2)[0].tolist() == [[1]]
    assert ops.ctc_beam_search(even, torch.tensor([1]), blank=1)[0].tolist() == [[-1]]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads):
    log_probs, before = draw(7, 60, 200), torch.get_num_threads()
    expected = ops.ctc_beam_search(log_probs, full(log_probs))
    torch.set_num_threads(threads)
    try:
        assert all(map(torch.equal, ops.ctc_beam_search(log_probs, full(log_probs)), expected))
    finally:
        torch.set_num_threads(before)


# ---- errors ---------------------------------------------------------------------------------------------------------

X, N = draw(2, 3, 4), torch.tensor([3, 2])
NAN = X.clone().index_put((torch.tensor(1), torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((X[0], N), {}, ValueError, "log_probs must have shape [B, T, C], got [3, 4]"),
        ((X, N[:1]), {}, ValueError, "lengths must have shape [B] with B = 2, got [1]"),
        ((X[:, :, :0], N), {}, ValueError, "log_probs must have at least one class, got [2, 3, 0]"),
        ((X.long(), N), {}, TypeError, "log_probs must be float64, float32, bfloat16 or float16, got torch.int64"),
        ((X, N.int()), {}, TypeError, "lengths must be torch.int64, got torch.int32"),
        ((X, N.to("meta")), {}, ValueError, "lengths must be on the device of log_probs (cpu), got meta"),
        ((X, N + 1), {}, ValueError, "lengths must be in [0, 3], got 4 for clip 0"),
        ((X, -N), {}, ValueError, "lengths must be in [0, 3], got -3 for clip 0"),
        ((X, N), {"beam": 0}, ValueError, "beam must be in [1, 65536], got 0"),
        ((X, N), {"beam": 65537}, ValueError, "beam must be in [1, 65536], got 65537"),
        ((X, N), {"beam": 2.0}, TypeError, "beam must be an integer, got float"),
        ((X, N), {"blank": 4}, ValueError, "blank must be in [0, 3], got 4"),
        ((X, N), {"blank": -1}, ValueError, "blank must be in [0, 3], got -1"),
        ((NAN, N), {}, ValueError, "log_probs must be at most 0, got nan for clip 1, frame 1, class 2; take"),
        ((X + 9, N), {}, ValueError, "log_probs must be at most 0, got "),
    ],
)  # fmt: skip
def test_errors(arguments, options, error, words):
    with pytest.raises(error) as raised:
        ops.ctc_beam_search(*arguments, **options)
    assert str(raised.value).startswith("ctc_beam_search: ") and words in str(raised.value)


def test_more_prefixes_than_can_be_kept_track_of():
    if reason := _dispatch.unavailable("native", "cpu"):
        pytest.skip(reason)
    long = torch.zeros(1, 1, 3).expand(1, 1 << 14, 3)
    with slrfast.backend("native"), pytest.raises(ValueError, match=r"beam x frames must be below 2\^30, got 65536 x"):
        ops.ctc_beam_search(long, torch.tensor([1 << 14]), beam=65536)
