"""DATA, as users type it, to an ExampleSource.

Takes `kind:location`. Gives an ExampleSource. Next: `finetune.data.splits`.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import JsonValue

from finetune.data.source import ExampleSource
from zoo.errors import InvalidArgument


class UnknownSource(InvalidArgument):
    """DATA that is not `kind:location` of a known kind."""


def _coco(location: str, language: str | None) -> ExampleSource:
    from finetune.data.coco import CocoSource

    return CocoSource.open(location)


def _csv(location: str, language: str | None) -> ExampleSource:
    from finetune.data.csv_file import CsvSource

    return CsvSource.open(location)


def _flickr(location: str, language: str | None) -> ExampleSource:
    from finetune.data.flickr import FlickrSource

    return FlickrSource.open(location)


def _folder(location: str, language: str | None) -> ExampleSource:
    from finetune.data.folder import FolderSource

    return FolderSource.open(location)


def _jsonl(location: str, language: str | None) -> ExampleSource:
    from finetune.data.jsonl import JsonlSource

    return JsonlSource.open(location, language=language)


def _scenes(location: str, language: str | None) -> ExampleSource:
    from finetune.data.scenes import SceneSource

    return SceneSource.open(location)


def _tfrecord(location: str, language: str | None) -> ExampleSource:
    from finetune.data.tfrecord import TfrecordSource

    return TfrecordSource.open(location)


SOURCES: dict[str, Callable[[str, str | None], ExampleSource]] = {
    "coco": _coco,
    "csv": _csv,
    "flickr": _flickr,
    "folder": _folder,
    "jsonl": _jsonl,
    "scenes": _scenes,
    "tfrecord": _tfrecord,
}
# What a kind of DATA wants of the keys of `data`. Scenes hold combinations out of training by themselves, and say
# "left of", which a mirrored view would turn into a lie.
DEFAULTS: dict[str, dict[str, JsonValue]] = {"scenes": {"split": "source", "views": 1}}


def open_source(location: str, *, language: str | None = None) -> ExampleSource:
    """Opens DATA (`kind:location`): reads its index, no image.

    Raises UnknownSource; the source's own NotFound and InvalidArgument errors; InvalidArgument where `language` is set
    for a kind that has no languages.
    """
    kind = _kind(location)
    rest = location.partition(":")[2]
    if language is not None and kind != "jsonl":
        raise InvalidArgument(f"data.language {language!r} has no meaning for {kind}:; only jsonl: has languages")
    return SOURCES[kind](rest, language)


def data_defaults(location: str) -> dict[str, JsonValue]:
    """Keys of `data` for DATA of this kind, where they are not the general ones. Raises UnknownSource."""
    return dict(DEFAULTS.get(_kind(location), {}))


def _kind(location: str) -> str:
    kind, colon, _ = location.partition(":")
    if not colon or kind not in SOURCES:
        raise UnknownSource(
            f"data {location!r}: expected KIND:LOCATION with one of the kinds {', '.join(SOURCES)}",
            hint="for photos with captions: flickr:PATH; for a folder per class: folder:PATH",
        )
    return kind
