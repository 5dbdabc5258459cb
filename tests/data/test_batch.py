import pytest
import torch
from torch.utils.data import DataLoader

from slrfast import graphs
from slrfast.data import Clip, PoseBatch, SyntheticSigns
from slrfast.systems import MASA, STC, MASAConfig, STCConfig


def clip(frames, value, **kwargs):
    return Clip(torch.full((frames, 49, 2), value), torch.full((frames, 49), value), **kwargs)


def test_collate_packs_without_padding():
    batch = PoseBatch.collate([clip(2, 1.0, label=4, index=9), clip(1, 2.0), clip(3, 3.0, label=0, index=1)])
    assert batch.xy.shape == (6, 49, 2) and batch.confidence.shape == (6, 49)
    assert batch.offsets.tolist() == [0, 2, 3, 6] and batch.lengths.tolist() == [2, 1, 3]
    assert batch.label.tolist() == [4, -1, 0] and batch.index.tolist() == [9, 0, 1]
    assert batch.xy[:, 0, 0].tolist() == [1, 1, 2, 3, 3, 3]
    assert batch.offsets.dtype == batch.label.dtype == batch.index.dtype == torch.int64
    assert batch.size == 3 and batch.rgb is None and batch.tokens is None


@pytest.mark.parametrize("keypoints", graphs.LAYOUTS)
def test_batches_of_every_layout(keypoints):
    batch = PoseBatch.random(3, min_frames=2, max_frames=4, keypoints=keypoints)
    assert batch.num_keypoints == keypoints and batch.xy.shape[1:] == (keypoints, 2)
    rows = [slice(a, b) for a, b in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)]
    again = PoseBatch.collate([Clip(batch.xy[r].half(), batch.confidence[r].half()) for r in rows])
    assert again.xy.dtype == again.confidence.dtype == torch.float32  # clips of a store may be float16
    torch.testing.assert_close(again.xy, batch.xy, rtol=1e-3, atol=1e-3)


def test_layouts_are_not_mixed_and_systems_say_which_they_need():
    mixed = [Clip(torch.zeros(2, keypoints, 2), torch.zeros(2, keypoints)) for keypoints in (49, 79)]
    with pytest.raises(ValueError, match=r"PoseBatch.collate: clips must all have the same layout, got \[49, 79\]"):
        PoseBatch.collate(mixed)
    batch = PoseBatch.random(2, keypoints=75)
    sentence = "{}: batch must have layout 49, got 75; pre-process with layout=49"
    for system in (STC(STCConfig.small(frames=8, bank_size=16, neighbors=8)), MASA(MASAConfig.small())):
        for use in (system.training_step, system.encode):
            with pytest.raises(ValueError) as raised:
                use(batch)
            assert str(raised.value) == sentence.format(type(system).__name__)


def test_collate_refuses_an_empty_list():
    with pytest.raises(ValueError, match="PoseBatch.collate: clips must hold at least one clip, got 0"):
        PoseBatch.collate([])


def test_random_is_reproducible_and_within_its_arguments():
    first, again, other = (PoseBatch.random(16, min_frames=3, max_frames=7, seed=s, num_classes=2) for s in (1, 1, 2))
    assert torch.equal(first.xy, again.xy) and not torch.equal(first.lengths, other.lengths)
    assert set(first.lengths.tolist()) <= set(range(3, 8)) and set(first.label.tolist()) == {0, 1}
    missing = first.confidence == 0
    assert 0.05 < missing.float().mean() < 0.15 and (first.xy[missing] == 0).all()
    assert first.index.tolist() == list(range(16))
    with pytest.raises(ValueError, match=r"PoseBatch.random: max_frames must be in \[9, 1048576\], got 8"):
        PoseBatch.random(1, min_frames=9, max_frames=8)


