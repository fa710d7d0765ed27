"""What features are asked to tell: one class an image, any number of classes, or the words of its captions.

Takes Examples. Gives Targets. Next: `finetune.rank.sample`, `finetune.rank.probe`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from finetune.data.source import Example
from finetune.rank.measures import accuracy, mean_average_precision
from finetune.text.tokenizer import tokenize
from zoo.errors import InvalidArgument

By = Literal["label", "labels", "captions"]
KINDS: tuple[By, ...] = get_args(By)
MOST_WORDS = 300  # the commonest count; rarer ones cost time and tell little
_LEAST_WORDS = 5
_SHOWN = 5
_HAS = {"label": "a class each", "labels": "lists of classes", "captions": "captions"}


class NothingToTell(InvalidArgument):
    """Data without anything that features could be asked to tell."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """`truth` bool [N, C]: column c says whether image n has `names[c]`; with `by` label exactly one column is true.

    `strata` int [N]: the class, for several classes an image the rarest of them (C for none), 0 for captions.
    `notes`: what was left out and why, in sentences.
    """

    by: By
    names: tuple[str, ...]
    truth: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def measure_name(self) -> str:
        return "accuracy" if self.by == "label" else "mean_average_precision"

    def measure(self, score_NC: np.ndarray, rows: np.ndarray) -> float:
        """Of scores for the images `rows`: accuracy, or mean average precision over the columns that occur there."""
        judge = accuracy if self.by == "label" else mean_average_precision
        return judge(score_NC, self.truth[rows])

    @property
    def strata(self) -> np.ndarray:
        if self.by == "captions":
            return np.zeros(len(self), np.int64)
        by_count = np.argsort(self.truth.sum(axis=0), kind="stable")
        first_N = np.argmax(self.truth[:, by_count], axis=1)
        return np.where(self.truth.any(axis=1), by_count[first_N], len(self.names))

    def rows(self, chosen: np.ndarray) -> Targets:
        return dataclasses.replace(self, truth=self.truth[chosen])


def kind_of(examples: Sequence[Example], wanted: By | None, location: str) -> By:
    """What the examples have: a class each before lists of classes before captions. Raises NothingToTell."""
    has: dict[By, bool] = dict.fromkeys(KINDS, False)
    for example in examples:
        has["label"] |= example.label is not None
        has["labels"] |= bool(example.labels)
        has["captions"] |= bool(example.captions)
    there = [kind for kind in KINDS if has[kind]]
    if wanted is not None and wanted not in there:
        raise NothingToTell(
            f"{location} has no {wanted}: its images have {' and '.join(_HAS[k] for k in there) or 'nothing to tell'}"
        )
    if not there:
        raise NothingToTell(
            f"none of the {len(examples)} images of {location} has a class or a caption: nothing to rank by",
            hint="finetune data inspect DATA",
        )
    return wanted or there[0]


def usable(examples: Sequence[Example], by: By) -> np.ndarray:
    """int64: the examples that can be asked about. One without classes among lists of classes is a true answer."""
    if by == "labels":
        return np.arange(len(examples))
    return np.flatnonzero([bool(e.captions) if by == "captions" else e.label is not None for e in examples])


def class_targets(examples: Sequence[Example], by: By) -> Targets:
    """Of every class that occurs. For captions one column of nothing: words are chosen from the sample alone."""
    if by == "captions":
        return Targets(by=by, names=(), truth=np.zeros((len(examples), 0), bool))
    lists = [(e.label,) if e.label is not None else () for e in examples] if by == "label" else None
    return _of_lists(by, lists if lists is not None else [e.labels for e in examples])


def final_targets(examples: Sequence[Example], by: By, *, folds: int) -> tuple[Targets, np.ndarray]:
    """The Targets of a sample, and the rows (int64) of it that count.

    Left out, and said: classes with one image, which no fold could both learn and be asked; words in fewer than
    2 × folds images, or in all but as few. Raises NothingToTell where fewer than two classes, one class of lists, or
    five words remain.
    """
    if by == "captions":
        targets = _words(examples, folds)
        return targets, np.arange(len(examples))
    targets = class_targets(examples, by)
    counts_C = targets.truth.sum(axis=0)
    lone_C = counts_C < 2
    everywhere_C = counts_C == len(examples) if by == "labels" else np.zeros_like(lone_C)
    kept_C = ~(lone_C | everywhere_C)
    least = 2 if by == "label" else 1
    if kept_C.sum() < least:
        raise NothingToTell(
            f"the sample of {len(examples)} images has {int(kept_C.sum())} classes with two images or more"
            f"{' and not in all' if by == 'labels' else ''}; ranking needs at least {least}",
            hint="give more images, or a larger --sample",
        )
    names = np.array(targets.names, object)
    notes = []
    if lone_C.any():
        notes.append(f"left out: {_listed(names[lone_C])}, with one image each in the sample")
    if everywhere_C.any():
        notes.append(f"left out: {_listed(names[everywhere_C])}, which every image of the sample has")
    few_C = kept_C & (counts_C < folds)
    if few_C.any():
        notes.append(
            f"fewer images than folds ({folds}), so that some folds ask nothing of them and their part of the score is "
            f"uncertain: {_listed(names[few_C])}"
        )
    truth = targets.truth[:, kept_C]
    rows = np.flatnonzero(truth.any(axis=1)) if by == "label" else np.arange(len(examples))
    return Targets(by=by, names=tuple(names[kept_C]), truth=truth[rows], notes=tuple(notes)), rows


def _words(examples: Sequence[Example], folds: int) -> Targets:
    bags = [sorted({word for caption in example.captions for word in tokenize(caption)}) for example in examples]
    counted = Counter(word for bag in bags for word in bag)
    least, most = 2 * folds, len(examples) - 2 * folds
    common = [word for word, count in counted.items() if least <= count <= most]
    chosen = sorted(common, key=lambda word: (-counted[word], word))[:MOST_WORDS]
    if len(chosen) < _LEAST_WORDS:
        raise NothingToTell(
            f"the captions of the sample's {len(examples)} images have {len(chosen)} words that stand with at least "
            f"{least} images and not with all but {least}; ranking by words needs at least {_LEAST_WORDS}",
            hint="give more images, or a larger --sample",
        )
    kept = set(chosen)
    targets = _of_lists("captions", [[word for word in bag if word in kept] for bag in bags])
    note = f"asked for {len(chosen)} of {len(counted)} words: those with {least} to {most} images of the sample" + (
        f", the {MOST_WORDS} commonest" if len(common) > MOST_WORDS else ""
    )
    return dataclasses.replace(targets, notes=(note,))


def _of_lists(by: By, lists: Sequence[Sequence[str]]) -> Targets:
    names = tuple(sorted({name for each in lists for name in each}))
    numbers = {name: number for number, name in enumerate(names)}
    truth = np.zeros((len(lists), len(names)), bool)
    for row, each in enumerate(lists):
        truth[row, [numbers[name] for name in each]] = True
    return Targets(by=by, names=names, truth=truth)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} class{'es' if len(names) > 1 else ''} ({shown}{more})"
