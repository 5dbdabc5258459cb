"""The ST-GCN block in training mode: graph convolution, batch normalisation, dropout and residual in few passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slrfast import checks
from slrfast.graphs import SkeletonGraph
from slrfast.kernels import native
from slrfast.ops import _dispatch, _skeleton
from slrfast.reference import gcn_block as reference
from slrfast.reference.precision import accumulation_dtype

# ---- schema and fake ------------------------------------------------------------------------------------------------

_library = torch.library.Library("slrfast", "FRAGMENT")
_COMMON = (
    "Tensor x, Tensor?[] parameters, Tensor edges, Tensor coefficients, Tensor seed, float dropout, float eps,"
    " int groups, bool identity"
)
_library.define(f"gcn_block({_COMMON}) -> (Tensor out, Tensor spatial, Tensor mapped, Tensor residual, Tensor stats)")
_library.define(
    f"gcn_block_grad(Tensor grad, {_COMMON}, Tensor spatial, Tensor mapped, Tensor residual, Tensor stats) -> Tensor[]"
)


def _fake(x: Tensor, parameters: list[Tensor | None], edges, coefficients, seed, dropout, eps, groups, identity):
    weight, linear = parameters[0], parameters[8] is not None
    assert weight is not None
    out = x.new_empty((x.shape[0], x.shape[1], weight.shape[2]))
    stats = x.new_empty((2 + linear, 2, groups, weight.shape[2]), dtype=accumulation_dtype(x))
    residual = torch.empty_like(out) if linear else x.new_empty(0)
    return out, torch.empty_like(out), torch.empty_like(out), residual, stats


def _fake_grad(grad: Tensor, x: Tensor, parameters: list[Tensor | None], *rest) -> list[Tensor]:
    return [x.new_empty(x.shape), *(x.new_empty(0) if p is None else p.new_empty(p.shape) for p in parameters)]


# ---- backends -------------------------------------------------------------------------------------------------------


def _triton(*args) -> tuple[Tensor, ...]:
    from slrfast.kernels.triton import gcn_block as kernel

    return kernel.gcn_block(*args)


def _triton_grad(*args) -> Sequence[Tensor]:
    from slrfast.kernels.triton import gcn_block as kernel

    return kernel.gcn_block_grad(*args)


_dispatch.register("gcn_block", cpu=("native", "reference", "triton"), cuda=("triton", "reference"))
_FORWARD = {"native": native.gcn_block, "triton": _triton, "reference": reference.gcn_block}
_GRAD = {"native": native.gcn_block_grad, "triton": _triton_grad, "reference": reference.gcn_block_grad}


def _forward(x: Tensor, *args) -> tuple[Tensor, ...]:
    with torch.autocast(x.device.type, enabled=False):
        return _FORWARD[_dispatch.choose("gcn_block", x.device.type)](x, *args)


def _grad(grad: Tensor, *args) -> list[Tensor]:
    with torch.autocast(grad.device.type, enabled=False):
        return list(_GRAD[_dispatch.choose("gcn_block", grad.device.type)](grad, *args))


_library.impl("gcn_block", _forward, "CompositeExplicitAutograd")
_library.impl("gcn_block_grad", _grad, "CompositeExplicitAutograd")
torch.library.register_fake("slrfast::gcn_block", _fake, lib=_library)
torch.library.register_fake("slrfast::gcn_block_grad", _fake_grad, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _GCNBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, settings, x: Tensor, edges: Tensor, coefficients: Tensor, seed: Tensor, *parameters):
        constants = edges, coefficients, seed
        out, *kept, stats = torch.ops.slrfast.gcn_block(x, list(parameters), *constants, *settings)
        ctx.settings = settings
        ctx.save_for_backward(x, *constants, *kept, stats, *parameters)
        ctx.mark_non_differentiable(stats)
        return out, stats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, _):
        x, *rest = ctx.saved_tensors
        constants, kept, parameters = rest[:3], rest[3:7], rest[7:]
        grads = torch.ops.slrfast.gcn_block_grad(grad, x, parameters, *constants, *ctx.settings, *kept)
        needed = ctx.needs_input_grad[1], *ctx.needs_input_grad[5:]
        grad_x, *wanted = (g if need else None for g, need in zip(grads, needed, strict=True))
        return None, grad_x, None, None, None, *wanted


# ---- public ---------------------------------------------------------------------------------------------------------


class GCNParameters(NamedTuple):
    """The parameters of an ST-GCN block; the last four are None unless its residual is a linear map.

    ``weight`` is [P, Cin, Cout], ``bias`` [P, Cout], ``map_weight`` [Cout, Cout], ``residual_weight`` [Cout, Cin] and
    all others are [Cout]; the norms' weight and bias are gamma and beta of a batch normalisation.
    """

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    map_weight: Tensor
    map_bias: Tensor
    map_norm_weight: Tensor
    map_norm_bias: Tensor
    residual_weight: Tensor | None = None
    residual_bias: Tensor | None = None
    residual_norm_weight: Tensor | None = None
    residual_norm_bias: Tensor | None = None


_PATTERNS = dict(
    weight="P Cin Cout", bias="P Cout", norm_weight="Cout", norm_bias="Cout",
    map_weight="Cout Cout", map_bias="Cout", map_norm_weight="Cout", map_norm_bias="Cout",
    residual_weight="Cout Cin", residual_bias="Cout", residual_norm_weight="Cout", residual_norm_bias="Cout",
)  # fmt: skip


def gcn_block(
    x: Tensor,
    parameters: GCNParameters,
    graph: SkeletonGraph,
    *,
    dropout: float = 0.0,
    eps: float = 1e-5,
    groups: int = 1,
    identity: bool = False,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run an ST-GCN block with the batch's own statistics, as in training (STC specification, section 2).

    out = relu(drop(BN(M drop(relu(BN(conv(x)))) + m)) + residual(x)), conv being :func:`graph_conv` and residual
    nothing, x itself (``identity``) or BN of a linear map of x.

    Args:
        x: [R, V, Cin], one row per frame, any strides; float64, float32, bfloat16 or float16. Gradient flows.
        parameters: in any floating dtype, float32 as a rule. Gradient flows.
        graph: V nodes, P partitions.
        dropout: probability of both dropouts, in [0, 1].
        eps: of the three normalisations, > 0.
        groups: the rows are this many equal consecutive parts, each normalised with its own statistics: as if the block
            were called once for each.
        identity: add x; needs Cin = Cout and no residual map.
        seed: int64 [] on the device of ``x``, from which the dropout masks follow
            (:func:`slrfast.reference.dropout.keep_mask`, sites 0 and 1, row r V + v); None draws one with torch's
            default generator.
    Returns:
        [R, V, Cout] in the dtype of ``x``, or autocast's, which leaves float64 alone; and the statistics used, without
        gradient: [2 or 3 norms, mean and biased variance, groups, Cout], float32 or float64.
    Raises:
        TypeError: a tensor of another dtype, no graph, or parameters that are no :class:`GCNParameters`. ValueError:
            shapes or devices that do not fit, no output channel, R not a multiple of ``groups``, a group with fewer
            than two values per channel, dropout or eps out of range.
    Numerics:
        Products accumulate in float32 (float64 for float64), and are stored in the dtype of ``x``; statistics and
        everything between two products is float32. Masks are recomputed in the backward pass: saved are x, the outputs
        of the products and the statistics. All gradients are computed together, also where only some are wanted. A NaN
        passes through ReLU and dropout, as in torch. Once differentiable; deterministic for a given number of threads.

    >>> from slrfast import nn
    >>> from slrfast.graphs import HAND21
    >>> block = nn.GCNBlock(2, 8, HAND21, residual=False)
    >>> out, stats = gcn_block(torch.rand(4, 21, 2), block.parameters_of_op(), HAND21)
    >>> out.shape, stats.shape
    (torch.Size([4, 21, 8]), torch.Size([2, 2, 1, 8]))
    """
    op = "gcn_block"
    if not isinstance(parameters, GCNParameters):
        rule = "be slrfast.ops.GCNParameters"
        raise TypeError(checks.message(op, "parameters", rule, type(parameters).__name__))
    optional = GCNParameters._fields[8:]
    patterns = {n: p for n, p in _PATTERNS.items() if n not in optional or getattr(parameters, n) is not None}
    tensors = {name: getattr(parameters, name) for name in patterns}
    sizes = checks.shapes(op, x=(x, "R V Cin"), **{name: (t, patterns[name]) for name, t in tensors.items()})
    _skeleton.check(op, graph, sizes["V"], sizes["P"])
    checks.require(sizes["Cout"] > 0, op, "weight", "have at least one output channel", sizes["Cout"])
    checks.floating(op, x=x, **tensors)
    checks.same_device(op, x=x, **tensors)
    checks.number_between(op, 0, 1, dropout=dropout)
    checks.positive(op, eps=eps)
    checks.integer_between(op, 1, 2**31 - 1, groups=groups)
    rows, nodes = sizes["R"], sizes["V"]
    checks.require(rows % groups == 0, op, "x", f"have a multiple of groups = {groups} rows", rows)
    values = rows // groups * nodes
    checks.require(values > 1, op, "x", "have more than one value per channel and group in training mode", values)
    given = [t is not None for t in parameters[8:]]
    checks.require(all(given) or not any(given), op, "parameters", "have all residual tensors or none", given)
    fits = not identity or (not any(given) and sizes["Cin"] == sizes["Cout"])
    checks.require(fits, op, "identity", "go with Cin = Cout and no residual map", (sizes["Cin"], sizes["Cout"]))
    x = x.to(_skeleton.autocast_dtype(x) or x.dtype)
    if seed is None and dropout:
        seed = torch.randint(2**62, (), device=x.device)
    elif seed is None:
        seed = torch.zeros((), dtype=torch.int64, device=x.device)
    checks.shapes(op, seed=(seed, ""))
    checks.dtype(op, torch.int64, seed=seed)
    checks.same_device(op, x=x, seed=seed)
    settings = float(dropout), eps, groups, identity
    return _GCNBlock.apply(settings, x, *_skeleton.edges(graph, x.device), seed, *parameters)
