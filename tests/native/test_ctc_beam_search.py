import itertools

import numpy as np
import pytest
from buffers import COMPUTED, F32, F64, bad_buffers, call, empty, filled, refused
from buffers import same_for_any_threads as same

FUNCTION = "ctc_beam_search_cpu"


def build(dtype=F32, clips=3, frames=5, classes=3, *, beam=1000, blank=0, spread=1.0):
    random = np.random.default_rng([clips, frames, classes])
    x = spread * random.normal(size=(clips, frames, classes))
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    lengths = random.integers(0, frames + 1, clips)
    lengths[:1] = frames
    return {
        "dtype": dtype,
        "log_probs": filled(x.astype(np.float64 if dtype == F64 else np.float32)),
        "clips": clips,
        "frames": frames,
        "classes": classes,
        "lengths": filled(lengths.astype(np.int64)),
        "blank": blank,
        "beam": beam,
        "tokens": empty((clips, frames), np.int64),
        "counts": empty(clips, np.int64),
        "scores": empty(clips, np.float64),
        "threads": 1,
    }


def check(done):
    """Every alignment, one by one."""
    for clip in range(done["clips"]):
        x = np.array(done["log_probs"])[clip, : done["lengths"][clip]].astype(np.float64)
        found = {}
        for alignment in itertools.product(range(done["classes"]), repeat=len(x)):
            labels = tuple(token for token, _ in itertools.groupby(alignment) if token != done["blank"])
            found[labels] = found.get(labels, 0.0) + np.exp(sum(x[t, token] for t, token in enumerate(alignment)))
        best = max(found, key=found.__getitem__)
        count = int(done["counts"][clip])
        assert tuple(done["tokens"][clip, :count].tolist()) == best and (done["tokens"][clip, count:] == -1).all()
        np.testing.assert_allclose(done["scores"][clip], np.log(found[best]), atol=1e-12)


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize(
    "sizes", [(3, 5, 3), (1, 1, 1), (2, 7, 2), (2, 1, 9), (0, 3, 3), (2, 0, 3), (4, 4, 4)], ids=str
)
def test_equals_every_alignment(library, dtype, sizes):
    for blank in {0, sizes[2] - 1}:
        check(call(library, FUNCTION, build(dtype, *sizes, blank=blank)))


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("beam", [1, 2, 17])
@pytest.mark.parametrize("classes", [16, 33, 100, 1201])
def test_any_beam_and_vocabulary_ends_in_a_labelling(library, dtype, beam, classes):
    done = call(library, FUNCTION, build(dtype, 2, 30, classes, beam=beam, blank=classes // 2, spread=3.0))
    for clip in range(2):
        count = int(done["counts"][clip])
        labels = np.array(done["tokens"])[clip, :count]
        assert count <= done["lengths"][clip] and ((0 <= labels) & (labels < classes)).all()
        assert (labels != classes // 2).all() and (np.array(done["tokens"])[clip, count:] == -1).all()
        assert np.isfinite(done["scores"][clip])


@pytest.mark.parametrize("dtype", COMPUTED)
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_numbers_that_are_no_log_probabilities_do_no_harm(library, dtype, value):
    """The Python layer refuses them; whatever the outcome, tokens and counts stay in range."""
    for place in (slice(None), (0, 2), (0, slice(None), 1), (slice(None), slice(None), 0)):
        arguments = build(dtype, 2, 6, 40, beam=5)
        arguments["log_probs"][place] = value
        done = call(library, FUNCTION, arguments)
        counts, tokens = np.array(done["counts"]), np.array(done["tokens"])
        assert ((0 <= counts) & (counts <= 6)).all() and ((-1 <= tokens) & (tokens < 40)).all()


@pytest.mark.parametrize("dtype", COMPUTED)
def test_threads(library, dtype):
    same(library, FUNCTION, lambda: build(dtype, 9, 60, 400, beam=6), ["tokens", "counts", "scores"])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        *(({"dtype": wrong}, "dtype") for wrong in (4, -1, 2, 3)),
        *(({name: wrong}, "impossible size") for name in ("clips", "frames") for wrong in (-1, 2**62)),
        *(({"classes": wrong}, "impossible size") for wrong in (-1, 2**62)),
        ({"clips": 0, "classes": 0}, r"classes must be in \[1, 2147483647\], got 0"),
        ({"clips": 0, "classes": 2**31}, r"classes must be in \[1, 2147483647\], got 2147483648"),
        ({"blank": -1}, r"blank must be in \[0, 2\], got -1"),
        ({"blank": 3}, r"blank must be in \[0, 2\], got 3"),
        ({"beam": 0}, "beam must be at least 1, got 0"),
        ({"clips": 0, "frames": 2**20, "beam": 2**40}, r"beam x frames must be below 2\^30"),
        *bad_buffers("log_probs", "lengths", "tokens", "counts", "scores"),
    ],
)
def test_bad_arguments(library, wrong, word):
    refused(library, FUNCTION, build(), wrong, word)


@pytest.mark.parametrize("length", [-1, 6, 2**62])
def test_lengths_out_of_range(library, length):
    arguments = build()
    arguments["lengths"][1] = length
    refused(library, FUNCTION, arguments, {}, rf"lengths must be in \[0, 5\], got {length}")
