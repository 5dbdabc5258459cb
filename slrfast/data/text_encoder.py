"""SLP's frozen text encoder: mBART's, from a folder or the hub, its features kept on disk once per sentence."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from slrfast import checks
from slrfast.data.cache import Cache, CacheError, files_fingerprint
from slrfast.data.text_files import (
    CONFIG,
    EMBEDDING,
    LANGUAGES,
    PIECES,
    PREFIXES,
    SAFE,
    SHARED,
    TextEncoderError,
    build,
    checked,
    find,
    read_config,
    read_vocabulary,
    read_weights,
    weight_files,
)
from slrfast.errors import CheckpointError, one_line
from slrfast.files import replacing

MAX_TOKENS = 128


class TextEncoder:
    """An mBART encoder whose weights never change: sentence -> tokens -> features.

    Tokens are the sentence's, then <eos>, then its language (SLP III-C, mBART's convention; ``language_first`` puts the
    language in front, as mBART-50 was trained), at most ``max_tokens`` with these two. It is no ``nn.Module``, so a
    system that holds one has none of its parameters. The weights are read when features are first computed: with a
    filled cache, never.

    Args:
        path: a folder with config.json (model_type mbart), model.safetensors or pytorch_model.bin, and
            sentencepiece.bpe.model or tokenizer.json; or a name on the hub, such as "facebook/mbart-large-50".
        cache: a folder that keeps the features, as bfloat16, once per sentence; created if missing.
        max_tokens: longer sentences are cut.
        language_first: language, tokens, <eos> instead of tokens, <eos>, language.
    Attributes:
        dim: size of a feature.
        languages: the codes that a sentence may have, such as "de_DE".
        device: where features are computed.
    Raises:
        TextEncoderError: there is no text encoder at the path, it is not mBART's, or transformers is not installed.
        CacheError: the cache was made with another tokenizer or text encoder, or is damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     encoder = tiny_text_encoder(folder, ["rain at night .", "regen in der nacht ."])
    ...     tokens = encoder.tokenize("rain in der nacht .", "de")
    ...     encoder(tokens[None], torch.tensor([len(tokens)])).shape[2]
    32
    """

    def __init__(
        self,
        path: str | os.PathLike,
        cache: str | os.PathLike | None = None,
        *,
        max_tokens: int = MAX_TOKENS,
        language_first: bool = False,
    ) -> None:
        for package in ("transformers", "sentencepiece", "tokenizers"):
            if find_spec(package) is None:
                raise TextEncoderError(f"a text encoder needs the package {package}: pip install 'slrfast[text]'")
        self._folder = find(path)
        self._config = read_config(self._folder)
        self._weights = weight_files(self._folder)
        self._vocabulary = read_vocabulary(self._folder, self._config["vocab_size"])
        checks.integer_between("TextEncoder", 3, self._config["max_position_embeddings"], max_tokens=max_tokens)
        self.dim, self.max_tokens, self.language_first = self._config["d_model"], max_tokens, language_first
        self.languages = tuple(self._vocabulary.languages)
        self.device = torch.device("cpu")
        self._cache: Cache | None = None
        if cache is not None:
            self.keep_in(cache)

    def keep_in(self, folder: str | os.PathLike) -> None:
        """Keep features in this folder from now on, as with ``cache``."""
        self._cache = Cache(folder, "text features", self.fingerprints)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the tokenizer's file and of the weights' files and config."""
        config = json.dumps(self._config, sort_keys=True).encode()
        try:
            tokenizer = files_fingerprint([self._vocabulary.path])
            weights = files_fingerprint(self._weights)
        except OSError as error:
            raise TextEncoderError(f"{self._folder}: cannot be read ({error.strerror or error})") from error
        return {"tokenizer": tokenizer, "text encoder": Cache.key(config, weights.encode()).hex()}

    @cached_property
    def fingerprint(self) -> str:
        """One SHA-256 of everything that features depend on."""
        order = f"{self.max_tokens} {self.language_first}"
        return Cache.key(*(value.encode() for value in (*self.fingerprints.values(), order))).hex()

    def to(self, device: torch.device | str) -> TextEncoder:
        """Compute on another device from now on; returns itself."""
        self.device = torch.device(device)
        if "_encoder" in self.__dict__:
            self._encoder.to(self.device)
        return self

    def language(self, code: str) -> str:
        """The encoder's code for "de_DE" or just "de"; ValueError if it has none."""
        if isinstance(code, str):
            alike = [known for known in self.languages if known == code or known.split("_")[0] == code]
            if len(alike) == 1:
                return alike[0]
        known = ", ".join(self.languages)
        raise ValueError(checks.message("TextEncoder", "language", f"be one of {known}", repr(code)[:40]))

    def tokenize(self, sentence: str, language: str) -> Tensor:
        """Token ids int64 [L], L <= ``max_tokens``; warns if the sentence is cut.

        Args:
            sentence: not empty; line ends and repeated blanks count as one blank.
            language: "de_DE" or "de".
        Raises:
            ValueError: the sentence is empty, or its language is none of the encoder's.
        """
        tokens, left_out = self.cut(sentence, language)
        if left_out:
            count = len(tokens) + left_out
            note = f"TextEncoder: {left_out} of a text's {count} tokens were left out, max_tokens is {self.max_tokens}"
            warnings.warn(note, stacklevel=2)
        return tokens

    def cut(self, sentence: str, language: str) -> tuple[Tensor, int]:
        """What :meth:`tokenize` gives, and how many tokens were left out, without a warning."""
        if not isinstance(sentence, str):
            raise TypeError(checks.message("TextEncoder", "sentence", "be a text", type(sentence).__name__))
        code = self._vocabulary.languages[self.language(language)]
        plain = " ".join(sentence.encode("utf-8", "replace").decode("utf-8").split())
        pieces = self._vocabulary.encode(plain)
        checks.require(len(pieces) > 0, "TextEncoder", "sentence", "not be empty", repr(sentence[:40]))
        kept = pieces[: self.max_tokens - 2]
        ends = [code, *kept, self._vocabulary.eos] if self.language_first else [*kept, self._vocabulary.eos, code]
        return torch.tensor(ends), len(pieces) - len(kept)

    def __call__(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Features of sentences, on the tokens' device, without gradient; a cache is asked first and gets the rest.

        With a cache the features are rounded to bfloat16, whether they were there or not, and the tokens are brought to
        the CPU (which waits for a GPU).

        Args:
            tokens: int64 [B, L], as ``PoseBatch.tokens``.
            token_lengths: int64 [B], 0 where there is no text.
        Returns:
            float32 [B, L, dim], zeros beyond a text's length.
        """
        sizes = checks.shapes("TextEncoder", tokens=(tokens, "B L"), token_lengths=(token_lengths, "B"))
        checks.dtype("TextEncoder", torch.int64, tokens=tokens, token_lengths=token_lengths)
        ids, lengths = tokens.detach().cpu(), token_lengths.detach().cpu()
        checks.lengths("TextEncoder", sizes["L"], lengths)
        out = torch.zeros(sizes["B"], sizes["L"], self.dim)
        rows = lengths.nonzero()[:, 0].tolist()
        sentences = [ids[row, : lengths[row]] for row in rows]
        if self._cache is None:
            found = self._compute(sentences)
        else:
            keys = [_key(sentence) for sentence in sentences]
            self._keep({key: sentence for key, sentence in zip(keys, sentences, strict=True) if key not in self._cache})
            found = [self._read(key) for key in keys]
        for row, features in zip(rows, found, strict=True):
            out[row, : len(features)] = features
        return out.to(tokens.device)

    def fill(self, sentences: Iterable[Tensor], batch_size: int = 32, progress: bool = False) -> int:
        """Put the features of these sentences (as :meth:`tokenize` gives them) into the cache, shortest first.

        Interrupted, the same call goes on where it stopped.

        Returns:
            How many were not there.
        """
        checks.integer_between("TextEncoder.fill", 1, 1 << 16, batch_size=batch_size)
        checks.require(self._cache is not None, "TextEncoder.fill", "cache", "be given to the encoder", None)
        assert self._cache is not None
        missing = {key: one for one in sentences if len(one) and (key := _key(one)) not in self._cache}
        order = sorted(missing, key=lambda key: (len(missing[key]), key))
        bar = tqdm(None, "encoding texts", len(order), unit=" texts", disable=not progress)
        with bar:
            for start in range(0, len(order), batch_size):
                together = order[start : start + batch_size]
                self._keep({key: missing[key] for key in together})
                bar.update(len(together))
        return len(order)

    def _keep(self, missing: dict[bytes, Tensor]) -> None:
        if missing:
            assert self._cache is not None
            features = [
                one.bfloat16().view(torch.int16).numpy().tobytes() for one in self._compute([*missing.values()])
            ]
            self._cache.put(dict(zip(missing, features, strict=True)))

    def _read(self, key: bytes) -> Tensor:
        assert self._cache is not None
        value = self._cache.get(key)
        if value is None or not len(value) or len(value) % (2 * self.dim):
            raise CacheError(f"{self._cache.folder}: is damaged, a text's features have another size than {self.dim}")
        return torch.from_numpy(np.array(value)).view(torch.bfloat16).view(-1, self.dim).float()

    @torch.no_grad()
    def _compute(self, sentences: Sequence[Tensor]) -> list[Tensor]:
        """Features [L, dim] of every sentence, on the CPU."""
        if not sentences:
            return []
        top = max(int(sentence.max()) for sentence in sentences)
        low = min(int(sentence.min()) for sentence in sentences)
        size = self._config["vocab_size"]
        checks.require(0 <= low <= top < size, "TextEncoder", "tokens", f"be in [0, {size - 1}]", (low, top))
        longest, limit = max(map(len, sentences)), self._config["max_position_embeddings"]
        checks.require(longest <= limit, "TextEncoder", "tokens", f"be at most {limit} a text", longest)
        ids = torch.nn.utils.rnn.pad_sequence(
            list(sentences), batch_first=True, padding_value=self._config["pad_token_id"]
        )
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        seen = torch.arange(longest) < lengths[:, None]
        with torch.autocast(self.device.type, enabled=False):  # whatever surrounds it, a feature is what it is
            given = {"input_ids": ids.to(self.device), "attention_mask": seen.long().to(self.device)}
            features = self._encoder(**given).last_hidden_state.float().cpu()
        return [one[:length] for one, length in zip(features, lengths.tolist(), strict=True)]

    @cached_property
    def _encoder(self) -> torch.nn.Module:
        with torch.device("meta"):
            encoder = build(self._config)
        names = encoder.state_dict().keys()  # old checkpoints hold more, such as "version"
        tensors = {name: one for name, one in read_weights(self._folder, self._weights).items() if name in names}
        try:
            encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        except RuntimeError as error:
            why = " ".join(one_line(str(error)).split())[:200]
            raise TextEncoderError(f"{self._folder}: the weights do not fit config.json ({why})") from error
        return encoder.eval().requires_grad_(False).to(self.device)


def tiny_text_encoder(
    folder: str | os.PathLike,
    sentences: Iterable[str],
    seed: int = 0,
    *,
    cache: str | os.PathLike | None = None,
    dim: int = 32,
    layers: int = 2,
    vocabulary: int = 1000,
) -> TextEncoder:
    """Make a text encoder for trials where none can be downloaded: pieces learned from the sentences, random weights.

    Its files are those of mBART-50, with the same 52 languages.

    Args:
        folder: created if missing; gets config.json, model.safetensors and sentencepiece.bpe.model.
        sentences: at least one with a letter; the same sentences and seed give the same files.
        seed: of the weights.
        cache: as for :class:`TextEncoder`.
        dim: size of the features, a multiple of 8.
        layers: encoder blocks.
        vocabulary: most pieces that are learned.
    Returns:
        The encoder, opened.
    """
    checks.integer_between("tiny_text_encoder", 1, 48, layers=layers)
    checks.require(dim % 8 == 0 and dim > 0, "tiny_text_encoder", "dim", "be a multiple of 8", dim)
    checks.integer_between("tiny_text_encoder", 1, 1 << 20, vocabulary=vocabulary)
    try:
        import sentencepiece
    except ImportError:
        raise TextEncoderError("a text encoder needs the package sentencepiece: pip install 'slrfast[text]'") from None
    texts, learned = [" ".join(sentence.split()) for sentence in sentences], io.BytesIO()
    texts = [text for text in texts if text]
    checks.require(len(texts) > 0, "tiny_text_encoder", "sentences", "hold at least one that is not empty", len(texts))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=learned, vocab_size=vocabulary, hard_vocab_limit=False,
        character_coverage=1.0, num_threads=1, max_sentence_length=1 << 16, minloglevel=3,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=learned.getvalue()).get_piece_size()
    config = {
        "model_type": "mbart", "vocab_size": pieces + len(LANGUAGES) + 2, "d_model": dim, "encoder_layers": layers,
        "encoder_attention_heads": 4, "encoder_ffn_dim": 2 * dim, "max_position_embeddings": MAX_TOKENS,
        "scale_embedding": True, "activation_function": "gelu", "pad_token_id": 1,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build(checked(Path(folder) / CONFIG, config))
        tensors = {name: 0.3 * torch.randn_like(p) if p.dim() > 1 else p for name, p in encoder.state_dict().items()}
    shared = {SHARED[0]: tensors.pop(EMBEDDING)}
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be created ({error.strerror})") from error
    with replacing(Path(folder) / PIECES) as path:
        path.write_bytes(learned.getvalue())
    with replacing(Path(folder) / SAFE) as path:
        save_file(shared | {PREFIXES[0] + name: tensor for name, tensor in tensors.items()}, path)
    with replacing(Path(folder) / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")
    return TextEncoder(folder, cache)


def _key(sentence: Tensor) -> bytes:
    return Cache.key(sentence.numpy().astype("<i8").tobytes())
