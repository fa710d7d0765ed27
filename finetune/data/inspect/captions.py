"""The captions: how long they are, which words they have, and how many of them a vocabulary would cover.

Takes Examples. Gives a CaptionSurvey. Next: `finetune.data.inspect.inspection`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.data.source import Example, ExampleSource
from finetune.data.sources import open_source
from finetune.data.splits import Split
from finetune.text.tokenizer import tokenize

MIN_COUNTS = (1, 2, 3, 4, 5)
_SCRIPTS_FROM = 20_000  # captions whose letters are looked at


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """A vocabulary of the words seen `min_count` times or more. `coverage`: the share of all words (counted as often as
    they stand) that it has; `held_out`: learnt from the training part, the share of the validation part's words."""

    min_count: int
    words: int
    coverage: float
    held_out: float | None = None


@dataclass(frozen=True, kw_only=True)
class Language:
    """`code` as the data have it."""

    code: str
    images: int
    captions: int


@dataclass(frozen=True, kw_only=True)
class CaptionSurvey:
    """`lengths`: words → captions; `scripts`: share of the letters, by the first word of their Unicode names."""

    captions: int
    images: int
    per_image: dict[int, int]
    lengths: dict[int, int]
    longest: str
    distinct: int
    words: int
    vocabulary: tuple[Coverage, ...]
    held_out_rule: str | None
    commonest: tuple[tuple[str, int], ...]
    scripts: dict[str, float]
    languages: tuple[Language, ...]

    def length(self, share: float) -> int:
        """Words of the caption that has `share` of the captions below it."""
        return int(_quantile(self.lengths, share))

    def to_json(self) -> dict[str, Any]:
        total = sum(self.lengths.values())
        mean = sum(length * count for length, count in self.lengths.items()) / total if total else None
        return {
            "captions": self.captions,
            "images": self.images,
            "per_image": {str(number): count for number, count in self.per_image.items()},
            "words": {
                "total": self.words,
                "mean": mean,
                "median": self.length(0.5) if total else None,
                "p95": self.length(0.95) if total else None,
                "longest": max(self.lengths, default=None),
                "histogram": {str(length): count for length, count in self.lengths.items()},
            },
            "longest": self.longest,
            "distinct": self.distinct,
            "vocabulary": [asdict(each) for each in self.vocabulary],
            "held_out_rule": self.held_out_rule,
            "commonest": [{"word": word, "count": count} for word, count in self.commonest],
            "scripts": self.scripts,
            "languages": [asdict(each) for each in self.languages],
        }


def survey_captions(source: ExampleSource, split: Split | None, rule: str | None) -> CaptionSurvey | None:
    """None for data without captions in any language. With a split, the vocabulary's coverage is told for it too."""
    languages = _languages(source)
    words: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    per_image: Counter[int] = Counter()
    hashes = array("Q")
    longest, most = "", 0
    for example in source.examples:
        per_image[len(example.captions)] += 1
        for caption in example.captions:
            said = tokenize(caption)
            words.update(said)
            lengths[len(said)] += 1
            digest = hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            hashes.append(int.from_bytes(digest, "big"))
            if len(said) > most:
                longest, most = caption, len(said)
            if len(hashes) <= _SCRIPTS_FROM:
                letters.update(letter for letter in caption if letter.isalpha())
    if not hashes and not languages:
        return None
    return CaptionSurvey(
        captions=len(hashes),
        images=sum(count for number, count in per_image.items() if number),
        per_image=dict(sorted(per_image.items())),
        lengths=dict(sorted(lengths.items())),
        longest=longest,
        distinct=len(np.unique(np.frombuffer(hashes, np.uint64))),
        words=words.total(),
        vocabulary=_coverage(source.examples, words, split) if words else (),
        held_out_rule=rule if split is not None and words else None,
        commonest=tuple(words.most_common(20)),
        scripts=_scripts(letters),
        languages=languages,
    )


def _coverage(examples: Sequence[Example], words: Counter[str], split: Split | None) -> tuple[Coverage, ...]:
    learnt = held = None
    if split is not None:
        learnt, held = (
            Counter(word for index in part for caption in examples[index].captions for word in tokenize(caption))
            for part in (split.train, split.validation)
        )
    return tuple(
        Coverage(
            min_count=least,
            words=sum(count >= least for count in words.values()),
            coverage=_share(words, words, least),
            held_out=_share(held, learnt, least) if held and learnt else None,
        )
        for least in MIN_COUNTS
    )


def _share(said: Counter[str], learnt: Counter[str], least: int) -> float:
    return sum(count for word, count in said.items() if learnt[word] >= least) / said.total()


def _quantile(histogram: dict[int, int], share: float) -> int:
    at = share * (sum(histogram.values()) - 1)
    passed = 0
    for value, count in sorted(histogram.items()):
        passed += count
        if passed > at:
            return value
    return 0


def _scripts(letters: Counter[str]) -> dict[str, float]:
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[unicodedata.name(letter, "UNNAMED").split(" ")[0].split("-")[0].title()] += count
    return {name: count / scripts.total() for name, count in scripts.most_common(10)}


def _languages(source: ExampleSource) -> tuple[Language, ...]:
    """The source is opened anew for each: it keeps the captions of one."""
    codes: Iterable[str] = getattr(source, "languages", ())
    found = []
    for code in codes:
        captions = [len(example.captions) for example in open_source(source.location, language=code).examples]
        found.append(Language(code=code, images=sum(n > 0 for n in captions), captions=sum(captions)))
    return tuple(found)
