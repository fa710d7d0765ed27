"""Inspection: all that was found about DATA.

Takes an ExampleSource. Gives an Inspection. Next: `finetune.data.inspect.text`, `finetune.data.inspect.page`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.data.duplicates import NearDuplicates
from finetune.data.inspect.captions import CaptionSurvey, survey_captions
from finetune.data.inspect.images import ImageSurvey, survey_images
from finetune.data.inspect.labels import LabelSurvey, survey_labels
from finetune.data.label_suspects import LabelSuspects
from finetune.data.order import EpochOrder
from finetune.data.source import BadRecord, ExampleSource
from finetune.data.sources import data_defaults
from finetune.data.splits import DEFAULT_RULE, PARTS, Split, split_examples
from zoo.errors import ZooError

_LISTED = 1000  # bad records that are named; all are counted


@dataclass(frozen=True, kw_only=True)
class SplitOutcome:
    """What a rule would give. `error`: why it gives nothing; else `examples` by part, `unused` among them.

    `absent`: part → classes without an image in it. `copies`: images of validation or test whose bytes are in an
    earlier part too.
    """

    rule: str
    error: str | None = None
    examples: dict[str, int] | None = None
    absent: dict[str, tuple[str, ...]] | None = None
    copies: int = 0


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """`labels`, `captions` are None where the data have none, `near` and `suspects` where nobody asked."""

    data: str
    num_examples: int
    notes: tuple[str, ...]
    bad_records: tuple[BadRecord, ...]  # by the index alone
    images: ImageSurvey
    labels: LabelSurvey | None
    captions: CaptionSurvey | None
    splits: tuple[SplitOutcome, ...]
    near: NearDuplicates | None = None
    suspects: LabelSuspects | None = None

    def problems(self) -> Iterator[str]:
        """What somebody should look at, the worst first, a line each."""
        if self.bad_records:
            first = self.bad_records[0]
            yield f"{len(self.bad_records)} bad record(s), the first is {first.id}: {first.reason}"
        if self.images.unreadable:
            causes = ", ".join(
                f"{count} {cause.replace('_', ' ')}" for cause, count in self.images.unreadable_causes.items()
            )
            yield f"{self.images.unreadable} of {self.images.looked_at} images can't be used: {causes}"
        if self.images.copies_of_other_label:
            group = self.images.groups[0]
            yield (
                f"{self.images.copies_of_other_label} image(s) have several labels, each in a copy of its own: "
                f"{', '.join(group.ids[:3])} are the same bytes, labelled {' and '.join(group.labels[:3])}"
            )
        if self.images.copies:
            yield f"{self.images.copies} image(s) are copies of others, byte for byte"
        if self.images.misnamed:
            first_name = self.images.misnamed_examples[0]
            yield f"{self.images.misnamed} name(s) say another format than the content has, such as {first_name}"
        for problem in self.labels.problems if self.labels else ():
            yield problem.says
        for outcome in self.splits:
            if outcome.error:
                yield outcome.error
            for part, names in (outcome.absent or {}).items():
                named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                yield f"by {outcome.rule}, {part} has no image of {named}"
            if outcome.copies:
                yield f"by {outcome.rule}, {outcome.copies} image(s) of validation or test are copies of earlier ones"
        if self.near and (warning := self.near.warning()):
            yield warning
        if self.suspects and self.suspects.striking:
            striking = self.suspects.striking
            yield (
                f"{len(striking)} of {self.suspects.looked_at} images may have a wrong label, such as "
                f"{striking[0].id}, which looks like {striking[0].seen!r}"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "num_examples": self.num_examples,
            "problems": list(self.problems()),
            "notes": list(self.notes),
            "bad_records": {
                "count": len(self.bad_records),
                "records": [asdict(record) for record in self.bad_records[:_LISTED]],
            },
            "images": self.images.to_json(),
            "labels": self.labels.to_json() if self.labels else None,
            "captions": self.captions.to_json() if self.captions else None,
            "splits": [asdict(outcome) for outcome in self.splits],
            "near_duplicates": self.near.to_json() if self.near else None,
            "label_suspects": self.suspects.to_json() if self.suspects else None,
        }


def inspect_source(
    source: ExampleSource,
    *,
    rules: Sequence[str] = (),
    seed: int = 1,
    sample: int | None = None,
    decode: bool = False,
    max_pixels: int = 50_000_000,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Inspection:
    """Looks at every label and caption, and at every image or a `sample` of so many (by a seeded order).

    `rules`: of `data.split` to try; none given, the data's own and, with labels, a stratified one.
    """
    total = len(source.examples)
    indices: Sequence[int] = range(total)
    if sample is not None and sample < total:
        indices = np.sort(EpochOrder(total, seed).indices(0, 0, sample)).tolist()
    on_progress("labels", 0, 1)
    labels = survey_labels(source)
    images = survey_images(
        source,
        indices,
        max_pixels=max_pixels,
        decode=decode,
        on_progress=lambda done, of: on_progress("images", done, of),
    )
    on_progress("splits", 0, 1)
    tried = list(rules) or _usual_rules(source, labels)
    splits = [_split(source, rule, seed) for rule in tried]
    outcomes = [_outcome(source, rule, split, images, labels) for rule, split in zip(tried, splits, strict=True)]
    on_progress("captions", 0, 1)
    first = next(((rule, s) for rule, s in zip(tried, splits, strict=True) if isinstance(s, Split)), (None, None))
    return Inspection(
        data=source.location,
        num_examples=total,
        notes=tuple(getattr(source, "notes", ())),
        bad_records=tuple(source.bad_records),
        images=images,
        labels=labels,
        captions=survey_captions(source, first[1], first[0]),
        splits=tuple(outcomes),
    )


def _usual_rules(source: ExampleSource, labels: LabelSurvey | None) -> list[str]:
    own = str(data_defaults(source.location).get("split", DEFAULT_RULE))
    return [own, "stratified:0.8,0.1,0.1"] if labels else [own]


def _split(source: ExampleSource, rule: str, seed: int) -> Split | ZooError:
    try:
        return split_examples(source.examples, rule, seed=seed, read=source.read)
    except ZooError as error:
        return error


def _outcome(
    source: ExampleSource, rule: str, split: Split | ZooError, images: ImageSurvey, labels: LabelSurvey | None
) -> SplitOutcome:
    if isinstance(split, ZooError):
        return SplitOutcome(rule=rule, error=split.message)
    part_of = np.full(len(source.examples), len(PARTS), np.int8)
    for number, part in enumerate(PARTS):
        part_of[np.asarray(getattr(split, part))] = number
    copies = 0
    for group in images.digest_groups:
        sides = part_of[group]
        used = sides[sides < len(PARTS)]
        copies += int(np.count_nonzero(used > used.min())) if len(used) else 0
    return SplitOutcome(
        rule=rule,
        examples={part: len(getattr(split, part)) for part in (*PARTS, "unused")},
        absent=_absent(source, split, labels) if labels else {},
        copies=copies,
    )


def _absent(source: ExampleSource, split: Split, labels: LabelSurvey) -> dict[str, tuple[str, ...]]:
    wanted = [name for name, count in labels.counts.items() if count]
    absent = {}
    for part in PARTS:
        there: Counter[str] = Counter()
        for index in getattr(split, part):
            example = source.examples[index]
            there.update(example.labels if example.label is None else (example.label,))
        if len(getattr(split, part)) and (without := tuple(name for name in wanted if not there[name])):
            absent[part] = without
    return absent
