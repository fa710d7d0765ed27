"""What a record says: tf.Example and tf.SequenceExample under the keys of TF-Slim and im2txt.

Takes a record's bytes. Gives RecordFacts. Next: `finetune.data.record_index`.

Both are read as SequenceExample: its `context` has the place that an Example's `features` have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.data.record_write import SEVERAL
from finetune.text.tokenizer import tokenize

_IMAGE_KEYS = ("image/encoded", "image/data")
_ID_KEYS = ("image/filename", "image/image_id", "image/source_id")
_MARKS = ("<S>", "</S>")  # im2txt writes them into every caption


@dataclass(frozen=True, kw_only=True)
class RecordFacts:
    """`labels` holds numbers; names come from `texts` (number → name of this record) or from labels.txt."""

    name: str | None  # what the record calls its image
    labels: tuple[int, ...]
    texts: tuple[str, ...]
    captions: tuple[str, ...]
    several: bool = False  # it may show several classes or none, also where it shows one


def record_facts(data: bytes) -> RecordFacts:
    """Raises ValueError saying why the record can't be used."""
    parsed = _parsed(data)
    features = parsed.context.feature
    if _image(features) is None:
        keys = ", ".join(sorted(features)[:8]) or "none"
        raise ValueError(f"no image under {' or '.join(_IMAGE_KEYS)}; its keys are {keys}")
    captions = _captions(parsed, features)
    if "image/caption_ids" in parsed.feature_lists.feature_list and not captions:
        raise ValueError("its caption is there as word numbers only, not as words (image/caption)")
    return RecordFacts(
        name=_name(features),
        labels=tuple(int(value) for value in features["image/class/label"].int64_list.value)
        if "image/class/label" in features
        else (),
        texts=tuple(_texts(features, "image/class/text")),
        captions=captions,
        several=SEVERAL in features,
    )


def image_bytes(data: bytes) -> bytes | None:
    """The encoded image; None where there is none."""
    try:
        return _image(_parsed(data).context.feature)
    except ValueError:
        return None


def _parsed(data: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.train import SequenceExample

    try:
        return SequenceExample.FromString(data)
    except DecodeError:
        raise ValueError("neither a tf.Example nor a tf.SequenceExample") from None


def _image(features: Mapping[str, Any]) -> bytes | None:
    for key in _IMAGE_KEYS:
        if key in features and len(features[key].bytes_list.value) == 1:
            return bytes(features[key].bytes_list.value[0])
    return None


def _name(features: Mapping[str, Any]) -> str | None:
    for key in _ID_KEYS:
        if key in features:
            for value in features[key].bytes_list.value:
                if value:
                    return bytes(value).decode("utf-8", "replace")
            for number in features[key].int64_list.value:
                return str(number)
    return None


def _texts(features: Mapping[str, Any], key: str) -> list[str]:
    if key not in features:
        return []
    values = [bytes(value) for value in features[key].bytes_list.value]
    try:
        return [value.decode() for value in values if value]
    except UnicodeDecodeError as error:
        raise ValueError(f"{key} is not UTF-8: {error}") from None


def _captions(parsed: Any, features: Mapping[str, Any]) -> tuple[str, ...]:
    """im2txt's: one caption, a word an entry; or whole captions under `image/caption` of an Example."""
    captions = _texts(features, "image/caption")
    lists = parsed.feature_lists.feature_list
    if "image/caption" in lists:
        try:
            words = [value.decode() for step in lists["image/caption"].feature for value in step.bytes_list.value]
        except UnicodeDecodeError as error:
            raise ValueError(f"image/caption is not UTF-8: {error}") from None
        captions.append(" ".join(word for word in words if word not in _MARKS))
    if not all(tokenize(caption) for caption in captions):
        raise ValueError("a caption is empty or has no word")
    return tuple(captions)
