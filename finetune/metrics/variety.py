"""How much a captioner has to say: facts on a split's captions that no comparison with references shows.

Takes tokenized captions. Gives shares and warnings. Next: `finetune.metrics.captions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from finetune.text.tokenizer import joining

_FEW = 0.05  # of captions that differ: below it, somebody should look


class KnownCaptions:
    """The training split's captions, to be asked whether one is among them: some dozens of bytes each."""

    def __init__(self, captions: Iterable[Sequence[str]]) -> None:
        self._hashes = frozenset(hash(tuple(words)) for words in captions)  # 61 bits; of one process, so never kept

    def __contains__(self, words: Sequence[str]) -> bool:
        return hash(tuple(words)) in self._hashes


def caption_variety(
    said: Sequence[Sequence[str]],
    truths: Sequence[Sequence[Sequence[str]]],
    *,
    known: KnownCaptions | None = None,
) -> dict[str, Any]:
    """Facts on N captions of N images.

    Args:
        said: words of each image's caption.
        truths: words of each image's references.
        known: words of the training split's captions.

    Returns:
        `distinct_captions`: share of captions that differ. `exact_captions`: share that is one of the image's
        references, word for word. `repeating_captions`: share in which a word stands twice in a row (not in scripts
        without spaces, where such words are words). `words_used`: how many different words. With `known`,
        `novel_captions`: share that no training image has.
    """
    captions = [tuple(words) for words in said]
    count = len(captions)
    right = sum(words in {tuple(truth) for truth in each} for words, each in zip(captions, truths, strict=True))
    facts: dict[str, Any] = {
        "distinct_captions": len(set(captions)) / count,
        "exact_captions": right / count,
        "repeating_captions": sum(_repeats(words) for words in captions) / count,
        "words_used": len({word for words in captions for word in words}),
    }
    if known is not None:
        facts["novel_captions"] = sum(words not in known for words in captions) / count
    return facts


def variety_warnings(facts: dict[str, Any], count: int) -> list[str]:
    """What of `caption_variety`'s facts on `count` captions is a sign of something wrong."""
    share = facts["distinct_captions"]
    if share >= _FEW:
        return []
    return [
        f"only {round(share * count)} different captions for {count} images ({share:.1%}): the captioner hardly looks "
        "at the image"
    ]


def _repeats(words: Sequence[str]) -> bool:
    return any(left == right and not joining(left).unspaced for left, right in pairwise(words))
