"""The compiled module slrfast._C, fed with tensors. The only file that takes a tensor's address."""

from __future__ import annotations

import importlib
from functools import lru_cache, reduce
from typing import Any

import torch  # before _C, so that both share the OpenMP runtime torch has loaded
from torch import Tensor

from slrfast.errors import BackendUnavailable

LIBRARY: Any = None
LOAD_ERROR = ""
try:
    LIBRARY = importlib.import_module("slrfast._C")
except ImportError as error:
    LOAD_ERROR = str(error)

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


@lru_cache
def build_info() -> dict[str, str]:
    """What the module was built with: compiler, threads, isas, cuda (``built ...`` or the reason why not)."""
    return dict(line.split("=", 1) for line in LIBRARY.build_info().splitlines())


@lru_cache
def cpu_isa() -> str:
    """The instruction set whose kernels run: SLRFAST_CPU_ISA, or the widest this processor has."""
    try:
        return LIBRARY.cpu_isa()
    except NotImplementedError as error:
        raise BackendUnavailable(str(error)) from None


def motion(x: Tensor, interval: int, backward: bool) -> Tensor:
    """Run the CPU or the CUDA kernel of ``slrfast::motion``, by the device of ``x``."""
    return _motion("motion", x, interval, backward)


def motion_grad(grad: Tensor, interval: int, backward: bool) -> Tensor:
    """Run the CPU or the CUDA kernel of ``slrfast::motion_grad``, by the device of ``grad``."""
    return _motion("motion_grad", grad, interval, backward)


def _motion(name: str, x: Tensor, interval: int, backward: bool) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    frames, row = x.shape[-3], x.shape[-2] * x.shape[-1]
    outer = x.numel() // max(frames * row, 1)
    arguments = (_DTYPES[x.dtype], x.data_ptr(), y.data_ptr(), outer, frames, row, interval, not backward)
    if x.is_cuda:
        with torch.cuda.device(x.device):
            getattr(LIBRARY, f"{name}_cuda")(*arguments, torch.cuda.current_stream().cuda_stream)
    else:
        getattr(LIBRARY, f"{name}_cpu")(*arguments, torch.get_num_threads())
    return y


