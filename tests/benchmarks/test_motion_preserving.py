"""The field's Motion-Preserving Masking computes what ours does, so that their times may be compared."""

from dataclasses import replace

import pytest
import torch

from benchmarks.baselines import motion_preserving as field
from benchmarks.harness import errors
from benchmarks.ops import channel_mask, otsu_mask
from slrfast import ops

SMALL = (2, 8, 16, 20)


def test_channel_masks_agree():
    z = channel_mask.latents(*SMALL, "cpu")
    assert torch.equal(field.channel_mask(z, 0.5), ops.channel_mask(z, 0.5).z)
    assert torch.equal(field.channel_mask_quantile(z, 0.5), ops.channel_mask(z, 0.5, quantile=True).z)
    assert ops.channel_mask(z, 0.5).keep.sum(1).tolist() == [480, 480]  # half of them, none near the threshold


@pytest.mark.parametrize("subtract", [False, True])
def test_otsu_masks_agree(subtract):
    frames = otsu_mask.clip_frames(*SMALL, "cpu")
    still = frames[0, 0] * 0.5 if subtract else None
    expected, got = field.otsu_mask(frames, still), ops.otsu_mask(frames, still)
    assert 0 < got.float().mean() < 1 and (expected != got).float().mean() < (0.01 if subtract else 1e-9)


@pytest.mark.parametrize("module", [channel_mask, otsu_mask])
def test_the_gate_lets_a_small_case_pass(module):
    case = next(iter(module.cases("cpu")))
    eager = {name: call for name, call in case.candidates.items() if name != "torch.compile"}
    assert max(errors(replace(case, candidates=eager)).values()) < 1e-6
