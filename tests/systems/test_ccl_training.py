"""CCL-SLR learns from clips that nobody labelled: signs of made-up signers, pictures drawn from their keypoints."""

import pytest
import torch

from slrfast.data import PoseBatch, PreprocessOptions, SyntheticSigns
from slrfast.data.motion_masks import MotionMasks
from slrfast.data.render import RenderedDataset
from slrfast.systems.ccl import CCL
from slrfast.systems.ccl_config import CCLConfig
from slrfast.tasks import knn_scores

CLASSES, SIGNERS, EPOCHS, BATCH = 10, 5, 6, 20


class Varying:
    """Pixels that vary over time."""

    def __call__(self, rgb):
        moving = rgb.float().std(1).amax(0) > 20
        return moving.expand(rgb.shape[1:])

    def fingerprint(self):
        return "standard deviation above 20"


def accuracy(features, batch, groups):
    """Of the nearest neighbours among the other signers' clips."""
    hits = 0.0
    for signer in range(SIGNERS):
        seen, held = groups != signer, groups == signer
        scores = knn_scores(features[seen], batch.label[seen], features[held], CLASSES, k=5)
        hits += float((scores.argmax(1) == batch.label[held]).sum())
    return hits / len(groups)


@pytest.mark.slow
def test_training_raises_the_accuracy_of_nearest_neighbours():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        signs = SyntheticSigns(CLASSES, 20, SIGNERS, options=PreprocessOptions(layout=75))
        data = RenderedDataset(signs, frames=8, size=32, masks=MotionMasks(Varying()))
        clips = [data[i] for i in range(len(data))]
        everything = PoseBatch.collate(clips)
        groups = torch.tensor([int(clip.group.removeprefix("signer")) for clip in clips])
        torch.manual_seed(0)
        config = CCLConfig.small(
            frames=8, image_size=32, rgb_width=4, gcn_channels=(16, 16, 32, 32, 32), dim=32, manual_ffn=64,
            non_manual_ffn=64, bank_size=100, positives=5,
        )  # fmt: skip
        system = CCL(config)
        before = system.encode(everything)
        optimizer, generator = system.optimizer(), torch.Generator().manual_seed(2)
        for _ in range(EPOCHS):
            for some in torch.randperm(len(clips), generator=generator).split(BATCH):
                losses = system.training_step(PoseBatch.collate([clips[i] for i in some]), generator)
                optimizer.zero_grad()
                losses["loss"].backward()
                optimizer.step()
                system.update_after_step()
        after = system.encode(everything)
    finally:
        torch.set_num_threads(threads)
    pose = slice(config.features["rgb"], None)
    both = [accuracy(features, everything, groups) for features in (before, after)]
    poses = [accuracy(features[:, pose], everything, groups) for features in (before, after)]
    print(f"kNN top-1 before and after: both branches {both}, poses alone {poses}")
    assert both[1] > both[0] + 0.1 and poses[1] > poses[0] + 0.05
