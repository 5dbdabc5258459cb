"""Transformers over frames and attention pooling, over clips of equal length [B, T, D] or packed ones [S, D]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks
from slrfast.nn.packed import Packing, packing_of

_NEVER = -1e4  # added to the score of a position that is not attended to: no weight, unless none has any


class TransformerBlock(nn.Module):
    """Post-norm transformer block: x1 = LN(x + drop(Wo MHSA(x))), y = LN(x1 + drop(W2 gelu(W1 x1))).

    Dropout also acts on the attention weights. Attention is torch's ``scaled_dot_product_attention``.
    """

    def __init__(self, dim: int, heads: int, ffn: int, dropout: float = 0.1, eps: float = 1e-12) -> None:
        super().__init__()
        checks.require(dim % heads == 0, "TransformerBlock", "dim", f"be a multiple of heads = {heads}", dim)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ffn_in = nn.Linear(dim, ffn)
        self.ffn_out = nn.Linear(ffn, dim)
        self.norm_attention = nn.LayerNorm(dim, eps=eps)
        self.norm_ffn = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)
        for weight in (*self.qkv.weight.chunk(3), self.out.weight, self.ffn_in.weight, self.ffn_out.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, offsets: Tensor | Packing | None = None, keys: Tensor | None = None) -> Tensor:
        """[B, T, dim] -> [B, T, dim], or packed clips [S, dim] -> [S, dim]; arguments as of PoseTransformer."""
        packing = _packing("TransformerBlock", x, self.out.in_features, offsets)
        mask = None if keys is None else _bias("TransformerBlock", x, keys, packing)
        return self._forward(x, packing, mask)

    def _forward(self, x: Tensor, packing: Packing | None, mask: Tensor | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        mask = None if mask is None else mask.to(qkv.dtype)
        dropout = self.dropout.p if self.training else 0.0
        attended = _self_attention(qkv, dropout, mask) if packing is None else _packed_attention(qkv, packing, dropout)
        x = self.norm_attention(x + _drop(self.out(attended), dropout))
        return self.norm_ffn(x + _drop(self.ffn_out(F.gelu(self.ffn_in(x))), dropout))


def _drop(x: Tensor, dropout: float) -> Tensor:
    """Dropout that keeps one byte per element for the backward pass; F.dropout keeps four on a CPU."""
    return torch.native_dropout(x, dropout, True)[0] if dropout else x


def _self_attention(qkv: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
    """Queries, keys and values [B, T, 3, H, d] -> [B, T, H * d]; mask [B, 1, 1, T]: bool, or added to the scores."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    if dropout and mask is None and qkv.device.type == "cpu" and qkv.dtype in (torch.float32, torch.float64):
        # on a CPU torch has no fused attention with dropout, and its equations take more passes than these, which are
        # the same down to the random numbers
        weights = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1)
        attended = _drop(weights, dropout) @ value
    else:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


def _packed_attention(qkv: Tensor, packing: Packing, dropout: float) -> Tensor:
    """Attention within every clip, packed [S, 3, H, d] -> [S, H * d]."""
    if packing.num_clips * packing.longest == packing.num_rows:  # all of one length
        return _self_attention(qkv.unflatten(0, (packing.num_clips, packing.longest)), dropout).flatten(0, 1)
    if qkv.device.type == "cpu":
        clips = [clip for clip in qkv.split(packing.lengths) if len(clip)]
        return torch.cat([_self_attention(clip.unsqueeze(0), dropout)[0] for clip in clips])
    return _padded_attention(qkv, packing, dropout)


def _padded_attention(qkv: Tensor, packing: Packing, dropout: float) -> Tensor:
    """The same in one call over padded clips, for devices where a call costs more than the padding."""
    return packing.unpad(_self_attention(packing.pad(qkv), dropout, packing.present[:, None, None]))


def _packing(op: str, x: Tensor, dim: int, offsets: Tensor | Packing | None) -> Packing | None:
    """The packing of [S, dim], or None for [B, T, dim], after checks that name ``op``."""
    checks.shapes(op, x=(x, f"B T {dim}" if offsets is None else f"S {dim}"))
    return None if offsets is None else packing_of(op, x, offsets)


