"""The vocabulary of a translation: pieces of words learned from the training sentences, and clips with their tokens."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from slrfast import checks
from slrfast.data.dataset import ClipDataset
from slrfast.data.text import Caption, CaptionedDataset
from slrfast.data.wrapped import match
from slrfast.errors import DatasetError, SlrfastError

PAD, BOS, EOS, UNK = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_SPACE = "\u2581"  # begins the first piece of every word


class Subwords:
    """Sentences as pieces of words: byte-pair encoding over characters (Sennrich et al. 2016), no piece across a blank.

    Tokens 0 to 3 are <pad>, <bos>, <eos> and <unk>; a character that training did not see is <unk>, so no sentence
    that was trained on has one unless ``size`` had no room for all characters. Text is brought to Unicode's NFC, runs
    of blanks to one, and with ``lowercase`` to small letters. Chinese needs no blanks.

    Args:
        pieces: of tokens 4 and on; characters, then what the merges make.
        merges: pairs of pieces that become one, first the most frequent.
        lowercase: drop the difference of capital letters.
        max_tokens: longer sentences are cut, <eos> included.
    Raises:
        TypeError, ValueError: pieces that are twice there or no text, or merges of what is no piece.

    >>> words = Subwords.train(["es regnet im norden", "im norden regnet es"], size=40)
    >>> words.decode(words.encode("norden regnet  es"))
    'norden regnet es'
    >>> tokens, left_out = words.cut("es regnet")
    >>> int(tokens[-1]) == EOS, left_out
    (True, 0)
    """

    def __init__(
        self,
        pieces: Sequence[str],
        merges: Sequence[Sequence[str]] = (),
        *,
        lowercase: bool = False,
        max_tokens: int = 128,
    ) -> None:
        op = "Subwords"
        checks.integer_between(op, 2, 1 << 16, max_tokens=max_tokens)
        for name, value, kind in (("pieces", pieces, str), ("merges", merges, (list, tuple))):
            if not isinstance(value, (list, tuple)) or not all(isinstance(one, kind) for one in value):
                rule = "be a list of texts" if kind is str else "be a list of pairs"
                raise TypeError(checks.message(op, name, rule, repr(value)[:60]))
        if not isinstance(lowercase, bool):
            raise TypeError(checks.message(op, "lowercase", "be true or false", repr(lowercase)[:60]))
        self.pieces, self.lowercase, self.max_tokens = (*SPECIAL, *pieces), lowercase, max_tokens
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}
        checks.require(len(pieces) > 0, op, "pieces", "hold at least one", 0)
        checks.require(len(self._ids) == len(self.pieces), op, "pieces", "be different", "one twice")
        self.merges = [tuple(pair) for pair in merges]
        for pair in self.merges:
            texts = len(pair) == 2 and all(isinstance(piece, str) for piece in pair)
            known = texts and {*pair, "".join(pair)} <= self._ids.keys()
            checks.require(known, op, "merges", "be pairs of pieces that make one", repr(pair)[:60])

    @classmethod
    def train(
        cls, sentences: Iterable[str], *, size: int = 8000, lowercase: bool = False, max_tokens: int = 128
    ) -> Self:
        """Learn a vocabulary; the same sentences in any order give the same one.

        Args:
            sentences: of the training clips alone; empty ones are passed over.
            size: most tokens, the four special ones included.
            lowercase, max_tokens: as of the class.
        Raises:
            DatasetError: every sentence is empty. SlrfastError: the package tokenizers is not installed.
        """
        checks.integer_between("Subwords.train", 5, 1 << 20, size=size)
        texts = sorted({_clean(text, lowercase) for text in sentences} - {""})
        if not texts:
            raise DatasetError("there is nothing to learn words from: every training sentence is empty")
        made, trainer = _bpe({}, []), _library().trainers.BpeTrainer
        letters = Counter(letter for text in texts for letter in _SPACE + text.replace(" ", _SPACE))
        chosen = sorted(letters, key=lambda letter: (-letters[letter], letter))[: size - len(SPECIAL)]
        # the trainer's own choice among characters that are equally rare is another in every run
        alphabet = {"initial_alphabet": chosen, "limit_alphabet": len(chosen)}
        limits = {"vocab_size": size, "special_tokens": list(SPECIAL), **alphabet}
        with _one_process():
            made.train_from_iterator(texts, trainer(show_progress=False, **limits))
        model = json.loads(made.to_str())["model"]
        pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)[len(SPECIAL) :]
        return cls(pieces, model["merges"], lowercase=lowercase, max_tokens=max_tokens)

    def __len__(self) -> int:
        return len(self.pieces)

    def clean(self, sentence: str) -> str:
        """The sentence as the vocabulary sees it, and as :meth:`decode` gives it back."""
        return _clean(sentence, self.lowercase)

    def encode(self, sentence: str) -> list[int]:
        """Tokens of a sentence, without <bos> and <eos>; a text such as "<eos>" in it is letters like any others."""
        text = self.clean(sentence)
        return self._tokenizer.encode(text).ids if text else []

    def decode(self, tokens: Iterable[int]) -> str:
        """The sentence of tokens; special ones leave nothing behind.

        Raises:
            ValueError: a token outside the vocabulary.
        """
        tokens = list(tokens)
        wrong = [token for token in tokens if not 0 <= token < len(self)]
        checks.require(not wrong, "Subwords.decode", "tokens", f"be in [0, {len(self) - 1}]", wrong[:1])
        text = "".join(self.pieces[token] for token in tokens if token >= len(SPECIAL))
        return " ".join(text.replace(_SPACE, " ").split())

    def cut(self, sentence: str, language: str = "") -> tuple[Tensor, int]:
        """Tokens and <eos>, int64 [L], L at most ``max_tokens``, and how many were left out; for CaptionedDataset."""
        ids = self.encode(sentence)
        return torch.tensor([*ids[: self.max_tokens - 1], EOS]), max(0, len(ids) - self.max_tokens + 1)

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` makes the same vocabulary of."""
        special = len(SPECIAL)
        return {
            "pieces": list(self.pieces[special:]),
            "merges": [list(pair) for pair in self.merges],
            "lowercase": self.lowercase,
            "max_tokens": self.max_tokens,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            TypeError, ValueError: it is of something else, or damaged.
        """
        fields = {"pieces", "merges", "lowercase", "max_tokens"}
        if not isinstance(value, Mapping) or set(value) != fields:
            rule = f"be an object with {', '.join(sorted(fields))}"
            raise TypeError(checks.message("Subwords.from_json", "value", rule, repr(value)[:60]))
        return cls(**value)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that tokens depend on."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()

    @cached_property
    def _tokenizer(self) -> Any:
        return _bpe(self._ids, self.merges)


class TranslationDataset(CaptionedDataset):
    """Clips with the tokens of their sentences, each ending with <eos>, and the sentences to compare with.

    Args:
        dataset: any ClipDataset or packed store.
        captions: by clip name, with or without folders and extension; :func:`read_captions` or a list of signing.
        vocabulary: of the training sentences.
    Attributes:
        sentences: of every clip as the vocabulary sees it, "" without one.
    Raises:
        DatasetError: no sentence belongs to any clip, or none of those that do has any words.
    """

    WITHOUT = "have no sentence"

    def __init__(self, dataset: ClipDataset, captions: Mapping[str, Caption], vocabulary: Subwords) -> None:
        super().__init__(dataset, captions, vocabulary)
        matched = match(dataset.names, captions)
        self.sentences = ["" if caption is None else vocabulary.clean(caption.text) for caption in matched]
        if not any(self.sentences):
            raise DatasetError("every sentence of these clips is empty")
        texts = hashlib.sha256("\n".join(self.sentences).encode()).hexdigest()[:16]
        self.made_of = {**dataset.made_of, "vocabulary": vocabulary.fingerprint[:16], "sentences": texts}

    def with_sentences(self) -> Self:
        """The clips that have one, with all that was noted of the others."""
        kept = self.subset([i for i, sentence in enumerate(self.sentences) if sentence])
        kept.skipped, kept.notes = self.skipped, self.notes
        return kept

    def _select(self, indices: Sequence[int]) -> None:
        super()._select(indices)
        self.sentences = [self.sentences[i] for i in indices]


def _clean(sentence: str, lowercase: bool) -> str:
    sentence = sentence.encode("utf-8", "replace").decode()  # JSON can hold half a character
    sentence = sentence.lower() if lowercase else sentence
    return " ".join(unicodedata.normalize("NFC", sentence).replace(_SPACE, " ").split())


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise SlrfastError("a vocabulary needs the package tokenizers: pip install 'slrfast[text]'") from None
    return tokenizers


def _bpe(vocabulary: Mapping[str, int], merges: Sequence[Any]) -> Any:
    library = _library()
    model = library.models.BPE(dict(vocabulary), list(merges), unk_token=SPECIAL[UNK])
    made = library.Tokenizer(model)
    made.pre_tokenizer = library.pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    return made


@contextmanager
def _one_process() -> Iterator[None]:
    """Threads of the library's own would make it warn about every process that is forked later."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
