import colorsys
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch

from slrfast.train.pictures import draw_embedding, draw_losses, draw_views
from slrfast.train.projection import pca, tsne


def colors(path):
    """The picture's distinct opaque colours."""
    image = matplotlib.image.imread(path)
    return {tuple((255 * pixel).round().astype(int)) for pixel in image[..., :3].reshape(-1, 3)[::3]}


def blobs(per_class=12):
    centers = 3 * torch.eye(4, 10)
    labels = torch.arange(4).repeat_interleave(per_class)
    return centers[labels] + 0.2 * torch.randn(len(labels), 10, generator=torch.Generator().manual_seed(0)), labels


def neighbours_agree(points, labels):
    distance = torch.cdist(points, points) + 1e9 * torch.eye(len(points), dtype=points.dtype)
    return float((labels[distance.argmin(1)] == labels).double().mean())


class TestProjection:
    def test_pca_finds_the_widest_direction(self):
        x = torch.randn(50, 1) * torch.tensor([[0.0, 5.0, 0.0]]) + 0.1 * torch.randn(50, 3)
        first = pca(x)[:, 0]
        assert float(torch.corrcoef(torch.stack((first, x[:, 1].double())))[0, 1].abs()) > 0.99
        assert first[first.abs().argmax()] > 0

    def test_pca_of_fewer_features_than_dimensions(self):
        assert pca(torch.randn(5, 1)).shape == (5, 2) and pca(torch.randn(1, 4)).tolist() == [[0, 0]]

    def test_tsne_keeps_neighbours_and_is_deterministic(self):
        features, labels = blobs()
        first = tsne(features, perplexity=8, steps=200)
        assert neighbours_agree(first, labels) > 0.9
        assert torch.equal(first, tsne(features, perplexity=8, steps=200))

    @pytest.mark.parametrize("features", [torch.randn(3, 5), torch.ones(20, 5), torch.randn(9, 1)])
    def test_tsne_of_odd_input_is_finite(self, features):
        points = tsne(features, steps=60)
        assert points.shape == (len(features), 2) and bool(torch.isfinite(points).all())


class TestPictures:
    def test_losses(self, tmp_path):
        records = [
            {"step": i + 1, "epoch": i / 4, "loss": 3.0, "contrast": 2.0, "learning_rate": 0.1} for i in range(9)
        ]
        records[4]["knn_top1"] = 0.5
        draw_losses(records, tmp_path / "loss.png")
        assert len(colors(tmp_path / "loss.png")) > 20

    def test_losses_of_a_single_step(self, tmp_path):
        draw_losses([{"step": 1, "epoch": 0.0, "loss": 3.0, "learning_rate": 0.0}], tmp_path / "loss.png")
        assert len(colors(tmp_path / "loss.png")) > 5

    def test_a_missing_joint_is_not_drawn(self, tmp_path):
        xy = torch.rand(1, 4, 49, 2, generator=torch.Generator().manual_seed(0))
        shown = []
        for name, confidence in (("all", torch.ones(1, 4, 49)), ("none", torch.zeros(1, 4, 49))):
            view = SimpleNamespace(xy=xy, confidence=confidence)
            draw_views([view, view], ["clip"], tmp_path / name, moments=2)
            shown.append(colors(tmp_path / name))
        thumb, left_arm = (0xD1, 0x49, 0x5B), (0x1F, 0x6F, 0xB4)
        assert {thumb, left_arm} <= shown[0] and not {thumb, left_arm} & shown[1]

    @pytest.mark.parametrize("names", [["A", "B", "C", "D"], ["alpha", "beta", "gamma", "delta"]])
    def test_embedding_has_a_colour_per_class(self, tmp_path, names):
        features, labels = blobs(per_class=8)
        draw_embedding({"one": features, "two": features}, labels, names, tmp_path / "map.png")
        vivid = [c for c in colors(tmp_path / "map.png") if max(c) - min(c) > 80]
        hues = {round(4 * colorsys.rgb_to_hsv(*c)[0]) % 4 for c in vivid}
        assert hues == {0, 1, 2, 3}

    def test_embedding_without_labels(self, tmp_path):
        draw_embedding({"one": torch.randn(20, 4)}, torch.full((20,), -1), [], tmp_path / "map.png")
        assert (0xC9, 0xCE, 0xD6) in colors(tmp_path / "map.png")


@pytest.mark.parametrize("names", [["$\\foo$ sign", "sign\udcfe"], ["$x", "y$"], ["L" * 5000, "a\nb\x1b"]])
def test_class_names_are_never_formulas_and_may_hold_anything(tmp_path, names):
    draw_embedding({"map": torch.randn(4, 3)}, torch.tensor([0, 1, 0, 1]), names, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000
