"""Skeletons and layouts against the numbers of the specification."""

import numpy as np
import pytest

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


def test_graph_is_a_key():
    again = SkeletonGraph.from_edges(["a", "b"], [(0, 1)])
    assert again == SkeletonGraph.from_edges(["a", "b"], [(0, 1)]) and len({again, again}) == 1
    with pytest.raises(ValueError):
        again.dense()[0, 0, 0] = 2.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"bones": [(0, 3)]}, "an edge must join two nodes of 0..2, got (0, 3)"),
        ({"bones": [(1, 1)]}, "an edge must join two nodes of 0..2, got (1, 1)"),
        ({"bones": [(1, 2)]}, "bone (1, 2) must be connected to center 0"),
        ({"bones": [(0, 1)], "center": 5}, "center must be a node of 0..2, got 5"),
        ({"bones": [(0, 1)], "parts": [[]]}, "a part must name nodes of 0..2, got []"),
        ({"bones": [(0, 1)], "distance": (0, 1)}, "distance must have 3 entries, got 2"),
        ({"bones": [(0, 1)], "parts": [[0], [1]], "pooled": graphs.TRUNK3}, "pooled must have 2 nodes, got 3"),
    ],
)
def test_bad_graphs(arguments, sentence):
    with pytest.raises(ValueError) as error:
        SkeletonGraph.from_edges(["a", "b", "c"], **arguments)
    assert str(error.value) == f"SkeletonGraph: {sentence}"


def test_unknown_layout():
    with pytest.raises(ValueError, match=r"keypoints must be one of \[49, 75, 79, 133\], got 50"):
        graphs.layout(50)
