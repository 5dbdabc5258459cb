"""One clip, and the packed batch of clips that every system trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from slrfast import checks, graphs


@dataclass(eq=False)
class Clip:
    """A pre-processed clip.

    Attributes:
        xy: float32 [F, V, 2], or float16 out of a packed store; ``graphs.layout(V).parts`` names the rows, V is 49, 75,
            79 or 133. A hand's coordinates are fractions of its own box, the left hand's mirrored; all others are
            fractions of the image. A missing joint is (0, 0).
        confidence: [F, V] of the same type, 0 for a missing joint.
        label: class index, -1 unknown.
        name: file name, unique within a data set.
        group: signer or language, "" unknown.
        split: "train", "test" ..., "" unknown.
        index: position in the data set it was read from.
        rgb: uint8 [3, T, H, W], T frames spread evenly over the clip's, or None.
        rgb_mask: bool [T, H, W], where in ``rgb`` something moves, or None.
        tokens: int64 [L], the text's token ids; None or empty without a text.
    """

    xy: Tensor
    confidence: Tensor
    label: int = -1
    name: str = ""
    group: str = ""
    index: int = 0
    split: str = ""
    rgb: Tensor | None = None
    rgb_mask: Tensor | None = None
    tokens: Tensor | None = None

    @property
    def num_frames(self) -> int:
        """F."""
        return self.xy.shape[0]


@dataclass(eq=False)
class PoseBatch:
    """B clips behind each other, without padding.

    Attributes:
        xy: float32 [F, V, 2], all frames of all clips; V is 49, 75, 79 or 133.
        confidence: float32 [F, V].
        offsets: int64 [B + 1]; clip b is rows offsets[b] to offsets[b + 1].
        label: int64 [B], -1 unknown.
        index: int64 [B], position in the data set.
        rgb: uint8 [B, 3, T, H, W], T frames spread evenly over each clip's, or None.
        rgb_mask: bool [B, T, H, W], where in ``rgb`` something moves, or None.
        tokens: int64 [B, L], token ids with zeros behind every text, or None.
        token_lengths: int64 [B], tokens of every text, 0 for a clip without one; or None.
    """

    xy: Tensor
    confidence: Tensor
    offsets: Tensor
    label: Tensor
    index: Tensor
    rgb: Tensor | None = None
    rgb_mask: Tensor | None = None
    tokens: Tensor | None = None
    token_lengths: Tensor | None = None

    def __post_init__(self) -> None:
        keypoints = checks.shapes("PoseBatch", xy=(self.xy, "F V 2"))["V"]
        rule = f"have one of {', '.join(map(str, graphs.LAYOUTS))} keypoints"
        checks.require(keypoints in graphs.LAYOUTS, "PoseBatch", "xy", rule, keypoints)
        checks.shapes(
            "PoseBatch",
            xy=(self.xy, "F V 2"),
            confidence=(self.confidence, "F V"),
            label=(self.label, "B"),
            index=(self.index, "B"),
        )
        checks.shapes("PoseBatch", offsets=(self.offsets, str(self.size + 1)))
        checks.dtype("PoseBatch", torch.int64, offsets=self.offsets, label=self.label, index=self.index)
        clips = str(self.size)
        if self.rgb is not None:
            shape = checks.shapes("PoseBatch", rgb=(self.rgb, f"{clips} 3 T H W"))
            checks.dtype("PoseBatch", torch.uint8, rgb=self.rgb)
            clips += f" {shape['T']} {shape['H']} {shape['W']}"
        if self.rgb_mask is not None:
            checks.require(self.rgb is not None, "PoseBatch", "rgb_mask", "come with rgb", "none")
            checks.shapes("PoseBatch", rgb_mask=(self.rgb_mask, clips))
            checks.dtype("PoseBatch", torch.bool, rgb_mask=self.rgb_mask)
        both = (self.tokens is None) == (self.token_lengths is None)
        checks.require(both, "PoseBatch", "tokens", "come with token_lengths", "one of them")
        if self.tokens is not None and self.token_lengths is not None:
            checks.shapes("PoseBatch", tokens=(self.tokens, f"{self.size} L"))
            checks.shapes("PoseBatch", token_lengths=(self.token_lengths, str(self.size)))
            checks.dtype("PoseBatch", torch.int64, tokens=self.tokens, token_lengths=self.token_lengths)

    @property
    def size(self) -> int:
        """B."""
        return self.label.shape[0]

    @property
    def num_keypoints(self) -> int:
        """V, the layout."""
        return self.xy.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Frames of every clip, int64 [B]."""
        return self.offsets[1:] - self.offsets[:-1]

    def require_layout(self, op: str, keypoints: int) -> None:
        """ValueError unless the clips are in the layout that ``op`` is made for."""
        hint = f"pre-process with layout={keypoints}"
        same = self.num_keypoints == keypoints
        checks.require(same, op, "batch", f"have layout {keypoints}", self.num_keypoints, hint)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PoseBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PoseBatch:
        """The same batch in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change) -> PoseBatch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})

    @classmethod
    def collate(cls, clips: Sequence[Clip]) -> PoseBatch:
        """Pack clips; the ``collate_fn`` of a DataLoader over any slrfast data set.

        Either all clips have ``rgb`` (and ``rgb_mask``), of one shape, or none; a batch has ``tokens`` if a clip has.

        >>> clip = Clip(torch.zeros(3, 49, 2), torch.zeros(3, 49), label=7)
        >>> PoseBatch.collate([clip, clip]).offsets
        tensor([0, 3, 6])
        """
        checks.require(len(clips) > 0, "PoseBatch.collate", "clips", "hold at least one clip", len(clips))
        layouts = sorted({clip.xy.shape[1] for clip in clips})
        checks.require(len(layouts) == 1, "PoseBatch.collate", "clips", "all have the same layout", layouts)
        lengths = torch.tensor([0, *(clip.num_frames for clip in clips)])
        texts = [clip.tokens if clip.tokens is not None else torch.zeros(0, dtype=torch.int64) for clip in clips]
        written = any(clip.tokens is not None for clip in clips)
        return cls(
            torch.cat([clip.xy for clip in clips]).float(),
            torch.cat([clip.confidence for clip in clips]).float(),
            lengths.cumsum(0),
            torch.tensor([clip.label for clip in clips]),
            torch.tensor([clip.index for clip in clips]),
            _stacked(clips, "rgb"),
            _stacked(clips, "rgb_mask"),
            nn.utils.rnn.pad_sequence(texts, batch_first=True) if written else None,
            torch.tensor([len(text) for text in texts]) if written else None,
        )

    @classmethod
    def random(
        cls,
        size: int,
        *,
        min_frames: int = 25,
        max_frames: int = 90,
        seed: int = 0,
        num_classes: int = 10,
        keypoints: int = 49,
    ) -> PoseBatch:
        """A batch of noise for tests and timings: positions in [0, 1), about a tenth of the joints missing.

        Args:
            size: B.
            min_frames: shortest clip.
            max_frames: longest clip.
            seed: the same seed gives the same batch.
            num_classes: labels are in [0, num_classes).
            keypoints: V.

        >>> PoseBatch.random(4, min_frames=5, max_frames=5).lengths
        tensor([5, 5, 5, 5])
        """
        checks.integer_between(
            "PoseBatch.random", 1, 1 << 20, size=size, min_frames=min_frames, num_classes=num_classes
        )
        checks.integer_between("PoseBatch.random", min_frames, 1 << 20, max_frames=max_frames)
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(min_frames, max_frames + 1, (size,), generator=generator)
        offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
        frames = int(offsets[-1])
        confidence = torch.rand(frames, keypoints, generator=generator)
        confidence = torch.where(confidence < 0.1, 0, confidence)
        xy = torch.rand(frames, keypoints, 2, generator=generator) * (confidence > 0)[..., None]
        label = torch.randint(num_classes, (size,), generator=generator)
        return cls(xy, confidence, offsets, label, torch.arange(size))


def _stacked(clips: Sequence[Clip], name: str) -> Tensor | None:
    """The pictures of all clips, None if no clip has any."""
    found = [getattr(clip, name) for clip in clips]
    shapes = {None if one is None else tuple(one.shape) for one in found}
    checks.require(
        len(shapes) == 1, "PoseBatch.collate", "clips", f"all have {name} of one shape", sorted(map(str, shapes))
    )
    return None if found[0] is None else torch.stack(found)
