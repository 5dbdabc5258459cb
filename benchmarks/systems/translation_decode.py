"""Beam search with four beams through SLP's 3-block decoder, by number of tokens: with the cache of keys and values,
against ``torch.nn.TransformerDecoder`` over all tokens so far in every step, on frames repeated for every beam.

Both are driven by the same search and the same weights; <eos> is forbidden, so that every search has its full length.
Compared along hypotheses that are drawn beforehand, tokens and parents, because a search takes another turn where two
of its candidates are nearly the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, as_test, main
from slrfast.nn import DecoderCache, Packing, TokenDecoder, sinusoidal_positions
from slrfast.tasks.beam_search import Step, beam_search

OP = "translation_decode"
LENGTHS = (8, 16, 32)
CLIPS = {"cpu": 2, "cuda": 32}
FRAMES, DIM, HEADS, FFN, LAYERS, VOCABULARY, BEAMS = 100, 512, 8, 2048, 3, 3000, 4
BOS, EOS = 1, 2


def cached(decoder: TokenDecoder, frames: Tensor) -> Step:
    """slrfast: one token of every hypothesis a step; the clips' keys and values are computed once."""
    clips, packing = len(frames), Packing.of(torch.arange(len(frames) + 1, device=frames.device) * frames.shape[1])
    cache = DecoderCache(decoder.read(frames.flatten(0, 1), packing))
    first = torch.arange(clips, device=frames.device)[:, None] * BEAMS

    def step(tokens: Tensor, parents: Tensor) -> Tensor:
        cache.select((first + parents).flatten())
        return decoder.step(tokens.flatten(), cache).log_softmax(-1).view(clips, BEAMS, -1)

    return step


def prefix(decoder: TokenDecoder, blocks: nn.TransformerDecoder, frames: Tensor) -> Step:
    """The field: the whole decoder over all tokens so far."""
    repeated = frames.repeat_interleave(BEAMS, 0)
    weight, texts = (
        decoder.embedding.weight,
        torch.zeros(len(frames), BEAMS, 0, dtype=torch.int64, device=frames.device),
    )

    def step(tokens: Tensor, parents: Tensor) -> Tensor:
        nonlocal texts
        texts = texts.gather(1, parents.unsqueeze(2).expand(-1, -1, texts.shape[2]))
        texts = torch.cat((texts, tokens.unsqueeze(2)), 2)
        length = texts.shape[2]
        positions = sinusoidal_positions(length, weight.shape[1], device=weight.device, dtype=weight.dtype)
        x = decoder.embedding(texts.flatten(0, 1)) * weight.shape[1] ** 0.5 + positions
        causal = nn.Transformer.generate_square_subsequent_mask(length, weight.device, weight.dtype)
        hidden = blocks(x, repeated, tgt_mask=causal, tgt_is_causal=True)[:, -1]
        return (hidden @ weight.mT).log_softmax(-1).view(*tokens.shape, -1)

    return step


def torch_decoder(decoder: TokenDecoder) -> nn.TransformerDecoder:
    """torch's decoder with the weights of ours."""
    dim, heads, ffn = decoder.embedding.embedding_dim, decoder.blocks[0].heads, decoder.blocks[0].ffn_in.out_features
    layer = nn.TransformerDecoderLayer(dim, heads, ffn, 0.0, "gelu", batch_first=True)
    made = nn.TransformerDecoder(layer, len(decoder.blocks)).eval()
    for theirs, ours in zip(made.layers, decoder.blocks, strict=True):
        pairs = (
            *((theirs.self_attn.out_proj, ours.out), (theirs.multihead_attn.out_proj, ours.out_frames)),
            *((theirs.linear1, ours.ffn_in), (theirs.linear2, ours.ffn_out), (theirs.norm1, ours.norm_attention)),
            *((theirs.norm2, ours.norm_frames), (theirs.norm3, ours.norm_ffn)),
        )
        for module, own in pairs:
            module.load_state_dict(own.state_dict())
        for name in ("weight", "bias"):
            projections = [getattr(linear, name).data for linear in (ours.query, ours.frames)]
            getattr(theirs.self_attn, f"in_proj_{name}").data.copy_(getattr(ours.qkv, name).data)
            getattr(theirs.multihead_attn, f"in_proj_{name}").data.copy_(torch.cat(projections))
    return made.to(decoder.embedding.weight.device)


@torch.no_grad()
def search(make: Callable[[], Step], clips: int, length: int, device: str) -> list[Tensor]:
    step = make()

    def endless(tokens: Tensor, parents: Tensor) -> Tensor:
        log_p = step(tokens, parents)
        log_p[..., EOS] = -torch.inf
        return log_p

    return [beam_search(endless, clips, bos=BOS, eos=EOS, beams=BEAMS, max_length=length, device=device).tokens]


@torch.no_grad()
def along(make: Callable[[], Step], script: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The log-probabilities of the last token, where the search is told what to choose."""
    step = make()
    for tokens, parents in zip(*script, strict=True):
        log_p = step(tokens, parents)
    return [log_p]


def cases(device: str) -> Iterator[Case]:
    torch.manual_seed(0)
    clips = CLIPS[device]
    decoder = TokenDecoder(VOCABULARY, DIM, HEADS, FFN, LAYERS).to(device).eval()
    blocks, frames = torch_decoder(decoder), torch.randn(clips, FRAMES, DIM, device=device)
    makes: dict[str, Callable[[], Step]] = {
        "slrfast": lambda: cached(decoder, frames),
        "eager": lambda: prefix(decoder, blocks, frames),
    }
    wide = copy.deepcopy(decoder).double()
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    for length in LENGTHS:
        script = (
            torch.randint(3, VOCABULARY, (length, clips, BEAMS), device=device),
            torch.randint(BEAMS, (length, clips, BEAMS), device=device),
        )
        yield Case(
            name=f"{length} tokens, {clips} clips, {BEAMS} beams",
            shapes={"frames": tuple(frames.shape), "logits": (clips * BEAMS, VOCABULARY), "tokens": (length,)},
            candidates={
                name: lambda make=make, length=length: search(make, clips, length, device)  # type: ignore[misc]
                for name, make in makes.items()
            },
            checked={
                name: lambda make=make, script=script: along(make, script)  # type: ignore[misc]
                for name, make in makes.items()
            },
            truth=lambda script=script: along(  # type: ignore[misc]
                lambda: prefix(wide, torch_decoder(wide).double(), frames.double()), script
            ),
            rounding=1e-6,
            flops=2 * parameters * clips * BEAMS * length,
            bytes=decoder.embedding.weight.element_size() * parameters * length,
            device=device,
        )


test_translation_decode = as_test(OP, cases)

if __name__ == "__main__":
    main(OP, cases)
