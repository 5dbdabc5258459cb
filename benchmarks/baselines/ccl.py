"""CCL-SLR's losses as the field writes them: MoCo's queues [D, N], whole logits, torch.topk, dense labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines import bank
from slrfast.systems.ccl_config import CCLConfig

MODALITIES = ("rgb", "pose")
Pair = tuple[Tensor, Tensor]  # g and f


class FieldCCL(nn.Module):
    """Two queues for each modality, filled by hand; :meth:`losses` are Eq. 6 to 14, one after the other."""

    def __init__(self, config: CCLConfig) -> None:
        super().__init__()
        self.config = config
        for m in MODALITIES:
            for name, size in (("g", config.features[m]), ("f", config.embedding)):
                self.register_buffer(f"queue_{m}_{name}", torch.empty(size, config.bank_size))

    def queue(self, modality: str, name: str) -> Tensor:
        return getattr(self, f"queue_{modality}_{name}")

    def losses(self, query: Mapping[str, Pair], key: Mapping[str, Pair]) -> Tensor:
        """With a clone of the queue for every product, as MoCo's code makes one."""
        config = self.config
        queues, label_queues = (tuple(self.queue(m, name) for m in MODALITIES) for name in ("f", "g"))
        g, f = (tuple(query[m][i] for m in MODALITIES) for i in (0, 1))
        loss = bank.mined_bce(f, queues, g, label_queues, config.positives, config.mining_temperature)
        for m, other in (MODALITIES, MODALITIES[::-1]):
            for q in (query[m][1], query[other][1]):
                loss = loss + bank.info_nce(q, key[m][1], self.queue(m, "f"), config.temperature)
        return loss

    def shared_losses(self, query: Mapping[str, Pair], key: Mapping[str, Pair]) -> Tensor:
        """The same without clones, and with one product for all that is against a queue: eager code at its best."""
        config = self.config
        size = config.bank_size
        with torch.no_grad():
            index = torch.cat(
                [(query[m][0] @ self.queue(m, "g")).topk(config.positives, sorted=False)[1] for m in MODALITIES], 1
            )
            labels = bank.dense_labels(index, size).to(query["rgb"][1].dtype)
        loss = torch.zeros((), device=labels.device)
        for m, other in (MODALITIES, MODALITIES[::-1]):
            q = torch.cat((query[m][1], query[other][1]))
            k = key[m][1].repeat(2, 1)
            scores = q @ self.queue(m, "f")
            logits = torch.cat(((q * k).sum(1, keepdim=True), scores), 1) / config.temperature
            zero = torch.zeros(len(q), dtype=torch.long, device=q.device)
            loss = loss + 2 * F.cross_entropy(logits, zero)  # the mean over either half, added
            mined = scores[: len(labels)] / config.mining_temperature
            loss = loss + F.binary_cross_entropy_with_logits(mined, labels)
        return loss
