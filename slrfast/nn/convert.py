"""What turns other people's graph networks into ours: their weights under our names, and their [N, C, T, V] layout.

Every function takes a state dict, a mapping of names to tensors, and returns one for ``load_state_dict``. No file is
read here: ``torch.load(path, weights_only=True)`` reads a checkpoint from somebody else without running what is in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from slrfast import checks
from slrfast.graphs import SkeletonGraph

_ONE_FRAME = "frames are seen one by one here: leave a temporal convolution in your code and take convert.graph_conv"

# the BN and the map behind the graph convolution, the map's BN, the residual map and its BN
_NAMES = (
    ("tcn.0", "tcn.3", "tcn.4", "residual.0", "residual.1"),  # STC, MASA, SignBERT: a dropout before the map
    ("tcn.0", "tcn.2", "tcn.3", "residual.0", "residual.1"),  # ST-GCN
    ("gcn.bn", "tcn.conv", "tcn.bn", "residual.conv", "residual.bn"),  # PYSKL
)
_PART_BLOCKS = (*(f"st_gcn_networks.{i}" for i in range(3)), *(f"st_gcn_pool.{i}" for i in range(2)))


def graph_conv(state: Mapping[str, Tensor], graph: SkeletonGraph, prefix: str = "") -> dict[str, Tensor]:
    """The state of a :class:`GraphConv` from the graph convolution of ST-GCN, STC, MASA or PYSKL (``conv_pos="pre"``).

    Args:
        state: has ``conv.weight`` [P * Cout, Cin, 1, 1], where channel p * Cout + c is channel c of partition p, and
            perhaps ``conv.bias`` [P * Cout]. If it has the adjacency ``A`` [P, V, V], it must be the graph's; with
            PYSKL's learned ``PA`` the graph's is A * PA or A + PA, and behind the prefix "st_gcn_networks.i.gcn." of a
            whole ST-GCN it is ``A * edge_importance.i`` of the network. Anything else is left alone.
        graph: P partitions of V nodes.
        prefix: what the names begin with, such as "gcn.0.gcn.".
    Returns:
        ``weight`` [P, Cin, Cout], and ``bias`` [P, Cout] where there is one; they may share memory with ``state``.
    Raises:
        ValueError: a tensor is missing or of another shape, or the adjacency is not the graph's.
        TypeError: ``state`` is no mapping of tensors, or ``graph`` no SkeletonGraph.

    >>> graph = SkeletonGraph.from_edges(["wrist", "tip"], bones=[(0, 1)])
    >>> conv = torch.nn.Conv2d(3, 4 * 16, 1)
    >>> state = {f"conv.{name}": tensor for name, tensor in conv.state_dict().items()}
    >>> graph_conv(state, graph)["weight"].shape
    torch.Size([4, 3, 16])
    """
    return _Source("graph_conv", state, graph, prefix).graph_conv()


def gcn_block(state: Mapping[str, Tensor], graph: SkeletonGraph, prefix: str = "") -> dict[str, Tensor]:
    """The state of a :class:`GCNBlock` from a block of STC, MASA, ST-GCN or PYSKL whose convolutions are all 1x1.

    Args:
        state: has the graph convolution ``gcn.conv`` as :func:`graph_conv` takes it, and under the names of one of the
            three: ``tcn.0`` BN, ``tcn.3`` 1x1 convolution, ``tcn.4`` BN, ``residual.0`` 1x1 convolution and
            ``residual.1`` BN where the channels differ (STC, MASA); the same with ``tcn.2`` and ``tcn.3`` (ST-GCN);
            ``gcn.bn``, ``tcn.conv``, ``tcn.bn``, ``residual.conv``, ``residual.bn`` (PYSKL).
        graph: the skeleton of the block.
        prefix: what the names begin with, such as "st_gcn_networks.0.".
    Returns:
        The names of a GCNBlock; convolutions without a bias get one of zeros.
    Raises:
        ValueError: as :func:`graph_conv`, a temporal kernel, or a parameter under ``prefix`` that has no place.
        TypeError: as :func:`graph_conv`.
    """
    return _Source("gcn_block", state, graph, prefix).gcn_block()


def part_gcn(
    state: Mapping[str, Tensor],
    graph: SkeletonGraph,
    prefix: str = "",
    *,
    blocks: Sequence[str] = _PART_BLOCKS,
    output: str = "conv4",
) -> dict[str, Tensor]:
    """The state of a :class:`PartGCN` from the per-frame graph network of STC and MASA.

    Args:
        state: has ``data_bn`` over [V * C] with coordinate c of joint v at v * C + c, five blocks as :func:`gcn_block`
            takes them, and a 1x1 convolution with its BN; what else the network has is left alone. If it has the
            adjacencies ``A`` and ``A_pool``, they must be the graph's and its pooled graph's, and every
            ``edge_importance`` must be 1: a PartGCN has one graph for three blocks.
        graph: the skeleton, with ``parts`` and ``pooled``.
        prefix: what the names begin with.
        blocks: the names of the five blocks.
        output: the name of the sequence that begins with the last convolution and its BN.
    Returns:
        The names of a PartGCN. The authors' ``data_bn`` has an epsilon of 0.1, which no state dict tells:
        ``PartGCN(..., input_eps=0.1)``.
    Raises:
        ValueError, TypeError: as :func:`gcn_block`.
    """
    op = "part_gcn"
    source = _Source(op, state, graph, prefix)
    if graph.pooled is None:
        raise ValueError(checks.message(op, "graph", "have parts and a pooled graph", graph.names))
    checks.require(len(blocks) == 5, op, "blocks", "name five blocks", tuple(blocks))
    source.adjacency("A")
    _Source(op, state, graph.pooled, prefix).adjacency("A_pool")
    hint = "take convert.gcn_block for every block, with a graph of its own"
    for name in (key.removeprefix(prefix) for key in state if key.startswith(f"{prefix}edge_importance")):
        ones = bool((source.get(name, "P V V") == 1).all())
        checks.require(ones, op, prefix + name, "be 1 everywhere, as blocks share a graph here", "other values", hint)
    converted: dict[str, Tensor] = {}
    for i, name in enumerate(blocks):
        block = _Source(op, state, graph if i < 3 else graph.pooled, prefix, f"{name}.")
        converted |= _under(f"blocks.{i}", block.gcn_block())
    inputs, outputs = converted["blocks.0.spatial.0.weight"].shape[1], len(source.get(f"{output}.0.weight"))
    converted |= _under("input_norm", source.norm("data_bn", graph.num_nodes * inputs))
    converted |= _under("output.0", source.linear(f"{output}.0", outputs))
    return converted | _under("output.1", source.norm(f"{output}.1", outputs))


class ChannelsFirst(nn.Module):
    """Lets a module over frames [R, V, C] take the [N, C, T, V] of ST-GCN and PYSKL, and return it.

    The result has its channels innermost in memory (``torch.channels_last``), so that a stack of these copies nothing
    but its first input.

    Args:
        module: GraphConv, GCNBlock or any other that maps rows [R, V, C] to rows [R, V', C'] or [R, C'].
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, **options: object) -> Tensor:
        """[N, C, T, V] -> [N, C', T, V'] or [N, C', T]; ``options`` go to the module."""
        sizes = checks.shapes("ChannelsFirst", x=(x, "N C T V"))
        rows = self.module(x.permute(0, 2, 3, 1).flatten(0, 1), **options)
        return rows.unflatten(0, (sizes["N"], sizes["T"])).movedim(-1, 1)


