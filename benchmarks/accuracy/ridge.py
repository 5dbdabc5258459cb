"""The baseline without any network: a linear ridge classifier on resampled, wrist-normalised hands."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slrfast import graphs
from slrfast.data import Clip, ClipDataset

FRAMES = 16
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
PARTS = graphs.layout(49).parts


def features(data: ClipDataset, indices: list[int]) -> Tensor:
    """[N, D]: of 16 frames spread over a clip both hands about their wrists, the wrists' places, and what was seen."""
    return torch.stack([_features(data[i]) for i in indices])


def _features(clip: Clip) -> Tensor:
    frame = torch.from_numpy(((np.arange(FRAMES) + 0.5) / FRAMES * clip.num_frames).astype(np.int64))
    xy, seen = clip.xy.float()[frame], clip.confidence[frame] > 0
    rows = []
    for side in ("right_hand", "left_hand"):
        hand, there = xy[:, PARTS[side]], seen[:, PARTS[side]].any(1, keepdim=True)[..., None]
        centred = hand - hand[:, :1]
        size = (centred[:, 9:10].norm(dim=-1, keepdim=True)).clamp_min(1e-3)  # from the wrist to the middle finger
        rows += [(centred / size * there).clamp(-4, 4).flatten(), there.float().flatten()]
    trunk = PARTS["trunk"]
    rows += [(xy[:, trunk] * seen[:, trunk, None]).flatten(), seen[:, trunk].float().flatten()]
    return torch.cat(rows)


def scores(x: Tensor, labels: Tensor, queries: Tensor, classes: int, strength: float) -> Tensor:
    """[B, C]: of ``argmin_W |Y - X W|^2 + strength |W|^2`` over standardised x, Y one-hot about its mean."""
    x, queries = x.double(), queries.double()
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x, queries = (x - mean) / deviation, (queries - mean) / deviation
    target = torch.nn.functional.one_hot(labels, classes).double()
    gram = x @ x.mT + strength * torch.eye(len(x), dtype=torch.float64)
    return queries @ (x.mT @ torch.linalg.solve(gram, target - target.mean(0))) + target.mean(0)
