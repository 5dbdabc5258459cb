import numpy as np
import pytest
from buffers import (
    BF16,
    F16,
    F32,
    F64,
    bad_buffers,
    bad_temperatures,
    bits,
    call,
    decode,
    empty,
    encode,
    filled,
    refused,
)
from buffers import same_for_any_threads as same

FORWARD, BACKWARD = "sign_text_similarity_cpu", "sign_text_similarity_grad_cpu"
DTYPES = (F32, F64, BF16)
SIZES = [  # b, sign length, m, text length, d
    (1, 1, 1, 1, 1),
    (3, 5, 4, 7, 6),
    (2, 40, 3, 33, 65),
    (4, 9, 2, 130, 31),
    (2, 3, 2, 4, 0),
    (0, 3, 2, 4, 5),
    (2, 0, 2, 4, 5),
    (2, 3, 0, 4, 5),
    (2, 3, 2, 0, 5),
]
MANY = (3, 700, 5, 500, 3)  # more than a block of rows and a group of words


def computed(dtype):
    return np.float64 if dtype == F64 else np.float32


def build(dtype=F32, b=3, sign_length=5, m=4, text_length=7, d=6, *, masked=True, kept=False, seed=0):
    random = np.random.default_rng([b, sign_length, m, text_length, d, seed])
    signs, words = (b, sign_length), (m, text_length)
    masks = [random.random(shape) < 0.7 for shape in (signs, words)]
    masks[0][:1], masks[1][1:2] = False, False
    slopes = -(-b * sign_length // 32) * 32 * (-(-m * text_length // 8) * 8)
    return {
        "dtype": dtype,
        "sign": filled(encode(random.normal(size=(*signs, d)), dtype)),
        "sign_mask": filled(masks[0].astype(np.uint8)) if masked else None,
        "b": b,
        "sign_length": sign_length,
        "text": filled(encode(random.normal(size=(*words, d)), dtype)),
        "text_mask": filled(masks[1].astype(np.uint8)) if masked else None,
        "m": m,
        "text_length": text_length,
        "d": d,
        "row_temperature": 0.5,
        "similarity": empty((b, m), computed(dtype)),
        "slopes": empty((slopes,), computed(dtype)) if kept else None,
        "threads": 1,
    }


def backward(forward, seed=1):
    """The arguments of the adjoint, after a forward pass that kept slopes or did not."""
    compute, random = computed(forward["dtype"]), np.random.default_rng(seed)
    between = [name for name in forward if name not in ("dtype", "similarity", "slopes", "threads")]
    return {
        "dtype": forward["dtype"],
        "grad": filled(random.normal(size=(forward["b"], forward["m"])).astype(compute)),
        **{name: forward[name] for name in between},
        "slopes": forward["slopes"],
        "grad_sign": empty(forward["sign"].shape, compute),
        "grad_text": empty(forward["text"].shape, compute),
        "threads": forward["threads"],
    }


def truth(done):
    """The similarity, and the gradients of both sides for `grad`, in longdouble; with sums of absolute terms."""
    sign, text = (np.asarray(decode(done[name], done["dtype"]), np.longdouble) for name in ("sign", "text"))
    rows, words = (
        np.ones(x.shape[:2], bool) if done[f"{name}_mask"] is None else np.array(done[f"{name}_mask"], bool)
        for name, x in (("sign", sign), ("text", text))
    )
    similarity = np.zeros((len(sign), len(text)), np.longdouble)
    grads, sizes = ([np.zeros_like(sign), np.zeros_like(text)] for _ in range(2))
    for i in range(len(sign)):
        for j in range(len(text)):
            a, w = sign[i][rows[i]], text[j][words[j]]
            if not len(a) or not len(w):
                continue
            z = np.einsum("ad,wd->aw", a, w)
            p = np.exp((z - z.max(1, keepdims=True)) / done["row_temperature"])
            p /= p.sum(1, keepdims=True)
            mean = (p * z).sum(1, keepdims=True)
            similarity[i, j] = mean.mean()
            if "grad" in done:
                slope = p * (1 + (z - mean) / done["row_temperature"]) * done["grad"][i, j] / len(a)
                grads[0][i][rows[i]] += np.einsum("aw,wd->ad", slope, w)
                grads[1][j][words[j]] += np.einsum("aw,ad->wd", slope, a)
                sizes[0][i][rows[i]] += np.einsum("aw,wd->ad", np.abs(slope), np.abs(w))
                sizes[1][j][words[j]] += np.einsum("aw,ad->wd", np.abs(slope), np.abs(a))
    return similarity, grads, sizes


def check(library, forward, unit_of_slopes):
    similarity, _, _ = truth(call(library, FORWARD, forward))
    unit = np.finfo(computed(forward["dtype"])).eps
    np.testing.assert_allclose(forward["similarity"], similarity, rtol=0, atol=200 * unit)
    done = call(library, BACKWARD, backward(forward))
    _, grads, sizes = truth(done)
    for name, grad, size in zip(("grad_sign", "grad_text"), grads, sizes, strict=True):
        assert (np.abs(done[name] - grad) <= (unit_of_slopes + 500 * unit) * size + 50 * unit).all()
    for name, mask in (("grad_sign", "sign_mask"), ("grad_text", "text_mask")):
        if done[mask] is not None:
            assert not done[name][np.array(done[mask]) == 0].any()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients(library, dtype, sizes, masked, kept):
    check(library, build(dtype, *sizes, masked=masked, kept=kept), 2**-8 if dtype == BF16 else 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_than_a_block_and_a_group(library, dtype):
    check(library, build(dtype, *MANY), 2**-8 if dtype == BF16 else 0)


def test_every_slope_is_written(library):
    for sizes in SIZES:
        done = call(library, FORWARD, build(F32, *sizes, kept=True))
        assert np.isfinite(done["slopes"]).all()


@pytest.mark.parametrize("name", ["grad_sign", "grad_text"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unwanted_gradients(library, dtype, name):
    forward = call(library, FORWARD, build(dtype))
    whole, part = call(library, BACKWARD, backward(forward)), call(library, BACKWARD, {**backward(forward), name: None})
    other = "grad_sign" if name == "grad_text" else "grad_text"
    np.testing.assert_array_equal(part[other], whole[other])


def test_bytes_but_zero_mean_that_a_row_is_there(library):
    arguments, plain = build(), build()
    for name in ("sign_mask", "text_mask"):
        arguments[name][arguments[name] == 1] = 255
    done, expected = call(library, FORWARD, arguments), call(library, FORWARD, plain)
    np.testing.assert_array_equal(done["similarity"], expected["similarity"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_masked_out_is_not_looked_at(library, dtype):
    clean, dirty = build(dtype), build(dtype)
    for name in ("sign", "text"):
        dirty[name][np.array(dirty[f"{name}_mask"]) == 0] = encode(np.array([np.nan]), dtype)[0]
    for forward in (clean, dirty):
        call(library, FORWARD, forward)
    np.testing.assert_array_equal(dirty["similarity"], clean["similarity"])
    grads = [call(library, BACKWARD, backward(forward)) for forward in (clean, dirty)]
    for name in ("grad_sign", "grad_text"):
        np.testing.assert_array_equal(grads[1][name], grads[0][name])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_that_is_not_finite_spoils_its_row_or_column(library, dtype, wrong):
    for name, axis in (("sign", 1), ("text", 0)):
        arguments = build(dtype, masked=False)
        arguments[name][1, 2, 3] = encode(np.array([wrong]), dtype)[0]
        found = ~np.isfinite(call(library, FORWARD, arguments)["similarity"])
        spoiled = found.any(axis)
        assert spoiled[1] and spoiled.sum() == 1
        if np.isnan(wrong):
            assert found.all(axis)[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads(library, dtype):
    sizes = (3, 200, 4, 150, 64)
    same(library, FORWARD, lambda: build(dtype, *sizes, kept=True), ["similarity", "slopes"])
    forward = call(library, FORWARD, build(dtype, *sizes))
    same(library, BACKWARD, lambda: backward(forward), ["grad_sign", "grad_text"])


def test_many_rows_for_any_number_of_threads(library):
    forwards = [call(library, FORWARD, {**build(F32, *MANY), "threads": threads}) for threads in (1, 2, 5)]
    done = [call(library, BACKWARD, backward(forward)) for forward in forwards]
    for other in (1, 2):
        np.testing.assert_array_equal(bits(forwards[other]["similarity"]), bits(forwards[0]["similarity"]))
        for name in ("grad_sign", "grad_text"):
            np.testing.assert_array_equal(bits(done[other][name]), bits(done[0][name]))


BAD = [
    *(({"dtype": wrong}, "dtype must be SLR_F32, SLR_F64 or SLR_BF16") for wrong in (F16, 4, -1)),
    *(({n: wrong}, "impossible") for n in ("b", "sign_length", "m", "text_length", "d") for wrong in (-1, 2**62)),
    *bad_temperatures("row_temperature"),
    *bad_buffers("sign", "text"),
]


@pytest.mark.parametrize(
    ("wrong", "word"), [*BAD, *bad_buffers("similarity"), ({"slopes": "misaligned"}, "align"), ({"b": 2**40}, "imposs")]
)
def test_bad_arguments(library, wrong, word):
    arguments = build(kept=True)
    if wrong.get("b") == 2**40:
        wrong = {**wrong, "m": 2**40}
    refused(library, FORWARD, arguments, wrong, word)


@pytest.mark.parametrize(
    ("wrong", "word"), [*BAD, *bad_buffers("grad"), *(({n: "misaligned"}, "align") for n in ("grad_sign", "grad_text"))]
)
def test_bad_arguments_of_the_adjoint(library, wrong, word):
    refused(library, BACKWARD, backward(build()), wrong, word)
