"""Motion-Preserving Masking: which pixels of a clip move, by what varies in the latents of its frames."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from slrfast import checks, ops


class MotionPreservingMask(nn.Module):
    """The mask of CCL-SLR's Motion-Preserving Masking (MPM), without gradient.

    Z = h(X) are the latents of the frames under a flow h, sigma their standard deviation over time,
    Zhat = Z 1[sigma >= p], Xhat = h^-1(Zhat), and the mask is Otsu's threshold of Xhat in grey, one for the clip.
    Eq. 5 as printed keeps sigma < p; text and Fig. 3 remove what hardly varies, which is done here. How Xhat is made
    binary is not said.

    Args:
        flow: :class:`Flow` or :class:`IdentityFlow`; it becomes a part of this module.
        threshold: p, the least standard deviation that is kept, in the unit of the latents.
        quantile: take p as the share of the clip's latents that is removed, those of the smallest deviation.
        relative: threshold what Xhat differs from h^-1(0), the frame that nothing moves in, and not Xhat itself:
            the flow decodes a latent of 0 to some grey, which what moves can be darker or brighter than. Of a signer
            before a white wall, the grey of Xhat keeps the wall. For the identity flow both are the same.
        frames_at_once: how many frames go through the flow together, which bounds its memory.
    """

    def __init__(
        self,
        flow: nn.Module,
        threshold: float = 0.5,
        quantile: bool = False,
        *,
        relative: bool = True,
        frames_at_once: int = 8,
    ) -> None:
        super().__init__()
        op = "MotionPreservingMask"
        checks.number_between(op, 0, 1 if quantile else float("inf"), threshold=threshold)
        checks.integer_between(op, 1, 2**31 - 1, frames_at_once=frames_at_once)
        self.flow: Any = flow
        self.threshold, self.quantile, self.relative = threshold, quantile, relative
        self.frames_at_once = frames_at_once

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        """Where something moves.

        Args:
            rgb: [3, T, H, W] or [B, 3, T, H, W] uint8; H and W multiples of what the flow wants.
        Returns:
            bool [T, H, W] or [B, T, H, W]. All True for a clip in which nothing moves (no latent is kept, or one frame
            only): there is nothing that would be worth keeping more than the rest.
        Raises:
            ValueError: another shape or size. TypeError: no uint8.
        """
        moving, _ = self.explain(rgb)
        return moving

    @torch.no_grad()
    def explain(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """The mask, and the motion-preserving frames Xhat [.., 3, T, H, W] (less h^-1(0) if ``relative``)."""
        op = "MotionPreservingMask"
        checks.shapes(op, rgb=(rgb, "... 3 T H W"))
        checks.require(rgb.dim() in (4, 5), op, "rgb", "have shape [3, T, H, W] or [B, 3, T, H, W]", list(rgb.shape))
        checks.dtype(op, torch.uint8, rgb=rgb)
        height, width = rgb.shape[-2:]
        fits = height % self.flow.multiple == 0 and width % self.flow.multiple == 0
        rule = f"have height and width that are multiples of {self.flow.multiple}"
        checks.require(fits, op, "rgb", rule, f"{height} x {width}")
        clips = rgb if rgb.dim() == 5 else rgb[None]
        if clips.numel() == 0:
            return clips[:, 0].bool(), clips.float()
        found = [self._clip(clip) for clip in clips]
        moving, kept = torch.stack([mask for mask, _ in found]), torch.stack([frames for _, frames in found])
        return (moving, kept) if rgb.dim() == 5 else (moving[0], kept[0])

    def _clip(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        place = next(self.flow.parameters(), clip).device  # clips of a loader are on the CPU, wherever the flow is
        frames = clip.transpose(0, 1).to(place)
        latents = torch.cat([self.flow(part.float() / 255)[0] for part in frames.split(self.frames_at_once)])
        varying = ops.channel_mask(latents.flatten(1)[None], self.threshold, quantile=self.quantile).z[0]
        parts = varying.view_as(latents).split(self.frames_at_once)
        motion = torch.cat([self.flow.inverse(part) for part in parts])
        still = self.flow.inverse(torch.zeros_like(latents[:1]))[0] if self.relative else None
        moving = ops.otsu_mask(motion[None], still)[0]
        kept = motion if still is None else (motion - still).abs()
        return moving.to(clip.device), kept.transpose(0, 1).to(clip.device)

    def fingerprint(self) -> str:
        """A text that changes with the flow's weights and with every option that changes masks."""
        options = f"{self.flow.fingerprint()} {float(self.threshold)!r} {self.quantile} {self.relative}"
        return hashlib.sha256(f"MotionPreservingMask 1: {options}".encode()).hexdigest()[:32]
