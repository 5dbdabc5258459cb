"""The compiled module slrfast._C, fed with tensors. The only file that takes a tensor's address."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
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


def graph_conv(x: Tensor, weight: Tensor, bias: Tensor | None, edges: Tensor, coefficients: Tensor) -> Tensor:
    """Run the CPU kernel of ``slrfast::graph_conv``."""
    x = x.contiguous()
    return _graph_conv(x, weight, bias, edges, coefficients, 1, None)


def graph_conv_grad(
    grad: Tensor, x: Tensor, weight: Tensor, edges: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::graph_conv_grad``."""
    grad = grad.to(x.dtype).contiguous()
    return _graph_conv_grad(grad, None, None, None, 1, x.contiguous(), weight, edges, coefficients, None)


def gcn_block(
    x: Tensor,
    parameters: Sequence[Any],
    edges: Tensor,
    coefficients: Tensor,
    seed: Tensor,
    dropout: float,
    eps: float,
    groups: int,
    identity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the CPU kernels of ``slrfast::gcn_block``: two products (three with a residual map), then one pass."""
    weight, bias, *_ = parameters
    x, threads = x.contiguous(), torch.get_num_threads()
    outputs, rows = weight.shape[2], x.shape[0] * x.shape[1]
    wide = _wide(x)
    stats = x.new_empty((2 + (parameters[8] is not None), 2, groups, outputs), dtype=wide)

    def linear(x: Tensor, norm: Tensor | None, first: int, moments: Tensor) -> Tensor:
        y = x.new_empty((*x.shape[:2], outputs))
        mapping, shift = (parameters[i].to(wide).contiguous() for i in (first, first + 1))
        LIBRARY.gcn_map_cpu(
            _DTYPES[x.dtype], x.data_ptr(), rows, x.shape[2], outputs, groups, _address(norm), dropout,
            seed.data_ptr(), mapping.data_ptr(), shift.data_ptr(), y.data_ptr(), moments.data_ptr(), threads,
        )  # fmt: skip
        return y

    spatial = _graph_conv(x, weight, bias, edges, coefficients, groups, stats[0])
    mapped = linear(spatial, _norm(stats[0], parameters[2:4], eps), 4, stats[1])
    norm, residual_norm, residual = _norm(stats[1], parameters[6:8], eps), None, x if identity else x.new_empty(0)
    if parameters[8] is not None:
        residual = linear(x, None, 8, stats[2])
        residual_norm = _norm(stats[2], parameters[10:12], eps)
    out = torch.empty_like(mapped)
    LIBRARY.gcn_output_cpu(
        _DTYPES[x.dtype], mapped.data_ptr(), rows, outputs, groups, norm.data_ptr(), dropout, seed.data_ptr(),
        residual.data_ptr(), _address(residual_norm), out.data_ptr(), threads,
    )  # fmt: skip
    return out, spatial, mapped, x.new_empty(0) if identity else residual, stats


def gcn_block_grad(
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Any],
    edges: Tensor,
    coefficients: Tensor,
    seed: Tensor,
    dropout: float,
    eps: float,
    groups: int,
    identity: bool,
    spatial: Tensor,
    mapped: Tensor,
    residual: Tensor,
    stats: Tensor,
) -> list[Tensor]:
    """Run the CPU kernels of ``slrfast::gcn_block_grad``: the forward pass's, the other way round."""
    x, grad, threads = x.contiguous(), grad.to(x.dtype).contiguous(), torch.get_num_threads()
    spatial, mapped, residual, stats = (t.contiguous() for t in (spatial, mapped, residual, stats))
    outputs, rows, wide = parameters[0].shape[2], x.shape[0] * x.shape[1], _wide(x)
    norms = [_norm(moments, parameters[i : i + 2], eps) for moments, i in zip(stats, (2, 6, 10), strict=False)]
    linear = parameters[8] is not None
    sums = torch.empty_like(stats)
    masked = torch.empty_like(mapped)
    LIBRARY.gcn_output_grad_cpu(
        _DTYPES[x.dtype], grad.data_ptr(), mapped.data_ptr(), rows, outputs, groups, norms[1].data_ptr(), dropout,
        seed.data_ptr(), (x if identity else residual).data_ptr(), _address(norms[2] if linear else None),
        masked.data_ptr(), sums[1].data_ptr(), _address(sums[2] if linear else None), threads,
    )  # fmt: skip

    def linear_grad(y: Tensor, i: int, x: Tensor, norm: Tensor | None, dropout: float, x_sums: Tensor | None):
        mapping = parameters[4 * i].to(wide).contiguous()
        grad_x, grad_map = torch.empty_like(x), torch.empty_like(mapping)
        grad_bias = mapping.new_empty(outputs)
        LIBRARY.gcn_map_grad_cpu(
            _DTYPES[x.dtype], masked.data_ptr(), y.data_ptr(), rows, x.shape[2], outputs, groups, norms[i].data_ptr(),
            sums[i].data_ptr(), dropout, seed.data_ptr(), x.data_ptr(), _address(norm), mapping.data_ptr(),
            grad_x.data_ptr(), _address(x_sums), grad_map.data_ptr(), grad_bias.data_ptr(), threads,
        )  # fmt: skip
        return grad_x, [grad_map, grad_bias, sums[i][1].sum(0), sums[i][0].sum(0)]

    grad_spatial, mapped_grads = linear_grad(mapped, 1, spatial, norms[0], dropout, sums[0])
    along, residual_grads = masked if identity else None, [x.new_empty(0) for _ in range(4)]
    if linear:
        along, residual_grads = linear_grad(residual, 2, x, None, 0.0, None)
    grad_x, *conv_grads = _graph_conv_grad(
        grad_spatial, spatial, norms[0], sums[0], groups, x, parameters[0], edges, coefficients, along
    )
    grads = [*conv_grads, sums[0][1].sum(0), sums[0][0].sum(0), *mapped_grads, *residual_grads]
    return [grad_x, *(g if p is None else g.to(p.dtype) for g, p in zip(grads, parameters, strict=True))]


def part_gcn(
    x: Tensor,
    parameters: Sequence[Any],
    identity: Sequence[bool],
    edges: Tensor,
    coefficients: Tensor,
    members: Tensor,
    pooled_edges: Tensor,
    pooled_coefficients: Tensor,
    joint_blocks: int,
) -> Tensor:
    """Run the CPU kernel of ``slrfast::part_gcn``."""
    x, wide = x.contiguous(), _wide(x)
    tensors: list[Any] = [None if p is None else p.to(wide).contiguous() for p in parameters]
    layers = []
    for i, same in enumerate(identity):
        weight, *others = tensors[5 * i : 5 * i + 5]
        layers += [*weight.shape[1:], same, weight.data_ptr(), *map(_address, others)]
    blocks = torch.tensor(layers, dtype=torch.int64)
    out = x.new_empty((len(x), tensors[-5].shape[2]))
    LIBRARY.part_gcn_cpu(
        _DTYPES[x.dtype], x.data_ptr(), *x.shape, tensors[0].shape[0], blocks.data_ptr(), len(identity), joint_blocks,
        *_edges(edges, coefficients), members.data_ptr(), *members.shape, *_edges(pooled_edges, pooled_coefficients),
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def part_max(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::part_max``."""
    x = x.contiguous()
    pooled = x.new_empty((x.shape[0], members.shape[0], x.shape[2]))
    chosen = torch.empty(pooled.shape, dtype=torch.uint8)
    LIBRARY.part_max_cpu(
        _DTYPES[x.dtype], x.data_ptr(), *x.shape, members.data_ptr(), *members.shape, pooled.data_ptr(),
        chosen.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return pooled, chosen


def part_max_grad(grad: Tensor, chosen: Tensor, members: Tensor, nodes: int) -> Tensor:
    """Run the CPU kernel of ``slrfast::part_max_grad``."""
    grad, chosen = grad.contiguous(), chosen.contiguous()
    grad_x = grad.new_empty((grad.shape[0], nodes, grad.shape[2]))
    LIBRARY.part_max_grad_cpu(
        _DTYPES[grad.dtype], grad.data_ptr(), chosen.data_ptr(), *grad_x.shape, members.data_ptr(), *members.shape,
        grad_x.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return grad_x


def _graph_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, edges: Tensor, coefficients: Tensor, groups: int,
    moments: Tensor | None,
) -> Tensor:  # fmt: skip
    weight = weight.to(_wide(x)).contiguous()
    bias = None if bias is None else bias.to(_wide(x)).contiguous()
    y = x.new_empty((*x.shape[:2], weight.shape[2]))
    LIBRARY.graph_conv_cpu(
        _DTYPES[x.dtype], x.data_ptr(), *x.shape, weight.shape[2], weight.shape[0], *_edges(edges, coefficients),
        weight.data_ptr(), _address(bias), y.data_ptr(), groups, _address(moments), torch.get_num_threads(),
    )  # fmt: skip
    return y


def _graph_conv_grad(
    grad: Tensor, y: Tensor | None, norm: Tensor | None, sums: Tensor | None, groups: int, x: Tensor, weight: Tensor,
    edges: Tensor, coefficients: Tensor, along: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = weight.to(_wide(x)).contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(wide)
    grad_bias = wide.new_empty((wide.shape[0], wide.shape[2]))
    LIBRARY.graph_conv_grad_cpu(
        _DTYPES[x.dtype], grad.data_ptr(), _address(y), _address(norm), _address(sums), groups, x.data_ptr(), *x.shape,
        wide.shape[2], wide.shape[0], *_edges(edges, coefficients), wide.data_ptr(), _address(along),
        grad_x.data_ptr(), grad_weight.data_ptr(), grad_bias.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def _norm(moments: Tensor, affine: Sequence[Tensor], eps: float) -> Tensor:
    """[groups, 4, C]: 1 / deviation, -mean / deviation, gamma and beta of a batch normalisation."""
    mean, variance = moments
    inverse = (variance + eps).rsqrt()
    return torch.stack((inverse, -mean * inverse, *(tensor.to(mean).expand_as(mean) for tensor in affine)), 1)


def _wide(x: Tensor) -> torch.dtype:
    """The type that sums are formed in."""
    return torch.promote_types(x.dtype, torch.float32)


def _edges(edges: Tensor, coefficients: Tensor) -> tuple[int, int, int]:
    return edges.data_ptr(), coefficients.data_ptr(), len(edges)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
