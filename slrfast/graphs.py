"""Keypoint layouts and skeletons as data: names, edges and parts, turned into sparse adjacency. NumPy only.

A skeleton is partitioned as in ST-GCN and in the graphs of STC and MASA: self loops, bones towards the centre, bones
away from it, and symmetric (cross-limb) edges. Every partition holds a part of one column-normalised adjacency, so a
graph convolution averages over the neighbourhood of its output node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SELF, INWARD, OUTWARD, SYMMETRIC = range(4)


@dataclass(frozen=True)
class SkeletonGraph:
    """A skeleton's partitioned adjacency, hashable and independent of any device.

    Attributes:
        names: one name per node.
        edges: sorted quadruples (partition, source, target, weight).
        num_partitions: P.
        parts: the nodes that are max-pooled together, one tuple per part.
        pooled: the graph over those parts, or None.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int, int, float], ...]
    num_partitions: int = 4
    parts: tuple[tuple[int, ...], ...] = ()
    pooled: SkeletonGraph | None = None

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
            names: V node names.
            bones: pairs of nodes. A bone between nodes at equal distance from the centre falls in no partition,
                though it still counts in the degree of its nodes.
            symmetric: pairs that go to the symmetric partition whatever their distance.
            center: the node that distances are counted from, along bones.
            parts: node lists for part pooling, in the order of the pooled graph's nodes.
            distance: V distances to use instead of counting them.
            pooled: the graph over the parts.
        Raises:
            ValueError: a node, part or distance does not fit the V names, or a bone cannot be reached from the centre.

        >>> SkeletonGraph.from_edges(["wrist", "tip"], bones=[(0, 1)]).dense().sum(axis=(0, 1))
        array([1., 1.], dtype=float32)
        """
        count = len(names)
        for a, b in (*bones, *symmetric):
            if not (0 <= a < count and 0 <= b < count) or a == b:
                raise ValueError(f"SkeletonGraph: an edge must join two nodes of 0..{count - 1}, got {(a, b)}")
        if not 0 <= center < count:
            raise ValueError(f"SkeletonGraph: center must be a node of 0..{count - 1}, got {center}")
        for part in parts:
            if not part or not all(0 <= node < count for node in part):
                raise ValueError(f"SkeletonGraph: a part must name nodes of 0..{count - 1}, got {list(part)}")
        if pooled is not None and pooled.num_nodes != len(parts):
            raise ValueError(f"SkeletonGraph: pooled must have {len(parts)} nodes, got {pooled.num_nodes}")
        distance = _distances(count, bones, center) if distance is None else distance
        if len(distance) != count:
            raise ValueError(f"SkeletonGraph: distance must have {count} entries, got {len(distance)}")

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
            raise ValueError(f"SkeletonGraph: bone {bone} must be connected to center {center}")
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
TRUNK3_LEGACY = SkeletonGraph.from_edges(_ARMS, [(0, 2), (0, 1)], symmetric=[(0, 1)], distance=(0, 0, 0))
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
