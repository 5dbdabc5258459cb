import pytest
import torch

from slrfast.data import SyntheticSigns
from slrfast.data.cache import VALUES, Cache, CacheError
from slrfast.data.motion_masks import MotionMasks
from slrfast.data.render import RenderedDataset


class Changing:
    """Where a pixel changes by more than a threshold, and how often it was asked."""

    def __init__(self, threshold=20):
        self.threshold, self.calls = threshold, 0

    def __call__(self, rgb):
        self.calls += 1
        grey = rgb.float().mean(0)
        return (grey.amax(0) - grey.amin(0) > self.threshold).expand(grey.shape).clone()

    def fingerprint(self):
        return f"changing by {self.threshold}"


def clip(seed=0, shape=(3, 4, 10, 7)):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_mask_is_made_once(tmp_path):
    maker = Changing(120)
    masks = MotionMasks(maker, tmp_path / "masks")
    first = masks(clip())
    assert first.equal(Changing(120)(clip())) and first.dtype == torch.bool and 0 < first.float().mean() < 1
    assert masks(clip()).equal(first) and maker.calls == 1 and len(masks) == 1
    again = MotionMasks(other := Changing(120), tmp_path / "masks")
    assert again(clip()).equal(first) and other.calls == 0
    assert again(clip().transpose(2, 3).contiguous().transpose(2, 3)).equal(first) and other.calls == 0  # any strides
    masks(clip(1))
    assert maker.calls == 2 and len(again) == 1
    again(clip(1))
    assert other.calls == 0  # it sees what another process wrote


def test_other_pictures_get_another_mask(tmp_path):
    masks = MotionMasks(Changing(), tmp_path)
    masks(clip())
    changed = clip()
    changed[0, 0, 0, 0] ^= 1
    masks(changed)
    masks(clip().reshape(3, 4, 7, 10))
    assert len(masks) == 3


def test_nothing_is_kept_without_a_folder():
    maker = Changing()
    masks = MotionMasks(maker)
    assert masks(clip()).equal(masks(clip())) and maker.calls == 2 and len(masks) == 0


def test_masks_of_another_flow_are_named(tmp_path):
    MotionMasks(Changing(20), tmp_path)(clip())
    with pytest.raises(
        CacheError, match=r"these motion masks were made with another flow \(fingerprint changing by , not"
    ):
        MotionMasks(Changing(30), tmp_path)


def test_damage_is_named(tmp_path):
    MotionMasks(Changing(120), tmp_path)(clip())
    content = bytearray((tmp_path / VALUES).read_bytes())
    content[3] ^= 8
    (tmp_path / VALUES).write_bytes(content)
    with pytest.raises(CacheError, match="values.bin: is damaged"):
        MotionMasks(Changing(120), tmp_path)(clip())
    masks = MotionMasks(Changing(), tmp_path / "b")
    key = Cache.key(repr((4, 10, 7)).encode(), clip().numpy().tobytes())
    masks._cache.put({key: b"short"})
    with pytest.raises(CacheError, match="a mask has another size than its clip"):
        masks(clip())


def test_a_clip_without_motion_is_kept_whole(tmp_path):
    still = clip()[:, :1].expand(3, 4, 10, 7).contiguous()
    masks = MotionMasks(maker := Changing(), tmp_path)
    assert masks(still).all() and masks(still).all() and maker.calls == 1


def test_masks_come_with_clips_and_batches(tmp_path):
    signs = SyntheticSigns(num_classes=2, clips_per_class=2)
    masks = MotionMasks(maker := Changing(), tmp_path)
    data = RenderedDataset(signs, frames=4, size=32, background_motion=0, masks=masks)
    assert masks.fill(data) == [] and maker.calls == 4
    batch = data.batch([3, 1])
    assert batch.rgb_mask.shape == (2, 4, 32, 32) and maker.calls == 4
    assert batch.rgb_mask[1].equal(data[1].rgb_mask)
    share = batch.rgb_mask.float().mean()
    assert 0.01 < share < 0.5  # the hands move, most of the picture does not
    frozen = signs.subset([0])
    frozen.clips[0].xy, frozen.clips[0].confidence = frozen[0].xy[:1], frozen[0].confidence[:1]
    assert masks.fill(RenderedDataset(frozen, frames=4, size=32, background_motion=0, masks=masks)) == ["sign00/000"]
    with pytest.raises(ValueError, match="MotionMasks.fill: clips must have rgb"):
        masks.fill(signs)


def test_makers_and_clips_of_the_wrong_kind(tmp_path):
    class Wrong(Changing):
        def __call__(self, rgb):
            return rgb.float().mean(0)

    with pytest.raises(ValueError, match=r"MotionMasks: maker must give torch.bool \[4, 10, 7\], got torch.float32"):
        MotionMasks(Wrong(), tmp_path)(clip())
    with pytest.raises(TypeError, match="rgb must be torch.uint8"):
        MotionMasks(Changing())(clip().float())
    with pytest.raises(ValueError, match=r"rgb must have shape \[3, T, H, W\]"):
        MotionMasks(Changing())(clip()[0])
