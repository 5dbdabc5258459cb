"""BLEU and ROUGE-L of translations, as papers on sign language translation report them, with the variant named."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slrfast import checks
from slrfast.errors import SlrfastError

TOKENIZERS = ("13a", "zh", "char", "intl", "none")
"""sacrebleu's: mteval-v13a; Chinese characters, and 13a for what is between them; characters; Unicode; blanks."""
BETA = 1.2


def translation_metrics(
    hypotheses: Sequence[str], references: Sequence[str], *, tokenizer: str = "13a"
) -> dict[str, float | str]:
    """BLEU-1 to BLEU-4 of the corpus and the mean ROUGE-L of its sentences, both over the same tokens.

    BLEU-n = 100 BP exp(1/n sum_{i <= n} log p_i), cumulative, with the brevity penalty of the corpus and sacrebleu's
    smoothing "exp", which only acts where some p_i is 0 (Papineni et al. 2002; Post 2018). ROUGE-L is
    :func:`rouge_l`, F with beta 1.2, averaged over sentences (the variant of Camgoz et al. 2018 and since).

    Args:
        hypotheses: one per reference. An empty one is a translation without words: it makes BLEU's corpus shorter, and
            its ROUGE-L is 0.
        references: one per clip, none of them empty: a clip without one cannot be scored and has to be left out.
        tokenizer: one of :data:`TOKENIZERS`; "zh" for Chinese. Upper and lower case differ.
    Returns:
        "bleu1" to "bleu4" and "rouge_l" in [0, 100]; "bleu_signature", sacrebleu's with the tokenizer, smoothing and
        version; "rouge_variant".
    Raises:
        ValueError: nothing to score, different numbers of hypotheses and references, an empty reference, an unknown
            tokenizer. TypeError: something that is no text. SlrfastError: sacrebleu is not installed.

    >>> found = translation_metrics(["the wind blows in the north"], ["the wind blows from the north"])
    >>> round(found["bleu1"], 1), round(found["rouge_l"], 1), found["rouge_variant"]
    (83.3, 83.3, 'L, F, beta 1.2, mean of sentences, tok:13a')
    """
    op = "translation_metrics"
    checks.choice(op, TOKENIZERS, tokenizer=tokenizer)
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        wrong = [type(text).__name__ for text in texts if not isinstance(text, str)]
        if wrong:
            raise TypeError(checks.message(op, name, "be texts", wrong[0]))
    checks.require(len(references) > 0, op, "references", "hold at least one sentence", 0)
    same = len(hypotheses) == len(references)
    checks.require(same, op, "hypotheses", f"be as many as the {len(references)} references", len(hypotheses))
    empty = [i for i, text in enumerate(references) if not text.strip()]
    hint = "leave out clips without a sentence"
    checks.require(not empty, op, "references", "hold no empty sentence", f"{len(empty)}, first at {empty[:1]}", hint)
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise SlrfastError("BLEU needs the package sacrebleu: pip install 'slrfast[metrics]'") from None
    bleu = BLEU(tokenize=tokenizer, force=True)
    corpus = bleu.corpus_score(list(hypotheses), [list(references)])
    found: dict[str, float | str] = {
        f"bleu{n}": BLEU.compute_bleu(
            corpus.counts[:n], corpus.totals[:n], corpus.sys_len, corpus.ref_len, bleu.smooth_method, max_ngram_order=n
        ).score
        for n in (1, 2, 3, 4)
    }
    pairs = zip(hypotheses, references, strict=True)
    rouge = [rouge_l(*(bleu.tokenizer(text).split() for text in pair)) for pair in pairs]
    return {
        **found,
        "rouge_l": math.fsum(rouge) / len(rouge),
        "bleu_signature": str(bleu.get_signature()),
        "rouge_variant": f"L, F, beta {BETA}, mean of sentences, tok:{tokenizer}",
    }


def rouge_l(hypothesis: Sequence[str], reference: Sequence[str], beta: float = BETA) -> float:
    """ROUGE-L of one sentence in [0, 100]: F = 100 (1 + beta^2) P R / (R + beta^2 P).

    P and R are the longest common subsequence over the tokens of hypothesis and reference (Lin 2004, Eq. 2 to 4); 0
    where nothing is common, so also for an empty hypothesis or reference.

    >>> rouge_l("police killed the gunman".split(), "police kill the gunman".split())
    75.0
    """
    common = longest_common_subsequence(hypothesis, reference)
    if not common:
        return 0.0
    precision, recall = common / len(hypothesis), common / len(reference)
    return 100 * (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence of tokens that both have in this order, in len(b) steps on len(a) bits.

    Bit i of ``rises`` is 0 where a[: i + 1] has one more in common with what was read of b than a[:i] (Hyyro 2004).

    >>> longest_common_subsequence("abcbdab", "bdcaba")
    4
    """
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    every = (1 << len(a)) - 1
    rises = every
    for token in b:
        met = rises & places.get(token, 0)
        rises = (rises + met | rises - met) & every
    return len(a) - rises.bit_count()
