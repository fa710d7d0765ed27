"""A look at every image: format, size, bytes, whether it can be read, and whether it is there twice.

Takes an ExampleSource. Gives an ImageSurvey. Next: `finetune.data.inspect.inspection`.

Threads read, a bounded number of images ahead; what is kept of each image are 29 bytes.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from finetune.data.image_header import UnreadableImage, check_image
from finetune.data.preprocess import load_pixels
from finetune.data.source import BadRecord, ExampleSource
from zoo.input_spec import InputSpec

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP")
_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "PNG": {".png"},
    "GIF": {".gif"},
    "BMP": {".bmp", ".dib"},
    "WebP": {".webp"},
}
_KNOWN = set().union(*_SUFFIXES.values())
SIDES = (0, 32, 64, 128, 224, 299, 512, 1024, 2048, 4096)  # pixels of the shorter side; the usual inputs among them
_LISTED = 1000  # unreadable images and groups of copies that are named; all are counted
_DIGEST = 16  # bytes
_SMALL = InputSpec(height=32, width=32)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Least, median and greatest."""

    least: int
    median: int
    greatest: int

    @classmethod
    def of(cls, values: np.ndarray) -> Range | None:
        if not len(values):
            return None
        return cls(least=int(values.min()), median=int(np.median(values)), greatest=int(values.max()))


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Images with the same bytes. `labels`: what they are called; more than one is a fault of the labels."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ImageSurvey:
    """`looked_at` images were read, all of them or a sample; `decoded`: each was decoded whole, not only its header."""

    looked_at: int
    decoded: bool
    bytes: int
    formats: dict[str, int]
    width: Range | None  # pixels as stored, before any EXIF rotation
    height: Range | None
    shorter_side: dict[int, int]  # lower bound of a bin (SIDES) → images
    unreadable: int
    unreadable_causes: dict[str, int]
    unreadable_examples: tuple[BadRecord, ...]
    misnamed: int  # whose name says another format than their content
    misnamed_examples: tuple[str, ...]
    copies: int  # images that another one has the bytes of, beyond the first
    copies_of_other_label: int  # groups of copies with several labels
    groups: tuple[Copies, ...]  # those with several labels first
    readable: np.ndarray  # indices of the images that can be used
    digest_groups: tuple[np.ndarray, ...]  # indices of images with the same bytes

    def to_json(self) -> dict[str, Any]:
        bins = [
            {"from": low, "below": high, "images": self.shorter_side.get(low, 0)}
            for low, high in itertools.zip_longest(SIDES, SIDES[1:])
        ]
        return {
            "looked_at": self.looked_at,
            "decoded": self.decoded,
            "bytes": self.bytes,
            "formats": self.formats,
            "width": None if self.width is None else asdict(self.width),
            "height": None if self.height is None else asdict(self.height),
            "shorter_side": bins,
            "unreadable": {
                "count": self.unreadable,
                "causes": self.unreadable_causes,
                "images": [asdict(record) for record in self.unreadable_examples],
            },
            "misnamed": {"count": self.misnamed, "images": list(self.misnamed_examples)},
            "copies": {
                "count": self.copies,
                "groups_with_several_labels": self.copies_of_other_label,
                "groups": [{"ids": list(each.ids), "labels": list(each.labels)} for each in self.groups],
            },
        }


@dataclass(frozen=True)
class _Seen:
    format: int
    width: int
    height: int
    digest: bytes
    size: int


