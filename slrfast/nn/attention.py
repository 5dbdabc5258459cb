"""Transformers over frames and attention pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks


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

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2).flatten(2)
        x = self.norm_attention(x + self.dropout(self.out(attended)))
        return self.norm_ffn(x + self.dropout(self.ffn_out(F.gelu(self.ffn_in(x)))))


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

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return x


class AttentionPool(nn.Module):
    """Weighted sum over a sequence, with weights softmax(Linear(x)) over the positions that are not masked."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool [B, S, dim] -> [B, dim].

        Args:
            x: the sequence.
            mask: bool [B, S], True where a position counts; a row without any True is averaged uniformly.
        """
        score = self.score(x).squeeze(-1)
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        if mask is not None:
            score = score.masked_fill(~mask, -1e9)
        return torch.einsum("bs,bsd->bd", score.softmax(-1).to(x.dtype), x)
