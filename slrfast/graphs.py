"""Keypoint layouts and skeletons as data: names, edges and parts, turned into sparse adjacency. NumPy only.

A skeleton is partitioned as in ST-GCN and in the graphs of STC and MASA: self loops, bones towards the centre, bones
away from it, and symmetric (cross-limb) edges. Every partition holds a part of one column-normalised adjacency, so a
graph convolution averages over the neighbourhood of its output node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

SELF, INWARD, OUTWARD, SYMMETRIC = range(4)
MAX_NODES = 256


@dataclass(frozen=True)
class SkeletonGraph:
    """A skeleton's partitioned adjacency, hashable and independent of any device.

    Attributes:
        names: one name per node, 1 to 256 of them.
        edges: quadruples (partition, source, target, weight), at least one; kept sorted.
        num_partitions: P; a partition may be empty.
        parts: the nodes that are max-pooled together, one tuple per part.
        pooled: the graph over those parts, or None.
    Raises:
        ValueError: an edge or part does not fit the nodes and partitions, or is there twice.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int, int, float], ...]
    num_partitions: int = 4
    parts: tuple[tuple[int, ...], ...] = ()
    pooled: SkeletonGraph | None = None
    _hash: ClassVar[int]  # of every instance, kept: a hash over thousands of edges is not for every call

    def __post_init__(self) -> None:
        count, partitions = len(self.names), self.num_partitions
        _require(1 <= count <= MAX_NODES, f"a skeleton must have 1 to {MAX_NODES} nodes", count)
        _require(partitions >= 1, "num_partitions must be at least 1", partitions)
        edges = tuple(sorted(_edge(edge, partitions, count) for edge in self.edges))
        _require(len(edges) > 0, "edges must not be empty", "none")
        for (*before, _), (*ends, _) in zip(edges, edges[1:], strict=False):
            _require(before != ends, "an edge must be in a partition once", f"{tuple(ends)} twice")
        for part in self.parts:
            _require(len(part) > 0 and _are_in(part, count), f"a part must name nodes of 0..{count - 1}", list(part))
            _require(len(set(part)) == len(part), "a part must name a node once", list(part))
        if self.pooled is not None:
            nodes = self.pooled.num_nodes
            _require(nodes == len(self.parts), f"pooled must have {len(self.parts)} nodes", nodes)
        parts = tuple(tuple(map(int, part)) for part in self.parts)
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "_hash", hash((count, partitions, edges, parts)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def from_edges(
        cls,
        names: Sequence[str],
        bones: Sequence[tuple[int, int]],
        symmetric: Sequence[tuple[int, int]] = (),
        center: int = 0,
        parts: Sequence[Sequence[int]] = (),
        distance: Sequence[int] | None = None,
        pooled: SkeletonGraph | None = None,
    ) -> SkeletonGraph:
        """Build the four partitions from undirected bones and symmetric pairs.

        Args:
            names: V node names, 1 to 256.
            bones: pairs of nodes, each named once. A bone between nodes at equal distance from the centre falls in no
                partition, though it still counts in the degree of its nodes.
            symmetric: pairs that go to the symmetric partition whatever their distance; none of them a bone too.
            center: the node that distances are counted from, along bones.
            parts: node lists for part pooling, in the order of the pooled graph's nodes.
            distance: V distances to use instead of counting them.
            pooled: the graph over the parts.
        Raises:
            ValueError: a node, part or distance does not fit the V names, a pair is there twice, several nodes have no
                edge at all, or a bone cannot be reached from the centre.

        >>> SkeletonGraph.from_edges(["wrist", "tip"], bones=[(0, 1)]).dense().sum(axis=(0, 1))
        array([1., 1.], dtype=float32)
        """
        count = len(names)
        _require(1 <= count <= MAX_NODES, f"a skeleton must have 1 to {MAX_NODES} nodes", count)
        pairs = [tuple(pair) for pair in (*bones, *symmetric)]
        _require(count == 1 or len(pairs) > 0, f"bones must join the {count} nodes", "none")
        seen: set[tuple[int, ...]] = set()
        for pair in pairs:
            fits = len(pair) == 2 and pair[0] != pair[1] and _are_in(pair, count)
            _require(fits, f"an edge must join two nodes of 0..{count - 1}", pair)
            _require(pair not in seen, "an edge must be named once, in one direction", f"{pair} twice")
            seen |= {pair, pair[::-1]}
        _require(0 <= center < count, f"center must be a node of 0..{count - 1}", center)
        distance = _distances(count, bones, center) if distance is None else distance
        _require(len(distance) == count, f"distance must have {count} entries", len(distance))

        partition: dict[tuple[int, int], int | None] = {(node, node): SELF for node in range(count)}
        for a, b in symmetric:
            partition[a, b] = partition[b, a] = SYMMETRIC
        for a, b in bones:
            for source, target in ((a, b), (b, a)):
                further = distance[source] - distance[target]
                partition.setdefault((source, target), (INWARD if further > 0 else OUTWARD) if further else None)
        degree = np.bincount([target for _, target in partition], minlength=count)
        edges = sorted((k, v, w, 1.0 / degree[w]) for (v, w), k in partition.items() if k is not None)
        return cls(tuple(names), tuple(edges), parts=tuple(map(tuple, parts)), pooled=pooled)

    @classmethod
    def from_dense(
        cls,
        adjacency: Any,
        names: Sequence[str] | None = None,
        parts: Sequence[Sequence[int]] = (),
        pooled: SkeletonGraph | None = None,
    ) -> SkeletonGraph:
        """Take over an adjacency as other code has it, such as the ``A`` of an ST-GCN; entries of 0 are no edges.

        Args:
            adjacency: [P, V, V], a NumPy array or what it can be made of (a CPU tensor without gradient), with
                ``out[w] = sum_v x[v] A[k][v, w]``: rows are sources, columns are targets. Not normalised further.
            names: V node names; "node_0" and so on without them.
            parts: node lists for part pooling, in the order of the pooled graph's nodes.
            pooled: the graph over the parts.
        Raises:
            ValueError: another shape, a value that is not finite, nothing but zeros, or names or parts that do not fit.

        >>> graph = SkeletonGraph.from_dense([[[0.5, 0.0], [0.5, 1.0]]])
        >>> graph.edges
        ((0, 0, 0, 0.5), (0, 1, 0, 0.5), (0, 1, 1, 1.0))
        """
        dense = np.asarray(adjacency, np.float64)
        square = dense.ndim == 3 and dense.shape[1] == dense.shape[2]
        _require(square, "adjacency must have shape [P, V, V]", list(dense.shape))
        partitions, count, _ = dense.shape
        names = tuple(f"node_{i}" for i in range(count)) if names is None else tuple(names)
        _require(len(names) == count, f"names must name the adjacency's {count} nodes", len(names))
        _require(bool(np.isfinite(dense).all()), "adjacency must be finite", "NaN or infinity")
        _require(bool(dense.any()), "adjacency must have an entry that is not 0", "none")
        edges = tuple((k, v, w, float(dense[k, v, w])) for k, v, w in np.argwhere(dense).tolist())
        return cls(names, edges, partitions, tuple(map(tuple, parts)), pooled)

    @property
    def num_nodes(self) -> int:
        """V."""
        return len(self.names)

    def dense(self) -> np.ndarray:
        """Float32 ``A[P, V, V]`` with ``out[w] = sum_v x[v] A[k][v, w]``; read-only."""
        return _dense(self)


@lru_cache(maxsize=64)
def _dense(graph: SkeletonGraph) -> np.ndarray:
    adjacency = np.zeros((graph.num_partitions, graph.num_nodes, graph.num_nodes), np.float32)
    for k, source, target, weight in graph.edges:
        adjacency[k, source, target] = weight
    adjacency.flags.writeable = False
    return adjacency


def _require(condition: bool, rule: str, got: object) -> None:
    if not condition:
        raise ValueError(f"SkeletonGraph: {rule}, got {got}")


def _are_in(values: Iterable[Any], stop: int) -> bool:
    return all(isinstance(value, (int, np.integer)) and 0 <= value < stop for value in values)


def _edge(edge: Sequence[Any], partitions: int, nodes: int) -> tuple[int, int, int, float]:
    """The edge in plain numbers, if it has a place in the graph."""
    if len(edge) == 4 and _are_in(edge[:1], partitions) and _are_in(edge[1:3], nodes) and math.isfinite(edge[3]):
        return int(edge[0]), int(edge[1]), int(edge[2]), float(edge[3])
    place = f"a partition of 0..{partitions - 1}, two nodes of 0..{nodes - 1}"
    raise ValueError(f"SkeletonGraph: an edge must be {place} and a finite weight, got {tuple(edge)}")


def _distances(count: int, bones: Sequence[tuple[int, int]], center: int) -> list[int]:
    distance = {center: 0}
    frontier = [center]
    for node in frontier:
        for a, b in bones:
            other = b if a == node else a if b == node else node
            if other not in distance:
                distance[other] = distance[node] + 1
                frontier.append(other)
    for bone in bones:
        if bone[0] not in distance:
            raise ValueError(f"SkeletonGraph: bone {tuple(bone)} must be connected to center {center}")
    return [distance.get(node, 0) for node in range(count)]


def _chain(*nodes: int) -> list[tuple[int, int]]:
    return list(zip(nodes, nodes[1:], strict=False))


def _star(center: int, others: Sequence[int]) -> list[tuple[int, int]]:
    return [(center, node) for node in others]


def _all_pairs(nodes: Sequence[int]) -> list[tuple[int, int]]:
    return [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]


FINGERS = ("thumb", "index", "middle", "ring", "little")
HAND_NAMES = ("wrist", *(f"{finger}_{joint}" for finger in FINGERS for joint in range(1, 5)))

HAND6 = SkeletonGraph.from_edges((*FINGERS, "palm"), _star(5, range(5)), symmetric=_chain(0, 1, 2, 3, 4), center=5)
HAND21 = SkeletonGraph.from_edges(
    HAND_NAMES,
    bones=[bone for f in range(5) for bone in _chain(0, *range(4 * f + 1, 4 * f + 5))],
    symmetric=[(4 * f + level, 4 * f + 4 + level) for f in range(4) for level in range(1, 5)],
    parts=(*([4 * f + 2, 4 * f + 3, 4 * f + 4] for f in range(5)), [0, 1, 5, 9, 13, 17]),
    pooled=HAND6,
)

TRUNK_NAMES = ("nose", *(f"{side}_{joint}" for side in ("left", "right") for joint in ("shoulder", "elbow", "wrist")))
_TRUNK_BONES = [*_chain(0, 1, 2, 3), *_chain(0, 4, 5, 6)]
_TRUNK_PARTS = ([1, 2, 3], [4, 5, 6], [0])
_ARMS = ("left_arm", "right_arm", "nose")
TRUNK3 = SkeletonGraph.from_edges(_ARMS, _star(2, (0, 1)), symmetric=[(0, 1)], center=2)
TRUNK3_LEGACY = SkeletonGraph.from_edges(_ARMS, [(0, 2)], symmetric=[(0, 1)], distance=(0, 0, 0))
_TRUNK_SIDES = [(1, 4), (2, 5), (3, 6)]
TRUNK7 = SkeletonGraph.from_edges(TRUNK_NAMES, _TRUNK_BONES, _TRUNK_SIDES, parts=_TRUNK_PARTS, pooled=TRUNK3)
TRUNK7_LEGACY = SkeletonGraph.from_edges(
    TRUNK_NAMES, _TRUNK_BONES, _TRUNK_SIDES, parts=_TRUNK_PARTS, pooled=TRUNK3_LEGACY
)

BODY_NAMES = ("nose", *(f"{s}_{j}" for j in ("eye", "ear", "shoulder", "elbow", "wrist") for s in ("left", "right")))
BODY11 = SkeletonGraph.from_edges(
    BODY_NAMES,
    bones=[(0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (0, 6), (5, 7), (7, 9), (6, 8), (8, 10)],
    symmetric=[(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)],
    parts=(range(5), [5, 7, 9], [6, 8, 10]),
    pooled=SkeletonGraph.from_edges(("head", "left_arm", "right_arm"), _star(0, (1, 2)), symmetric=[(1, 2)]),
)
FACE18 = SkeletonGraph.from_edges(
    (*(f"jaw_{i}" for i in range(17)), "nose_tip"),
    bones=_star(17, range(17)),
    symmetric=_chain(*range(17)),
    center=17,
    parts=(range(6), range(6, 11), range(11, 17), [17]),
    pooled=SkeletonGraph.from_edges(
        ("right_jaw", "chin", "left_jaw", "nose"), _star(3, range(3)), symmetric=_all_pairs(range(3)), center=3
    ),
)
MOUTH8 = SkeletonGraph.from_edges(
    [f"lip_{i}" for i in range(8)],
    bones=_chain(*range(8), 0),
    symmetric=[(0, 4), (1, 3), (5, 7)],
    parts=([1, 2, 3], [5, 6, 7], [0, 4]),
    pooled=SkeletonGraph.from_edges(("upper", "lower", "corners"), _star(2, (0, 1)), symmetric=[(0, 1)], center=2),
)


@dataclass(frozen=True, eq=False)
class Layout:
    """An ordered set of keypoints taken from COCO-WholeBody's 133.

    Attributes:
        names: one name per keypoint.
        indices: int64 [V], the 133-index (0-based) of every keypoint.
        parts: part name -> slice of the V keypoints.
        flip: int64 [V], the right-left permutation: keypoint i of a mirrored person is keypoint ``flip[i]``.
    """

    names: tuple[str, ...]
    indices: np.ndarray
    parts: Mapping[str, slice]
    flip: np.ndarray


def _coco133() -> Layout:
    legs = [f"{side}_{joint}" for joint in ("hip", "knee", "ankle") for side in ("left", "right")]
    feet = [f"{side}_{joint}" for side in ("left", "right") for joint in ("big_toe", "small_toe", "heel")]
    hands = [f"{side}_{joint}" for side in ("left_hand", "right_hand") for joint in HAND_NAMES]
    names = (*BODY_NAMES, *legs, *feet, *(f"face_{i}" for i in range(68)), *hands)
    parts = {
        "body": slice(0, 17),
        "feet": slice(17, 23),
        "face": slice(23, 91),
        "left_hand": slice(91, 112),
        "right_hand": slice(112, 133),
    }
    flip = np.arange(133)
    face_pairs = [(j, 16 - j) for j in range(8)]
    face_pairs += [(17 + i, 26 - i) for i in range(5)] + [(31, 35), (32, 34)]
    face_pairs += [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]
    face_pairs += [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)]
    pairs = [(i, i + 1) for i in range(1, 17, 2)] + [(i, i + 3) for i in range(17, 20)]
    pairs += [(23 + a, 23 + b) for a, b in face_pairs] + [(91 + i, 112 + i) for i in range(21)]
    for a, b in pairs:
        flip[a], flip[b] = b, a
    return Layout(names, np.arange(133), parts, flip)


def _select(parts: Mapping[str, Sequence[int]]) -> Layout:
    whole = _LAYOUTS[133]
    indices = np.concatenate([np.asarray(part) for part in parts.values()])
    row = {int(index): i for i, index in enumerate(indices)}
    stops = np.cumsum([len(part) for part in parts.values()])
    slices = {
        name: slice(int(stop) - len(part), int(stop)) for (name, part), stop in zip(parts.items(), stops, strict=True)
    }
    flip = np.array([row[int(whole.flip[index])] for index in indices])
    return Layout(tuple(whole.names[i] for i in indices), indices, slices, flip)


_LAYOUTS = {133: _coco133()}
LAYOUTS = (49, 75, 79, 133)
"""The keypoints of every layout."""
_LEFT, _RIGHT, _MOUTH, _FACE = range(91, 112), range(112, 133), range(83, 91), (*range(23, 40), 53)
_TRUNK = (0, 5, 7, 9, 6, 8, 10)
_LAYOUTS[49] = _select({"right_hand": _RIGHT, "left_hand": _LEFT, "trunk": _TRUNK})
_LAYOUTS[75] = _select({"left_hand": _LEFT, "right_hand": _RIGHT, "face": _FACE, "mouth": _MOUTH, "trunk": _TRUNK})
_LAYOUTS[79] = _select(
    {"body": range(11), "face": _FACE, "mouth": _MOUTH, "left_hand": _LEFT, "right_hand": _RIGHT}
)  # ascending 133-index order


def layout(keypoints: int) -> Layout:
    """The layout with this many keypoints: 49 (STC, MASA), 75 (CCL-SLR), 79 (SLP) or 133 (COCO-WholeBody).

    >>> layout(49).parts["trunk"]
    slice(42, 49, None)
    """
    if keypoints not in _LAYOUTS:
        raise ValueError(f"layout: keypoints must be one of {sorted(_LAYOUTS)}, got {keypoints}")
    return _LAYOUTS[keypoints]
