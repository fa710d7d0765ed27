"""An Inspection as text for a terminal.

Takes an Inspection. Gives lines. Next: `finetune.cli.data` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune.data.inspect.captions import CaptionSurvey
from finetune.data.inspect.images import SIDES, ImageSurvey, Range
from finetune.data.inspect.inspection import Inspection, SplitOutcome
from finetune.data.inspect.labels import LabelSurvey
from finetune.data.label_suspects import LabelSuspects

_BAR = 30
_CLASSES = 40  # that are listed
_NAMED = 10
_SUSPECTS = 40


def text_lines(found: Inspection) -> Iterator[str]:
    yield f"{found.data}: {found.num_examples} examples"
    for note in found.notes:
        yield f"  note: {note}"
    yield ""
    problems = list(found.problems())
    yield f"problems: {len(problems) or 'none'}"
    for problem in problems:
        yield f"  - {problem}"
    for record in (*found.bad_records[:_NAMED], *found.images.unreadable_examples[:_NAMED]):
        yield f"    {record.id}: {record.reason}"
    more = max(0, len(found.bad_records) - _NAMED) + max(0, found.images.unreadable - _NAMED)
    if more:
        yield f"    and {more} more (--format json lists them)"
    yield ""
    yield from _images(found.images, found.num_examples)
    if found.labels:
        yield ""
        yield from _labels(found.labels)
    if found.captions:
        yield ""
        yield from _captions(found.captions)
    yield ""
    yield "splits"
    for outcome in found.splits:
        yield from _split(outcome)
    if found.near:
        yield ""
        yield f"near duplicates (cosine of features ≥ {found.near.threshold:g}): {found.near.pairs} pairs"
        for pair in found.near.worst:
            yield (f"  {pair.similarity:.4f}  {pair.first} ({pair.first_part})  {pair.second} ({pair.second_part})")
    if found.suspects:
        yield ""
        yield from _suspects(found.suspects)


def _suspects(found: LabelSuspects) -> Iterator[str]:
    yield (
        f"label suspects (confident learning): {len(found.suspects)} of {found.looked_at} images, by a model that "
        f"agrees with {found.accuracy:.0%} of the labels"
    )
    for each in found.suspects[:_SUSPECTS]:
        yield f"  {each.margin:.2f}  {each.id}: labelled {each.label!r}, looks like {each.seen!r}"
    if len(found.suspects) > _SUSPECTS:
        yield f"  and {len(found.suspects) - _SUSPECTS} more, less suspicious (--format json lists them)"


def _images(images: ImageSurvey, total: int) -> Iterator[str]:
    how = "decoded" if images.decoded else "headers read"
    whole = "all" if images.looked_at == total else f"a sample of {images.looked_at}"
    yield f"images: {whole} ({how}), {images.bytes / 1e6:.1f} MB, {images.copies} copies"
    yield from _bars("format", [(name, count) for name, count in images.formats.items()])
    yield f"  width {_range(images.width)} pixels, height {_range(images.height)}"
    bins = [
        (f"{low} to {SIDES[place + 1] - 1}" if place + 1 < len(SIDES) else f"{low} and more", low)
        for place, low in enumerate(SIDES)
    ]
    counts = [(name, images.shorter_side.get(low, 0)) for name, low in bins]
    yield from _bars("shorter side, pixels", [(name, count) for name, count in counts if count])
    for group in images.groups[:_NAMED]:
        labels = f", labelled {' and '.join(group.labels)}" if len(group.labels) > 1 else ""
        yield f"  the same bytes: {', '.join(group.ids[:4])}{', …' if len(group.ids) > 4 else ''}{labels}"


def _labels(labels: LabelSurvey) -> Iterator[str]:
    kind = "any number of classes an image" if labels.several else "one class an image"
    order = "" if labels.natural_order is None else "; natural order differs"
    yield f"classes: {len(labels.counts)}, {kind}, in lexicographic order (code points){order}"
    shown = list(labels.counts.items())
    yield from _bars("images", shown[:_CLASSES])
    if len(shown) > _CLASSES:
        yield f"  and {len(shown) - _CLASSES} more"
    if labels.several:
        yield from _bars("classes an image", [(str(number), count) for number, count in labels.per_image.items()])


def _captions(captions: CaptionSurvey) -> Iterator[str]:
    yield f"captions: {captions.captions} of {captions.images} images, {captions.distinct} distinct"
    if captions.lengths:
        longest = max(captions.lengths)
        yield (
            f"  {captions.words} words; a caption has {min(captions.lengths)} to {longest}, median "
            f"{captions.length(0.5)}, 95 % have at most {captions.length(0.95)}"
        )
        yield from _bars("words", [(str(length), count) for length, count in captions.lengths.items()])
        yield f"  longest: {captions.longest}"
    for each in captions.vocabulary:
        held = "" if each.held_out is None else f"; of validation by {captions.held_out_rule}: {each.held_out:.1%}"
        yield f"  words seen {each.min_count} times or more: {each.words}, {each.coverage:.1%} of all{held}"
    if captions.scripts:
        yield f"  letters: {', '.join(f'{name} {share:.1%}' for name, share in captions.scripts.items())}"
    for language in captions.languages:
        yield f"  language {language.code}: {language.captions} captions of {language.images} images"


def _split(outcome: SplitOutcome) -> Iterator[str]:
    if outcome.examples is None:
        yield f"  {outcome.rule}: {outcome.error}"
        return
    yield f"  {outcome.rule}: {', '.join(f'{part} {count}' for part, count in outcome.examples.items() if count)}"
    for part, names in (outcome.absent or {}).items():
        yield f"    no image in {part}: {', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''}"


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> Iterator[str]:
    if not rows:
        return
    yield f"  {title}"
    most = max(count for _, count in rows) or 1
    name_width, count_width = max(len(name) for name, _ in rows), max(len(str(count)) for _, count in rows)
    for name, count in rows:
        bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
        yield f"    {name:>{name_width}}  {count:>{count_width}}  {bar}".rstrip()


def _range(values: Range | None) -> str:
    return "none" if values is None else f"{values.least} to {values.greatest}, median {values.median}"
