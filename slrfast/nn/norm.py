"""Batch normalisation, channels last and by groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelNorm(nn.BatchNorm1d):
    """Batch normalisation over the last dimension of [..., C], with statistics over all others."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, input.shape[-1])).view(input.shape)

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics to those of the groups [G, C], one after the other, of ``count`` values each."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += len(mean)
        for group in range(len(mean)):
            step = self.momentum
            if step is None:  # torch's cumulative average
                step = 1.0 / float(self.num_batches_tracked - len(mean) + group + 1)
            self.running_mean.lerp_(mean[group].to(self.running_mean), step)
            self.running_var.lerp_((variance[group] * (count / (count - 1))).to(self.running_var), step)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The affine map y = x scale + shift that this is in evaluation mode."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


def grouped(norm: nn.Module, x: Tensor, groups: int) -> Tensor:
    """Batch normalisation of x [R, ...]; in training mode every one of ``groups`` equal parts of R on its own."""
    if groups == 1 or not norm.training:
        return norm(x)
    return torch.cat([norm(part) for part in x.chunk(groups)])
