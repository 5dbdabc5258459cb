import os
from pathlib import Path

import numpy as np
import pytest

from slrfast.data import Pose


@pytest.fixture
def make_pose():
    """A plausible COCO-WholeBody pose: both hands spread out, every keypoint certain."""

    def make(frames=6, people=1, seed=0, size=(640, 480), layout="coco133", count=133, path="<memory>"):
        rng = np.random.default_rng(seed)
        xy = rng.uniform(0.2, 0.8, (frames, people, count, 2)) * size
        return Pose(xy, np.ones((frames, people, count)), 25.0, size, layout, path)

    return make


@pytest.fixture
def shared_data():
    root = os.environ.get("SLRFAST_DATA")
    if not root:
        pytest.skip("SLRFAST_DATA is not set")
    return Path(root)


@pytest.fixture
def write_video(tmp_path):
    """Writes pictures uint8 [T, H, W, 3] as a video; numbers [T] are grey pictures of that brightness."""
    av = pytest.importorskip("av")

    def write(name, pictures, codec="mpeg4", fps=25):
        pictures = np.asarray(pictures)
        if pictures.ndim == 1:
            pictures = np.broadcast_to(pictures[:, None, None, None], (len(pictures), 48, 64, 3))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=fps)
            stream.height, stream.width = pictures.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.bit_rate = 4_000_000
            for picture in pictures:
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture, np.uint8), "rgb24"))
                )
            container.mux(stream.encode(None))
        return path

    return write
