"""The similarity of sign sequences and texts: a tile of rows against all words of a text in one program.

The backward pass makes the gradients of the scores for some texts at a time, in a scratch of a few MB, and multiplies
them with both sides; what is summed is summed in a fixed order, without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slrfast.kernels.triton import _select
from slrfast.kernels.triton._gcn import on
from slrfast.kernels.triton._rounding import rounded
from slrfast.kernels.triton._select import bound, inner_products

SCRATCH = 8 << 20  # bytes of the scores' gradients that are held at a time


@triton.jit
def row_sums(
    sign,  # [Ls, D] of one clip
    text,  # [Lt, D] of one text
    words,  # [Lt] uint8 of that text, with WORDS
    Ls,
    Lt,
    D,
    first_row,
    sign_row,
    sign_step,
    text_row,
    text_step,
    scale,
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """Of ROWS rows: the largest score, the sum of e^(scale (z - largest)), that of z times it; and how many words."""
    dtype: tl.constexpr = tl.float64 if DOT == "double" else tl.float32
    top = tl.full((ROWS,), -3e38, dtype)
    total = tl.zeros((ROWS,), dtype)
    product = tl.zeros((ROWS,), dtype)
    seen = tl.zeros((COLUMNS,), tl.int32)
    for start in range(0, bound(Lt), COLUMNS):
        z = inner_products(
            sign, text, Ls, Lt, first_row, start, 0, D, sign_row, sign_step, text_row, text_step,
            ROWS, COLUMNS, DEPTH, DOT,
        )  # fmt: skip
        inside = is_word(words, start, Lt, WORDS, COLUMNS)
        seen += inside.to(tl.int32)
        largest = tl.maximum(top, tl.max(tl.where(inside[None, :], z, -3e38), 1))
        fade = tl.exp((top - largest) * scale)
        power = tl.where(inside[None, :], tl.exp((z - largest[:, None]) * scale), 0.0)
        total = total * fade + tl.sum(power, 1)
        product = product * fade + tl.sum(tl.where(inside[None, :], power * z, 0.0), 1)
        top = largest
    return top, total, product, tl.sum(seen)


@triton.jit
def is_word(
    words,  # [Lt] uint8, with WORDS
    start,
    Lt,
    WORDS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = start + tl.arange(0, COLUMNS)
    inside = column < Lt
    if WORDS:
        inside = tl.load(words + column, mask=inside, other=0) != 0
    return inside


@triton.jit
def row_means(
    sign,  # [B, Ls, D]
    text,  # [M, Lt, D]
    rows,  # [B, Ls] uint8, with MASKED
    words,  # [M, Lt] uint8, with WORDS
    parts,  # [B, M, row tiles] out
    Ls,
    Lt,
    D,
    M,
    sign_clip,
    sign_row,
    sign_step,
    text_text,
    text_row,
    text_step,
    scale: tl.float64,
    MASKED: tl.constexpr,
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """parts = sum over a tile of rows of the mean of their scores by their softmax over the words."""
    if DOT != "double":
        scale = tl.cast(scale, tl.float32)
    tiles = tl.cdiv(Ls, ROWS)
    clip, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    m = tl.program_id(1).to(tl.int64)
    _, total, product, seen = row_sums(
        sign + clip * sign_clip, text + m * text_text, words + m * Lt, Ls, Lt, D, tile * ROWS,
        sign_row, sign_step, text_row, text_step, scale, WORDS, ROWS, COLUMNS, DEPTH, DOT,
    )  # fmt: skip
    row = tile * ROWS + tl.arange(0, ROWS)
    there = row < Ls
    if MASKED:
        there = tl.load(rows + clip * Ls + row, mask=there, other=0) != 0
    mean = tl.where(there & (seen > 0), product / tl.where(seen > 0, total, 1.0), 0.0)
    tl.store(parts + (clip * M + m) * tiles + tile, tl.sum(mean))


@triton.jit
def score_slopes(
    sign,  # [B, Ls, D]
    text,  # [texts, Lt, D]
    rows,  # [B, Ls] uint8, with MASKED
    words,  # [texts, Lt] uint8, with WORDS
    factors,  # [B, texts]
    slopes,  # [B, Ls, texts, Lt] out
    Ls,
    Lt,
    D,
    texts,
    sign_clip,
    sign_row,
    sign_step,
    text_text,
    text_row,
    text_step,
    factor_row,
    scale: tl.float64,
    MASKED: tl.constexpr,
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """slopes = factor p (1 + scale (z - mean)), 0 where there is no row or no word."""
    if DOT != "double":
        scale = tl.cast(scale, tl.float32)
    tiles = tl.cdiv(Ls, ROWS)
    clip, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    m = tl.program_id(1).to(tl.int64)
    sign += clip * sign_clip
    text += m * text_text
    words += m * Lt
    top, total, product, seen = row_sums(
        sign, text, words, Ls, Lt, D, tile * ROWS, sign_row, sign_step, text_row, text_step, scale,
        WORDS, ROWS, COLUMNS, DEPTH, DOT,
    )  # fmt: skip
    row = tile * ROWS + tl.arange(0, ROWS)
    there = row < Ls
    if MASKED:
        there = tl.load(rows + clip * Ls + row, mask=there, other=0) != 0
    mean = product / tl.where(seen > 0, total, 1.0)
    factor = tl.load(factors + clip * factor_row + m) / tl.where(seen > 0, total, 1.0)
    for start in range(0, bound(Lt), COLUMNS):
        z = inner_products(
            sign, text, Ls, Lt, tile * ROWS, start, 0, D, sign_row, sign_step, text_row, text_step,
            ROWS, COLUMNS, DEPTH, DOT,
        )  # fmt: skip
        inside = there[:, None] & is_word(words, start, Lt, WORDS, COLUMNS)[None, :]
        slope = factor[:, None] * tl.exp((z - top[:, None]) * scale) * (1.0 + (z - mean[:, None]) * scale)
        column = start + tl.arange(0, COLUMNS)[None, :]
        to = slopes + ((clip * Ls + row)[:, None] * texts + m) * Lt + column
        value = rounded(tl.where(inside, slope, 0.0), slopes.dtype.element_ty)
        tl.store(to, value, mask=(row < Ls)[:, None] & (column < Lt))


@triton.jit
def add_product(
    left,  # [rows, depth]
    right,  # [depth, columns]
    out,  # [rows, columns], contiguous
    rows,
    columns,
    depth,
    left_row,
    left_depth,
    right_depth,
    right_column,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """out = left right, or out + left right."""
    row_tiles = tl.cdiv(rows, ROWS)
    first_row = tl.program_id(0) % row_tiles * ROWS
    first_column = tl.program_id(0) // row_tiles * COLUMNS
    tile = inner_products(
        left, right, rows, columns, first_row, first_column, 0, depth, left_row, left_depth, right_column, right_depth,
        ROWS, COLUMNS, DEPTH, DOT,
    )  # fmt: skip
    row = tl.cast(first_row, tl.int64) + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    if ADD:
        tile += tl.load(out + row * columns + column, mask=inside, other=0.0)
    tl.store(out + row * columns + column, tile, mask=inside)


def sign_text_similarity(
    sign: Tensor, text: Tensor, sign_mask: Tensor | None, text_mask: Tensor | None, row_temperature: float
) -> Tensor:
    """Run the kernel for ``slrfast::sign_text_similarity``."""
    compute = _select.compute_type(sign, text)
    (clips, length, _), texts = sign.shape, text.shape[0]
    (tile, options), rows = _tile(sign, text, compute), _select.row_tile(length)
    parts = torch.zeros(clips, texts, triton.cdiv(length, rows), dtype=compute, device=sign.device)
    if parts.numel() and text.shape[1]:
        with on(sign):
            row_means[clips * parts.shape[2], texts](
                sign, text, *_bytes(sign, sign_mask, text_mask), parts, length, *text.shape[1:], texts, *sign.stride(),
                *text.stride(), 1 / row_temperature, sign_mask is not None, text_mask is not None, rows, *tile,
                **options,
            )  # fmt: skip
    return parts.sum(2) / _counts(sign, sign_mask)[:, None]


def sign_text_similarity_grad(
    grad: Tensor,
    sign: Tensor,
    text: Tensor,
    sign_mask: Tensor | None,
    text_mask: Tensor | None,
    row_temperature: float,
    want_sign: bool,
    want_text: bool,
) -> tuple[Tensor, Tensor]:
    """Run the kernels for ``slrfast::sign_text_similarity_grad``, for as many texts at a time as the scratch holds."""
    compute = _select.compute_type(sign, text)
    sign, text = (_zeroed(x, mask) for x, mask in ((sign, sign_mask), (text, text_mask)))
    (clips, length, dim), (texts, size) = sign.shape, text.shape[:2]
    factors = (grad.to(compute) / _counts(sign, sign_mask)[:, None]).contiguous()
    grads = [
        torch.zeros(x.shape if want else 0, dtype=compute, device=x.device)
        for x, want in ((sign, want_sign), (text, want_text))
    ]
    half = sign.dtype == text.dtype == torch.bfloat16
    (tile, options), rows = _tile(sign, text, compute), _select.row_tile(length)
    bytes_each = max(clips * length * size * (2 if half else compute.itemsize), 1)
    step = max(1, SCRATCH // bytes_each)
    if not (clips and length and texts and size and dim):
        return grads[0], grads[1]
    with on(sign):
        for first in range(0, texts, step):
            some, some_mask = text[first : first + step], None if text_mask is None else text_mask[first : first + step]
            count = some.shape[0]
            slopes = torch.empty(
                clips * length, count * size, dtype=torch.bfloat16 if half else compute, device=sign.device
            )
            score_slopes[clips * triton.cdiv(length, rows), count](
                sign, some, *_bytes(sign, sign_mask, some_mask), factors[:, first:], slopes, length, size, dim, count,
                *sign.stride(), *some.stride(), texts, 1 / row_temperature, sign_mask is not None,
                text_mask is not None, rows, *tile, **options,
            )  # fmt: skip
            if want_sign:
                _add(slopes, some.reshape(-1, dim), grads[0], first > 0)
            if want_text:
                _add(slopes.T, sign.reshape(-1, dim), grads[1][first : first + step], False)
            del slopes  # before the next ones are allocated
    return grads[0], grads[1]


def _add(left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
    """out = left right [rows, columns], added to what is there with ``add``."""
    (columns, depth, mode), options = _tile(left, right, out.dtype)
    rows = _select.row_tile(left.shape[0])
    add_product[(triton.cdiv(left.shape[0], rows) * triton.cdiv(right.shape[1], columns),)](
        left, right, out, left.shape[0], right.shape[1], left.shape[1], *left.stride(), *right.stride(), add, rows,
        columns, depth, mode, **options,
    )  # fmt: skip


def _tile(left: Tensor, right: Tensor, compute: torch.dtype) -> tuple[tuple[int, int, str], dict[str, int]]:
    """The constants (COLUMNS, DEPTH, DOT) of a tile of products and the launch options."""
    (columns, depth, mode), options = _select.tile(_select.dot_mode(left.dtype, right.dtype, compute))
    warps = 8 if mode in ("ieee", "double") else options["num_warps"]  # with four of them registers are spilled
    return (columns, depth, mode), options | {"num_warps": warps, "maxnreg": 255}


def _zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    """Compact, with zeros where the mask has no row: they are multiplied with zero."""
    return x.contiguous() if mask is None else torch.where(mask[..., None], x, 0.0).contiguous()


def _bytes(like: Tensor, *masks: Tensor | None) -> list[Tensor]:
    """Masks as bytes, and any tensor of bytes where there is none."""
    return [like.new_empty(1, dtype=torch.uint8) if m is None else m.contiguous().view(torch.uint8) for m in masks]


def _counts(sign: Tensor, sign_mask: Tensor | None) -> Tensor:
    """[B]: the rows of each sign sequence, at least 1."""
    if sign_mask is None:
        return torch.full(sign.shape[:1], max(sign.shape[1], 1), device=sign.device)
    return sign_mask.sum(1).clamp_min(1)
