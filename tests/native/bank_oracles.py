"""The functions over a memory bank in float64, each value with the error that the arithmetic of a kernel may add.

A sum of d products is allowed (2 sqrt(d) + 8) units of the sum of their sizes. bfloat16 instructions multiply pairs of
bfloat16: of a float32 query they keep about 16 bits, and of a weight in a gradient 8.
"""

import numpy as np
from buffers import BF16, F16, F32, F64

UNIT = {F32: 2.0**-24, F64: 2.0**-53}
BANK_DTYPES = (F32, F64, BF16, F16)
TINY = 1e-30  # where float32 underflows


def close(got, want, error):
    got, error = np.asarray(got, np.float64), np.broadcast_to(error, np.shape(want)) + TINY
    assert got.shape == want.shape and np.isfinite(got).all()
    off = np.abs(got - want)
    worst = np.argmax(off / error) if off.size else 0
    assert (off <= error).all(), f"off by {off.flat[worst]:.3g} at {worst}, where {error.flat[worst]:.3g} is allowed"


def narrow(library, dtype, bank):
    return dtype == F32 and bank.dtype == BF16 and library.cpu_isa() == "avx512bf16"


def scores(dtype, query, bank, temperature, half=False):
    """Inner products [b, n] over the temperature, and their errors."""
    query, bank = query.astype(np.float64), np.asarray(bank, np.float64)
    unit = (2 * np.sqrt(bank.shape[1]) + 8) * UNIT[dtype] + (2.0**-16 if half else 0.0)
    return query @ bank.T / temperature, np.abs(query) @ np.abs(bank).T / temperature * unit


def _sum_error(dtype, count):
    return (16 + 2 * np.sqrt(count)) * UNIT[dtype]


def info_nce(dtype, query, positive, bank, temperature, half=False):
    """((loss, error), (lowest and highest rank), (grad, error))."""
    positive = positive.astype(np.float64)
    own = (query.astype(np.float64) * positive).sum(1) / temperature
    sizes = np.abs(query.astype(np.float64) * positive).sum(1) / temperature
    own_error = sizes * (2 * np.sqrt(bank.shape[1]) + 8) * UNIT[dtype]
    s, error = scores(dtype, query, bank, temperature, half)
    largest = np.maximum(own, s.max(1))
    normalizer = largest + np.log(np.exp(own - largest) + np.exp(s - largest[:, None]).sum(1))
    loss = normalizer - own
    p = np.exp(s - normalizer[:, None])
    others = p.sum(1, keepdims=True)
    grad = (p @ bank - others * positive) / temperature
    wrong = 2 * np.maximum(own_error, error.max(1))
    loss_error = wrong + _sum_error(dtype, bank.shape[0]) * (1 + np.abs(loss))
    # the positive's own weight, 1 - sum p, may be taken from the loss
    sizes = (p @ np.abs(bank) + others * np.abs(positive)) / temperature
    weight = (wrong + _sum_error(dtype, bank.shape[0]) + (2.0**-8 if half else 0.0))[:, None]
    grad_error = sizes * weight + (np.exp(-loss) * loss_error)[:, None] * np.abs(positive) / temperature
    border = (error + own_error[:, None], own[:, None])
    rank = (s > border[1] + border[0]).sum(1), (s >= border[1] - border[0]).sum(1)
    return (loss, loss_error), rank, (grad, grad_error)


def chosen(positives, b, n):
    mask = np.zeros((b, n), bool)
    for row, several in enumerate(positives):
        mask[row, [i for i in several if 0 <= i < n]] = True
    return mask


def mined_bce(dtype, query, bank, positives, temperature, half=False):
    n = bank.shape[0]
    z, error = scores(dtype, query, bank, temperature, half)
    mask = chosen(positives, *z.shape)
    turned = np.where(mask, -z, z)  # softplus(z) - z = softplus(-z), and sigmoid(z) - 1 = -sigmoid(-z): no cancellation
    terms, weights = np.logaddexp(0.0, turned), np.exp(-np.logaddexp(0.0, -turned))
    loss_error = (weights * error).sum(1) / n + _sum_error(dtype, n) * terms.sum(1) / n
    grad = np.where(mask, -weights, weights) @ bank / (n * temperature)
    size = weights * (error + _sum_error(dtype, n) + (2.0**-8 if half else 0.0))
    return (terms.sum(1) / n, loss_error), (grad, size @ np.abs(bank) / (n * temperature))


def nearest(dtype, s, error, k):
    """Mask of the k largest, lowest index first among equals; and whether rounding leaves no doubt about it."""
    order = np.argsort(-s, axis=1, kind="stable")
    mask = np.zeros(s.shape, bool)
    np.put_along_axis(mask, order[:, :k], True, axis=1)
    if k == s.shape[1]:
        return mask, np.ones(len(s), bool)
    edge = np.take_along_axis(s, order[:, k - 1 : k + 1], 1)
    return mask, edge[:, 0] - edge[:, 1] > 2 * error.max(1)


def log_softmax(s):
    s = s - s.max(1, keepdims=True)
    return s - np.log(np.exp(s).sum(1, keepdims=True))


def kl(dtype, teacher, teacher_error, student, student_error, mask):
    """Loss and Q - P of the softmax over the masked scores, with errors; the third is the error of the weights."""
    log_p = log_softmax(np.where(mask, teacher, -np.inf))
    log_q = log_softmax(np.where(mask, student, -np.inf))
    p, q = np.exp(log_p), np.exp(log_q)
    ratio = np.where(mask, log_p - np.where(mask, log_q, 0.0), 0.0)
    added = _sum_error(dtype, mask.sum(1).max(initial=1))
    off_p = 2 * np.where(mask, teacher_error, 0.0).max(1) + added
    off_q = 2 * np.where(mask, student_error, 0.0).max(1) + added
    sizes = np.where(mask, np.abs(log_p), 0.0) + np.where(mask, np.abs(log_q), 0.0)
    loss_error = off_p + off_q + off_p * (p * np.abs(ratio)).sum(1) + added * (p * sizes).sum(1)
    return ((p * ratio).sum(1), loss_error), q - p, (p * off_p[:, None] + q * off_q[:, None])


def neighbor_kl(dtype, teacher, teacher_bank, student, student_bank, k, temperatures, half=(False, False)):
    """((loss, error), (grad, error), rows in which the choice of the neighbours is beyond doubt)."""
    s, error = scores(dtype, teacher, teacher_bank, 1.0, half[0])
    mask, clear = nearest(dtype, s, error, k)
    t = scores(dtype, student, student_bank, temperatures[1], half[1])
    loss, weight, off = kl(dtype, s / temperatures[0], error / temperatures[0], *t, mask)
    if half[1]:
        off = off + 2.0**-8 * np.abs(weight)
    sizes = np.abs(student_bank) / temperatures[1]
    grad_error = (off + _sum_error(dtype, k) * np.abs(weight)) @ sizes
    return loss, (weight @ student_bank / temperatures[1], grad_error), clear
