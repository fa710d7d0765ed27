"""ROUGE-L (Lin 2004), as pycocoevalcap's `Rouge` counts it: β = 1.2, best precision and best recall over references.

Takes tokenized candidates and references. Gives a number from 0 to 1. Next: `finetune.metrics.captions`.
"""

from __future__ import annotations

from collections.abc import Sequence

_BETA_SQUARED = 1.2**2


def rouge_l(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """The mean over images, each once. Arguments as `finetune.metrics.bleu.bleu`."""
    scores = [_of_image(words, truths) for words, truths in zip(candidates, references, strict=True)]
    return sum(scores) / len(scores)


def _of_image(words: Sequence[str], truths: Sequence[Sequence[str]]) -> float:
    if not words:
        return 0.0
    common = [(longest_common_subsequence(words, truth), len(truth)) for truth in truths if truth]
    precision = max((shared / len(words) for shared, _ in common), default=0.0)
    recall = max((shared / size for shared, size in common), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Its length, in words."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for j, other in enumerate(right, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
