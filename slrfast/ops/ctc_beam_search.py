"""CTC prefix beam search: the most probable labelling of every clip, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native_text
from slrfast.ops import _dispatch
from slrfast.reference import ctc_beam_search as reference

MOST_PREFIXES = 1 << 16
ROUNDING = 1e-3

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define(
    "ctc_beam_search(Tensor log_probs, Tensor lengths, int beam, int blank) -> (Tensor tokens, Tensor counts, "
    "Tensor scores)"
)


def _fake(log_probs: Tensor, lengths: Tensor, beam: int, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    b, t, _ = log_probs.shape
    tokens = log_probs.new_empty((b, t), dtype=torch.int64)
    return tokens, tokens.new_empty(b), log_probs.new_empty(b, dtype=torch.float64)


# ---- backends: a search of branches and tables is the CPU's, and there is no GPU kernel -----------------------------

_dispatch.register("ctc_beam_search", cpu=("native", "reference"))
_FORWARD = {"native": native_text.ctc_beam_search, "reference": reference.ctc_beam_search}


def _forward(log_probs: Tensor, lengths: Tensor, beam: int, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    search = _FORWARD[_dispatch.choose("ctc_beam_search", "cpu")]
    found = search(log_probs.cpu(), lengths.cpu(), beam, blank)
    tokens, counts, scores = (tensor.to(log_probs.device) for tensor in found)
    return tokens, counts, scores


_library.impl("ctc_beam_search", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::ctc_beam_search", _fake, lib=_library)


# ---- public ---------------------------------------------------------------------------------------------------------


def ctc_beam_search(
    log_probs: Tensor, lengths: Tensor, *, beam: int = 10, blank: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the most probable labelling of every clip under CTC, by a prefix beam search.

    A labelling's probability is the sum over all its alignments, sequences of one token or blank a frame that give it
    once repeats are merged and blanks removed. From frame to frame the ``beam`` best prefixes are kept, each with the
    log-probabilities of its alignments that end in blank and in its last token (Graves 2012, section 7.5.1; Hannun et
    al. 2014, algorithm 1, without a language model). The vocabulary is never cut: every token that could enter the
    beam is looked at.

    Args:
        log_probs: [B, T, C] of ``log_softmax``, any strides, float64, float32, bfloat16 or float16. No gradient.
        lengths: [B] int64, the frames of every clip, in [0, T]; what follows is padding and is not read.
        beam: prefixes that are kept, 1 to 65536. It may exceed C: it counts prefixes, not tokens; more than there are
            labellings make the search exhaustive. 1 is not greedy decoding: that takes the best alignment instead.
        blank: its class, in [0, C).
    Returns:
        tokens [B, T] int64, the labelling with -1 behind; counts [B] int64, its tokens; scores [B] float64, the
        log-probability of the labelling over the alignments that the beam saw: a lower bound that is exact where the
        search is exhaustive. No frames give no tokens and score 0; a clip of which every labelling has probability 0
        none and -inf.
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, beam or blank out of range,
            and, but not inside torch.compile: a length out of range, and in a clip's frames NaN or numbers above 0
            (logits, where ``log_softmax`` was forgotten; up to 0.001 passes for rounding).
    Numerics:
        Sums in float64, deterministic, bitwise the same on both backends. Of equal scores a prefix that stays goes
        before one that grows, then the child of the better parent, then the token more probable in this frame, then
        the lower one. Tensors on a GPU are copied to the CPU, where the search runs (the device is waited for), and
        the results back. Clips run in parallel; memory of a thread about 40 beam T bytes.

    >>> frames = torch.tensor([[[0.4, 0.6], [0.4, 0.6], [0.7, 0.3]]]).log()
    >>> tokens, counts, scores = ctc_beam_search(frames, torch.tensor([3]))
    >>> tokens.tolist(), counts.tolist(), round(scores.exp().item(), 3)  # 1 - (all blank) - (1, blank, 1)
    ([[1, -1, -1]], [1], 0.816)
    """
    op = "ctc_beam_search"
    tensors = {"log_probs": log_probs, "lengths": lengths}
    sizes = checks.shapes(op, log_probs=(log_probs, "B T C"), lengths=(lengths, "B"))
    checks.floating(op, log_probs=log_probs)
    checks.dtype(op, torch.int64, lengths=lengths)
    checks.same_device(op, **tensors)
    checks.require(sizes["C"] >= 1, op, "log_probs", "have at least one class", list(log_probs.shape))
    checks.integer_between(op, 1, MOST_PREFIXES, beam=beam)
    checks.integer_between(op, 0, sizes["C"] - 1, blank=blank)
    if not torch.compiler.is_compiling() and type(log_probs) is Tensor and not log_probs.is_meta:
        log_probs, lengths = log_probs.cpu(), lengths.cpu()
        checks.lengths(op, sizes["T"], lengths)
        _check_values(op, log_probs.detach(), lengths)
    found = torch.ops.slrfast.ctc_beam_search(log_probs.detach(), lengths, beam, blank)
    device = tensors["log_probs"].device
    tokens, counts, scores = (tensor.to(device) for tensor in found)
    return tokens, counts, scores


def _check_values(op: str, log_probs: Tensor, lengths: Tensor) -> None:
    if log_probs.numel() == 0:
        return
    frames = torch.arange(log_probs.shape[1]) < lengths[:, None]
    wrong = ~(log_probs.amax(2) <= ROUNDING) & frames  # NaN is passed on by amax
    if wrong.any():
        clip, frame = wrong.nonzero()[0].tolist()
        token = int((~(log_probs[clip, frame] <= ROUNDING)).nonzero()[0])
        got = f"{log_probs[clip, frame, token]:g} for clip {clip}, frame {frame}, class {token}"
        checks.require(False, op, "log_probs", "be at most 0", got, "take log_softmax over the classes")
