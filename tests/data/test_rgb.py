import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from slrfast.data import ClipDataset, PoseBatch, PoseDataset, PreprocessOptions, SyntheticSigns, pack, save_npz
from slrfast.data.batch import Clip
from slrfast.data.motion_masks import MotionMasks
from slrfast.data.rgb import RGBDataset, clip_frames
from slrfast.data.text import CaptionedDataset, gloss_captions
from slrfast.data.video import VideoFileError, VideoReader, spread
from slrfast.errors import DatasetError

pytest.importorskip("av")


@pytest.fixture(scope="module")
def reader():
    with VideoReader() as reader:
        yield reader


class Letters:
    max_tokens = 99

    def cut(self, sentence, language):
        return torch.tensor([ord(letter) for letter in sentence]), 0


class Bright:
    def __call__(self, rgb):
        return rgb.float().mean(0) > 75

    def fingerprint(self):
        return "bright"


def clips(**lengths):
    """A data set of clips with these names and numbers of frames."""
    return ClipDataset([Clip(torch.rand(n, 49, 2), torch.ones(n, 49), name=name) for name, n in lengths.items()])


def brightness(rgb):
    return rgb.float().mean((0, 2, 3))


def shows(rgb, frames, step=10):
    """Whether picture t is frame frames[t] of a video whose frame i has the brightness step * i."""
    return (brightness(rgb) - step * torch.as_tensor(frames)).abs().max() < step / 2


def test_pictures_are_in_step_with_the_poses(reader, write_video, tmp_path):
    write_video("v/a.mp4", np.arange(20) * 10)
    write_video("v/sub/b.webm", np.arange(12) * 10, "libvpx-vp9")
    data = RGBDataset(clips(a=20, b=12), tmp_path / "v", frames=5, size=(24, 32), reader=reader)
    batch = data.batch([1, 0])
    assert batch.rgb.shape == (2, 3, 5, 24, 32) and batch.rgb.dtype == torch.uint8 and batch.rgb_mask is None
    assert shows(batch.rgb[0], spread(12, 5)) and shows(batch.rgb[1], spread(20, 5))
    assert data.notes == [] and data.skipped == [] and data[1].rgb.equal(batch.rgb[0])


def test_a_strided_clip_shows_every_other_frame(reader, write_video, tmp_path):
    write_video("v/a.mp4", np.arange(24) * 10)
    poses = clips(a=8)
    poses.options = PreprocessOptions(max_frames=10)  # 24 frames: every third, so 8
    data = RGBDataset(poses, tmp_path / "v", frames=4, size=16, reader=reader)
    assert shows(data[0].rgb, spread(8, 4) * 3) and data.notes == []


def test_what_a_clip_consists_of_is_read_off_its_pose_file(reader, write_video, make_pose, tmp_path):
    """Frames without a hand are dropped; the pictures are of the frames that stay."""
    pose = make_pose(frames=20)
    pose.confidence[:8] = 0
    pose.confidence[14] = 0
    (tmp_path / "poses").mkdir()
    save_npz(tmp_path / "poses" / "a.npz", pose)
    write_video("v/a.mp4", np.arange(20) * 10)
    poses = PoseDataset(tmp_path / "poses")
    kept = [*range(8, 14), *range(15, 20)]
    known = clip_frames(tmp_path / "poses")
    assert poses.lengths == [11] and {name: frames.tolist() for name, frames in known.items()} == {"a.npz": kept}
    roughly = RGBDataset(poses, tmp_path / "v", frames=11, size=16, reader=reader)
    assert roughly.notes == ["1 of 1 clips lack frames of their video, and it is not known which: picture and pose are "
                             "in step only roughly; give clip_frames"]  # fmt: skip
    assert shows(roughly[0].rgb, spread(20, 11))
    exactly = RGBDataset(poses, tmp_path / "v", frames=11, size=16, clip_frames=known, reader=reader)
    assert exactly.notes == [] and shows(exactly[0].rgb, kept)
    few = RGBDataset(
        pack(poses, tmp_path / "store"), tmp_path / "v", frames=3, size=16, clip_frames=known, reader=reader
    )
    assert shows(few[0].rgb, np.array(kept)[spread(11, 3)])


