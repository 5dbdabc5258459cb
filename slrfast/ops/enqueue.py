"""First-in-first-out writing into a memory bank."""

from __future__ import annotations

import torch
from torch import Tensor

from slrfast import checks
from slrfast.kernels import native
from slrfast.ops import _dispatch
from slrfast.reference import enqueue as reference

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_library.define("enqueue_(Tensor(a!) bank, Tensor(b!) cursor, Tensor keys, bool normalize) -> ()")


def _fake(bank: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    pass


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> None:
    from slrfast.kernels.triton import enqueue as kernel

    kernel.enqueue_(*args)


_dispatch.register("enqueue_", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.enqueue_, "triton": _triton, "reference": reference.enqueue_}


def _forward(bank: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    device = bank.device.type
    if keys.untyped_storage()._cdata == bank.untyped_storage()._cdata:  # kernels read and write at the same time
        keys = keys.clone()
    with torch.no_grad(), torch.autocast(device, enabled=False):
        _FORWARD[_dispatch.choose("enqueue_", device)](bank, cursor, keys, normalize)
    for written in (bank, cursor):  # a kernel writes behind autograd's back; who saved the bank must notice
        if not written.is_inference():
            torch.autograd.graph.increment_version(written)


_library.impl("enqueue_", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::enqueue_", _fake, lib=_library)


def _overlaps(bank: Tensor) -> bool:
    """Whether elements of the bank may share memory."""
    reach = 0  # of the dimensions with smaller strides
    for stride, size in sorted((stride, size) for stride, size in zip(bank.stride(), bank.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


# ---- public ---------------------------------------------------------------------------------------------------------


def enqueue_(bank: Tensor, cursor: Tensor, keys: Tensor, *, normalize: bool = True) -> None:
    """Overwrite the oldest rows of a memory bank by new keys, in place.

    bank[(cursor + j) mod N] = keys[j] / |keys[j]| for j = 0..B-1 in this order, then cursor = (cursor + B) mod N: the
    queue of MoCo, STC section 5. It wraps around for any B; of a batch larger than the bank the last N keys stay.

    Args:
        bank: [N, D], any strides (``queue.T`` of a MoCo queue is written through), float64, float32, bfloat16 or
            float16; changed in place. One that requires grad is a warning, as none flows.
        cursor: [] int64 on the bank's device, the row that is written next; changed in place.
        keys: [B, D]; the dtype may differ; no gradient.
        normalize: divide each key by its length (a key shorter than 1e-12 by 1e-12).
    Raises:
        TypeError: a tensor of another dtype. ValueError: shapes or devices that do not fit, an empty bank, or
            one whose rows share memory.
    Numerics:
        Keys are normalised in float32 (float64 for float64) and then rounded once to the bank's dtype. The device is
        not synchronised; B rows are written.

    >>> bank, cursor = torch.zeros(3, 1), torch.tensor(2)
    >>> enqueue_(bank, cursor, torch.tensor([[7.0], [8.0]]), normalize=False)
    >>> bank.flatten(), cursor
    (tensor([8., 0., 7.]), tensor(1))
    """
    op = "enqueue_"
    sizes = checks.shapes(op, bank=(bank, "N D"), cursor=(cursor, ""), keys=(keys, "B D"))
    checks.floating(op, bank=bank, keys=keys)
    checks.dtype(op, torch.int64, cursor=cursor)
    checks.same_device(op, bank=bank, cursor=cursor, keys=keys)
    checks.require(sizes["N"] >= 1, op, "bank", "have at least one row", list(bank.shape))
    checks.require(
        not _overlaps(bank), op, "bank", "have memory of its own for every element", f"strides {bank.stride()}"
    )
    checks.no_gradient(op, bank=bank)
    with torch.no_grad():
        torch.ops.slrfast.enqueue_(bank, cursor, keys.detach(), normalize)
