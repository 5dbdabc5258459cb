"""Batch normalisation, channels last and by groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slrfast import checks


class ChannelNorm(nn.BatchNorm1d):
    """Batch normalisation over the last dimension of [..., C], with statistics over all others."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, input.shape[-1])).view(input.shape)


class MapNorm(nn.Sequential):
    """A map of [R, V, C] and the batch normalisation of its channels, of whatever kind: SyncBatchNorm too."""

    def forward(self, input: Tensor) -> Tensor:
        map_, norm = self
        y = map_(input)
        return norm(y.flatten(0, -2)).reshape(y.shape)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs more than its ``forward``, as with torch's pruning."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    return bool(before or after or module._backward_pre_hooks or module._backward_hooks)


def uses_batch(norm: Any) -> bool:
    """Whether a normalisation takes its statistics from the batch, and not running ones."""
    return norm.training or getattr(norm, "running_mean", None) is None


@torch.no_grad()
def update_statistics(norms: Sequence[ChannelNorm], stats: Tensor, count: int) -> None:
    """Move running statistics to those of G groups, as if they had been seen one after the other.

    Args:
        norms: of one momentum.
        stats: mean and biased variance of each norm and group, [norms, 2, G, C].
        count: values of each channel in a group.
    """
    groups, momentum = stats.shape[2], norms[0].momentum
    decay = 1.0 if momentum is None else 1.0 - momentum  # None is torch's cumulative average: all groups count alike
    if groups > 1:
        shares = decay ** torch.arange(groups - 1, -1, -1, dtype=stats.dtype, device=stats.device)
        stats = (stats * (shares / shares.sum()).unsqueeze(1)).sum(2)
    else:
        stats = stats.squeeze(2)
    means, variances = stats[:, 0], stats[:, 1] * (count / (count - 1))
    for norm, mean, variance in zip(norms, means, variances, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += groups
        for running, target in ((norm.running_mean, mean), (norm.running_var, variance)):
            # a tensor as the step of the average, so that nothing waits for the device
            step = groups / norm.num_batches_tracked.to(running) if momentum is None else 1.0 - decay**groups
            running.lerp_(target.to(running), step)


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """The map y = x scale + shift that a batch normalisation is by its running statistics."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def grouped(norm: nn.Module, x: Tensor, groups: int) -> Tensor:
    """Batch normalisation of x [R, ...]; by the batch's statistics every one of ``groups`` equal parts on its own."""
    if groups == 1 or not uses_batch(norm):
        return norm(x)
    return torch.cat([norm(part) for part in x.chunk(groups)])


def check_groups(op: str, groups: int, count: int, of: str) -> int:
    """``groups``, if they are a positive integer that divides ``count`` rows, frames or sequences."""
    checks.integer_between(op, 1, 2**31 - 1, groups=groups)
    groups = int(groups)  # a constant of the compiled code, also with dynamic=True
    checks.require(count % groups == 0, op, "x", f"have a multiple of {groups} {of}", count)
    return groups
