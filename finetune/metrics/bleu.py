"""BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002), as pycocoevalcap's `Bleu` counts it.

Takes tokenized candidates and references. Gives four numbers from 0 to 1. Next: `finetune.metrics.captions`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
# pycocoevalcap's guards against division by zero; without them a corpus without a match would score 0 exactly.
_TINY, _SMALL = 1e-15, 1e-9


def ngrams(words: Sequence[str], orders: int = ORDERS) -> Counter[tuple[str, ...]]:
    """How often each n-gram of 1 to `orders` words occurs."""
    return Counter(tuple(words[i : i + n]) for n in range(1, orders + 1) for i in range(len(words) - n + 1))


def bleu(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> tuple[float, ...]:
    """(BLEU-1, …, BLEU-4) of the whole corpus.

    Matches are clipped by the reference that has most of the n-gram. The brevity penalty compares the candidates'
    lengths with the closest reference of each (of two as close, the shorter).

    Args:
        candidates: words of one caption an image.
        references: words of one or more captions an image, in the same order.
    """
    matched, possible = [0] * ORDERS, [0] * ORDERS
    length, reference_length = 0, 0
    for words, truths in zip(candidates, references, strict=True):
        length += len(words)
        reference_length += min((abs(len(truth) - len(words)), len(truth)) for truth in truths)[1]
        most: Counter[tuple[str, ...]] = Counter()
        for truth in truths:
            most |= ngrams(truth)
        for ngram, count in ngrams(words).items():
            matched[len(ngram) - 1] += min(count, most[ngram])
            possible[len(ngram) - 1] += count
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(ORDERS):
        product *= (matched[n] + _TINY) / (possible[n] + _SMALL)
        scores.append(product ** (1 / (n + 1)) * penalty)
    return tuple(scores)
