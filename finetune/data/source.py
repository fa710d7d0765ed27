"""ExampleSource: random access to labelled images by index. Metadata in memory, image bytes where they lie.

Takes DATA (`kind:location`). Gives Examples and bytes. Next: `finetune.data.splits`, `finetune.data.preprocess`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Example:
    """What is known of one image without reading it.

    `id` is stable across machines (the path relative to the source's root, with `/`), unique in the source, and what
    splits hash. `captions` are as written by their authors; `label` is a class name, `labels` are those of an image
    that may show several classes or none.
    """

    id: str
    captions: tuple[str, ...] = ()
    label: str | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BadRecord:
    """A record that can't be used; reported, counted against `data.max_bad_share`, never dropped in silence."""

    id: str
    reason: str


class ExampleSource(Protocol):
    """Implemented by flickr, folder and scenes. Safe to read from many threads."""

    @property
    def location(self) -> str:
        """`kind:location`, what `open_source` makes the same source from."""

    @property
    def examples(self) -> Sequence[Example]:
        """In order of `id` (code points)."""

    @property
    def bad_records(self) -> Sequence[BadRecord]:
        """Records that the index itself shows to be unusable: a caption whose image is missing, an empty caption."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in lexicographic order, for sources with labels."""

    def read(self, index: int) -> bytes:
        """The encoded image of `examples[index]`. Raises UnreadableImage (finetune.data.preprocess)."""
