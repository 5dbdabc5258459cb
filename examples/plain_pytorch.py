"""STC in a loop of one's own: python examples/plain_pytorch.py [--data poses/] [--epochs 3] [--seed 0]

The run of lightning_stc.py, accelerate_stc.py and ``slrfast pretrain stc --preset small --system.epochs 3``: one seed
gives the same losses in all, on the same clips (the command makes up others than these).
"""

import argparse

import torch
from torch.utils.data import DataLoader

from slrfast.data import PoseBatch, PoseDataset, SyntheticSigns
from slrfast.systems import STC, STCConfig
from slrfast.train.loop import BatchOrder


def train(data: str = "synthetic", epochs: int = 3, seed: int = 0) -> list[float]:
    """Pre-train a small STC; the loss of every step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clips = SyntheticSigns(8, 12) if data == "synthetic" else PoseDataset(data)
    torch.manual_seed(seed)  # of weights and banks
    system = STC(STCConfig.small(epochs=epochs)).to(device).train()
    optimizer = system.optimizer()
    per_epoch = len(clips) // system.config.batch_size
    order = BatchOrder(len(clips), system.config.batch_size, seed, 0, epochs * per_epoch)  # all epochs in one
    loader = DataLoader(clips, batch_sampler=order, collate_fn=PoseBatch.collate, generator=torch.Generator())
    views = torch.Generator(device).manual_seed(seed)  # of crops and augmentation, where the batch is
    torch.manual_seed(seed)  # of dropout; the loader would draw its workers' seed here too, had it no generator

    losses = []
    for step, batch in enumerate(loader):
        system.epoch = step / per_epoch
        for group in optimizer.param_groups:
            group["lr"] = system.learning_rate(system.epoch)
        loss = system.training_step(batch.to(device), views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        system.update_after_step()  # moves the key encoders: once per optimizer step and after it
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="synthetic", help="what slrfast.data.PoseDataset opens, or 'synthetic'")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    for number, value in enumerate(train(**vars(parser.parse_args())), 1):
        print(f"step {number}: loss {value:.4f}")
