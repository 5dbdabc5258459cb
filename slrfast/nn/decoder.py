"""A transformer decoder of tokens over the frames of clips, with a cache for decoding a token at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slrfast import checks
from slrfast.nn.attention import _drop
from slrfast.nn.packed import Packing
from slrfast.nn.positions import sinusoidal_positions


class Memory(NamedTuple):
    """What the decoder reads of B clips: the keys and values of every block's cross-attention, computed once.

    Attributes:
        layers: per block [2, B, H, T, d], keys and values of the frames.
        present: bool [B, 1, 1, T], which frames are no padding; None if all are.
    """

    layers: tuple[Tensor, ...]
    present: Tensor | None


class DecoderBlock(nn.Module):
    """Post-norm block: a = LN(x + drop(self-attention(x))), b = LN(a + drop(cross-attention(a, frames))),
    y = LN(b + drop(W2 gelu(W1 b))). Self-attention is causal; attention is torch's ``scaled_dot_product_attention``.
    """

    def __init__(self, dim: int, heads: int, ffn: int, dropout: float, eps: float) -> None:
        super().__init__()
        checks.require(dim % heads == 0, "TokenDecoder", "dim", f"be a multiple of heads = {heads}", dim)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim)
        self.frames = nn.Linear(dim, 2 * dim)
        self.out_frames = nn.Linear(dim, dim)
        self.ffn_in = nn.Linear(dim, ffn)
        self.ffn_out = nn.Linear(ffn, dim)
        self.norm_attention, self.norm_frames, self.norm_ffn = (nn.LayerNorm(dim, eps=eps) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        for weight in (*self.qkv.weight.chunk(3), *self.frames.weight.chunk(2)):
            nn.init.xavier_uniform_(weight)
        for linear in (self.out, self.query, self.out_frames, self.ffn_in, self.ffn_out):
            nn.init.xavier_uniform_(linear.weight)

    def keys_values(self, frames: Tensor) -> Tensor:
        """[B, T, dim] -> [2, B, H, T, d]."""
        return self.frames(frames).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(
        self, x: Tensor, memory: Tensor, present: Tensor | None, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One block.

        Args:
            x: [R, L, dim]; R is B, or B times the hypotheses of every clip.
            memory: [2, B, H, T, d].
            present: bool [B, 1, 1, T] or None.
            past: [2, R, H, t, d], what the block returned for the tokens before; L must be 1 then.
        Returns:
            [R, L, dim], and the keys and values of all tokens so far [2, R, H, t + L, d].
        """
        dropout = self.dropout.p if self.training else 0.0
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        own = qkv[1:] if past is None else torch.cat((past, qkv[1:]), -2)
        attended = F.scaled_dot_product_attention(
            qkv[0], own[0], own[1], dropout_p=dropout, is_causal=past is None and x.shape[1] > 1
        )
        x = self.norm_attention(x + _drop(self.out(attended.transpose(1, 2).flatten(2)), dropout))
        # the hypotheses of a clip are more queries to the same frames, whose keys need no copies
        query = self.query(x).unflatten(0, (memory.shape[1], -1)).flatten(1, 2).unflatten(-1, (self.heads, -1))
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2), memory[0], memory[1], attn_mask=present, dropout_p=dropout
        )
        x = self.norm_frames(x + _drop(self.out_frames(attended.transpose(1, 2).reshape(x.shape)), dropout))
        return self.norm_ffn(x + _drop(self.ffn_out(F.gelu(self.ffn_in(x))), dropout)), own


class DecoderCache:
    """The state of decoding token by token: the clips' memory and what self-attention has seen of every hypothesis.

    Attributes:
        memory: of B clips.
        length: tokens so far.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.length = 0
        self.layers: list[Tensor | None] = [None] * len(memory.layers)

    def select(self, rows: Tensor) -> None:
        """Go on from these rows, int64 [R], of the last step's; hypotheses of a clip stay behind each other."""
        self.layers = [layer if layer is None else layer.index_select(1, rows) for layer in self.layers]


