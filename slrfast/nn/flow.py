"""An invertible map between frames and latents that are normally distributed: a small Glow (Kingma and Dhariwal)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slrfast import checks
from slrfast.nn.saved import Saved

_LOG_SCALE = 2.0  # a coupling scales by at most e^2, so that the way back stays exact


@dataclass(frozen=True)
class FlowConfig:
    """Size of a :class:`Flow`.

    Attributes:
        levels: how often 2 x 2 pixels become channels; height and width must be multiples of 2^levels.
        steps: of actnorm, 1x1 convolution and coupling at every level.
        hidden: channels inside the couplings.
    """

    levels: int = 2
    steps: int = 4
    hidden: int = 32

    def __post_init__(self) -> None:
        for name, high in (("levels", 4), ("steps", 64), ("hidden", 1024)):
            checks.integer_between("FlowConfig", 1, high, **{name: getattr(self, name)})


class ActNorm(nn.Module):
    """y = e^s (x + b) per channel; :meth:`fit` makes the channels of a first batch zero-mean with unit variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        std, mean = torch.std_mean(x, (0, 2, 3), correction=0)
        self.bias.copy_(-mean.view_as(self.bias))
        self.log_scale.copy_(-(std + 1e-3).log().view_as(self.log_scale))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x + self.bias) * self.log_scale.exp(), self.log_scale.sum() * x.shape[2:].numel()

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp() - self.bias


