"""Word error rate of recognised glosses, with its substitutions, deletions and insertions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slrfast import checks


@dataclass(frozen=True)
class WordErrors:
    """Errors of a corpus, counted over all of its sentences together.

    Attributes:
        substitutions, deletions, insertions: of the glosses, by an alignment with the fewest errors.
        words: glosses of the references.
        sentences: how many.
        empty: sentences whose reference has no gloss; all that is recognised there is inserted.
    """

    substitutions: int
    deletions: int
    insertions: int
    words: int
    sentences: int
    empty: int = 0

    @property
    def rate(self) -> float:
        """(substitutions + deletions + insertions) / words; it can exceed 1."""
        return (self.substitutions + self.deletions + self.insertions) / self.words

    @property
    def deletion_rate(self) -> float:
        """deletions / words, the papers' "del"."""
        return self.deletions / self.words

    @property
    def insertion_rate(self) -> float:
        """insertions / words, the papers' "ins"."""
        return self.insertions / self.words


def word_errors(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> WordErrors:
    """Count the errors of recognised sentences; jiwer aligns them.

    Every edit costs 1. NIST's sclite, which the evaluation scripts of RWTH-PHOENIX-Weather call, weighs a substitution
    4 and the others 3, so that its counts may differ by a little. Glosses are compared as they are: nothing is cleaned
    up, in particular not as those scripts do (which drop ``__ON__`` and ``loc-``, join letters, merge repeats).

    Args:
        references: the glosses of every sentence; one may be empty, which jiwer refuses: then all glosses recognised in
            it are insertions, and it adds none to the words that rates are counted by.
        hypotheses: what was recognised, in the same order.
    Raises:
        ValueError: not as many hypotheses as references, a sentence given as a text instead of its glosses, or no
            gloss in any reference. ImportError: jiwer is not installed.

    >>> found = word_errors([["A", "B", "C"], []], [["A", "C"], ["D"]])
    >>> found.deletions, found.insertions, found.words, round(found.rate, 3), found.empty
    (1, 1, 3, 0.667, 1)
    """
    try:
        import jiwer
    except ImportError:
        raise ImportError("word error rates need the package jiwer: pip install 'slrfast[metrics]'") from None
    op = "word_errors"
    references, hypotheses = list(references), list(hypotheses)
    checks.require(len(hypotheses) == len(references), op, "hypotheses", f"be {len(references)}", len(hypotheses))
    for name, sentences in (("references", references), ("hypotheses", hypotheses)):
        wrong = [each for each in sentences if not isinstance(each, (list, tuple))]
        hint = "split the text" if wrong and isinstance(wrong[0], str) else ""
        checks.require(not wrong, op, name, "be lists of glosses", f"{wrong[:1]!r:.60}", hint)
    words = sum(map(len, references))
    checks.require(words > 0, op, "references", "hold at least one gloss", f"{len(references)} sentences without any")
    number: dict[str, int] = {}
    texts = [
        [" ".join(str(number.setdefault(gloss, len(number))) for gloss in sentence) for sentence in sentences]
        for sentences in (references, hypotheses)
    ]
    pairs = [(reference, hypothesis) for reference, hypothesis in zip(*texts, strict=True) if reference]
    aligned = jiwer.process_words([reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs])
    unasked = sum(len(found) for asked, found in zip(references, hypotheses, strict=True) if not asked)
    return WordErrors(
        aligned.substitutions,
        aligned.deletions,
        aligned.insertions + unasked,
        words,
        len(references),
        len(references) - len(pairs),
    )