def survey_images(
    source: ExampleSource,
    indices: Sequence[int],
    *,
    max_pixels: int,
    decode: bool,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImageSurvey:
    """Reads the images `indices`. Raises nothing for an image that can't be read."""
    table = _Table()
    for done, (index, seen) in enumerate(_read(source, indices, max_pixels, decode), start=1):
        table.add(source, index, seen)
        if done % 64 == 0 or done == len(indices):
            on_progress(done, len(indices))
    groups = _groups(np.frombuffer(table.digests, f"V{_DIGEST}"), np.frombuffer(table.readable, np.uint32))
    named = [_copies(source, group) for group in groups]
    short = np.minimum(np.frombuffer(table.widths, np.uint32), np.frombuffer(table.heights, np.uint32))
    bins = Counter((np.digitize(short, SIDES) - 1).tolist())
    return ImageSurvey(
        looked_at=len(indices),
        decoded=decode,
        bytes=table.bytes,
        formats={FORMATS[number]: count for number, count in table.formats.most_common()},
        width=Range.of(np.frombuffer(table.widths, np.uint32)),
        height=Range.of(np.frombuffer(table.heights, np.uint32)),
        shorter_side={SIDES[place]: count for place, count in sorted(bins.items())},
        unreadable=sum(table.causes.values()),
        unreadable_causes=dict(table.causes.most_common()),
        unreadable_examples=tuple(table.unreadable),
        misnamed=table.misnamed,
        misnamed_examples=tuple(table.misnamed_examples),
        copies=sum(len(group) - 1 for group in groups),
        copies_of_other_label=sum(len(each.labels) > 1 for each in named),
        groups=tuple(sorted(named, key=lambda each: (len(each.labels) < 2, each.ids))[:_LISTED]),
        readable=np.frombuffer(table.readable, np.uint32),
        digest_groups=tuple(groups),
    )


class _Table:
    def __init__(self) -> None:
        self.readable, self.widths, self.heights = array("I"), array("I"), array("I")
        self.digests = bytearray()
        self.bytes, self.misnamed = 0, 0
        self.formats: Counter[int] = Counter()
        self.causes: Counter[str] = Counter()
        self.unreadable: list[BadRecord] = []
        self.misnamed_examples: list[str] = []

    def add(self, source: ExampleSource, index: int, seen: _Seen | UnreadableImage) -> None:
        if isinstance(seen, UnreadableImage):
            self.causes[seen.details.get("cause", "unreadable")] += 1
            if len(self.unreadable) < _LISTED:
                self.unreadable.append(BadRecord(id=source.examples[index].id, reason=seen.message))
            return
        self.readable.append(index)
        self.widths.append(seen.width)
        self.heights.append(seen.height)
        self.digests += seen.digest
        self.bytes += seen.size
        self.formats[seen.format] += 1
        name = source.examples[index].id
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in _KNOWN and suffix not in _SUFFIXES[FORMATS[seen.format]]:
            self.misnamed += 1
            if len(self.misnamed_examples) < 20:
                self.misnamed_examples.append(name)


def _read(
    source: ExampleSource, indices: Sequence[int], max_pixels: int, decode: bool
) -> Iterator[tuple[int, _Seen | UnreadableImage]]:
    def look(index: int) -> _Seen | UnreadableImage:
        try:
            data = source.read(index)
            facts = check_image(data, max_pixels)
            if decode:
                load_pixels(data, _SMALL, max_pixels=max_pixels)
        except UnreadableImage as error:
            return error
        digest = hashlib.sha256(data).digest()[:_DIGEST]
        return _Seen(FORMATS.index(facts.format), facts.width, facts.height, digest, len(data))

    threads = 4 * (os.cpu_count() or 1)
    waiting: collections.deque[tuple[int, Future[_Seen | UnreadableImage]]] = collections.deque()
    left = iter(indices)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="look")
    try:
        waiting.extend((index, pool.submit(look, index)) for index in itertools.islice(left, 2 * threads))
        while waiting:
            index, seen = waiting.popleft()
            yield index, seen.result()
            waiting.extend((index, pool.submit(look, index)) for index in itertools.islice(left, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _groups(digests: np.ndarray, indices: np.ndarray) -> list[np.ndarray]:
    """Indices of the images that have the same digest, for those that several have."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(ordered) else order
    ends = np.append(starts[1:], len(ordered))
    several = np.flatnonzero(ends - starts > 1)
    return [np.sort(indices[order[starts[place] : ends[place]]]) for place in several]


def _copies(source: ExampleSource, group: np.ndarray) -> Copies:
    examples = [source.examples[index] for index in group.tolist()]
    labels = {example.label or ", ".join(sorted(example.labels)) for example in examples}
    return Copies(ids=tuple(example.id for example in examples[:20]), labels=tuple(sorted(labels - {""})))
