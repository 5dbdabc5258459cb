"""The masks that follow from a seed: how many they keep, and that they have nothing in common."""

import math

import pytest
import torch

from slrfast.reference.dropout import keep_mask


@pytest.mark.parametrize("dropout", [0.05, 0.25, 0.5])
def test_masks_keep_what_they_should_and_nothing_in_common(dropout):
    """Five deviations of a mean, and of the correlation of neighbours, sites and seeds."""
    masks = [
        keep_mask(torch.tensor(seed), site, 500, 64, dropout).double() for seed in (0, 1, 2**40) for site in (0, 1)
    ]
    kept, count = 1 - dropout, 500 * 64
    deviation = math.sqrt(kept * dropout / count)
    for mask in masks:
        assert abs(mask.mean() - kept) < 5 * deviation
        assert (mask.mean(0) - kept).abs().max() < 5 * deviation * math.sqrt(64)
        assert (mask.mean(1) - kept).abs().max() < 5 * deviation * math.sqrt(500)
        off = (mask - kept) / math.sqrt(kept * dropout)
        for shifted in (off.roll(1, 0), off.roll(1, 1), off.roll(32, 1), off.roll(7, 0)):
            assert abs((off * shifted).mean()) < 5 / math.sqrt(count)
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs(((one - kept) * (other - kept)).mean() / (kept * dropout)) < 5 / math.sqrt(count)


def test_mask_is_pinned():
    """The hash is part of the C interface and of every kernel: these bits never change."""
    expected = ["10100011", "11001001", "10011100"]
    mask = keep_mask(torch.tensor(123456789012345), 1, 3, 8, 0.5)
    assert ["".join(map(str, row)) for row in mask.int().tolist()] == expected


def test_masks_of_both_ends():
    assert keep_mask(torch.tensor(5), 0, 9, 9, 0.0).all() and not keep_mask(torch.tensor(5), 0, 9, 9, 1.0).any()