def info_nce(
    query: Tensor, positive: Tensor, bank: Tensor, temperature: float, want_grad: bool, want_rank: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::info_nce``."""
    query, positive = _compact(query, positive, wide=(bank,))
    loss = query.new_empty(len(query))
    rank = torch.empty(len(query) if want_rank else 0, dtype=torch.int64)
    grad = torch.empty_like(query) if want_grad else query.new_empty(0)
    LIBRARY.info_nce_cpu(
        _DTYPES[query.dtype], query.data_ptr(), positive.data_ptr(), *_bank(bank), *_sizes(query, bank), temperature,
        loss.data_ptr(), rank.data_ptr(), grad.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return loss, rank, grad


def mined_bce(
    query: Tensor, bank: Tensor, positives: Tensor, temperature: float, want_grad: bool
) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::mined_bce``."""
    (query,), positives = _compact(query, wide=(bank,)), positives.contiguous()
    loss = query.new_empty(len(query))
    grad = torch.empty_like(query) if want_grad else query.new_empty(0)
    LIBRARY.mined_bce_cpu(
        _DTYPES[query.dtype], query.data_ptr(), *_bank(bank), positives.data_ptr(), *_sizes(query, bank),
        positives.shape[1], temperature, loss.data_ptr(), grad.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return loss, grad


def bank_losses(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    positives: Tensor | None,
    temperature: float,
    mined_temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::bank_losses``."""
    if positives is None:
        loss, _, grad = info_nce(query, positive, bank, temperature, want_grad, False)
        return loss, torch.zeros_like(loss), grad, loss.new_empty(0)
    query, positive = _compact(query, positive, wide=(bank,))
    positives = positives.contiguous()
    losses = [query.new_empty(len(query)) for _ in range(2)]
    grads = [torch.empty_like(query) if want_grad else query.new_empty(0) for _ in range(2)]
    LIBRARY.bank_losses_cpu(
        _DTYPES[query.dtype], query.data_ptr(), positive.data_ptr(), *_bank(bank), positives.data_ptr(),
        *_sizes(query, bank), positives.shape[1], temperature, mined_temperature,
        *(tensor.data_ptr() for tensor in (*losses, *grads)), torch.get_num_threads(),
    )  # fmt: skip
    return losses[0], losses[1], grads[0], grads[1]


def neighbor_kl(
    teacher: Tensor,
    teacher_bank: Tensor,
    student: Tensor,
    student_bank: Tensor,
    k: int,
    teacher_temperature: float,
    student_temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::neighbor_kl``."""
    teacher, student = _compact(teacher, student, wide=(teacher_bank, student_bank))
    b, n, d = _sizes(teacher, teacher_bank)
    loss = student.new_empty(b)
    grad = torch.empty_like(student) if want_grad else student.new_empty(0)
    LIBRARY.neighbor_kl_cpu(
        _DTYPES[teacher.dtype], teacher.data_ptr(), *_bank(teacher_bank), d, student.data_ptr(), *_bank(student_bank),
        student_bank.shape[1], b, n, k, teacher_temperature, student_temperature, loss.data_ptr(), grad.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return loss, grad


def topk_similarity(query: Tensor, bank: Tensor, k: int, sorted: bool) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::topk_similarity``."""
    (query,) = _compact(query, wide=(bank,))
    values, indices = query.new_empty(len(query), k), torch.empty(len(query), k, dtype=torch.int64)
    LIBRARY.topk_similarity_cpu(
        _DTYPES[query.dtype], query.data_ptr(), *_bank(bank), *_sizes(query, bank), k, sorted, values.data_ptr(),
        indices.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return values, indices


def topk_similarity_grad(grad: Tensor, indices: Tensor, bank: Tensor) -> Tensor:
    """Run the CPU kernel of ``slrfast::topk_similarity_grad``."""
    (grad,), indices = _compact(grad, wide=(bank,)), indices.contiguous()
    result = grad.new_empty(len(grad), bank.shape[1])
    LIBRARY.topk_similarity_grad_cpu(
        _DTYPES[grad.dtype], grad.data_ptr(), indices.data_ptr(), *_bank(bank), *_sizes(grad, bank), grad.shape[1],
        result.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return result


def feature_kl(teacher: Tensor, student: Tensor, temperature: float, want_grad: bool) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::feature_kl``."""
    teacher, student = _compact(teacher, student, wide=())
    loss = student.new_empty(len(student))
    grad = torch.empty_like(student) if want_grad else student.new_empty(0)
    LIBRARY.feature_kl_cpu(
        _DTYPES[student.dtype], teacher.data_ptr(), student.data_ptr(), *student.shape, temperature, loss.data_ptr(),
        grad.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return loss, grad


def enqueue_(bank: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    """Run the CPU kernel of ``slrfast::enqueue_``."""
    keys = keys.contiguous()
    LIBRARY.enqueue_cpu(
        *_bank(bank), *bank.shape, cursor.data_ptr(), _DTYPES[keys.dtype], keys.data_ptr(), len(keys), normalize,
        torch.get_num_threads(),
    )  # fmt: skip


def _compact(*rows: Tensor, wide: tuple[Tensor, ...]) -> list[Tensor]:
    """The rows as the kernels take them: contiguous, in the type that sums with ``wide`` are formed in."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in (*rows, *wide)), torch.float32)
    return [tensor.to(dtype).contiguous() for tensor in rows]


def _bank(bank: Tensor) -> tuple[int, int, int, int]:
    return _DTYPES[bank.dtype], bank.data_ptr(), bank.stride(0), bank.stride(1)


def _sizes(rows: Tensor, bank: Tensor) -> tuple[int, int, int]:
    """B, N and D."""
    return rows.shape[0], bank.shape[0], bank.shape[1]
