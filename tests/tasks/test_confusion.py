import csv

import pytest
import torch

from slrfast.tasks.confusion import (
    ClassRow,
    Confusion,
    class_table,
    confusing_metrics,
    confusion_matrix,
    most_confused,
    untested,
    write_class_table,
    write_confusions,
)
from slrfast.tasks.metrics import per_class_accuracy, recognition_metrics, top_k_accuracy

# four classes, of which 3 has no clip; clips of class 0 are taken for 0, 1, 1, of class 1 for 1, of class 2 for 0 or 2
SCORES = torch.tensor([[5.0, 2, 1, 0], [2, 5, 1, 0], [1, 5, 0, 2], [0, 1, 0, -1], [4, 0, 4, 0]])
LABELS = torch.tensor([0, 0, 0, 1, 2])
NAMES = ["go", "stay", "eat", "sleep"]
MATRIX = [[1, 2, 0, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 0]]


def random_case(clips=300, classes=17, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (clips, classes), generator=generator).float()  # many ties
    return scores, torch.randint(0, classes - 2, (clips,), generator=generator)


def test_hand_computed_matrix():
    assert confusion_matrix(SCORES, LABELS).tolist() == MATRIX


def test_rows_are_counts_and_the_diagonal_is_top_1():
    scores, labels = random_case()
    matrix = confusion_matrix(scores, labels)
    count = torch.bincount(labels, minlength=17).double()
    assert torch.allclose(matrix.sum(1), count)
    assert float(matrix.diagonal().sum()) / 300 == pytest.approx(top_k_accuracy(scores, labels))
    tested = count > 0
    share = matrix.diagonal()[tested] / count[tested]
    assert float(share.mean()) == pytest.approx(per_class_accuracy(scores, labels)) and int(tested.sum()) == 15


def test_many_clips_are_counted_in_parts():
    scores, labels = random_case(clips=9001)
    parts = [confusion_matrix(s, y) for s, y in zip(scores.split(3000), labels.split(3000), strict=True)]
    assert torch.allclose(confusion_matrix(scores, labels), torch.stack(parts).sum(0))


def test_infinite_scores():
    scores = torch.tensor([[float("-inf"), 0.0], [float("inf"), 0.0], [float("inf"), float("inf")]])
    assert confusion_matrix(scores, torch.tensor([1, 1, 0])).tolist() == [[0.5, 0.5], [1, 1]]


def test_most_confused():
    assert most_confused(torch.tensor(MATRIX)) == [Confusion(0, 1, 2.0, 2 / 3), Confusion(2, 0, 0.5, 0.5)]
    assert most_confused(torch.tensor(MATRIX), 1) == [Confusion(0, 1, 2.0, 2 / 3)]
    assert most_confused(torch.eye(3)) == []
    tied = torch.tensor([[8.0, 2, 0], [0, 2, 2], [2, 2, 0]])
    assert [(p.true, p.taken_for) for p in most_confused(tied)] == [(1, 2), (2, 0), (2, 1), (0, 1)]


def test_table():
    rows = class_table(SCORES, LABELS, NAMES)
    assert rows[0] == ClassRow(0, "go", 3, 1 / 3, 1.0, Confusion(0, 1, 2.0, 2 / 3))
    assert rows[1] == ClassRow(1, "stay", 1, 1.0, 1.0, None)
    assert rows[2].top1 == 0.5 and rows[2].confusion == Confusion(2, 0, 0.5, 0.5)
    assert rows[3] == ClassRow(3, "sleep", 0, None, None, None)
    assert untested(LABELS, 4) == [3]


def test_the_table_agrees_with_the_metrics():
    scores, labels = random_case()
    tested = [row for row in class_table(scores, labels, [str(i) for i in range(17)]) if row.clips]
    known = recognition_metrics(scores, labels)
    assert sum(row.top5 for row in tested) / len(tested) == pytest.approx(known["top5_class"])
    assert sum(row.top1 * row.clips for row in tested) / 300 == pytest.approx(known["top1_instance"])


def test_nmfs():
    found = confusing_metrics(SCORES, LABELS, [0, 1, 1])
    assert found["total"] == {"clips": 5, "top1": pytest.approx(2.5 / 5), "top2": pytest.approx(4 / 5)}
    assert found["confusing"] == {"clips": 4, "top1": pytest.approx(2 / 4), "top2": pytest.approx(3 / 4)}
    assert found["normal"] == {"clips": 1, "top1": 0.5, "top2": 1.0}
    scores, labels = random_case()
    found = confusing_metrics(scores, labels, range(8))
    mine = labels < 8
    assert found["confusing"]["top5"] == pytest.approx(top_k_accuracy(scores[mine], labels[mine], 5))
    assert found["normal"]["top2"] == pytest.approx(top_k_accuracy(scores[~mine], labels[~mine], 2))
    assert confusing_metrics(SCORES, LABELS, [3])["confusing"] == {"clips": 0, "top1": None, "top2": None}


def test_files(tmp_path):
    names = ["go", 'a, "b"', "您好", "\udcfe"]
    write_class_table(tmp_path / "a.csv", class_table(SCORES, LABELS, names), names)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:3] == [
        ["label", "class", "clips", "top1", "top5", "confused_with", "confused_share"],
        ["0", "go", "3", "0.3333", "1.0000", 'a, "b"', "0.6667"],
        ["1", 'a, "b"', "1", "1.0000", "1.0000", "", ""],
    ]
    assert rows[4] == ["3", "\\udcfe", "0", "", "", "", ""]
    write_confusions(tmp_path / "b.csv", torch.tensor(MATRIX), NAMES)
    assert (tmp_path / "b.csv").read_text() == "true,taken_for,clips,share\ngo,stay,2,0.6667\neat,go,0.5,0.5000\n"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: confusion_matrix(SCORES, LABELS + 2), r"labels must be in \[0, 3\], got \[2, 4\]"),
        (lambda: confusion_matrix(SCORES * float("nan"), LABELS), "scores must hold no NaN"),
        (lambda: confusion_matrix(SCORES[:0], LABELS[:0]), "scores must have at least one row"),
        (lambda: confusion_matrix(torch.zeros(1, 8193), LABELS[:1]), "be of at most 8192 classes, got 8193"),
        (lambda: class_table(SCORES, LABELS, ["a"]), "class_names must be 4 names, got 1 of them"),
        (lambda: confusing_metrics(SCORES, LABELS, []), "confusing must name at least one class"),
        (lambda: confusing_metrics(SCORES, LABELS, [0, 4]), r"confusing must be in \[0, 3\], got 4"),
        (lambda: untested(torch.tensor([4]), 4), r"untested: labels must be in \[0, 3\], got \[4\]"),
        (lambda: most_confused(torch.zeros(2, 3)), r"matrix must have shape \[C, C\]"),
        (lambda: most_confused(torch.zeros(0, 0)), "matrix must hold counts >= 0"),
        (lambda: most_confused(-torch.eye(2)), "matrix must hold counts >= 0, got others"),
        (lambda: write_confusions("x.csv", torch.eye(2), ["a"]), "class_names must be 2 names, got 1"),
    ],
)  # fmt: skip
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
