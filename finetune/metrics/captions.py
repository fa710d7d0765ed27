"""Caption metrics in this process, without Java: BLEU-1 to BLEU-4, ROUGE-L and CIDEr.

Takes captions as text. Gives a dict of metrics. Next: `finetune.training.evaluator`, `finetune evaluate`.
Both sides go through the one tokenizer, so candidates and references are cut alike, and stay paired by position: no
text file with a line a caption stands between, which `\\r` or U+2028 in a caption would shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from finetune.metrics.bleu import bleu
from finetune.metrics.cider import CiderScorer, DocumentFrequencies
from finetune.metrics.rouge import rouge_l
from finetune.metrics.variety import KnownCaptions, caption_variety, variety_warnings
from finetune.text.tokenizer import tokenize
from zoo.errors import InvalidArgument


class UnpairedCaptions(InvalidArgument):
    """Candidates and references that don't belong together."""


def caption_metrics(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    frequencies: DocumentFrequencies | None = None,
    known: KnownCaptions | None = None,
) -> dict[str, Any]:
    """Scores of one candidate an image against that image's references.

    Args:
        candidates: N captions.
        references: N lists of one or more captions, in the same order.
        frequencies: how rare n-grams are, for CIDEr; counted in `references` by default.
        known: the training split's captions (`known_captions`), to count how many candidates are new.

    Returns:
        `bleu_1` … `bleu_4`, `rouge_l` (0 to 1), `cider` (pycocoevalcap's scale: Show and Tell's 85.5 on COCO is 0.855
        here), `words_per_caption`, what `caption_variety` gives, and `warnings`, sentences on what makes a figure say
        little.

    Raises:
        UnpairedCaptions: the lists differ in length, are empty, or an image has no reference.
        NotText: something else than a string where a caption was wanted.
    """
    _check_pairs(candidates, references)
    said = [tokenize(caption) for caption in candidates]
    truths = [[tokenize(caption) for caption in captions] for captions in references]
    metrics: dict[str, Any] = {f"bleu_{n}": score for n, score in enumerate(bleu(said, truths), start=1)}
    cider = CiderScorer(truths, frequencies=frequencies).scores(said)
    metrics["rouge_l"] = rouge_l(said, truths)
    metrics["cider"] = sum(cider) / len(cider)
    metrics["words_per_caption"] = sum(len(words) for words in said) / len(said)
    facts = caption_variety(said, truths, known=known)
    metrics |= facts
    images = frequencies.images if frequencies else len(truths)
    metrics["warnings"] = [*_warnings(said, images), *variety_warnings(facts, len(said))]
    return metrics


def known_captions(captions: Iterable[str]) -> KnownCaptions:
    """Captions as `caption_metrics` compares them."""
    return KnownCaptions(tokenize(caption) for caption in captions)


def novel_share(candidates: Sequence[str], known: KnownCaptions) -> float:
    """The share of captions that aren't among `known`, word for word."""
    return sum(tokenize(caption) not in known for caption in candidates) / len(candidates)


def _check_pairs(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    for name, value in (("candidates", candidates), ("references", references)):
        if isinstance(value, str):
            raise UnpairedCaptions(f"{name} must be a list, got one string: {value!r:.80}")
    if len(candidates) != len(references):
        raise UnpairedCaptions(f"{len(candidates)} candidates for the references of {len(references)} images")
    if not candidates:
        raise UnpairedCaptions("no caption to score")
    for position, captions in enumerate(references):
        if isinstance(captions, str):
            raise UnpairedCaptions(f"image {position}: references must be a list of captions, got one string")
        if not captions:
            raise UnpairedCaptions(f"image {position} has no reference caption")


def _warnings(said: Sequence[Sequence[str]], images: int) -> list[str]:
    warnings = []
    if images == 1:
        warnings.append(
            "cider is 0 for a single image: its inverse document frequencies are all zero; "
            "document frequencies of a larger corpus give it a value"
        )
    empty = sum(not words for words in said)
    if empty:
        warnings.append(f"{empty} of {len(said)} candidates hold no word")
    return warnings
