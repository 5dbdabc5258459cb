"""The run of plain_pytorch.py under accelerate: accelerate launch examples/accelerate_stc.py [poses/]

Several processes deal the batches out among them; each contrasts its own clips, and DDP overwrites the banks with
those of the first at every step, as in STC's published code. No run on several GPUs has been made.
"""

import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from slrfast.data import PoseBatch, PoseDataset, SyntheticSigns
from slrfast.systems import STC, STCConfig
from slrfast.train.loop import BatchOrder


class Step(nn.Module):
    """A training step as a forward pass, which is what DDP averages the gradients of."""

    def __init__(self, system):
        super().__init__()
        self.system = system

    def forward(self, batch, views):
        return self.system.training_step(batch, views)["loss"]


def train(data: str = "synthetic", epochs: int = 3, seed: int = 0) -> list[float]:
    """Pre-train a small STC; the loss of every step (of this process)."""
    accelerator = Accelerator()
    clips = SyntheticSigns(8, 12) if data == "synthetic" else PoseDataset(data)
    torch.manual_seed(seed)
    system = STC(STCConfig.small(epochs=epochs)).train()
    per_epoch = len(clips) // system.config.batch_size
    order = BatchOrder(len(clips), system.config.batch_size, seed, 0, epochs * per_epoch)
    loader = DataLoader(clips, batch_sampler=order, collate_fn=PoseBatch.collate, generator=torch.Generator())
    forward, optimizer, loader = accelerator.prepare(Step(system), system.optimizer(), loader)
    # a generator apart for views: accelerate loads a batch ahead, so what loading draws would come in between
    views = torch.Generator(accelerator.device).manual_seed(seed + accelerator.process_index)
    torch.manual_seed(seed + accelerator.process_index)

    losses = []
    for step, batch in enumerate(loader):
        system.epoch = step * accelerator.num_processes / per_epoch
        for group in optimizer.param_groups:
            group["lr"] = system.learning_rate(system.epoch)
        loss = forward(batch, views)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        system.update_after_step()  # accumulating gradients: only `if accelerator.sync_gradients`
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(*train(*sys.argv[1:]), sep="\n")
