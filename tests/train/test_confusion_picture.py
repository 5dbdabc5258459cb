import warnings

import matplotlib.image
import pytest
import torch

from slrfast.tasks.confusion import confusion_matrix
from slrfast.train import confusion_picture
from slrfast.train.confusion_picture import draw_confusion


def case(classes, clips=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (clips,), generator=generator)
    scores = torch.randn(clips, classes, generator=generator) + 3 * torch.nn.functional.one_hot(labels, classes)
    return confusion_matrix(scores, labels)


@pytest.fixture
def texts(monkeypatch):
    """Everything that the next picture writes, with its size in points."""
    found = {}

    def save(figure, path):
        for axes in figure.axes:
            marks = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts, axes.title, axes.xaxis.label]
            found.update({mark.get_text(): mark.get_fontsize() for mark in marks if mark.get_text()})
        found[figure.get_suptitle()] = 11
        found["size"] = tuple(figure.get_size_inches())
        figure.savefig(path)

    monkeypatch.setattr(confusion_picture, "save_figure", save)
    return found


def test_ten_classes_have_their_percentages(tmp_path, texts):
    matrix = 8 * torch.eye(10, dtype=torch.float64)
    matrix[2, 2], matrix[2, 7], matrix[5, 5] = 3, 5, 0
    draw_confusion(matrix, [f"sign {i}" for i in range(10)], tmp_path / "a.png")
    assert {"sign 0", "sign 9", "100", "38", "62", "taken for"} <= set(texts)
    title = "72 clips: top-1 93.1 % per instance, 93.1 % per class; 1 of 10 classes have no test clip"
    assert title in texts


@pytest.mark.parametrize("classes", [100, 120])
def test_a_hundred_classes_have_all_names_apart(tmp_path, texts, classes):
    draw_confusion(case(classes), [f"a sign of number {i}" for i in range(classes)], tmp_path / "a.png")
    assert all(f"a sign of number {i}" in texts for i in range(classes))
    inches_apart = 0.75 * texts["size"][1] / classes
    assert texts["a sign of number 0"] / 72 < inches_apart


def test_two_thousand_classes_are_their_worst_pairs(tmp_path, texts):
    matrix = case(2000, clips=2878)
    matrix[7, 7], matrix[7, 1999] = 0, 9
    draw_confusion(matrix, [f"sign {i}" for i in range(2000)], tmp_path / "a.png")
    assert "sign 7 → sign 1999" in texts and sum("→" in text for text in texts) == 30 and len(texts) < 90
    assert max(texts["size"]) < 20
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.05


@pytest.mark.parametrize("classes", [1, 2, 20, 21, 121])
def test_nothing_confused_or_nothing_tested(tmp_path, classes):
    names = [str(i) for i in range(classes)]
    for factor in (0, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_confusion(factor * torch.eye(classes), names, tmp_path / f"{factor}.png")
        assert (tmp_path / f"{factor}.png").stat().st_size > 1000


def test_names_may_hold_anything(tmp_path, texts):
    names = ["$\\foo$", "您好", "", "L" * 5000, "a\nb\x1b", "\udcfe", "Straße"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion(case(7), names, tmp_path / "a.png")
    assert {"class 1", "class 2", "Straße", r"\$\foo\$", "a?b?"} <= set(texts)


def test_wrong_input(tmp_path):
    with pytest.raises(ValueError, match="draw_confusion: class_names must be 3 names, got 2"):
        draw_confusion(torch.eye(3), ["a", "b"], tmp_path / "a.png")
    with pytest.raises(ValueError, match="matrix must hold counts >= 0"):
        draw_confusion(torch.full((2, 2), float("nan")), ["a", "b"], tmp_path / "a.png")