def test_clip_frames_agree_with_every_clip(tmp_path, make_pose):
    signs = SyntheticSigns(num_classes=3, clips_per_class=3, noise=3)
    signs.save(tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    for options in (PreprocessOptions(), PreprocessOptions(max_frames=20, layout=79)):
        with pytest.warns(UserWarning, match="1 file skipped"):
            poses = PoseDataset(tmp_path, options=options)
        known = clip_frames(tmp_path, options=options)
        assert {name: len(frames) for name, frames in known.items()} == dict(
            zip(poses.names, poses.lengths, strict=True)
        )


def test_clips_without_a_usable_video_are_left_out_and_named(reader, write_video, tmp_path):
    write_video("v/good.mp4", np.arange(10) * 10)
    write_video("v/short.mp4", np.arange(6) * 10)
    write_video("v/long.mkv", np.arange(90) * 2, "ffv1")
    (tmp_path / "v" / "broken.mp4").write_bytes(b"no video at all")
    poses = clips(missing=10, short=10, good=10, broken=10, long=10)
    data = RGBDataset(poses, tmp_path / "v", frames=4, size=16, reader=reader)
    assert data.names == ["good"] and data.batch([0]).index.tolist() == [0]
    reasons = dict(data.skipped)
    assert reasons["missing"] == "there is no video of this name"
    assert reasons["short"] == "the pose has 10 frames, but the video only 6"
    assert reasons["long"] == "the pose has only 10 frames, but the video 90; is it another one?"
    assert reasons["broken"].startswith("cannot be decoded (InvalidDataError")
    assert "4 files skipped:\n  missing: there is no video" in data.summary()
    known = {"good": range(10), "short": range(10), "long": range(40, 50)}
    data = RGBDataset(poses, tmp_path / "v", frames=5, size=16, clip_frames=known, reader=reader)
    assert data.names == ["good", "long"] and shows(data[1].rgb, [41, 43, 45, 47, 49], step=2)
    assert dict(data.skipped)["short"] == "the pose goes to frame 9, but the video has 6 frames only"
    data = RGBDataset(poses, tmp_path / "v", frames=5, clip_frames={"good": [0, 1], "long": range(10)}, reader=reader)
    assert dict(data.skipped)["good"] == "the pose has 10 frames, clip_frames name 2"


def test_no_video_for_any_clip(reader, tmp_path, write_video):
    write_video("v/b.mp4", np.arange(3))
    with pytest.raises(DatasetError, match="no clip has a video; videos are 'b.mp4', clips are 'a'"):
        RGBDataset(clips(a=5), tmp_path / "v", reader=reader)
    with pytest.raises(
        DatasetError, match="none of 1 clips has a video that can be used; the first, b: the pose has 9"
    ):
        RGBDataset(clips(b=9), tmp_path / "v", reader=reader)
    with pytest.raises(VideoFileError, match="there is no such folder of videos"):
        RGBDataset(clips(a=5), tmp_path / "w", reader=reader)
    with pytest.raises(ValueError, match="RGBDataset: frames must be in"):
        RGBDataset(clips(a=5), tmp_path / "v", frames=0, reader=reader)


def test_a_video_that_went_away(reader, write_video, tmp_path):
    path = write_video("v/a.mp4", np.arange(8))
    data = RGBDataset(clips(a=8), {"a": path}, frames=4, size=16, reader=reader)
    path.unlink()
    with pytest.raises(VideoFileError, match="a.mp4: cannot be opened: No such file"):
        data[0]


def test_subsets_wrappers_and_other_processes(reader, write_video, tmp_path):
    signs = SyntheticSigns(num_classes=2, clips_per_class=2)
    for i, (name, length) in enumerate(zip(signs.names, signs.lengths, strict=True)):
        write_video(f"v/{name}.mp4", np.full(length, 50 * (i + 1)))

    masks = MotionMasks(Bright(), tmp_path / "masks")
    pictures = RGBDataset(signs, tmp_path / "v", frames=3, size=16, masks=masks)
    data = CaptionedDataset(pictures, gloss_captions(signs), Letters())
    part = data.subset([3, 1])
    batch = part.batch([0, 1])
    torch.testing.assert_close(batch.rgb.float().mean((1, 2, 3, 4)), torch.tensor([200.0, 100.0]), atol=4, rtol=0)
    assert batch.token_lengths.tolist() == [20, 20] and batch.rgb_mask.all()
    assert data[0].rgb_mask.all()  # nothing in it is bright: kept whole
    sent = pickle.loads(pickle.dumps(pictures.subset([0, 2])))
    assert sent[1].rgb.equal(pictures[2].rgb) and sent[1].rgb_mask.equal(pictures[2].rgb_mask)
    loaded = list(DataLoader(data, 2, collate_fn=PoseBatch.collate, num_workers=1))
    assert torch.cat([one.rgb for one in loaded]).equal(data.batch(range(4)).rgb)


def test_a_real_clip(reader, shared_data):
    poses = clips(wlasl_01377_afraid=22, wlasl_01558_ago=24)
    data = RGBDataset(poses, shared_data / "clips", frames=16, size=112, reader=reader)
    assert data.names == ["wlasl_01377_afraid", "wlasl_01558_ago"] and "1 of 2 clips lack frames" in data.notes[0]
    assert data.batch([0, 1]).rgb.shape == (2, 3, 16, 112, 112)
