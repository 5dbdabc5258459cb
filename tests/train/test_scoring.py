from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slrfast.train.config import RunError
from slrfast.train.scoring import Evaluation, Labelled, aligned, encode_dataset, knn_accuracy


def labelled(labels, groups, names=("A", "B", "C")):
    return Labelled.of(SimpleNamespace(labels=labels, groups=groups, class_names=list(names)))


def test_labels_are_counted_among_the_classes_that_occur():
    clips = labelled([2, -1, 0, 2], ["x", "x", "y", "y"])
    assert clips.index.tolist() == [0, 2, 3] and clips.labels.tolist() == [1, 0, 1]
    assert clips.names == ("A", "C") and clips.groups == ("x", "y", "y") and clips.grouped


@pytest.mark.parametrize("groups", [["", "", "", ""], ["me"] * 4])
def test_without_groups_clips_are_held_out(groups):
    clips = labelled([0, 1, 0, 1], groups)
    assert not clips.grouped and len(set(clips.groups)) == 4
    assert sum(len(fold) for fold in clips.folds(3)) == 4


def test_fewer_groups_than_folds():
    assert len(labelled([0, 1, 0, 1], ["x", "y", "x", "y"]).folds(10)) == 2


@pytest.mark.parametrize("labels", [[-1, -1], [1, 1]])
def test_too_few_classes(labels):
    with pytest.raises(RunError, match="labelled clips of at least two classes, this dataset has"):
        labelled(labels, ["x", "y"])


def test_features_keep_the_order_of_the_clips(tiny, signs):
    system = tiny()
    whole = encode_dataset(system, signs, batch_size=7)
    assert whole.shape == (36, 8) and whole.dtype == torch.float32
    some = encode_dataset(system, signs, [30, 2, 17])
    assert torch.allclose(some, whole[[30, 2, 17]], atol=1e-6)


class TestEvaluation:
    @pytest.fixture
    def clips(self):
        return labelled([0, 0, 1, 1, 2, 2] * 2, ["x"] * 6 + ["y"] * 6)

    def test_perfect_features(self, clips):
        evaluation = Evaluation(clips)
        features = torch.eye(3)[clips.labels]
        for held in clips.folds(2):
            evaluation.add("net", features, held, votes=2)
        knn, linear, chance = evaluation.rows()
        assert (knn["classifier"], linear["classifier"], chance["network"]) == ("kNN", "linear probe", "chance")
        assert knn["top1_instance"] == linear["top1_class"] == 1 and knn["clips"] == 12
        assert chance["top1_instance"] == pytest.approx(1 / 3) and chance["mean_rank"] == 2
        assert evaluation.standard_error() == 0
        assert {choice["held_out_clips"] for choice in evaluation.choices} == {6}

    def test_held_out_clips_are_not_trained_on(self, clips):
        """The held-out group has its labels permuted: who learns from the other group alone gets everything wrong."""
        features = torch.eye(3)[torch.where(torch.arange(12) < 6, clips.labels, (clips.labels + 1) % 3)]
        evaluation = Evaluation(clips)
        evaluation.add("net", features, np.arange(6, 12), votes=2)
        assert [row["top1_instance"] for row in evaluation.rows()[:2]] == [0, 0]

    def test_votes_are_capped_by_the_training_clips(self, clips):
        evaluation = Evaluation(clips)
        evaluation.add("net", torch.randn(12, 4), np.arange(6), votes=50, classifiers=("kNN",))
        assert evaluation.choices[0]["votes"] == 6

    def test_table(self, clips):
        evaluation = Evaluation(clips)
        evaluation.add("net", torch.eye(3)[clips.labels], np.arange(6))
        head, rule, first, *_ = evaluation.table().splitlines()
        assert head.split() == ["network", "classifier", "top-1", "top-5", "top-1/class", "top-5/class", "mean", "rank"]
        assert set(rule) == {"-"} and first.split() == ["net", "kNN", "100.0", "100.0", "100.0", "100.0", "1.0"]


def test_aligned():
    assert aligned([["a", "n"], ["long", "12.5"]], text_columns=1).splitlines() == [
        "a        n",
        "----------",
        "long  12.5",
    ]


def test_knn_accuracy_of_labelled_signs_is_between_chance_and_one(tiny, signs):
    system = tiny()
    assert knn_accuracy(system, signs, votes=3) > 0.25
    assert system.training
