"""Which images stand for the data on a contact sheet: some of every class, drawn with the seed.

Takes an ExampleSource and its ImageSurvey. Gives SheetRows. Next: `finetune.contact_sheet`,
`finetune.data.inspect.page`.
"""

from __future__ import annotations

from finetune.contact_sheet import SheetRow
from finetune.data.image_header import UnreadableImage
from finetune.data.inspect.images import ImageSurvey
from finetune.data.order import EpochOrder
from finetune.data.preprocess import load_pixels
from finetune.data.source import Example, ExampleSource
from zoo.input_spec import InputSpec

_SMALL = InputSpec(height=8, width=8)
_MAX_PIXELS = 50_000_000


def shown_rows(source: ExampleSource, images: ImageSurvey, *, count: int = 24, seed: int = 1) -> list[SheetRow]:
    """At most `count` readable images, the classes in turn."""
    if not len(images.readable):
        return []
    shuffled = images.readable[EpochOrder(len(images.readable), seed).indices(0)]
    by_class: dict[str, list[int]] = {}
    for index in shuffled.tolist():
        members = by_class.setdefault(_label(source.examples[index]), [])
        if len(members) < 2 * count:  # twice what is wanted: some may be damaged behind their headers
            members.append(index)
    rows: list[SheetRow] = []
    turns = [index for turn in range(2 * count) for _, m in sorted(by_class.items()) for index in m[turn : turn + 1]]
    for index in turns:
        if len(rows) == count:
            break
        if (row := _row(source, index)) is not None:
            rows.append(row)
    return rows


def _label(example: Example) -> str:
    return example.label if example.label is not None else ", ".join(example.labels)


def _row(source: ExampleSource, index: int) -> SheetRow | None:
    """None for an image that turns out to be damaged: the sheet shows another."""
    example = source.examples[index]
    try:
        image = source.read(index)
        load_pixels(image, _SMALL, max_pixels=_MAX_PIXELS)
    except UnreadableImage:
        return None
    texts = [text for text in (_label(example), *example.captions) if text]
    return SheetRow(name=example.id, image=image, truth=texts[1:], caption=texts[0] if texts else "")
