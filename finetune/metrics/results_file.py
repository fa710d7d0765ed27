"""COCO's result format: what a captioner said of each image, in a file that any scorer reads.

Takes image ids and captions. Gives a JSON list of {"image_id", "caption"} (https://cocodataset.org/#format-results).
Next: `finetune.score`.

An image's id is COCO's number for `coco:` data, and the id of the example (a file name) for any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.data.source import ExampleSource
from zoo.atomic_file import replaced_file
from zoo.errors import InvalidArgument, NotFound

ImageId = int | str


class NoResults(NotFound):
    """There is no such results file."""


class InvalidResults(InvalidArgument):
    """A file that isn't a list of results, or holds two for one image."""


def result_ids(source: ExampleSource) -> dict[str, ImageId]:
    """Example id → image id, for all examples of a source."""
    numbers: Mapping[str, int] = getattr(source, "image_ids", {})
    return {example.id: numbers.get(example.id, example.id) for example in source.examples}


def write_results(path: Path, ids: Sequence[ImageId], captions: Sequence[str]) -> None:
    """One caption an image, in order."""
    lines = [
        json.dumps({"image_id": image, "caption": caption}, ensure_ascii=False)
        for image, caption in zip(ids, captions, strict=True)
    ]
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    with replaced_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # half a character as JSON escapes it


def read_results(path: Path) -> dict[ImageId, str]:
    """Captions by image id, in the file's order. Keys beside `image_id` and `caption` are left alone, as COCO's own
    scorer leaves them.

    Raises NoResults; InvalidResults naming the entry.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NoResults(
            f"there is no results file {path}", hint="finetune evaluate REF --data DATA --results FILE"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidResults(f"cannot read {path} as JSON: {error}") from None
    if not isinstance(value, list):
        raise InvalidResults(f'{path}: expected a list of {{"image_id", "caption"}}, got {type(value).__name__}')
    found: dict[ImageId, str] = {}
    for number, entry in enumerate(value):
        image = entry.get("image_id") if isinstance(entry, dict) else None
        caption = entry.get("caption") if isinstance(entry, dict) else None
        if isinstance(image, bool) or not isinstance(image, int | str) or not isinstance(caption, str):
            raise InvalidResults(
                f'{path}, entry {number}: expected {{"image_id": number or text, "caption": text}}, got {entry!r:.80}'
            )
        if image in found:
            raise InvalidResults(f"{path}, entry {number}: image {image!r} has a caption already; one each is scored")
        found[image] = caption
    if not found:
        raise InvalidResults(f"{path} holds no results")
    return found