def test_to_moves_every_tensor_that_is_there():
    batch = PoseBatch.random(2)
    batch.tokens, batch.token_lengths = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    moved = batch.to("meta")
    assert all(getattr(moved, name).is_meta for name in ("xy", "confidence", "offsets", "label", "index", "tokens"))
    assert moved.rgb is None and moved.size == 2 and not batch.xy.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pin_memory_pins_every_tensor():
    batch = PoseBatch.random(2).pin_memory()
    assert batch.xy.is_pinned() and batch.offsets.is_pinned()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            dict(xy=torch.zeros(5, 48, 2)),
            ValueError,
            "PoseBatch: xy must have one of 49, 75, 79, 133 keypoints, got 48",
        ),
        (dict(xy=torch.zeros(5, 49, 3)), ValueError, r"PoseBatch: xy must have shape \[F, V, 2\], got \[5, 49, 3\]"),
        (dict(xy=torch.zeros(5, 75, 2)), ValueError, r"PoseBatch: confidence must have shape \[F, V\] with V = 75"),
        (dict(confidence=torch.zeros(4, 49)), ValueError, "PoseBatch: confidence must have shape .* with F = 5"),
        (dict(label=torch.zeros(3, dtype=torch.int64)), ValueError, "PoseBatch: index must have shape"),
        (dict(offsets=torch.tensor([0, 5])), ValueError, r"PoseBatch: offsets must have shape \[3\], got \[2\]"),
        (dict(label=torch.zeros(2)), TypeError, "PoseBatch: label must be torch.int64, got torch.float32"),
    ],
)
def test_wrong_shapes_and_dtypes(change, error, message):
    good = dict(
        xy=torch.zeros(5, 49, 2),
        confidence=torch.zeros(5, 49),
        offsets=torch.tensor([0, 2, 5]),
        label=torch.tensor([0, 1]),
        index=torch.tensor([0, 1]),
    )
    PoseBatch(**good)
    with pytest.raises(error, match=message):
        PoseBatch(**(good | change))


def test_a_loader_with_workers_gives_every_clip_once():
    data = SyntheticSigns(num_classes=3, clips_per_class=3)
    seen = []
    for batch in DataLoader(data, batch_size=4, shuffle=True, num_workers=2, collate_fn=PoseBatch.collate):
        for b, i in enumerate(batch.index.tolist()):
            rows = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
            assert torch.equal(batch.xy[rows], data[i].xy) and int(batch.label[b]) == data[i].label
            seen.append(i)
    assert sorted(seen) == list(range(9))


def test_collate_stacks_pictures_and_pads_texts():
    rgb = torch.arange(3 * 2 * 4 * 5).view(3, 2, 4, 5).to(torch.uint8)
    mask = rgb[0] > 7
    spoken = clip(2, 1.0, rgb=rgb, rgb_mask=mask, tokens=torch.tensor([5, 6, 2]))
    silent = clip(1, 2.0, rgb=rgb + 1, rgb_mask=~mask)
    batch = PoseBatch.collate([spoken, silent])
    assert torch.equal(batch.rgb, torch.stack((rgb, rgb + 1))) and torch.equal(batch.rgb_mask[1], ~mask)
    assert batch.tokens.tolist() == [[5, 6, 2], [0, 0, 0]] and batch.token_lengths.tolist() == [3, 0]
    moved = batch.to("meta")
    assert {moved.rgb.device.type, moved.rgb_mask.device.type, moved.tokens.device.type} == {"meta"}


def test_pictures_and_texts_that_do_not_fit_are_refused():
    rgb = torch.zeros(3, 2, 4, 5, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"collate: clips must all have rgb of one shape, got \['\(3, 2, 4, 5\)', 'None'\]"
    ):
        PoseBatch.collate([clip(2, 1.0, rgb=rgb), clip(2, 1.0)])
    batch = PoseBatch.random(2)
    fields = {name: getattr(batch, name) for name in ("xy", "confidence", "offsets", "label", "index")}
    for wrong, sentence in (
        (dict(rgb=torch.zeros(3, 3, 2, 4, 5, dtype=torch.uint8)), "PoseBatch: rgb must"),
        (dict(rgb=torch.zeros(2, 3, 2, 4, 5)), "PoseBatch: rgb must"),
        (dict(rgb_mask=torch.zeros(2, 2, 4, 5, dtype=torch.bool)), "PoseBatch: rgb_mask must come with rgb"),
        (dict(rgb=rgb.expand(2, -1, -1, -1, -1), rgb_mask=torch.zeros(2, 2, 4, 4).bool()), "PoseBatch: rgb_mask must"),
        (dict(tokens=torch.zeros(2, 3, dtype=torch.int64)), "PoseBatch: tokens must come with token_lengths"),
        (dict(tokens=torch.zeros(2, 3).long(), token_lengths=torch.zeros(3).long()), "PoseBatch: token_lengths must"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            PoseBatch(**fields, **wrong)
