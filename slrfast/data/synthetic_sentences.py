"""Continuous signing without any data: signs of the synthetic signer behind each other."""

from __future__ import annotations

import numpy as np
import torch

from slrfast import checks
from slrfast.data.batch import Clip
from slrfast.data.continuous_lists import Sentence
from slrfast.data.dataset import ClipDataset
from slrfast.data.preprocess import PreprocessOptions
from slrfast.data.synthetic import SyntheticSigns


class SyntheticSentences(ClipDataset):
    """Clips of several signs by one signer each, the same for the same arguments; signers take turns.

    A clip is pre-processed signs one after the other, each with its way up from rest and back; there is no
    co-articulation and no grammar. A smaller set than this tells whether a model learns to align at all.

    Args:
        num_sentences: clips.
        num_glosses: the vocabulary is sign00, sign01 ... .
        least, most: signs of a sentence.
        step: only every so many-th frame is kept.
        seed: signs, signers and sentences.
        noise, variation, options: as of :class:`SyntheticSigns`.
    Attributes:
        sentences: by clip name.

    >>> data = SyntheticSentences(3, 4, seed=1)
    >>> data.names[0], data.sentences[data.names[0]].glosses
    ('sentence000', ('sign00', 'sign03', 'sign00'))
    """

    def __init__(
        self,
        num_sentences: int = 60,
        num_glosses: int = 8,
        *,
        least: int = 2,
        most: int = 4,
        step: int = 1,
        seed: int = 0,
        noise: float = 1.0,
        variation: float = 1.0,
        options: PreprocessOptions | None = None,
    ) -> None:
        op = "SyntheticSentences"
        checks.integer_between(op, 1, 1 << 16, num_sentences=num_sentences, num_glosses=num_glosses, least=least)
        checks.integer_between(op, least, 1 << 10, most=most)
        checks.integer_between(op, 1, 8, step=step)
        signers, takes = 4, 8
        signs = SyntheticSigns(num_glosses, takes, signers, seed, noise=noise, variation=variation, options=options)
        draw = np.random.default_rng([seed, 3])
        by_signer = [[i for i, group in enumerate(signs.groups) if group == f"signer{s}"] for s in range(signers)]
        clips, self.sentences = [], {}
        for n in range(num_sentences):
            chosen = [signs[int(i)] for i in draw.choice(by_signer[n % signers], draw.integers(least, most + 1))]
            name, group = f"sentence{n:03d}", f"signer{n % signers}"
            xy, confidence = (torch.cat([getattr(clip, k)[::step] for clip in chosen]) for k in ("xy", "confidence"))
            clips.append(Clip(xy, confidence, name=name, group=group))
            glosses = tuple(signs.class_names[clip.label] for clip in chosen)
            self.sentences[name] = Sentence(name, group, glosses, " ".join(glosses))
        super().__init__(clips)
        self.options = signs.options
