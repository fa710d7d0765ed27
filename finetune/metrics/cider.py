"""CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726), with pycocoevalcap's formula and scale (its `Cider`).

Takes tokenized candidates and references. Gives a score an image, usually from 0 to about 2 and 10 at most. Next:
`finetune.metrics.captions`. A `CiderScorer` is made once and can then reward thousands of candidates a second.

For n = 1 to 4, a caption is a vector of n-gram counts, each times log(images / images whose references have it). A
candidate is compared with each reference by cosine, its entries clipped to the reference's, times a Gaussian penalty of
the difference in length (σ = 6); the mean over n and references, times 10, is the score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from finetune.metrics.bleu import ORDERS, ngrams

_SIGMA = 6.0
_SCALE = 10.0
_TABLES = 4096  # images whose references are kept as vectors, some ten kilobytes each
Ngram = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DocumentFrequencies:
    """In how many of `images` images' references each n-gram occurs. Those of a single image needn't be listed: an
    n-gram that none has counts as one image's, and most n-grams of a corpus are of one image."""

    images: int
    counts: Mapping[Ngram, int]

    @classmethod
    def learn(cls, references: Iterable[Sequence[Sequence[str]]]) -> DocumentFrequencies:
        counts: Counter[Ngram] = Counter()
        images = 0
        for truths in references:
            images += 1
            counts.update({ngram for truth in truths for ngram in ngrams(truth)})
        return cls(images=images, counts={ngram: count for ngram, count in counts.items() if count > 1})

    def weight(self, ngram: Ngram) -> float:
        """log(images / images that have it). 0 for a single image."""
        return self.weights.get(ngram, self.rarest)

    @property
    def rarest(self) -> float:
        """The weight of an n-gram of one image, or of none."""
        return math.log(self.images) if self.images else 0.0

    @cached_property
    def weights(self) -> Mapping[Ngram, float]:
        return {ngram: self.rarest - math.log(count) for ngram, count in self.counts.items()}


@dataclass(frozen=True, slots=True)
class _References:
    """An image's references: n-gram → (reference, weighted count in it) …, and of each reference its norms by n-gram
    order and its length as the penalty measures it."""

    entries: Mapping[Ngram, Sequence[tuple[int, float]]]
    norms: Sequence[Sequence[float]]
    lengths: Sequence[int]


class CiderScorer:
    """Scores any number of candidates, in any order, against the references of images.

    Words may be anything that can be compared and hashed, such as a vocabulary's numbers, if the same throughout.

    Args:
        references: words of one or more captions an image.
        frequencies: of a larger corpus than `references`, for instance of the training split; theirs by default.
    """

    def __init__(
        self, references: Sequence[Sequence[Sequence[str]]], *, frequencies: DocumentFrequencies | None = None
    ) -> None:
        self.frequencies = frequencies or DocumentFrequencies.learn(references)
        self._texts = references
        self._references = lru_cache(_TABLES)(self._vectors)

    def score(self, image: int, words: Sequence[str]) -> float:
        """Of one candidate for the image at that position of the references."""
        truths = self._references(image)
        weights, rarest = self.frequencies.weights, self.frequencies.rarest
        similar = [0.0] * len(truths.lengths)
        for order, counts in enumerate(_counts(words)):
            squares = 0.0
            shared = [0.0] * len(similar)
            for ngram, count in counts.items():
                value = count * weights.get(ngram, rarest)
                squares += value * value
                for place, theirs in truths.entries.get(ngram, ()):
                    shared[place] += (value if value < theirs else theirs) * theirs
            norm = math.sqrt(squares)
            for place, value in enumerate(shared):
                if value:
                    similar[place] += value / (norm * truths.norms[place][order])
        length = _length(words)
        total = sum(
            value * math.exp(-((length - theirs) ** 2) / (2 * _SIGMA**2))
            for value, theirs in zip(similar, truths.lengths, strict=True)
            if value
        )
        return _SCALE * total / (ORDERS * len(similar))

    def scores(self, candidates: Sequence[Sequence[str]]) -> list[float]:
        """Of one candidate an image, in order."""
        if len(candidates) != len(self._texts):
            raise ValueError(f"{len(candidates)} candidates for the references of {len(self._texts)} images")
        return [self.score(image, words) for image, words in enumerate(candidates)]

    def score_batch(self, images: Sequence[int], candidates: Sequence[Sequence[str]]) -> np.ndarray:
        """float32 [N]: of N candidates, candidate i for the image at position `images[i]`; an image may come often.
        Its candidates had better come together."""
        pairs = zip(images, candidates, strict=True)
        return np.array([self.score(int(image), words) for image, words in pairs], np.float32)

    def _vectors(self, image: int) -> _References:
        entries: dict[Ngram, list[tuple[int, float]]] = {}
        norms = []
        for place, words in enumerate(self._texts[image]):
            squares = []
            for counts in _counts(words):
                values = {ngram: count * self.frequencies.weight(ngram) for ngram, count in counts.items()}
                squares.append(math.sqrt(sum(value * value for value in values.values())))
                for ngram, value in values.items():
                    if value:
                        entries.setdefault(ngram, []).append((place, value))
            norms.append(squares)
        return _References(entries, norms, [_length(words) for words in self._texts[image]])


def _counts(words: Sequence[str]) -> Iterable[Counter[Ngram]]:
    """How often each n-gram occurs, for n = 1, 2, 3, 4."""
    return (Counter(zip(*(words[start:] for start in range(n)), strict=False)) for n in range(1, ORDERS + 1))


def _length(words: Sequence[str]) -> int:
    """pycocoevalcap takes the number of bigrams for the length: one less than the words, which leaves differences as
    they are except against a caption of no word."""
    return max(0, len(words) - 1)
