"""Karpathy's splits of COCO, Flickr8k and Flickr30k (Karpathy and Fei-Fei 2015, arXiv:1412.2306): those that published
captioners are compared on.

Takes the value of `dataset_coco.json`, `dataset_flickr8k.json` or `dataset_flickr30k.json`. Gives ids by part. Next:
`finetune.data.splits`.

`restval`, what COCO's validation photos leave after 5,000 for each of validation and test, belongs to training. An id
is the photo's file name, or that behind its folder (`val2014/COCO_val2014_….jpg`), as the data have it. Only the split
is read: captions come from the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zoo.errors import InvalidArgument

_PARTS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


class InvalidKarpathySplit(InvalidArgument):
    """A file like Karpathy's, with an entry that isn't."""


def is_karpathy(value: Any) -> bool:
    """Whether a JSON value is one of Karpathy's files, rather than lists of ids."""
    return isinstance(value, dict) and isinstance(value.get("images"), list) and "train" not in value


def karpathy_parts(value: Any, ids: Iterable[str], *, origin: str) -> dict[str, list[str]]:
    """Raises InvalidKarpathySplit naming the entry."""
    known = set(ids)
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for number, image in enumerate(value["images"]):
        name = image.get("filename") if isinstance(image, dict) else None
        part = image.get("split") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name or part not in _PARTS:
            raise InvalidKarpathySplit(
                f"{origin}, image {number}: expected a filename and a split of {', '.join(_PARTS)}, got {image!r:.80}"
            )
        folder = image.get("filepath")
        whole = f"{folder}/{name}" if isinstance(folder, str) and folder else name
        parts[_PARTS[part]].append(whole if whole in known else name)
    return parts
