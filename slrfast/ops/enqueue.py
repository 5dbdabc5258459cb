"""First-in-first-out writing into a memory bank."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.ops import _dispatch
from slrfast.reference import enqueue as reference

_dispatch.register("enqueue_", cpu=("reference",), cuda=("reference",))
_FORWARD = {"reference": reference.enqueue_}


def enqueue_(bank: Tensor, cursor: Tensor, keys: Tensor, *, normalize: bool = True) -> None:
    """Overwrite the oldest rows of a memory bank by new keys, in place.

    bank[(cursor + j) mod N] = keys[j] / |keys[j]| for j = 0..B-1 in this order, then cursor = (cursor + B) mod N: the
    queue of MoCo, STC section 5. It wraps around for any B; of a batch larger than the bank the last N keys stay.

    Args:
        bank: [N, D], any strides (``queue.T`` of a MoCo queue is written through), float64, float32, bfloat16 or
            float16; changed in place.
        cursor: [] int64 on the bank's device, the row that is written next; changed in place.
        keys: [B, D]; the dtype may differ; no gradient.
        normalize: divide each key by its length (a key shorter than 1e-12 by 1e-12).
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, or an empty bank.
    Numerics:
        Keys are normalised in float32 (float64 for float64) and then rounded once to the bank's dtype. The device is
        not synchronised; B rows are written.

    >>> bank, cursor = torch.zeros(3, 1), torch.tensor(2)
    >>> enqueue_(bank, cursor, torch.tensor([[7.0], [8.0]]), normalize=False)
    >>> bank.flatten(), cursor
    (tensor([8., 0., 7.]), tensor(1))
    """
    sizes = checks.shapes("enqueue_", bank=(bank, "N D"), cursor=(cursor, ""), keys=(keys, "B D"))
    checks.floating("enqueue_", bank=bank, keys=keys)
    checks.dtype("enqueue_", torch.int64, cursor=cursor)
    checks.same_device("enqueue_", bank=bank, cursor=cursor, keys=keys)
    checks.require(sizes["N"] >= 1, "enqueue_", "bank", "have at least one row", list(bank.shape))
    with torch.no_grad():
        _FORWARD[_dispatch.choose("enqueue_", bank.device.type)](bank, cursor, keys.detach(), normalize)
