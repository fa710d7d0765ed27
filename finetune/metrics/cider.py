"""CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726), with pycocoevalcap's formula and scale (its `Cider`).

Takes tokenized candidates and references. Gives a score an image, usually from 0 to about 2 and 10 at most. Next:
`finetune.metrics.captions`; `CiderScorer` is made once and can then reward candidates in training.

For n = 1 to 4, a caption is a vector of n-gram counts, each times log(images / images whose references have it). A
candidate is compared with each reference by cosine, its entries clipped to the reference's, times a Gaussian penalty of
the difference in length (σ = 6); the mean over n and references, times 10, is the score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.metrics.bleu import ORDERS, ngrams

_SIGMA = 6.0
_SCALE = 10.0
Ngram = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DocumentFrequencies:
    """In how many of `images` images' references each n-gram occurs."""

    images: int
    counts: Mapping[Ngram, int]

    @classmethod
    def learn(cls, references: Sequence[Sequence[Sequence[str]]]) -> DocumentFrequencies:
        counts: Counter[Ngram] = Counter()
        for truths in references:
            counts.update({ngram for truth in truths for ngram in ngrams(truth)})
        return cls(images=len(references), counts=counts)

    def weight(self, ngram: Ngram) -> float:
        """log(images / images that have it); an n-gram that none has counts as one image's. 0 for a single image."""
        return math.log(self.images) - math.log(max(1, self.counts.get(ngram, 0)))


@dataclass(frozen=True, kw_only=True)
class _Vector:
    """One caption: weighted counts and norms by n-gram order, and its length as the penalty measures it."""

    entries: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    length: int


class CiderScorer:
    """References turned into vectors once; then any number of candidates.

    Args:
        references: words of one or more captions an image.
        frequencies: of a larger corpus than `references`; theirs by default.
    """

    def __init__(
        self, references: Sequence[Sequence[Sequence[str]]], *, frequencies: DocumentFrequencies | None = None
    ) -> None:
        self._frequencies = frequencies or DocumentFrequencies.learn(references)
        self._references = [[self._vector(truth) for truth in truths] for truths in references]

    def score(self, image: int, words: Sequence[str]) -> float:
        """Of one candidate for the image at that position of the references."""
        candidate = self._vector(words)
        truths = self._references[image]
        return _SCALE * sum(_similarity(candidate, truth) for truth in truths) / len(truths)

    def scores(self, candidates: Sequence[Sequence[str]]) -> list[float]:
        """Of one candidate an image, in order."""
        if len(candidates) != len(self._references):
            raise ValueError(f"{len(candidates)} candidates for the references of {len(self._references)} images")
        return [self.score(image, words) for image, words in enumerate(candidates)]

    def _vector(self, words: Sequence[str]) -> _Vector:
        entries: tuple[dict[Ngram, float], ...] = tuple({} for _ in range(ORDERS))
        for ngram, count in ngrams(words).items():
            entries[len(ngram) - 1][ngram] = count * self._frequencies.weight(ngram)
        norms = tuple(math.sqrt(sum(value * value for value in order.values())) for order in entries)
        # pycocoevalcap takes the number of bigrams for the length: one less than the words, which leaves differences
        # as they are except against a caption of no word.
        return _Vector(entries=entries, norms=norms, length=max(0, len(words) - 1))


def _similarity(candidate: _Vector, truth: _Vector) -> float:
    total = 0.0
    for ours, theirs, our_norm, their_norm in zip(
        candidate.entries, truth.entries, candidate.norms, truth.norms, strict=True
    ):
        if our_norm and their_norm:
            clipped = sum(min(value, theirs[ngram]) * theirs[ngram] for ngram, value in ours.items() if ngram in theirs)
            total += clipped / (our_norm * their_norm)
    return total / ORDERS * math.exp(-((candidate.length - truth.length) ** 2) / (2 * _SIGMA**2))
