"""The compiled module slrfast._C, fed with tensors. Only this file and native_*.py take a tensor's address."""

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

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


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
    arguments = (DTYPES[x.dtype], x.data_ptr(), y.data_ptr(), outer, frames, row, interval, not backward)
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
    query, positive = compact(query, positive, wide=(bank,))
    loss = query.new_empty(len(query))
    rank = torch.empty(len(query) if want_rank else 0, dtype=torch.int64)
    grad = torch.empty_like(query) if want_grad else query.new_empty(0)
    LIBRARY.info_nce_cpu(
        DTYPES[query.dtype], query.data_ptr(), positive.data_ptr(), *_bank(bank), *_sizes(query, bank), temperature,
        loss.data_ptr(), rank.data_ptr(), grad.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return loss, rank, grad


def mined_bce(
    query: Tensor, bank: Tensor, positives: Tensor, temperature: float, want_grad: bool
) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::mined_bce``."""
    (query,), positives = compact(query, wide=(bank,)), positives.contiguous()
    loss = query.new_empty(len(query))
    grad = torch.empty_like(query) if want_grad else query.new_empty(0)
    LIBRARY.mined_bce_cpu(
        DTYPES[query.dtype], query.data_ptr(), *_bank(bank), positives.data_ptr(), *_sizes(query, bank),
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
    query, positive = compact(query, positive, wide=(bank,))
    positives = positives.contiguous()
    mined = len(positives)
    losses = [query.new_empty(rows) for rows in (len(query), mined)]
    grads = [torch.empty_like(query[:rows]) if want_grad else query.new_empty(0) for rows in (len(query), mined)]
    LIBRARY.bank_losses_cpu(
        DTYPES[query.dtype], query.data_ptr(), positive.data_ptr(), *_bank(bank), positives.data_ptr(),
        *_sizes(query, bank), *positives.shape, temperature, mined_temperature,
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
    teacher, student = compact(teacher, student, wide=(teacher_bank, student_bank))
    b, n, d = _sizes(teacher, teacher_bank)
    loss = student.new_empty(b)
    grad = torch.empty_like(student) if want_grad else student.new_empty(0)
    LIBRARY.neighbor_kl_cpu(
        DTYPES[teacher.dtype], teacher.data_ptr(), *_bank(teacher_bank), d, student.data_ptr(), *_bank(student_bank),
        student_bank.shape[1], b, n, k, teacher_temperature, student_temperature, loss.data_ptr(), grad.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return loss, grad


def topk_similarity(query: Tensor, bank: Tensor, k: int, sorted: bool) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::topk_similarity``."""
    (query,) = compact(query, wide=(bank,))
    values, indices = query.new_empty(len(query), k), torch.empty(len(query), k, dtype=torch.int64)
    LIBRARY.topk_similarity_cpu(
        DTYPES[query.dtype], query.data_ptr(), *_bank(bank), *_sizes(query, bank), k, sorted, values.data_ptr(),
        indices.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return values, indices


def topk_similarity_grad(grad: Tensor, indices: Tensor, bank: Tensor) -> Tensor:
    """Run the CPU kernel of ``slrfast::topk_similarity_grad``."""
    (grad,), indices = compact(grad, wide=(bank,)), indices.contiguous()
    result = grad.new_empty(len(grad), bank.shape[1])
    LIBRARY.topk_similarity_grad_cpu(
        DTYPES[grad.dtype], grad.data_ptr(), indices.data_ptr(), *_bank(bank), *_sizes(grad, bank), grad.shape[1],
        result.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return result


def feature_kl(teacher: Tensor, student: Tensor, temperature: float, want_grad: bool) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::feature_kl``."""
    teacher, student = compact(teacher, student, wide=())
    loss = student.new_empty(len(student))
    grad = torch.empty_like(student) if want_grad else student.new_empty(0)
    LIBRARY.feature_kl_cpu(
        DTYPES[student.dtype], teacher.data_ptr(), student.data_ptr(), *student.shape, temperature, loss.data_ptr(),
        grad.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return loss, grad


def enqueue_(bank: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    """Run the CPU kernel of ``slrfast::enqueue_``."""
    keys = keys.contiguous()
    LIBRARY.enqueue_cpu(
        *_bank(bank), *bank.shape, cursor.data_ptr(), DTYPES[keys.dtype], keys.data_ptr(), len(keys), normalize,
        torch.get_num_threads(),
    )  # fmt: skip


def compact(*rows: Tensor, wide: tuple[Tensor, ...]) -> list[Tensor]:
    """The rows as the kernels take them: contiguous, in the type that sums with ``wide`` are formed in."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in (*rows, *wide)), torch.float32)
    return [tensor.to(dtype).contiguous() for tensor in rows]


def _bank(bank: Tensor) -> tuple[int, int, int, int]:
    return DTYPES[bank.dtype], bank.data_ptr(), bank.stride(0), bank.stride(1)


def _sizes(rows: Tensor, bank: Tensor) -> tuple[int, int, int]:
    """B, N and D."""
    return rows.shape[0], bank.shape[0], bank.shape[1]


# ---- the graph network. A raw call of an op may come with any shapes: addresses are taken with type and shape.


def graph_conv(x: Tensor, weight: Tensor, bias: Tensor | None, edges: Tensor, coefficients: Tensor) -> Tensor:
    """Run the CPU kernel of ``slrfast::graph_conv``."""
    return _graph_conv(x.contiguous(), weight, bias, edges, coefficients, 1, None)


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
    shape, wide, drop = (*x.shape[:2], outputs), sum_dtype(x), _at(seed, torch.int64)
    stats = x.new_empty((2 + (parameters[8] is not None), 2, groups, outputs), dtype=wide)

    def linear(x: Tensor, norm: Tensor | None, first: int, moments: Tensor) -> Tensor:
        y = x.new_empty(shape)
        mapping, shift = (parameters[i].to(wide).contiguous() for i in (first, first + 1))
        LIBRARY.gcn_map_cpu(
            DTYPES[x.dtype], x.data_ptr(), rows, x.shape[2], outputs, groups, address(norm), dropout, drop,
            _at(mapping, wide, outputs, x.shape[2]), _at(shift, wide, outputs), y.data_ptr(), moments.data_ptr(),
            threads,
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
        DTYPES[x.dtype], mapped.data_ptr(), rows, outputs, groups, norm.data_ptr(), dropout, drop,
        _at(residual, x.dtype, *shape) if residual.numel() else 0, address(residual_norm), out.data_ptr(), threads,
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
    """Run the CPU kernels of ``slrfast::gcn_block_grad``: the forward pass's, the other way round.

    Beyond its result it holds one gradient of the block's size, and one more with a residual map.
    """
    x, grad, threads = x.contiguous(), grad.to(x.dtype).contiguous(), torch.get_num_threads()
    spatial, mapped, residual, stats = (t.contiguous() for t in (spatial, mapped, residual, stats))
    outputs, rows, wide = parameters[0].shape[2], x.shape[0] * x.shape[1], sum_dtype(x)
    shape, linear, drop = (*x.shape[:2], outputs), parameters[8] is not None, _at(seed, torch.int64)
    _at(stats, wide, 2 + linear, 2, groups, outputs)
    norms = [_norm(moments, parameters[i : i + 2], eps) for moments, i in zip(stats, (2, 6, 10), strict=False)]
    sums = torch.empty_like(stats)
    masked = torch.empty_like(mapped)
    added = x if identity else residual
    LIBRARY.gcn_output_grad_cpu(
        DTYPES[x.dtype], _at(grad, x.dtype, *shape), _at(mapped, x.dtype, *shape), rows, outputs, groups,
        norms[1].data_ptr(), dropout, drop, _at(added, x.dtype, *shape) if identity or linear else 0,
        address(norms[2] if linear else None), masked.data_ptr(), sums[1].data_ptr(),
        address(sums[2] if linear else None), threads,
    )  # fmt: skip

    def linear_grad(masked: Tensor, y: Tensor, i: int, x: Tensor, norm: Tensor | None, dropout: float):
        mapping = parameters[4 * i].to(wide).contiguous()
        grad_x, grad_map = torch.empty_like(x), torch.empty_like(mapping)
        grad_bias = mapping.new_empty(outputs)
        LIBRARY.gcn_map_grad_cpu(
            DTYPES[x.dtype], masked.data_ptr(), _at(y, x.dtype, *shape), rows, x.shape[2], outputs, groups,
            norms[i].data_ptr(), sums[i].data_ptr(), dropout, drop, x.data_ptr(), address(norm),
            _at(mapping, wide, outputs, x.shape[2]), grad_x.data_ptr(), address(None if norm is None else sums[0]),
            grad_map.data_ptr(), grad_bias.data_ptr(), threads,
        )  # fmt: skip
        return grad_x, [grad_map, grad_bias, sums[i][1].sum(0), sums[i][0].sum(0)]

    along, residual_grads = masked if identity else None, [x.new_empty(0) for _ in range(4)]
    if linear:
        along, residual_grads = linear_grad(masked, residual, 2, x, None, 0.0)
    _at(spatial, x.dtype, *shape)
    grad_spatial, mapped_grads = linear_grad(masked, mapped, 1, spatial, norms[0], dropout)
    del masked
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
    x, wide = x.contiguous(), sum_dtype(x)
    constants = edges, coefficients, members, pooled_edges, pooled_coefficients
    edges, coefficients, members, pooled_edges, pooled_coefficients = (t.contiguous() for t in constants)
    tensors: list[Any] = [None if p is None else p.to(wide).contiguous() for p in parameters]
    partitions, layers = tensors[0].shape[0], []
    for i, same in enumerate(identity):
        weight, node_bias, mapping, bias, residual = tensors[5 * i : 5 * i + 5]
        nodes, (inputs, outputs) = x.shape[1] if i < joint_blocks else len(members), weight.shape[1:]
        layers += [
            inputs, outputs, same, _at(weight, wide, partitions, inputs, outputs),
            _at(node_bias, wide, nodes, outputs), _at(mapping, wide, outputs, outputs), _at(bias, wide, outputs),
            0 if residual is None else _at(residual, wide, outputs, inputs),
        ]  # fmt: skip
    blocks = torch.tensor(layers, dtype=torch.int64)
    out = x.new_empty((len(x), tensors[-5].shape[2]))
    LIBRARY.part_gcn_cpu(
        DTYPES[x.dtype], x.data_ptr(), *x.shape, partitions, blocks.data_ptr(), len(identity), joint_blocks,
        *_edges(edges, coefficients), _at(members, torch.int32, *members.shape), *members.shape,
        *_edges(pooled_edges, pooled_coefficients), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def part_max(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Run the CPU kernel of ``slrfast::part_max``."""
    x, members = x.contiguous(), members.contiguous()
    pooled = x.new_empty((x.shape[0], members.shape[0], x.shape[2]))
    chosen = torch.empty(pooled.shape, dtype=torch.uint8)
    LIBRARY.part_max_cpu(
        DTYPES[x.dtype], x.data_ptr(), *x.shape, _at(members, torch.int32, *members.shape), *members.shape,
        pooled.data_ptr(), chosen.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return pooled, chosen


def part_max_grad(grad: Tensor, chosen: Tensor, members: Tensor, nodes: int) -> Tensor:
    """Run the CPU kernel of ``slrfast::part_max_grad``."""
    grad, chosen, members = grad.contiguous(), chosen.contiguous(), members.contiguous()
    rows, _, channels = grad.shape
    shape = rows, len(members), channels
    grad_x = grad.new_empty((rows, nodes, channels))
    LIBRARY.part_max_grad_cpu(
        DTYPES[grad.dtype], _at(grad, grad.dtype, *shape), _at(chosen, torch.uint8, *shape), *grad_x.shape,
        _at(members, torch.int32, *members.shape), *members.shape, grad_x.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return grad_x


def _graph_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, edges: Tensor, coefficients: Tensor, groups: int,
    moments: Tensor | None,
) -> Tensor:  # fmt: skip
    wide, (partitions, _, outputs) = sum_dtype(x), weight.shape
    edges, coefficients = edges.contiguous(), coefficients.contiguous()
    weight = weight.to(wide).contiguous()
    bias = None if bias is None else bias.to(wide).contiguous()
    y = x.new_empty((*x.shape[:2], outputs))
    LIBRARY.graph_conv_cpu(
        DTYPES[x.dtype], x.data_ptr(), *x.shape, outputs, partitions, *_edges(edges, coefficients),
        _at(weight, wide, partitions, x.shape[2], outputs),
        0 if bias is None else _at(bias, wide, partitions, outputs), y.data_ptr(), groups, address(moments),
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def _graph_conv_grad(
    grad: Tensor, y: Tensor | None, norm: Tensor | None, sums: Tensor | None, groups: int, x: Tensor, weight: Tensor,
    edges: Tensor, coefficients: Tensor, along: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x (added to ``along``, in its buffer, where there is one), weight and bias."""
    dtype, (partitions, _, outputs) = sum_dtype(x), weight.shape
    edges, coefficients = edges.contiguous(), coefficients.contiguous()
    wide = weight.to(dtype).contiguous()
    grad_x, grad_weight = torch.empty_like(x) if along is None else along, torch.empty_like(wide)
    grad_bias = wide.new_empty((partitions, outputs))
    LIBRARY.graph_conv_grad_cpu(
        DTYPES[x.dtype], _at(grad, x.dtype, *x.shape[:2], outputs), address(y), address(norm), address(sums),
        groups, x.data_ptr(), *x.shape, outputs, partitions, *_edges(edges, coefficients),
        _at(wide, dtype, partitions, x.shape[2], outputs), 0 if along is None else _at(along, x.dtype, *x.shape),
        grad_x.data_ptr(), grad_weight.data_ptr(), grad_bias.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def _norm(moments: Tensor, affine: Sequence[Tensor], eps: float) -> Tensor:
    """[groups, 4, C]: 1 / deviation, -mean / deviation, gamma and beta of a batch normalisation."""
    mean, variance = moments
    inverse = (variance + eps).rsqrt()
    return torch.stack((inverse, -mean * inverse, *(tensor.to(mean).expand_as(mean) for tensor in affine)), 1)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The type that sums are formed in."""
    return torch.promote_types(x.dtype, torch.float32)


def _edges(edges: Tensor, coefficients: Tensor) -> tuple[int, int, int]:
    count = len(edges)
    return _at(edges, torch.int32, count, 3), _at(coefficients, torch.float32, count), count


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _at(tensor: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """The address of a compact tensor of that type and shape."""
    if tensor.dtype != dtype or tensor.shape != shape:
        wanted, got = f"{dtype} {list(shape)}", f"{tensor.dtype} {list(tensor.shape)}"
        raise ValueError(f"a CPU kernel of the graph network takes {wanted} here, got {got}")
    return tensor.data_ptr()