class InvertibleMap(nn.Module):
    """A 1x1 convolution with a square matrix, a rotation at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0].contiguous())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torch.linalg.slogdet(self.weight)[1] * x.shape[2:].numel()
        return F.conv2d(x, self.weight[:, :, None, None]), log_det

    def inverse(self, y: Tensor) -> Tensor:
        weight = torch.linalg.inv(self.weight.double()).to(self.weight.dtype)
        return F.conv2d(y, weight[:, :, None, None])


class AffineCoupling(nn.Module):
    """Half of the channels stays and says how the other half is scaled and moved; nothing at first."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels // 2, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 3, padding=1),
        )
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)

    def _change(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.net(kept).chunk(2, 1)
        return _LOG_SCALE * torch.tanh(log_scale / _LOG_SCALE), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x.chunk(2, 1)
        log_scale, shift = self._change(kept)
        return torch.cat((kept, (changed + shift) * log_scale.exp()), 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        kept, changed = y.chunk(2, 1)
        log_scale, shift = self._change(kept)
        return torch.cat((kept, changed * (-log_scale).exp() - shift), 1)


class IdentityFlow(nn.Module):
    """A flow that changes nothing: latents are pixels. For tests, and where none has been trained.

    >>> frames = torch.rand(2, 3, 4, 4)
    >>> latents, log_det = IdentityFlow()(frames)
    >>> torch.equal(IdentityFlow().inverse(latents), frames), log_det
    (True, tensor([0., 0.]))
    """

    multiple = 1
    """What height and width of the frames must be multiples of."""

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [N, 3, H, W] in [0, 1] -> the same, and zeros [N]."""
        return frames, frames.new_zeros(len(frames))

    def inverse(self, latents: Tensor) -> Tensor:
        """The latents themselves."""
        return latents

    def fingerprint(self) -> str:
        """What tells this flow from others."""
        return "identity"


class Flow(Saved):
    """A Glow of one scale: frames [N, 3, H, W] in [0, 1] to latents [N, 3 * 4^levels, H / 2^levels, W / 2^levels].

    At every level 2 x 2 pixels become channels; then come steps of actnorm, an invertible 1x1 convolution and an affine
    coupling, whose scale is bounded so that the way back is exact to about 1e-5. Trained to the greatest likelihood,
    latents are about standard normal. CCL-SLR takes such a flow (AdvFlow's) for its Motion-Preserving Masking and says
    neither its size nor its training data: both are ours. Unlike Glow, no latents are split off between the levels, so
    that all have one grid.

    Computes in the dtype of its parameters, also under autocast, and without TensorFloat-32: what is rounded to ten
    bits does not come back.

    >>> flow = Flow(FlowConfig(levels=1, steps=2, hidden=4))
    >>> frames = torch.rand(2, 3, 8, 8)
    >>> flow.initialize(frames)
    >>> latents, log_det = flow(frames)
    >>> latents.shape, log_det.shape, bool((flow.inverse(latents) - frames).abs().max() < 1e-5)
    (torch.Size([2, 12, 4, 4]), torch.Size([2]), True)
    """

    KIND = "flow"
    Config = FlowConfig

    def __init__(self, config: FlowConfig | None = None) -> None:
        super().__init__()
        self.config = config or FlowConfig()
        self.steps = nn.ModuleList()
        for level in range(1, self.config.levels + 1):
            channels = 3 * 4**level
            for _ in range(self.config.steps):
                parts = ActNorm(channels), InvertibleMap(channels), AffineCoupling(channels, self.config.hidden)
                self.steps.append(nn.ModuleList(parts))

    @property
    def multiple(self) -> int:
        """What height and width of the frames must be multiples of."""
        return 2**self.config.levels

    def _parts(self) -> list[tuple[bool, Any]]:
        """Every part in the order of the way there, and whether 2 x 2 pixels become channels before it."""
        each = self.config.steps
        steps = [cast(nn.ModuleList, step) for step in self.steps]
        return [(place == 0 and n % each == 0, part) for n, step in enumerate(steps) for place, part in enumerate(step)]

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and the logarithm of the determinant of their Jacobian.

        Args:
            frames: [N, 3, H, W] in [0, 1], floating. Gradient flows.
        Returns:
            latents [N, C, h, w] and log |det| [N], in nats.
        Raises:
            ValueError: another shape, or sizes that are no multiples of 2^levels. TypeError: no floating frames.
        """
        with _exact(frames):
            x = self._centred(frames)
            log_det = x.new_zeros(len(x))
            for squeezes, part in self._parts():
                x, change = part(F.pixel_unshuffle(x, 2) if squeezes else x)
                log_det = log_det + change
        return x, log_det

    @torch.no_grad()
    def initialize(self, frames: Tensor) -> None:
        """Fit every actnorm to a batch of frames [N, 3, H, W], which the first steps of training need."""
        with _exact(frames):
            x = self._centred(frames)
            for squeezes, part in self._parts():
                x = F.pixel_unshuffle(x, 2) if squeezes else x
                if isinstance(part, ActNorm):
                    part.fit(x)
                x, _ = part(x)

    def inverse(self, latents: Tensor) -> Tensor:
        """The frames [N, 3, H, W] of latents [N, C, h, w]; those of latents that were changed may leave [0, 1].

        Raises:
            ValueError: another number of channels. TypeError: no floating latents.
        """
        checks.shapes("Flow", latents=(latents, f"N {3 * 4**self.config.levels} h w"))
        checks.floating("Flow", latents=latents)
        with _exact(latents):
            x = latents.to(self._dtype)
            for squeezes, part in reversed(self._parts()):
                x = part.inverse(x)
                x = F.pixel_shuffle(x, 2) if squeezes else x
            return x + 0.5

    def bits_per_dim(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bits that every number of 8-bit frames costs under the flow, [N]: 8 for uniform noise, less what it knows.

        -(log N(z; 0, 1) + log |det|) / (D ln 2) + 8 for z of (frames + u) / 256, u uniform in [0, 1).

        Args:
            frames: [N, 3, H, W] uint8.
            generator: of the noise u. None: u = 1/2.
        """
        checks.dtype("Flow", torch.uint8, frames=frames)
        noise = 0.5 if generator is None else torch.rand(frames.shape, generator=generator, device=frames.device)
        latents, log_det = self((frames.to(self._dtype) + noise) / 256)
        size = latents[0].numel()
        log_normal = -0.5 * (latents.square().flatten(1).sum(1) + size * math.log(2 * math.pi))
        return 8 - (log_normal + log_det) / (size * math.log(2))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _centred(self, frames: Tensor) -> Tensor:
        op = "Flow"
        checks.shapes(op, frames=(frames, "N 3 H W"))
        checks.floating(op, frames=frames)
        checks.require(frames.numel() > 0, op, "frames", "have at least one frame with pixels", list(frames.shape))
        height, width = frames.shape[2:]
        fits = height % self.multiple == 0 and width % self.multiple == 0
        rule = f"have height and width that are multiples of {self.multiple}"
        checks.require(fits, op, "frames", rule, f"{height} x {width}")
        return frames.to(self._dtype) - 0.5

    def fingerprint(self) -> str:
        """A text that two flows share only if configuration and weights are the same, on whatever device."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]


@contextmanager
def _exact(x: Tensor) -> Iterator[None]:
    """Neither autocast nor TensorFloat-32, which torch by default uses in convolutions on a GPU."""
    cudnn: Any = torch.backends.cudnn
    owner, name, full = (
        (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
    )
    before = getattr(owner, name)
    setattr(owner, name, full)
    try:
        with torch.autocast(x.device.type, enabled=False):
            yield
    finally:
        setattr(owner, name, before)
