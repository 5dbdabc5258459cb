import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from slrfast.data import video
from slrfast.data.video import VideoDecoderError, VideoFileError, VideoReader, list_videos, spread

pytest.importorskip("av")

READY = """import os, sys
sys.stdout.write('{"ready": "0"}\\n')
sys.stdout.flush()
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def reader():
    with VideoReader() as reader:
        yield reader


def brightness(rgb):
    """Of every frame, [T]."""
    return rgb.float().mean((0, 2, 3))


@pytest.mark.parametrize(
    "name, codec", [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "ffv1"), ("a.webm", "libvpx-vp9")]
)
def test_frames_are_spread_evenly(reader, write_video, name, codec):
    path = write_video(name, np.arange(20) * 12, codec)
    assert reader.probe(path) == (20, 25.0)
    rgb, missing = reader.read(path, 5, (24, 32))
    assert rgb.shape == (3, 5, 24, 32) and rgb.dtype == torch.uint8 and missing == 0 and rgb.is_contiguous()
    torch.testing.assert_close(brightness(rgb), torch.tensor([2.0, 6, 10, 14, 18]) * 12, atol=4, rtol=0)
    more = brightness(reader.read(path, 40, 16).rgb)
    torch.testing.assert_close(more, torch.arange(20.0).repeat_interleave(2) * 12, atol=4, rtol=0)


def test_frames_by_number(reader, write_video):
    path = write_video("a.mp4", np.arange(10) * 20)
    rgb, missing = reader.read(path, [0, 3, 3, 9], 16)
    torch.testing.assert_close(brightness(rgb), torch.tensor([0.0, 60, 60, 180]), atol=4, rtol=0)
    rgb, missing = reader.read(path, np.array([8, 9, 10, 30]), 16)
    assert missing == 2 and rgb[:, 3].equal(rgb[:, 1])


def test_spread():
    assert spread(7, 7).tolist() == list(range(7)) and spread(1, 3).tolist() == [0, 0, 0]
    for count in range(1, 40):
        for frames in range(1, 40):
            places = spread(count, frames)
            assert 0 <= places[0] and places[-1] < count
            assert np.abs(places + 0.5 - (np.arange(frames) + 0.5) * count / frames).max() <= 0.5


def test_colours_and_places(reader, write_video):
    pictures = np.zeros((4, 48, 64, 3), np.uint8)
    pictures[:, :24, :, 0] = 220  # red above, blue below
    pictures[:, 24:, :, 2] = 220
    rgb = reader.read(write_video("a.mp4", pictures), 2, 32).rgb.float()
    assert rgb[0, :, :12].mean() > 180 > 60 > rgb[2, :, :12].mean()
    assert rgb[2, :, 20:].mean() > 180 > 60 > rgb[0, :, 20:].mean()


def test_a_video_that_says_it_is_turned_comes_upright(reader, write_video):
    pictures = np.zeros((3, 48, 64, 3), np.uint8)
    pictures[:, :, :32] = 220  # its left half becomes the upper one when it is turned clockwise
    path = write_video("a.mp4", pictures)
    content = path.read_bytes()
    plain = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = b"".join((n % (1 << 32)).to_bytes(4, "big") for n in (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30))
    at = content.index(plain, content.index(b"tkhd"))
    path.write_bytes(content[:at] + turned + content[at + len(plain) :])
    rgb = reader.read(path, 1, (32, 24)).rgb.float()[:, 0]
    assert rgb.shape == (3, 32, 24) and rgb[:, :14].mean() > 180 > 60 > rgb[:, 18:].mean()


# --- files from strangers ----------------------------------------------------------------------------------------


def test_files_that_are_no_video(reader, write_video, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "folder.mp4").mkdir()
    whole = write_video("whole.mp4", np.arange(30)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    for name, message in [
        ("nothing.mp4", "cannot be opened: No such file"),
        ("empty.mp4", "is empty"),
        ("folder.mp4", "is not a file"),
        ("noise.mp4", r"cannot be decoded \(InvalidDataError"),
        ("cut.mp4", "cannot be decoded"),
    ]:
        with pytest.raises(VideoFileError, match=f"{name}: {message}"):
            reader.read(tmp_path / name, 4, 16)
        with pytest.raises(VideoFileError, match=f"{name}: {message}"):
            reader.probe(tmp_path / name)
    assert reader.probe(tmp_path / "whole.mp4").frames == 30


def test_sound_is_no_video(reader, tmp_path):
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoFileError, match="a.mkv: has no video in it"):
        reader.probe(tmp_path / "a.mkv")


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile 'whole.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nwhole.mp4\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_opens_no_other_file(reader, write_video, tmp_path, monkeypatch, playlist):
    import av

    write_video("whole.mp4", np.arange(10))
    (tmp_path / "list.mp4").write_text(playlist)
    (tmp_path / "list.m3u8").write_text(playlist)
    monkeypatch.chdir(tmp_path)
    with av.open(str(tmp_path / "list.m3u8")) as container:  # or this test would show nothing
        assert sum(1 for _ in container.decode(video=0)) == 10
    for name in ("list.mp4", "list.m3u8"):
        with pytest.raises(VideoFileError, match="cannot be decoded"):
            reader.probe(tmp_path / name)


def test_a_damaged_end_repeats_the_last_frame(reader, write_video):
    path = write_video("a.avi", np.arange(20) * 10)
    content = bytearray(path.read_bytes())
    places = [i for i in range(len(content)) if content[i : i + 4] == b"00dc"][10:20]  # the packets of the second half
    for place in places:
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        content[place + 8 : place + 8 + size] = b"\xff" * size
    path.write_bytes(content)
    rgb, missing = reader.read(path, list(range(20)), 16)
    assert missing in (10, 11)  # the decoder may still hold a frame back when it fails
    last = 19 - missing
    assert brightness(rgb)[last] == pytest.approx(10 * last, abs=4) and rgb[:, 19].equal(rgb[:, last])
    assert reader.read(path, 10, 16).missing in (5, 6)


def test_a_video_may_not_take_for_ever(write_video, monkeypatch, tmp_path):
    path = write_video("a.mp4", np.arange(4))
    (tmp_path / "sleep.py").write_text(READY + "import time\ntime.sleep(60)")
    with VideoReader(time_limit=0.3) as impatient, monkeypatch.context() as patch:
        patch.setattr(video, "_WORKER", tmp_path / "sleep.py")
        start = time.monotonic()
        with pytest.raises(VideoFileError, match="a.mp4: took more than 0.3 seconds"):
            impatient.probe(path)
        assert time.monotonic() - start < 10
        patch.undo()
        impatient.time_limit = 60
        assert impatient.probe(path).frames == 4  # another process has been started


def test_a_video_that_crashes_the_decoder_takes_nobody_with_it(write_video, monkeypatch, tmp_path):
    path = write_video("a.mp4", np.arange(4))
    with VideoReader() as reader, monkeypatch.context() as patch:
        for script, message in [
            (
                "print('bad thing', file=sys.stderr, flush=True)\nos.abort()",
                r"ended the decoder by signal 6 \(bad thing\)",
            ),
            (
                'sys.stdout.write(\'{"bytes": 900, "decoded": 1, "count": 1, "fps": 1}\\n12\')',
                "ended the decoder by exit code 0",
            ),
            ("sys.stdout.write('{\"bytes\": 99999999999}\\n')", "ended the decoder by exit code 0"),
            ('sys.stdout.write(\'{"bytes": 768, "decoded": [], "count": 1}\\n\')', "ended the decoder by exit code 0"),
            ("sys.stdout.write('[]\\n')", "ended the decoder by exit code 0"),
        ]:
            (tmp_path / "worker.py").write_text(READY + script)
            patch.setattr(video, "_WORKER", tmp_path / "worker.py")
            with pytest.raises(VideoFileError, match=f"a.mp4: {message}"):
                reader.read(path, 1, 16)
        patch.undo()
        assert reader.probe(path).frames == 4


def test_memory_is_limited(write_video):
    path = write_video("a.mp4", np.zeros((3, 3072, 4096, 3), np.uint8))
    with VideoReader(memory_limit=1 << 28) as small, pytest.raises(VideoFileError, match="a.mp4: "):
        small.read(path, 3, 4000)
    with VideoReader() as usual:
        assert usual.read(path, 3, 16).rgb.shape == (3, 3, 16, 16)


def test_frames_of_too_many_pixels(write_video, monkeypatch):
    path = write_video("a.mkv", np.zeros((1, 6000, 6000, 3), np.uint8), "ffv1")
    with VideoReader() as reader, pytest.raises(VideoFileError, match="has frames of 6000 x 6000 pixels"):
        reader.probe(path)


def test_a_stopped_reading_leaves_no_half_answer(reader, write_video, monkeypatch):
    first, second = write_video("a.mp4", np.full(4, 10)), write_video("b.mp4", np.full(4, 200))
    fill = VideoReader._fill

    def stopped(self, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoReader, "_fill", stopped)
    with pytest.raises(KeyboardInterrupt):
        reader.read(first, 4, 16)
    monkeypatch.setattr(VideoReader, "_fill", fill)
    assert brightness(reader.read(second, 1, 16).rgb)[0] > 150


def test_names_that_are_no_text(reader, write_video, tmp_path):
    path = os.fsencode(tmp_path / "a") + b"\xff\n.mp4"
    os.rename(write_video("a.mp4", np.arange(3)), path)
    assert reader.probe(os.fsdecode(path)).frames == 3
    assert "\\udcff\\n.mp4" in str(VideoFileError(os.fsdecode(path), "is odd"))


def test_wrong_arguments(reader, write_video):
    path = write_video("a.mp4", np.arange(3))
    for frames in (0, [], [3, 1], [-1, 2], 5000):
        with pytest.raises(ValueError, match="^VideoReader: frames must be"):
            reader.read(path, frames, 16)
    with pytest.raises(ValueError, match="^VideoReader: height must be in"):
        reader.read(path, 3, 0)
    with pytest.raises(ValueError, match="^VideoReader: time_limit must be finite and > 0"):
        VideoReader(time_limit=0)


def test_readers_go_to_other_processes(reader, write_video):
    path = write_video("a.mp4", np.arange(3))
    reader.probe(path)
    with pickle.loads(pickle.dumps(reader)) as other:
        assert other._process is None and other.probe(path).frames == 3
    parent = reader._process.pid
    child = os.fork()
    if child == 0:  # the child must neither read its parent's answers nor end its parent's decoder
        try:
            ok = reader.probe(path).frames == 3 and reader._process.pid != parent
            reader.close()
        finally:
            os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.probe(path).frames == 3 and reader._process.pid == parent


def test_without_pyav_the_error_names_the_extra(tmp_path, write_video, monkeypatch):
    path = write_video("a.mp4", np.arange(3))
    (tmp_path / "none" / "av").mkdir(parents=True)
    (tmp_path / "none" / "av" / "__init__.py").write_text("raise ImportError('No module named av', name='av')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "none"))
    with VideoReader() as reader:
        with pytest.raises(VideoDecoderError, match=r"needs the package av: pip install 'slrfast\[video\]'"):
            reader.probe(path)
    with VideoReader() as reader, monkeypatch.context() as patch:
        patch.setattr(video, "_WORKER", tmp_path / "missing.py")
        with pytest.raises(VideoDecoderError, match="does not start; something ended the decoder by exit code 2"):
            reader.probe(path)


def test_importing_the_module_needs_no_pyav():
    code = "import sys; import slrfast.data.video; assert 'av' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- folders -----------------------------------------------------------------------------------------------------


def test_videos_of_a_folder(tmp_path):
    for name in ("a/1.mp4", "a/2.WEBM", "b.mov", "notes.txt", ".hidden/3.mp4", "a/.4.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "secret.mp4").touch()
    (tmp_path / "in" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "in" / "same.mp4").symlink_to(tmp_path / "in" / "b.mov")
    (tmp_path / "in" / "loop.mp4").symlink_to(tmp_path / "in" / "loop.mp4")
    assert list(list_videos(tmp_path / "in")) == ["a/1.mp4", "a/2.WEBM", "b.mov", "same.mp4"]
    with pytest.raises(VideoFileError, match="there is no such folder of videos"):
        list_videos(tmp_path / "out")


def test_real_clips(reader, shared_data):
    videos = list_videos(shared_data / "clips")
    assert len(videos) == 13
    assert (
        reader.probe(videos["wlasl_01377_afraid.mp4"]).frames == 22
    )  # of 25 packets, three before its edit list's start
    rgb, missing = reader.read(videos["wlasl_01377_afraid.mp4"], 32, 112)
    assert rgb.shape == (3, 32, 112, 112) and missing == 0 and rgb.float().std() > 20


@pytest.mark.parametrize("name, codec", [("a.mp4", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_damaged_videos_give_frames_or_one_error(reader, write_video, tmp_path, name, codec):
    content = write_video(name, np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3)), codec).read_bytes()
    rng, refused = np.random.default_rng(1), 0
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 12)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        (tmp_path / name).write_bytes(damaged)
        try:
            rgb = reader.read(tmp_path / name, 4, 16).rgb
        except VideoFileError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path / name)) and "\n" not in str(error)
        else:
            assert rgb.shape == (3, 4, 16, 16)
    assert 0 < refused < 40
