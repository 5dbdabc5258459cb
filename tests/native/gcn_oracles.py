"""The functions of the graph network in float64, each value with the error that the arithmetic of a kernel may add.

A sum of n products is allowed (2 sqrt(n) + 8) units of the sum of their sizes; avx512bf16 multiplies bfloat16 operands,
each of which is off by up to 2^-8 of its size. Where a ReLU may go either way, so may the gradient.
"""

import numpy as np
from bank_oracles import UNIT
from buffers import BF16, F16, F32, F64, decode

COMPUTE = {F32: F32, F64: F64, BF16: F32, F16: F32}  # the type of weights, moments and sums
ROUNDING = {F32: 2.0**-24, F64: 2.0**-53, BF16: 2.0**-8, F16: 2.0**-11}


def unit(dtype, terms=1):
    return (2 * np.sqrt(terms) + 8) * UNIT[COMPUTE[dtype]]


def numbers(array, dtype):
    return decode(np.array(array), dtype).astype(np.float64)


def stored(dtype, y, error):
    """What is left of the error in a buffer of that type."""
    y = np.abs(y)
    return error + (y + error) * ROUNDING[dtype] + (2.0**-25 if dtype == F16 else 0.0)


def dense(edges, coefficients, nodes, partitions):
    adjacency = np.zeros((partitions, nodes, nodes))
    if edges is not None:
        np.add.at(adjacency, tuple(np.array(edges).T), np.array(coefficients, np.float64))
    return adjacency