def _under(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in state.items()}


def _has(state: Mapping[str, object], name: str) -> bool:
    return any(key == name or str(key).endswith(f".{name}") for key in state)


class _Source:
    """A state dict that is asked for its tensors by name, each with the shape that it must have."""

    def __init__(self, op: str, state: Mapping[str, Tensor], graph: SkeletonGraph, prefix: str, part: str = "") -> None:
        if not isinstance(state, Mapping):
            hint = "read a file with torch.load(path, weights_only=True)"
            found = type(state).__name__
            raise TypeError(checks.message(op, "state", "be a mapping of names to tensors", found, hint))
        if not isinstance(graph, SkeletonGraph):
            raise TypeError(checks.message(op, "graph", "be a slrfast.graphs.SkeletonGraph", type(graph).__name__))
        self.op, self.state, self.graph, self.prefix, self.part = op, state, graph, prefix + part, part
        self.asked: set[str] = set()

    def find(self, name: str, shape: str = "...") -> Tensor | None:
        """The tensor of that name behind the prefix, if there is one."""
        key = self.prefix + name
        self.asked.add(key)
        tensor = self.state.get(key)
        if tensor is not None:
            checks.shapes(self.op, **{key: (tensor, shape)})
        return None if tensor is None else tensor.detach()

    def get(self, name: str, shape: str = "...") -> Tensor:
        tensor = self.find(name, shape)
        if tensor is None:
            whole = self.part + name
            prefixes = sorted(key.removesuffix(whole) for key in self.state if key.endswith(f".{whole}"))
            nested = [key for key, value in self.state.items() if isinstance(value, Mapping) and _has(value, name)]
            hint = f"prefix may be {' or '.join(map(repr, prefixes[:3]))}" if prefixes else ""
            hint = f"the tensors are in state[{nested[0]!r}]" if nested else hint
            keys = [*self.state][:3] + ([f"{len(self.state) - 3} more"] if len(self.state) > 3 else [])
            raise ValueError(checks.message(self.op, "state", f"have {self.prefix}{name}", ", ".join(keys), hint))
        return tensor

    def kernel(self, name: str, rows: int, shape: str, multiple: bool = False) -> Tensor:
        """The weight of a 1x1 convolution or a linear map as [rows, Cin], or with a multiple of these rows."""
        weight = self.get(f"{name}.weight")
        frames = weight.shape[2:].numel()
        fits = weight.dim() > 1 and frames == 1 and (len(weight) % rows == 0 if multiple else len(weight) == rows)
        hint = _ONE_FRAME if frames > 1 else ""
        checks.require(fits, self.op, f"{self.prefix}{name}.weight", f"have shape {shape}", list(weight.shape), hint)
        return weight.flatten(1)

    def linear(self, name: str, rows: int) -> dict[str, Tensor]:
        weight = self.kernel(name, rows, f"[{rows}, Cin, 1, 1]")
        bias = self.find(f"{name}.bias", str(rows))
        return {"weight": weight, "bias": weight.new_zeros(rows) if bias is None else bias}

    def norm(self, name: str, size: int) -> dict[str, Tensor]:
        state = {key: self.get(f"{name}.{key}", str(size)) for key in ("weight", "bias", "running_mean", "running_var")}
        batches = self.find(f"{name}.num_batches_tracked", "")
        return state if batches is None else {**state, "num_batches_tracked": batches}

    def graph_conv(self, name: str = "", outputs: int | None = None) -> dict[str, Tensor]:
        self.adjacency(f"{name}A", f"{name}PA", "* or +")
        network = re.fullmatch(r"(.*)st_gcn_networks\.(\d+)\.gcn\.", self.prefix + name)
        if network:  # a whole ST-GCN has its adjacency, and an importance for each block, beside the blocks
            _Source(self.op, self.state, self.graph, network[1]).adjacency("A", f"edge_importance.{network[2]}")
        partitions = self.graph.num_partitions
        shape = f"[P * Cout, Cin, 1, 1] with P = {partitions}" + (f" and Cout = {outputs}" if outputs else "")
        weight = self.kernel(f"{name}conv", partitions * (outputs or 1), shape, multiple=outputs is None)
        bias = self.find(f"{name}conv.bias", str(len(weight)))
        state = {"weight": weight.unflatten(0, (partitions, -1)).transpose(1, 2).contiguous()}
        return state if bias is None else {**state, "bias": bias.unflatten(0, (partitions, -1))}

    def gcn_block(self) -> dict[str, Tensor]:
        self.get("gcn.conv.weight")  # first of all: where it is missing, the prefix is wrong
        norm, linear, last, *skip = next((n for n in _NAMES if f"{self.prefix}{n[2]}.weight" in self.state), _NAMES[0])
        outputs = self.get(f"{norm}.weight").numel()
        conv = self.graph_conv("gcn.", outputs)
        inputs = conv["weight"].shape[1]
        conv.setdefault("bias", conv["weight"].new_zeros(self.graph.num_partitions, outputs))
        state = _under("spatial.0", conv) | _under("spatial.1", self.norm(norm, outputs))
        state |= _under("pointwise.0", self.linear(linear, outputs)) | _under("pointwise.1", self.norm(last, outputs))
        if f"{self.prefix}{skip[0]}.weight" in self.state:
            residual = self.linear(skip[0], outputs)
            shape, rule = list(residual["weight"].shape), f"map {inputs} channels to another number of them"
            hint = "a GCNBlock adds its input as it is where the channels stay"
            fits = shape[1] == inputs != outputs
            checks.require(fits, self.op, f"{self.prefix}{skip[0]}.weight", rule, shape, hint)
            state |= _under("residual.0", residual) | _under("residual.1", self.norm(skip[1], outputs))
        left = [key for key in self.state if key.startswith(self.prefix) and key not in self.asked]
        checks.require(not left, self.op, "state", "have nothing that a GCNBlock lacks", ", ".join(left[:3]))
        return state

    def adjacency(self, name: str, learned: str = "", how: str = "*") -> None:
        """Refuse a graph of another adjacency than the state dict's, where that has one."""
        found = self.find(name, "P V V")
        shape = "P V V" if found is None else " ".join(map(str, found.shape))
        factor = self.find(learned, shape) if learned else None
        if found is None:
            ones = factor is None or bool((factor == 1).all())
            checks.require(ones, self.op, "state", f"have {self.prefix}{name} with {self.prefix}{learned}", "none")
            return
        options = [found] if factor is None else [found * factor, *([found + factor] if "+" in how else [])]
        rule = f"be that of {self.prefix}{name}" + ("" if factor is None else f" {how} {self.prefix}{learned}")
        hint = "make it with SkeletonGraph.from_dense"
        own = torch.tensor(self.graph.dense(), dtype=torch.float64)
        fits = own.shape == found.shape
        checks.require(fits, self.op, "graph", f"{rule}, {list(found.shape)}", list(own.shape), hint)
        far = min((own - option.double().cpu()).abs().max().item() for option in options)
        fits = far < (1e-2 if found.dtype in (torch.float16, torch.bfloat16) else 1e-5)
        checks.require(fits, self.op, "graph", rule, f"entries that differ by up to {far:.2g}", hint)
