"""Glosses as tokens: the vocabulary of a training split, and clips that carry the glosses signed in them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from slrfast import checks
from slrfast.data.continuous_lists import Sentence
from slrfast.data.dataset import ClipDataset
from slrfast.data.wrapped import WrappedDataset, match, some
from slrfast.errors import DatasetError


class GlossVocabulary:
    """Glosses and their tokens: 1 and up in the given order; 0 is CTC's blank.

    Args:
        glosses: all different.
    Raises:
        ValueError: no gloss, an empty one, or one twice.

    >>> vocabulary = GlossVocabulary(["MORGEN", "REGEN"])
    >>> vocabulary.tokens(["REGEN", "SCHNEE", "MORGEN"]), vocabulary.glosses_of([2, 1])
    ([2, 1], ['REGEN', 'MORGEN'])
    """

    def __init__(self, glosses: Iterable[str]) -> None:
        self.glosses = list(glosses)
        self._token = {gloss: i for i, gloss in enumerate(self.glosses, 1)}
        op = "GlossVocabulary"
        checks.require(len(self.glosses) > 0, op, "glosses", "hold at least one", 0)
        twice = [gloss for gloss, count in Counter(self.glosses).items() if count > 1 or not gloss]
        checks.require(not twice, op, "glosses", "be different and not empty", repr(twice[0]) if twice else "")

    @classmethod
    def of(cls, sentences: Iterable[Sentence]) -> GlossVocabulary:
        """The glosses of a split, in the order of their letters; ValueError where it has none."""
        return cls(sorted({gloss for sentence in sentences for gloss in sentence.glosses}))

    def __len__(self) -> int:
        return len(self.glosses)

    def __contains__(self, gloss: str) -> bool:
        return gloss in self._token

    def tokens(self, glosses: Iterable[str]) -> list[int]:
        """Token of every gloss; those outside the vocabulary are left out."""
        return [self._token[gloss] for gloss in glosses if gloss in self._token]

    def glosses_of(self, tokens: Iterable[int]) -> list[str]:
        """Gloss of every token, each in [1, len(self)]."""
        return [self.glosses[token - 1] for token in tokens]


class GlossedDataset(WrappedDataset):
    """Those clips of a data set that a list of sentences names, each with its glosses as ``tokens``.

    Glosses outside the vocabulary, of another split than the one it was made of, cannot be told by any model: they are
    left out of the tokens, stay in ``references``, and are counted in ``notes``.

    Args:
        dataset: any ClipDataset or packed store.
        sentences: by clip name, with or without folders and extension, as :func:`read_sentences` gives them.
        vocabulary: of the glosses.
    Attributes:
        references: the glosses of every clip as the list has them.
        notes: also how many clips are in no list and left out, how many sentences have no clip or no glosses, and how
            many glosses are outside the vocabulary.
    Raises:
        DatasetError: no sentence belongs to any clip.

    >>> from slrfast.data import SyntheticSigns
    >>> signs = SyntheticSigns(num_classes=2, clips_per_class=2)
    >>> listed = {"sign01/000": Sentence("sign01/000", "", ("B", "A", "C"), "")}
    >>> data = GlossedDataset(signs, listed, GlossVocabulary(["A", "B"]))
    >>> data.names, data.batch([0]).tokens.tolist(), data.references
    (['sign01/000'], [[2, 1]], [('B', 'A', 'C')])
    """

    references: list[tuple[str, ...]]

    def __init__(self, dataset: ClipDataset, sentences: Mapping[str, Sentence], vocabulary: GlossVocabulary) -> None:
        names = dataset.names
        matched = match(names, sentences)
        kept = [i for i, sentence in enumerate(matched) if sentence is not None]
        if not kept:
            theirs, ours = some(list(sentences), 2) or "none", some(names, 2) or "none"
            raise DatasetError(f"no sentence belongs to any clip; sentences are of {theirs}, clips are {ours}")
        super().__init__(dataset.subset(kept) if len(kept) < len(names) else dataset)
        self.skipped, notes = list(dataset.skipped), list(dataset.notes)
        found = [sentence for sentence in matched if sentence is not None]
        self.references = [sentence.glosses for sentence in found]
        self.tokens = [torch.tensor(vocabulary.tokens(glosses), dtype=torch.int64) for glosses in self.references]
        if left := len(names) - len(kept):
            notes.append(f"{left} of {len(names)} clips are not in this list of sentences")
        named = {sentence.name for sentence in found}
        if lost := [name for name in sentences if name not in named]:
            notes.append(f"{len(lost)} of {len(sentences)} sentences have no clip: {some(lost)}")
        if empty := [sentence.name for sentence in found if not sentence.glosses]:
            notes.append(f"{len(empty)} sentences have no glosses: {some(empty)}")
        outside = Counter(gloss for glosses in self.references for gloss in glosses if gloss not in vocabulary)
        if outside:
            total, most = sum(map(len, self.references)), [gloss for gloss, _ in outside.most_common()]
            notes.append(
                f"{sum(outside.values())} of {total} glosses are outside the vocabulary, {len(most)} different: "
                + some(most)
            )
        self.notes = notes
        told = json.dumps([vocabulary.glosses, self.references]).encode()
        self.made_of = {**dataset.made_of, "glosses": hashlib.sha256(told).hexdigest()[:16]}

    def added(self, index: int) -> dict[str, Any]:
        """``tokens``."""
        return {"tokens": self.tokens[index]}

    def added_to_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """``tokens`` and ``token_lengths``."""
        glosses = [self.tokens[i] for i in indices]
        tokens = nn.utils.rnn.pad_sequence(glosses, batch_first=True)
        return {"tokens": tokens, "token_lengths": torch.tensor([len(each) for each in glosses])}

    def _select(self, indices: Sequence[int]) -> None:
        self.tokens = [self.tokens[i] for i in indices]
        self.references = [self.references[i] for i in indices]