def parts_of(x, groups):
    """[groups, values of a group, channels]."""
    return x.reshape(groups, int(np.prod(x.shape[:-1])) // groups, x.shape[-1])


# ---- graph convolution and linear map


def product(dtype, x, error, weight, terms, paired):
    """x weight, for x with an error; weight [inputs, outputs] with the sizes of its columns in `terms`."""
    off = np.abs(x) @ np.abs(weight) * (unit(dtype, terms) + (2.0**-7 if paired else 0.0))
    return x @ weight, off + error @ np.abs(weight)


def graph_conv(dtype, x, adjacency, weight, bias, paired, error=0.0):
    """(y, error) of x with an error; bias [partitions, outputs] or None."""
    partitions, nodes, _ = adjacency.shape
    terms = weight.shape[1] * np.count_nonzero(adjacency, (0, 1)).max(initial=1)
    shape, flat = (len(x), nodes, partitions * x.shape[2]), weight.reshape(partitions * x.shape[2], weight.shape[2])
    near = np.einsum("rvi,pvw->rwpi", x, adjacency).reshape(shape)
    allowed = np.abs(x) * (unit(dtype, terms) + (2.0**-7 if paired else 0.0)) + error
    off = np.einsum("rvi,pvw->rwpi", allowed, np.abs(adjacency)).reshape(shape) @ np.abs(flat)
    y = near @ flat
    if bias is None:
        return y, off
    sums = adjacency.sum(1).T @ bias
    return y + sums, off + unit(dtype, terms) * (np.abs(adjacency).sum(1).T @ np.abs(bias))


def graph_conv_grad(dtype, grad, error, x, adjacency, weight, along, paired):
    """(grad_x, error), (grad_weight, error), (grad_bias, error)."""
    narrow = 2.0**-7 if paired else 0.0
    terms = weight.shape[2] * np.count_nonzero(adjacency, (0, 2)).max(initial=1)
    big, sizes = np.abs(grad), np.abs(adjacency)

    def back(grad, adjacency, weight):
        return np.einsum("rwo,pvw,pio->rvi", grad, adjacency, weight, optimize=True)

    def outer(x, grad, adjacency):
        return np.einsum("rvi,pvw,rwo->pio", x, adjacency, grad, optimize=True)

    grad_x = back(grad, adjacency, weight)
    off = back(big * (unit(dtype, terms) + narrow) + error, sizes, np.abs(weight))
    if along is not None:
        grad_x, off = grad_x + along, off + unit(dtype) * np.abs(along)
    count = x.shape[0] * x.shape[1]
    of_weight = outer(np.abs(x), big * (unit(dtype, count) + narrow) + error, sizes)
    of_bias = np.einsum("pvw,rwo->po", sizes, big * unit(dtype, count) + error)
    return (
        (grad_x, off),
        (outer(x, grad, adjacency), of_weight),
        (np.einsum("pvw,rwo->po", adjacency, grad), of_bias),
    )


def moments(dtype, y, groups):
    """Mean and biased variance [2, groups, C] of the numbers that a buffer holds."""
    y = parts_of(y, groups).astype(np.longdouble)
    mean, sizes, count = y.mean(1), np.abs(y).mean(1), y.shape[1]
    apart = np.abs(y - mean[:, None])
    off = unit(dtype, count) * (sizes + np.sqrt((apart**2).mean(1)))
    each = off[:, None] + unit(dtype) * np.abs(y)
    wrong = (2 * apart * each + each**2).mean(1) + unit(dtype, count) * (apart**2).mean(1)
    return tuple(np.stack(pair).astype(np.float64) for pair in ((mean, (apart**2).mean(1)), (off, wrong)))


# ---- batch normalisation and dropout


def rows_of(norm, y, row):
    """Number `row` of the norm [groups, 4, C] for every value of y."""
    return np.repeat(norm[:, row], len(y) // max(len(norm), 1), 0)


def normalized(dtype, y, norm):
    """((value before gamma and beta, error), (after, error)) of y [rows, C] for a norm [groups, 4, C]."""
    inverse, shift, gamma, beta = (rows_of(norm, y, row) for row in range(4))
    before, off = y * inverse + shift, unit(dtype) * (np.abs(y * inverse) + np.abs(shift))
    after = before * gamma + beta
    return (before, off), (after, off * np.abs(gamma) + unit(dtype) * (np.abs(before * gamma) + np.abs(beta)))


def through(dtype, grad, error, y, norm, sums):
    """The gradient of y [rows, C] from that of its normalisation; sums [2, groups, C]."""
    (before, off), _ = normalized(dtype, y, norm)
    inverse, gamma = rows_of(norm, y, 0), rows_of(norm, y, 2)
    count = len(y) // len(norm)
    mean, slope = (np.repeat(part, count, 0) / count for part in sums)
    value = inverse * gamma * (grad - mean - before * slope)
    sizes = unit(dtype) * (np.abs(grad) + np.abs(mean) + np.abs(before * slope)) + off * np.abs(slope) + error
    return value, np.abs(inverse * gamma) * sizes


def keeps(dropout, seed, site, rows, channels):
    """The mask of a dropout times its scale, in 32-bit arithmetic."""
    if not dropout:
        return np.ones((rows, channels))

    def mix(x):
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    golden, word = 0x9E3779B9, int(seed) % 2**64
    base = mix((word % 2**32 + (site + 1) * golden) % 2**32) ^ (word >> 32)
    row, channel = np.arange(rows, dtype=np.uint64), np.arange(channels, dtype=np.uint64)
    key = mix((mix((base + row) % 2**32) + (row >> 32)) % 2**32)
    mask = mix(key[:, None] ^ channel * golden % 2**32) >= min(2**32 - 1, int(dropout * 2**32))
    return mask / (1 - dropout) if dropout < 1 else 0.0 * mask


def seen(dtype, x, norm, dropout, seed):
    """What a linear map takes: x, or dropout of relu of its normalisation; with errors, and whether it is beyond 0."""
    if norm is None:
        return (x, np.zeros_like(x)), None, None
    unit_x, (after, off) = normalized(dtype, x, norm)
    kept = keeps(dropout, seed, 0, *x.shape)
    value = np.maximum(after, 0) * kept
    return (value, (off + unit(dtype) * np.abs(after)) * kept), unit_x, (after > 0, np.abs(after) <= off, kept)


def gcn_output(dtype, y, norm, dropout, seed, residual, residual_norm):
    """(relu's argument, its error), and both normalised values with errors."""
    unit_y, (after, off) = normalized(dtype, y, norm)
    kept = keeps(dropout, seed, 1, *y.shape)
    value, error, other = after * kept, off * kept, None
    if residual_norm is not None:
        other, (residual, more) = normalized(dtype, residual, residual_norm)
        error = error + more
    if residual is not None:
        value, error = value + residual, error + unit(dtype) * (np.abs(value) + np.abs(residual))
    return (value, error), unit_y, other, kept


def sums(dtype, grad, error, unit_y, groups):
    """[2, groups, C]: of a gradient and of it times the normalised value."""
    before, off = unit_y
    count = len(grad) // groups
    product, wrong = grad * before, np.abs(grad) * off + error * (np.abs(before) + off)
    pairs = (grad.astype(np.longdouble), product.astype(np.longdouble)), (error, wrong)
    values, errors = ([parts_of(z, groups).sum(1) for z in pair] for pair in pairs)
    sizes = [parts_of(np.abs(z), groups).sum(1) * unit(dtype, count) for z in (grad, product)]
    return np.stack(values).astype(np.float64), np.stack(errors) + np.stack(sizes)
