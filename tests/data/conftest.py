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