class TokenDecoder(nn.Module):
    """Embedding, sinusoidal positions, post-norm blocks, and logits by the embedding's own weights (tied).

    Args:
        vocabulary: number of tokens.
        dim: width; an even multiple of ``heads``.
        heads, ffn, layers, dropout, eps: as of PoseTransformer; dropout also acts on the embedded tokens.

    >>> decoder = TokenDecoder(10, dim=8, heads=2, ffn=16).eval()
    >>> memory = decoder.read(torch.randn(5, 8), Packing.of(torch.tensor([0, 2, 5])))
    >>> decoder(torch.tensor([[1, 4, 7], [1, 5, 0]]), memory).shape
    torch.Size([2, 3, 10])
    >>> decoder.step(torch.tensor([1, 1]), DecoderCache(memory)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int = 512,
        heads: int = 8,
        ffn: int = 2048,
        layers: int = 3,
        dropout: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        checks.integer_between("TokenDecoder", 2, 1 << 31, vocabulary=vocabulary, dim=dim)
        checks.integer_between("TokenDecoder", 1, 1 << 10, layers=layers, heads=heads)
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.blocks = nn.ModuleList(DecoderBlock(dim, heads, ffn, dropout, eps) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def read(self, frames: Tensor, packing: Packing) -> Memory:
        """The memory of packed clips [S, dim], each of at least one frame.

        Raises:
            TypeError, ValueError: shapes that do not fit, or a clip without frames.
        """
        sizes = checks.shapes("TokenDecoder", frames=(frames, f"S {self.embedding.embedding_dim}"))
        checks.require(
            packing.num_rows == sizes["S"], "TokenDecoder", "packing", f"be of {sizes['S']} rows", packing.num_rows
        )
        shortest = min(packing.lengths, default=1)
        checks.require(shortest > 0, "TokenDecoder", "frames", "have at least one frame in every clip", shortest)
        padded = packing.pad(frames)
        ragged = packing.num_clips * packing.longest != packing.num_rows
        layers = tuple(block.keys_values(padded) for block in self.blocks)  # type: ignore[operator]
        return Memory(layers, packing.present[:, None, None] if ragged else None)

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Logits of the token behind every token, [B, L, vocabulary]; :meth:`hidden` states the arguments."""
        return self.logits(self.hidden(tokens, memory))

    def hidden(self, tokens: Tensor, memory: Memory) -> Tensor:
        """The last block's output [B, L, dim], for :meth:`logits`; position i sees tokens 0 to i.

        Args:
            tokens: int64 [B, L], the first is <bos>; what stands behind a text changes nothing before it.
            memory: of the B clips.
        Raises:
            TypeError, ValueError: shapes or a dtype that do not fit.
        """
        clips = memory.layers[0].shape[1]
        checks.shapes("TokenDecoder", tokens=(tokens, f"{clips} L"))
        checks.dtype("TokenDecoder", torch.int64, tokens=tokens)
        x = self._embed(tokens, 0)
        for block, frames in zip(self.blocks, memory.layers, strict=True):
            x, _ = block(x, frames, memory.present)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., vocabulary]."""
        return F.linear(hidden, self.embedding.weight)

    def step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits [R, vocabulary] behind the next token of every hypothesis, which the cache is extended by.

        Args:
            tokens: int64 [R], R a multiple of the memory's B clips; the hypotheses of a clip are behind each other.
            cache: of ``DecoderCache(memory)``; changed in place.
        """
        x = self._embed(tokens.unsqueeze(1), cache.length)
        for i, block in enumerate(self.blocks):
            x, cache.layers[i] = block(x, cache.memory.layers[i], cache.memory.present, cache.layers[i])
        cache.length += 1
        return self.logits(x.squeeze(1))

    def _embed(self, tokens: Tensor, first: int) -> Tensor:
        weight = self.embedding.weight
        dim = weight.shape[1]
        positions = sinusoidal_positions(first + tokens.shape[1], dim, device=weight.device, dtype=weight.dtype)
        return self.dropout(self.embedding(tokens) * dim**0.5 + positions[first:])
