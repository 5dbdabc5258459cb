"""What tasks build on: the features of frames, and what the hands' normalisations see."""

from __future__ import annotations

import pytest
import torch

from slrfast.data import PoseBatch
from slrfast.nn import HolisticEmbedding, PoseEmbedding
from slrfast.systems import CCL, MASA, SLP, STC
from slrfast.train.config import RunError, build_system, system_config

FRAMES = {
    "masa": lambda: MASA(MASA.Config.small(bank_size=16)),
    "slp": lambda: SLP(SLP.Config.small()),
    "slp, manual": lambda: SLP(SLP.Config.small(tasks=("reconstruction",), branches=("manual",))),
    "slp, thinned": lambda: SLP(SLP.Config.small(max_frames=12)),
}
SYSTEMS = {
    "stc": lambda **changes: STC(STC.Config.small(frames=8, bank_size=16, neighbors=8, **changes)),
    "masa": lambda **changes: MASA(MASA.Config.small(bank_size=16, **changes)),
    "ccl": lambda **changes: CCL(CCL.Config.small(frames=4, bank_size=16, modalities=("pose",), **changes)),
    "slp": lambda **changes: SLP(SLP.Config.small(**changes)),
}
EMBEDDINGS = {
    49: lambda **how: PoseEmbedding(8, (4, 4, 8, 8, 8), dropout=0, frame_dropout=0, **how),
    75: lambda **how: HolisticEmbedding(75, 8, (4, 4, 8, 8, 8), dropout=0, frame_dropout=0, **how),
    79: lambda **how: HolisticEmbedding(79, 8, (4, 4, 8, 8, 8), dropout=0, frame_dropout=0, **how),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frame_features_are_packed_and_their_average_is_the_feature(name):
    torch.manual_seed(0)
    system = FRAMES[name]().eval()
    batch = PoseBatch.random(3, keypoints=system.keypoints, min_frames=5, max_frames=30)
    most = 12 if "thinned" in name else 30
    with torch.no_grad():
        frames, packing = system.frame_features(batch)
        assert list(packing.lengths) == [min(most, n) for n in batch.lengths.tolist()]
        assert frames.shape == (sum(packing.lengths), system.frame_dim)
        averages = torch.stack([part.mean(0) for part in frames.split(list(packing.lengths))])
        torch.testing.assert_close(averages, system.features(batch)["pose"])
        for b, part in enumerate(frames.split(list(packing.lengths))):
            rows = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
            alone = PoseBatch(
                batch.xy[rows], batch.confidence[rows], torch.tensor([0, int(batch.lengths[b])]),
                batch.label[b : b + 1], batch.index[b : b + 1],
            )  # fmt: skip
            torch.testing.assert_close(system.frame_features(alone)[0], part, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FRAMES)
def test_frame_features_carry_the_gradient_and_have_the_modules_mode(name):
    torch.manual_seed(0)
    system = FRAMES[name]().train()
    batch = PoseBatch.random(3, keypoints=system.keypoints)
    frames, _ = system.frame_features(batch)
    frames.square().sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in system.parameters()) and system.training
    assert not torch.allclose(frames, system.eval().frame_features(batch)[0])  # the batch's statistics, dropout


def test_frames_of_masas_legacy_mode_are_refused():
    with pytest.raises(ValueError, match="MASA: config.masking must be 'frame' for features of frames, got part"):
        MASA(MASA.Config.small(bank_size=16, masking="part")).frame_features(PoseBatch.random(2))


@pytest.mark.parametrize("keypoints", EMBEDDINGS)
def test_both_hands_are_normalised_by_what_both_are(keypoints):
    """Hands that differ: with the statistics of both, evaluation by the running ones is training; with each's not."""
    torch.manual_seed(0)
    x = torch.rand(6, 10, keypoints, 2)
    parts = (slice(0, 21), slice(21, 42))
    x[:, :, parts[1]] = 0.1 * x[:, :, parts[1]]
    for how in ("both", "each"):
        torch.manual_seed(1)
        embed = EMBEDDINGS[keypoints](hand_statistics=how, **({"temporal": False} if keypoints == 49 else {}))
        norms = [m for m in embed.hand_gcn.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        assert norms
        for norm in norms:
            norm.momentum = 1.0  # of one batch the running statistics are the batch's
        calls = []
        embed.hand_gcn.register_forward_hook(lambda module, args, out, calls=calls: calls.append(out.detach()))
        forward = embed.embed_parts if keypoints == 49 else embed
        with torch.no_grad():
            for _ in range(2):
                forward(x)
            embed.eval()
            forward(x)
        assert len(calls) == 3 and calls[0].shape[0] == 2  # one call for both hands' frames
        gap = (calls[1] - calls[2]).abs().mean() / calls[2].abs().mean()
        assert gap < 0.05 if how == "both" else gap > 0.1


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_trains_with_the_statistics_of_both_hands(name, tmp_path):
    losses = {}
    for how in ("each", "both"):
        torch.manual_seed(0)
        system = SYSTEMS[name](hand_statistics=how)
        optimizer = system.optimizer()
        batch = PoseBatch.random(4, keypoints=system.keypoints)
        system.epoch = 10.0  # where every term counts
        for _ in range(2):
            loss = system.training_step(batch, torch.Generator().manual_seed(0))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            system.update_after_step()
        losses[how] = loss.item()
    assert losses["each"] != losses["both"]
    system.save_pretrained(tmp_path)
    loaded = type(system).from_pretrained(tmp_path)
    assert loaded.config.hand_statistics == "both"
    torch.testing.assert_close(loaded.encode(batch), system.encode(batch))


@pytest.mark.parametrize("name", SYSTEMS)
def test_other_statistics_are_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match=r"hand_statistics must be one of 'each', 'both', got 'neither'$"):
        SYSTEMS[name](hand_statistics="neither")
    with pytest.raises(RunError, match=r"hand_statistics must be one of 'each', 'both', got 'neither'$"):
        values = {**vars(system_config(name, "small")), "hand_statistics": "neither"}
        build_system(name, system_config(name, values), 0)


@pytest.mark.parametrize("make", [PoseEmbedding, HolisticEmbedding])
def test_other_statistics_of_an_embedding(make):
    with pytest.raises(ValueError, match="hand_statistics must be one of 'each', 'both', got 'one'"):
        make(hand_statistics="one")