def _bias(op: str, x: Tensor, keys: Tensor, packing: Packing | None) -> Tensor:
    """What is added to the scores of every position, [B, 1, 1, T], after checks that name ``op``."""
    checks.require(packing is None, op, "keys", "be left out for packed clips", list(keys.shape))
    checks.shapes(op, x=(x, "B T D"), keys=(keys, "B T"))
    checks.dtype(op, torch.bool, keys=keys)
    return torch.where(keys, 0.0, _NEVER)[:, None, None]


class PoseTransformer(nn.Module):
    """Input LayerNorm and a stack of post-norm blocks, without positional encoding.

    Args:
        dim: width of a frame's vector.
        heads: attention heads.
        ffn: width of the feed-forward layer.
        layers: number of blocks.
        dropout: on attention weights, after the output projection and after the feed-forward layer.
        eps: of every LayerNorm.
    """

    def __init__(
        self, dim: int, heads: int = 8, ffn: int = 1536, layers: int = 3, dropout: float = 0.1, eps: float = 1e-12
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, ffn, dropout, eps) for _ in range(layers))

    def forward(self, x: Tensor, offsets: Tensor | Packing | None = None, keys: Tensor | None = None) -> Tensor:
        """[B, T, dim] -> [B, T, dim], or packed clips [S, dim] -> [S, dim].

        Args:
            x: one vector per frame.
            offsets: None for [B, T, dim]; for [S, dim] the int64 [B + 1] of ``data.PoseBatch``, or their Packing. A
                frame attends to those of its own clip.
            keys: bool [B, T], True for the positions that are attended to, None for all; in a clip without any True
                all are. Only for [B, T, dim].
        Raises:
            TypeError, ValueError: shapes that do not fit, offsets that do not rise from 0 to S, or ``keys`` that are
                not bool or come with offsets.
        """
        op = "PoseTransformer"
        packing = _packing(op, x, self.norm.normalized_shape[0], offsets)
        mask = None if keys is None else _bias(op, x, keys, packing)
        x = self.norm(x)
        for block in self.blocks:
            x = block._forward(x, packing, mask)  # type: ignore[operator]
        return x


class AttentionPool(nn.Module):
    """Weighted sum over a sequence, with weights softmax(Linear(x)) over the positions that are not masked.

    The softmax runs in float32 also for half types and under autocast. What a masked position holds does not matter,
    not even a NaN; but a sequence without any position that counts is averaged uniformly.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None, offsets: Tensor | Packing | None = None) -> Tensor:
        """Pool [B, T, dim] -> [B, dim], or packed sequences [S, dim] -> [B, dim].

        Args:
            x: the sequences, of at least one position.
            mask: bool [B, T] or [S], True where a position counts; a sequence without any True is averaged uniformly.
            offsets: None for [B, T, dim]; for [S, dim] the int64 [B + 1] of ``data.PoseBatch``, or their Packing.
        Raises:
            TypeError, ValueError: shapes that do not fit, a mask that is not bool, offsets that do not rise from 0 to
                S, or an empty sequence.
        """
        op = "AttentionPool"
        packing = _packing(op, x, self.score.in_features, offsets)
        if mask is not None:
            sizes = "B T" if packing is None else "S"
            checks.shapes(op, x=(x, f"{sizes} D"), mask=(mask, sizes))
            checks.dtype(op, torch.bool, mask=mask)
            some = mask.any(1, keepdim=True) if packing is None else packing.pad(mask).any(1)[packing.clip]
            x = x.masked_fill((some & ~mask).unsqueeze(-1), 0.0)  # or 0 * NaN, here and in the gradient of the scores
        score = self.score(x).squeeze(-1)
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        if mask is not None:
            score = score.masked_fill(~mask, -1e9)
        if packing is None:
            checks.require(x.shape[1] > 0, op, "x", "have at least one position", list(x.shape))
        else:
            empty = [clip for clip, length in enumerate(packing.lengths) if length == 0]
            checks.require(not empty, op, "offsets", "leave no clip empty", f"no frame for clip {(*empty, 0)[0]}")
            x, score = packing.pad(x), packing.pad(score).masked_fill(~packing.present, float("-inf"))
        return (score.softmax(-1).to(x.dtype).unsqueeze(1) @ x).squeeze(1)
