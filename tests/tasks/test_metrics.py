import pytest
import torch

from slrfast.tasks.metrics import (
    class_ranks,
    mean_rank,
    per_class_accuracy,
    recognition_metrics,
    top_k_accuracy,
    top_k_hits,
)

# three classes; the true class is at place 1, 2, 3 and 1
SCORES = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.1, 0.2, 0.9]])
LABELS = torch.tensor([0, 1, 2, 2])


def test_hand_computed_case():
    assert top_k_accuracy(SCORES, LABELS, 1) == pytest.approx(2 / 4)
    assert top_k_accuracy(SCORES, LABELS, 2) == pytest.approx(3 / 4)
    # class 0: 1 of 1, class 1: 0 of 1, class 2: 1 of 2
    assert per_class_accuracy(SCORES, LABELS, 1) == pytest.approx((1 + 0 + 0.5) / 3)
    assert per_class_accuracy(SCORES, LABELS, 2) == pytest.approx((1 + 1 + 0.5) / 3)
    assert mean_rank(SCORES, LABELS) == pytest.approx((1 + 2 + 3 + 1) / 4)


def test_a_class_without_test_clips_does_not_count():
    scores, labels = torch.eye(4)[:3], torch.tensor([0, 1, 1])
    # class 0: 1, class 1: (1 + 0) / 2; classes 2 and 3 do not occur
    assert per_class_accuracy(scores, labels, 1) == pytest.approx((1 + 0.5) / 2)


def test_a_tie_is_worth_its_expected_value():
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert top_k_hits(scores, torch.tensor([2]), 1).item() == pytest.approx(1 / 3)
    assert top_k_hits(scores, torch.tensor([2]), 2).item() == pytest.approx(2 / 3)
    assert top_k_hits(scores, torch.tensor([2]), 3).item() == 1
    assert mean_rank(scores, torch.tensor([2])) == 2
    above, tied = class_ranks(scores, torch.tensor([3]))
    assert (above.item(), tied.item()) == (3, 1)


def test_constant_scores_are_chance():
    metrics = recognition_metrics(torch.zeros(7, 20), torch.arange(7))
    assert metrics["top1_instance"] == pytest.approx(1 / 20)
    assert metrics["top5_class"] == pytest.approx(5 / 20)
    assert metrics["mean_rank"] == pytest.approx(21 / 2)


def test_fewer_than_five_classes():
    assert recognition_metrics(torch.zeros(2, 3), torch.tensor([0, 1]))["top5_instance"] == 1


def test_infinite_scores_are_ranked():
    assert top_k_accuracy(torch.tensor([[float("-inf"), float("inf")]]), torch.tensor([1])) == 1


@pytest.mark.parametrize(
    ("scores", "labels", "k", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), 1, r"labels must be in \[0, 2\], got \[0, 3\]"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), 1, r"labels must be in \[0, 2\]"),
        (torch.full((1, 3), float("nan")), torch.tensor([0]), 1, "scores must hold no NaN"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 1, "at least one row"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), 1, r"labels must have shape \[N\]"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), 4, r"k must be in \[1, 3\], got 4"),
    ],
)
def test_wrong_input(scores, labels, k, message):
    with pytest.raises(ValueError, match=message):
        top_k_accuracy(scores, labels, k)
