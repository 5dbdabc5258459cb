"""SLP's switches: tasks, branches, windows, mask ratios and confidences."""

import dataclasses
import math

import pytest
import torch

from slrfast import graphs
from slrfast.systems.slp_masks import hierarchical_mask
from tests.systems.test_slp import NO_DROPOUT, clips, double, seeded, system

PARTS = graphs.layout(79).parts
MANUAL = [i for part in ("body", "left_hand", "right_hand") for i in range(79)[PARTS[part]]]


def test_reconstruction_alone_needs_no_text():
    model, batch = system(tasks=("reconstruction",)), clips()
    model.text = None
    losses = model.training_step(batch, seeded())
    assert set(losses) == {"loss", "reconstruction"}
    assert not {"log_scale", "sign_projection", "text_projection"} & {
        n.split(".")[0] for n, _ in model.named_parameters()
    }
    model.update_after_step()
    with pytest.raises(ValueError, match="SLP: config.tasks must have 'contrast'"):
        model.encode_signs(batch)


def test_contrast_alone_masks_nothing():
    model, both = system(tasks=("contrast",)).eval(), system(mask_ratio=0.0).eval()
    both.load_state_dict(model.state_dict(), strict=False)
    batch = clips()
    losses, unmasked = model.training_step(batch, seeded()), both.training_step(batch, seeded())
    assert set(losses) == {"loss", "contrast", "temperature"}
    assert unmasked["reconstruction"] == 0
    torch.testing.assert_close(losses["contrast"], unmasked["contrast"])
    assert not hasattr(model, "decoder")


@pytest.mark.parametrize("branch", ["manual", "non_manual"])
@pytest.mark.parametrize("narrow", [False, True])
def test_one_branch_sees_its_own_joints(branch, narrow):
    model, batch = system(branches=(branch,), narrow=narrow).double().eval(), double(clips())
    other = [i for i in range(79) if (i in MANUAL) != (branch == "manual")]
    assert model.joints.tolist() == [i for i in range(79) if i not in other]
    losses = model.training_step(batch, seeded())
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    changed = dataclasses.replace(batch, xy=batch.xy.index_fill(1, torch.tensor(other), 0.7))
    torch.testing.assert_close(model.training_step(changed, seeded()), losses)
    assert model.encode(changed).shape == (4, 8)
    seen, rebuilt = model.views(batch, seeded())
    padded = model._frames(batch).packing.pad(batch.confidence)
    assert torch.equal(seen.confidence[..., other], padded[..., other])


@pytest.mark.parametrize("window", [1, 2, 4, 8, 16])
def test_windows(window):
    model, batch = system(window=window).eval(), clips()
    assert model.encode_signs(batch).rows.shape[1] == -(-int(batch.lengths.max()) // window)
    losses = model.training_step(batch, seeded())
    losses["loss"].backward()
    assert losses["contrast"] > 0


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_mask_ratios(ratio):
    model, batch = system(mask_ratio=ratio), clips()
    model.training_step(batch, seeded())["loss"].backward()
    seen, rebuilt = model.views(batch, seeded())
    packing = model._frames(batch).packing
    keys = torch.rand((4, packing.longest, 81), generator=seeded())
    mask = hierarchical_mask(batch.lengths, keys, ratio=ratio, span=3)
    assert mask.sum() == sum(math.floor(ratio * 79 * n + 0.5) for n in packing.lengths)
    assert (seen.confidence[mask] == 0).all() and torch.equal(seen.xy, packing.pad(batch.xy))
    assert torch.equal(seen.confidence[~mask], packing.pad(batch.confidence)[~mask])
    assert torch.equal(rebuilt.xy[~mask], seen.xy[~mask]) and torch.equal(
        rebuilt.confidence, packing.pad(batch.confidence)
    )
    assert ratio == 0 or (rebuilt.xy[mask] != seen.xy[mask]).any()


def test_confidence_weights_the_reconstruction():
    model, batch = system(tasks=("reconstruction",), **NO_DROPOUT).eval(), clips()
    whole = model.training_step(batch, seeded())["loss"]
    half = model.training_step(dataclasses.replace(batch, confidence=batch.confidence / 2), seeded())["loss"]
    torch.testing.assert_close(half, whole / 2)
    assert model.training_step(dataclasses.replace(batch, confidence=0 * batch.confidence), seeded())["loss"] == 0
