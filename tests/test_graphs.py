"""Skeletons and layouts against the numbers of the specification."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from slrfast import graphs
from slrfast.graphs import SkeletonGraph


@pytest.mark.parametrize(
    ("name", "nonzeros"),
    [
        ("HAND21", [21, 20, 20, 32]),
        ("HAND6", [6, 5, 5, 8]),
        ("TRUNK7", [7, 6, 6, 6]),
        ("TRUNK3", [3, 2, 2, 2]),
        ("BODY11", [11, 10, 10, 10]),
        ("FACE18", [18, 17, 17, 32]),
        ("MOUTH8", [8, 8, 8, 6]),
    ],
)
def test_every_column_of_a_graph_averages(name, nonzeros):
    adjacency = getattr(graphs, name).dense()
    assert (adjacency > 0).sum((1, 2)).tolist() == nonzeros
    np.testing.assert_allclose(adjacency.sum((0, 1)), 1.0, rtol=1e-6)


def test_hand_degrees_and_partitions():
    adjacency = graphs.HAND21.dense()
    degree = np.round(1 / np.diagonal(adjacency[graphs.SELF])).astype(int)
    assert degree.tolist() == [6, 4, 4, 4, 3, 5, 5, 5, 4, 5, 5, 5, 4, 5, 5, 5, 4, 4, 4, 4, 3]
    assert adjacency[graphs.INWARD, 1, 0] == pytest.approx(1 / 6)  # thumb base -> wrist: the source is farther out
    assert adjacency[graphs.OUTWARD, 0, 1] == pytest.approx(1 / 4)
    assert adjacency[graphs.SYMMETRIC, 17, 13] == pytest.approx(1 / 5)
    assert graphs.HAND21.parts == ((2, 3, 4), (6, 7, 8), (10, 11, 12), (14, 15, 16), (18, 19, 20), (0, 1, 5, 9, 13, 17))
    assert graphs.HAND21.pooled == graphs.HAND6


def test_trunk_degrees_and_parts():
    degree = np.round(1 / np.diagonal(graphs.TRUNK7.dense()[graphs.SELF])).astype(int)
    assert degree.tolist() == [3, 4, 4, 3, 4, 4, 3]
    assert graphs.TRUNK7.parts == ((1, 2, 3), (4, 5, 6), (0,))


def test_the_authors_pooled_trunk_isolates_the_nose():
    adjacency = graphs.TRUNK3_LEGACY.dense()
    np.testing.assert_allclose(adjacency[0], np.diag([1 / 3, 1 / 2, 1 / 2]), rtol=1e-6)
    assert not adjacency[[1, 2]].any()
    assert np.argwhere(adjacency[3]).tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(adjacency.sum((0, 1)), [2 / 3, 1, 1 / 2], rtol=1e-6)


def test_layouts():
    for keypoints in (49, 75, 79, 133):
        layout = graphs.layout(keypoints)
        assert len(layout.names) == len(set(layout.names)) == len(layout.indices) == keypoints
        assert (layout.flip[layout.flip] == np.arange(keypoints)).all()
        covered = np.concatenate([np.arange(keypoints)[part] for part in layout.parts.values()])
        assert covered.tolist() == list(range(keypoints))
        for name, mirrored in zip(layout.names, np.array(layout.names)[layout.flip], strict=True):
            if "left" in name:
                assert mirrored == name.replace("left", "right")
    assert graphs.layout(49).indices.tolist() == [*range(112, 133), *range(91, 112), 0, 5, 7, 9, 6, 8, 10]
    assert graphs.layout(75).indices[graphs.layout(75).parts["face"]].tolist() == [*range(23, 40), 53]
    assert (np.diff(graphs.layout(79).indices) > 0).all()


def test_flips_of_the_face_follow_its_geometry():
    """Mirror 68 points drawn symmetrically, right side of the face at x < 0, and every point lands on its partner."""
    jaw = [(-np.cos(a), np.sin(a)) for a in np.linspace(0, np.pi, 17)]
    brows = [(side * x, -0.6 - 0.1 * x) for side, xs in ((-1, (5, 4, 3, 2, 1)), (1, (1, 2, 3, 4, 5))) for x in xs]
    nose = [(0, y) for y in (-0.4, -0.3, -0.2, -0.1)] + [(x, 0.05) for x in (-2, -1, 0, 1, 2)]
    right_eye = [(-4, -0.3), (-3.5, -0.4), (-3, -0.4), (-2, -0.3), (-3, -0.2), (-3.5, -0.2)]
    left_eye = [(2, -0.3), (3, -0.4), (3.5, -0.4), (4, -0.3), (3.5, -0.2), (3, -0.2)]
    outer = [(-3, 0.3), (-2, 0.2), (-1, 0.1), (0, 0.15), (1, 0.1), (2, 0.2), (3, 0.3)]
    outer += [(2, 0.4), (1, 0.5), (0, 0.6), (-1, 0.5), (-2, 0.4)]
    inner = [(-2.5, 0.3), (-1, 0.25), (0, 0.27), (1, 0.25), (2.5, 0.3), (1, 0.35), (0, 0.37), (-1, 0.35)]
    face = np.array(jaw + brows + nose + right_eye + left_eye + outer + inner)
    for keypoints in (75, 79, 133):
        layout = graphs.layout(keypoints)
        rows = np.array([i for i, name in enumerate(layout.names) if name.startswith("face_")])
        points = face[layout.indices[rows] - 23]
        partner = face[layout.indices[layout.flip[rows]] - 23]
        np.testing.assert_allclose(partner, points * (-1, 1), atol=1e-12)


def test_parts_are_named_alike_in_every_layout():
    whole = graphs.layout(133)
    parts = {keypoints: graphs.layout(keypoints).parts for keypoints in graphs.LAYOUTS}
    assert {keypoints: list(names) for keypoints, names in parts.items()} == {
        49: ["right_hand", "left_hand", "trunk"],
        75: ["left_hand", "right_hand", "face", "mouth", "trunk"],
        79: ["body", "face", "mouth", "left_hand", "right_hand"],
        133: ["body", "feet", "face", "left_hand", "right_hand"],
    }
    for keypoints in graphs.LAYOUTS:
        layout = graphs.layout(keypoints)
        assert layout.names == tuple(whole.names[i] for i in layout.indices)
        for side, other in (("left", "right"), ("right", "left")):
            hand = layout.parts[f"{side}_hand"]
            rows = np.arange(keypoints)
            assert layout.flip[hand].tolist() == rows[layout.parts[f"{other}_hand"]].tolist()
            assert {name.rsplit("_", 1)[0] for name in layout.names[hand]} <= {
                f"{side}_hand", *(f"{side}_hand_{finger}" for finger in graphs.FINGERS)
            }  # fmt: skip


def test_graph_is_a_key():
    again = SkeletonGraph.from_edges(["a", "b"], [(0, 1)])
    assert again == SkeletonGraph.from_edges(["a", "b"], [(0, 1)]) and len({again, again}) == 1
    assert SkeletonGraph(list(again.names), list(again.edges[::-1])) == again
    copied = pickle.loads(pickle.dumps(again))
    assert copied == again and hash(copied) == hash(again)
    assert len({again, SkeletonGraph(again.names, again.edges, 5), SkeletonGraph(again.names, again.edges[1:])}) == 3
    with pytest.raises(ValueError):
        again.dense()[0, 0, 0] = 2.0


def test_a_key_in_another_process():
    code = "import pickle, sys; sys.stdout.buffer.write(pickle.dumps(__import__('slrfast').graphs.HAND21))"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    written = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True).stdout
    assert {graphs.HAND21: "found"}[pickle.loads(written)] == "found"


def test_one_node_and_many():
    alone = SkeletonGraph.from_edges(["a"], [])
    assert alone.edges == ((graphs.SELF, 0, 0, 1.0),) and alone.dense().shape == (4, 1, 1)
    star = SkeletonGraph.from_edges([str(i) for i in range(256)], [(0, i) for i in range(1, 256)])
    np.testing.assert_allclose(star.dense().sum((0, 1)), 1.0, rtol=1e-5)
    assert star.dense()[graphs.INWARD, 255, 0] == pytest.approx(1 / 256)


@pytest.mark.parametrize("graph", [graphs.HAND21, graphs.TRUNK7_LEGACY, graphs.TRUNK3_LEGACY, graphs.MOUTH8])
def test_a_dense_adjacency_is_taken_over(graph):
    again = SkeletonGraph.from_dense(graph.dense(), graph.names, graph.parts, graph.pooled)
    np.testing.assert_array_equal(again.dense(), graph.dense())
    assert (again.names, again.parts, again.pooled) == (graph.names, graph.parts, graph.pooled)
    assert len(again.edges) == len(graph.edges)  # zeros are no edges
    assert SkeletonGraph.from_dense(torch.tensor(graph.dense())).edges == again.edges


def test_empty_partitions_and_any_number_of_them():
    adjacency = np.zeros((6, 3, 3))
    adjacency[4, 2, 0] = -0.25
    graph = SkeletonGraph.from_dense(adjacency)
    assert graph == SkeletonGraph(("node_0", "node_1", "node_2"), ((4, 2, 0, -0.25),), 6)
    np.testing.assert_array_equal(graph.dense(), adjacency)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"bones": [(0, 3)]}, "an edge must join two nodes of 0..2, got (0, 3)"),
        ({"bones": [(-1, 0)]}, "an edge must join two nodes of 0..2, got (-1, 0)"),
        ({"bones": [(0, 1.5)]}, "an edge must join two nodes of 0..2, got (0, 1.5)"),
        ({"bones": [(0, 1, 2)]}, "an edge must join two nodes of 0..2, got (0, 1, 2)"),
        ({"bones": [(1, 1)]}, "an edge must join two nodes of 0..2, got (1, 1)"),
        ({"bones": [(0, 1)], "symmetric": [(2, 4)]}, "an edge must join two nodes of 0..2, got (2, 4)"),
        ({"bones": []}, "bones must join the 3 nodes, got none"),
        ({"bones": [(0, 1), (0, 1)]}, "an edge must be named once, in one direction, got (0, 1) twice"),
        ({"bones": [(0, 1), (1, 0)]}, "an edge must be named once, in one direction, got (1, 0) twice"),
        (
            {"bones": [(0, 1)], "symmetric": [(1, 2), (2, 1)]},
            "an edge must be named once, in one direction, got (2, 1) twice",
        ),
        (
            {"bones": [(0, 1)], "symmetric": [(1, 0)]},
            "an edge must be named once, in one direction, got (1, 0) twice",
        ),
        ({"bones": [(1, 2)]}, "bone (1, 2) must be connected to center 0"),
        ({"bones": [(0, 1)], "center": 5}, "center must be a node of 0..2, got 5"),
        ({"bones": [(0, 1)], "parts": [[]]}, "a part must name nodes of 0..2, got []"),
        ({"bones": [(0, 1)], "parts": [[0, 3]]}, "a part must name nodes of 0..2, got [0, 3]"),
        ({"bones": [(0, 1)], "parts": [[1, 2, 1]]}, "a part must name a node once, got [1, 2, 1]"),
        ({"bones": [(0, 1)], "distance": (0, 1)}, "distance must have 3 entries, got 2"),
        ({"bones": [(0, 1)], "parts": [[0], [1]], "pooled": graphs.TRUNK3}, "pooled must have 2 nodes, got 3"),
        ({"names": [], "bones": []}, "a skeleton must have 1 to 256 nodes, got 0"),
        ({"names": ["a"] * 257, "bones": [(0, 1)]}, "a skeleton must have 1 to 256 nodes, got 257"),
    ],
)
def test_bad_graphs(arguments, sentence):
    with pytest.raises(ValueError) as error:
        SkeletonGraph.from_edges(**{"names": ["a", "b", "c"], **arguments})
    assert str(error.value) == f"SkeletonGraph: {sentence}"


PLACE = "an edge must be a partition of 0..3, two nodes of 0..2 and a finite weight"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"edges": []}, "edges must not be empty, got none"),
        ({"edges": [(4, 0, 1, 1.0)]}, f"{PLACE}, got (4, 0, 1, 1.0)"),
        ({"edges": [(0, 3, 1, 1.0)]}, f"{PLACE}, got (0, 3, 1, 1.0)"),
        ({"edges": [(0, 0, -1, 1.0)]}, f"{PLACE}, got (0, 0, -1, 1.0)"),
        ({"edges": [(0, 0, 0.5, 1.0)]}, f"{PLACE}, got (0, 0, 0.5, 1.0)"),
        ({"edges": [(0, 0, 1, float("nan"))]}, f"{PLACE}, got (0, 0, 1, nan)"),
        ({"edges": [(0, 0, 1)]}, f"{PLACE}, got (0, 0, 1)"),
        (
            {"edges": [(1, 0, 2, 0.5), (1, 0, 1, 0.5), (1, 0, 2, 1.0)]},
            "an edge must be in a partition once, got (1, 0, 2) twice",
        ),
        ({"num_partitions": 0}, "num_partitions must be at least 1, got 0"),
        ({"names": ()}, "a skeleton must have 1 to 256 nodes, got 0"),
        ({"names": ("a",) * 257}, "a skeleton must have 1 to 256 nodes, got 257"),
        ({"parts": [[7]]}, "a part must name nodes of 0..2, got [7]"),
        ({"pooled": graphs.TRUNK3}, "pooled must have 0 nodes, got 3"),
    ],
)
def test_bad_direct_construction(arguments, sentence):
    with pytest.raises(ValueError) as error:
        SkeletonGraph(**{"names": ("a", "b", "c"), "edges": ((0, 0, 0, 1.0),), **arguments})
    assert str(error.value) == f"SkeletonGraph: {sentence}"


@pytest.mark.parametrize(
    ("adjacency", "arguments", "sentence"),
    [
        (np.eye(3), {}, "adjacency must have shape [P, V, V], got [3, 3]"),
        (np.ones((2, 3, 4)), {}, "adjacency must have shape [P, V, V], got [2, 3, 4]"),
        (np.zeros((2, 3, 3)), {}, "adjacency must have an entry that is not 0, got none"),
        (np.full((1, 2, 2), np.inf), {}, "adjacency must be finite, got NaN or infinity"),
        (np.ones((1, 2, 2)), {"names": ["a"]}, "names must name the adjacency's 2 nodes, got 1"),
        (np.ones((1, 257, 257)), {}, "a skeleton must have 1 to 256 nodes, got 257"),
        (np.ones((1, 2, 2)), {"parts": [[2]]}, "a part must name nodes of 0..1, got [2]"),
    ],
)
def test_bad_adjacency(adjacency, arguments, sentence):
    with pytest.raises(ValueError) as error:
        SkeletonGraph.from_dense(adjacency, **arguments)
    assert str(error.value) == f"SkeletonGraph: {sentence}"


def test_unknown_layout():
    with pytest.raises(ValueError, match=r"keypoints must be one of \[49, 75, 79, 133\], got 50"):
        graphs.layout(50)
