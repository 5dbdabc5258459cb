import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slrfast.tasks.metrics import top_k_accuracy
from slrfast.tasks.probe import (
    _inner_accuracy,
    _logits_per_strength,
    group_folds,
    knn_scores,
    known_groups,
    linear_probe_scores,
)


def clusters(count=120, dim=16, classes=5, groups=6, spread=0.3, seed=0):
    """Separable clusters, and a nuisance direction that tells groups apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    group = torch.arange(count) // classes % groups
    centers = torch.randn(classes, dim, generator=generator)
    shifts = 0.5 * torch.randn(groups, dim, generator=generator)
    features = centers[labels] + shifts[group] + spread * torch.randn(count, dim, generator=generator)
    return features, labels, [f"signer{g}" for g in group.tolist()]


class TestGroupFolds:
    def test_groups_stay_whole_and_everything_is_held_out_once(self):
        groups = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 3 + ["e"]
        folds = group_folds(groups, 3)
        assert sorted(np.concatenate(folds).tolist()) == list(range(16))
        of_fold = [{groups[i] for i in fold} for fold in folds]
        assert sum(len(names) for names in of_fold) == 5
        # largest first, each to the smallest fold: a5 | b4 | c3, d3 joins c, e joins b
        assert of_fold == [{"a"}, {"b", "e"}, {"c", "d"}]

    def test_order_of_clips_does_not_move_groups(self):
        groups = np.array(["x", "y", "z", "x", "y", "x", "w"])
        order = np.random.default_rng(0).permutation(len(groups))
        of_fold = [set(groups[fold]) for fold in group_folds(groups.tolist(), 2)]
        shuffled = [set(groups[order][fold]) for fold in group_folds(groups[order].tolist(), 2)]
        assert of_fold == shuffled

    def test_clips_of_no_known_group_are_no_group(self):
        groups = known_groups(["anna", ""] * 3 + [""] * 84)
        assert sorted(len(fold) for fold in group_folds(groups, 3)) == [30, 30, 30]
        assert len({groups[i] for i in (0, 2, 4)}) == 1 and len(set(groups)) == 88
        assert len(set(known_groups(["anna"] * 5))) == len(set(known_groups([""] * 5))) == 5

    @pytest.mark.parametrize("folds", [1, 3])
    def test_number_of_folds(self, folds):
        with pytest.raises(ValueError, match=r"folds must be in \[2, 2\] \(the number of groups\), got"):
            group_folds(["a", "b"], folds)


class TestKnn:
    def test_hand_computed_vote(self):
        features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
        labels = torch.tensor([0, 1, 1])
        scores = knn_scores(features, labels, torch.tensor([[5.0, 0.0]]), 3, k=2, temperature=0.5)
        half = float(np.exp((np.sqrt(0.5) - 1) / 0.5))
        assert torch.allclose(scores, torch.tensor([[1.0, half, 0.0]]))

    def test_separable(self):
        features, labels, _ = clusters()
        scores = knn_scores(features[:80], labels[:80], features[80:], 5, k=5)
        assert top_k_accuracy(scores, labels[80:]) > 0.95

    def test_more_votes_than_clips(self):
        with pytest.raises(ValueError, match=r"knn_scores: k must be in \[1, 3\], got 4"):
            knn_scores(torch.eye(3), torch.arange(3), torch.eye(3), 3, k=4)


class TestLinearProbe:
    def test_separable_and_held_out(self):
        features, labels, groups = clusters()
        test = torch.tensor([g in ("signer4", "signer5") for g in groups])
        train_groups = [g for g, out in zip(groups, test.tolist(), strict=True) if not out]
        scores, _ = linear_probe_scores(features[~test], labels[~test], train_groups, features[test], 5)
        assert top_k_accuracy(scores, labels[test]) > 0.95

    def test_deterministic(self):
        features, labels, groups = clusters(spread=1.5)
        first = linear_probe_scores(features, labels, groups, features, 5)
        second = linear_probe_scores(features, labels, groups, features, 5)
        assert torch.equal(first[0], second[0]) and first[1] == second[1]

    def test_solution_is_the_minimum(self):
        """The gradient of the stated objective vanishes at the solution, in the wide case that is solved in a basis."""
        features, labels, _ = clusters(count=40, dim=60)
        x = (features.double() - features.double().mean(0)) / features.double().std(0, correction=0)
        l2 = 0.1
        (logits,) = _logits_per_strength(features, labels, features, 5, [l2])
        # stationarity: l2 W = -x^T r / N with residual r, so centred logits follow from the residual alone
        residual = (torch.softmax(logits, 1) - F.one_hot(labels, 5)) / len(labels)
        weight = -x.T @ residual / l2
        centred = logits - logits.mean(0)
        assert torch.allclose(centred, x @ weight, atol=1e-4)
        assert torch.allclose(residual.sum(0), torch.zeros(5, dtype=torch.float64), atol=1e-5)

    def test_scale_and_shift_of_features_do_not_matter(self):
        features, labels, groups = clusters(spread=1.0)
        moved = features * torch.logspace(-3, 3, features.shape[1]) + 7
        first, _ = linear_probe_scores(features, labels, groups, features, 5)
        second, _ = linear_probe_scores(moved, labels, groups, moved, 5)
        assert torch.allclose(first, second, atol=2e-2 * float(first.abs().max()))

    def test_noise_chooses_more_regularisation_than_signal(self):
        features, labels, groups = clusters(count=200, dim=40, spread=0.1)
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
        mixed = torch.cat((0.2 * features, noise), 1)
        _, clean = linear_probe_scores(features, labels, groups, features, 5)
        _, noisy = linear_probe_scores(mixed, labels, groups, mixed, 5)
        assert noisy >= clean

    def test_constant_feature_and_a_class_never_seen(self):
        features, labels, groups = clusters()
        features = torch.cat((features, torch.full((len(features), 1), 3.0)), 1)
        seen = labels != 4
        scores, _ = linear_probe_scores(
            features[seen], labels[seen], [g for g, s in zip(groups, seen, strict=True) if s], features, 5
        )
        assert bool(torch.isfinite(scores).all())
        assert top_k_accuracy(scores[seen], labels[seen]) > 0.95

    def test_l2_is_chosen_with_whole_groups_held_out(self):
        """Near-duplicates within a group make clips easy to recognise beside each other, but not across groups."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(120) % 4
        groups = [f"g{i // 20}" for i in range(120)]
        pair = torch.arange(120) // 20 * 4 + labels
        features = torch.randn(24, 30, generator=generator)[pair] + 0.01 * torch.randn(120, 30, generator=generator)
        by_group = _inner_accuracy(features, labels, groups, 4, [0.1, 0.01], 3)
        by_clip = _inner_accuracy(features, labels, [f"clip{i}" for i in range(120)], 4, [0.1, 0.01], 3)
        assert by_group.max() < 0.5 and by_clip.min() > 0.95

    def test_one_group(self):
        features, labels, _ = clusters()
        scores, _ = linear_probe_scores(features, labels, ["only"] * len(labels), features, 5)
        assert top_k_accuracy(scores, labels) > 0.95
