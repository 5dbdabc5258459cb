"""The compiled module's kernels of SLP and of decoding, fed with tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast.kernels import native
from slrfast.kernels.native import DTYPES, LIBRARY


def sign_text_similarity(
    sign: Tensor, text: Tensor, sign_mask: Tensor | None, text_mask: Tensor | None, row_temperature: float, keep: bool
) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::sign_text_similarity``."""
    sign, text, sign_mask, text_mask, similarity = _taken(sign, text, sign_mask, text_mask)
    slopes = similarity.new_empty(kept(sign, text) if keep else 0)
    LIBRARY.sign_text_similarity_cpu(
        *_sequences(sign, text, sign_mask, text_mask), row_temperature, similarity.data_ptr(),
        slopes.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return similarity, slopes


def sign_text_similarity_grad(
    grad: Tensor,
    sign: Tensor,
    text: Tensor,
    sign_mask: Tensor | None,
    text_mask: Tensor | None,
    slopes: Tensor,
    row_temperature: float,
    want_sign: bool,
    want_text: bool,
) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::sign_text_similarity_grad``."""
    sign, text, sign_mask, text_mask, like = _taken(sign, text, sign_mask, text_mask)
    grad, slopes = grad.to(like.dtype).contiguous(), slopes.contiguous()
    grads = [like.new_empty(x.shape if want else 0) for x, want in ((sign, want_sign), (text, want_text))]
    if grad.shape != like.shape or slopes.numel() not in (0, kept(sign, text)) or slopes.dtype != like.dtype:
        raise ValueError(
            f"the gradient of a similarity is {list(like.shape)}, got {list(grad.shape)}, or slopes differ"
        )
    dtype, *sequences = _sequences(sign, text, sign_mask, text_mask)
    LIBRARY.sign_text_similarity_grad_cpu(
        dtype, grad.data_ptr(), *sequences, row_temperature, slopes.data_ptr(),
        *(g.data_ptr() for g in grads), torch.get_num_threads(),
    )  # fmt: skip
    return grads[0], grads[1]


def kept(sign: Tensor, text: Tensor) -> int:
    """Numbers that the forward pass keeps of all scores: whole panels of sign rows and of words."""
    return (sign.shape[0] * sign.shape[1] + 31) // 32 * 32 * ((text.shape[0] * text.shape[1] + 7) // 8 * 8)


def _taken(
    sign: Tensor, text: Tensor, sign_mask: Tensor | None, text_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """Compact tensors of one type, bfloat16 where both have that, and room for the similarity."""
    if sign.dtype == text.dtype == torch.bfloat16:
        sign, text = sign.contiguous(), text.contiguous()
    else:
        sign, text = native.compact(sign, text, wide=())
    sign_mask, text_mask = (None if mask is None else mask.contiguous() for mask in (sign_mask, text_mask))
    similarity = torch.empty(sign.shape[0], text.shape[0], dtype=torch.promote_types(sign.dtype, torch.float32))
    return sign, text, sign_mask, text_mask, similarity


def _sequences(sign: Tensor, text: Tensor, sign_mask: Tensor | None, text_mask: Tensor | None) -> tuple[int, ...]:
    """Type, addresses and sizes as the functions take them."""
    signs = sign.data_ptr(), native.address(sign_mask), *sign.shape[:2]
    return DTYPES[sign.dtype], *signs, text.data_ptr(), native.address(text_mask), *text.shape


def masked_pose_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, confidence: Tensor, want_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::masked_pose_loss``."""
    prediction, target, confidence = native.compact(prediction, target, confidence, wide=())
    mask = mask.contiguous()
    loss = prediction.new_empty(len(prediction))
    count = torch.empty(len(prediction), dtype=torch.int64)
    grad = torch.empty_like(prediction) if want_grad else prediction.new_empty(0)
    LIBRARY.masked_pose_loss_cpu(
        DTYPES[loss.dtype], prediction.data_ptr(), target.data_ptr(), mask.data_ptr(), confidence.data_ptr(),
        len(prediction), prediction.shape[1] * prediction.shape[2], loss.data_ptr(), count.data_ptr(),
        grad.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return loss, count, grad


def ctc_beam_search(log_probs: Tensor, lengths: Tensor, beam: int, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::ctc_beam_search``."""
    log_probs, lengths = log_probs.to(native.sum_dtype(log_probs)).contiguous(), lengths.contiguous()
    clips, frames, classes = log_probs.shape
    tokens, counts = torch.empty((clips, frames), dtype=torch.int64), torch.empty(clips, dtype=torch.int64)
    scores = torch.empty(clips, dtype=torch.float64)
    LIBRARY.ctc_beam_search_cpu(
        DTYPES[log_probs.dtype], log_probs.data_ptr(), clips, frames, classes, lengths.data_ptr(), blank, beam,
        tokens.data_ptr(), counts.data_ptr(), scores.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return tokens, counts, scores
