"""The run of plain_pytorch.py under Lightning: python examples/lightning_stc.py [poses/]

One device. Not tested is what several need: devices=N, strategy="ddp", use_distributed_sampler=False, every N-th batch
of the order, `+ self.global_rank` at both seeds. Each process contrasts its own clips, and DDP overwrites the banks
with those of the first at every step, as in STC's published code.
"""

import sys

import lightning as L
import torch
from torch.utils.data import DataLoader

from slrfast.data import PoseBatch, PoseDataset, SyntheticSigns
from slrfast.systems import STC, STCConfig
from slrfast.train.loop import BatchOrder


class Pretraining(L.LightningModule):
    def __init__(self, system, per_epoch, seed):
        super().__init__()
        self.system, self.per_epoch, self.seed, self.losses = system, per_epoch, seed, []

    def configure_optimizers(self):
        return self.system.optimizer()

    def on_train_start(self):  # after Lightning's own draws; a generator apart for views, so that later ones do no harm
        self.views = torch.Generator(self.device).manual_seed(self.seed)
        torch.manual_seed(self.seed)

    def training_step(self, batch, step):
        self.system.epoch = step / self.per_epoch
        for group in self.optimizers().param_groups:
            group["lr"] = self.system.learning_rate(self.system.epoch)
        loss = self.system.training_step(batch, self.views)["loss"]
        self.losses.append(loss.item())
        return loss

    def optimizer_step(self, *arguments, **options):  # and not on_train_batch_end, which may follow an accumulation
        super().optimizer_step(*arguments, **options)
        self.system.update_after_step()


def train(data: str = "synthetic", epochs: int = 3, seed: int = 0) -> list[float]:
    """Pre-train a small STC; the loss of every step."""
    clips = SyntheticSigns(8, 12) if data == "synthetic" else PoseDataset(data)
    torch.manual_seed(seed)
    system = STC(STCConfig.small(epochs=epochs))
    per_epoch = len(clips) // system.config.batch_size
    # all epochs in one: Lightning starts a loader more often than once an epoch, and a shuffling one then moves on
    order = BatchOrder(len(clips), system.config.batch_size, seed, 0, epochs * per_epoch)
    loader = DataLoader(clips, batch_sampler=order, collate_fn=PoseBatch.collate, generator=torch.Generator())
    module = Pretraining(system, per_epoch, seed)
    L.Trainer(max_epochs=1, devices=1, logger=False, enable_checkpointing=False).fit(module, loader)
    return module.losses


if __name__ == "__main__":
    print(*train(*sys.argv[1:]), sep="\n")
