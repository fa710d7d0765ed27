"""Examples as records: tf.Example under TF-Slim's keys, written byte for byte the same every time.

Takes an Example and its image. Gives a record's data. Next: `finetune.data.record_file.framed`,
`finetune.data.build_worker`.

Encoded here and not by TensorFlow: its import takes each process seconds and hundreds of MB, and the order of a
protobuf map is free, so that two builds might differ. Keys, besides those of TF-Slim (`image/encoded`, `image/format`,
`image/height`, `image/width`, `image/filename`, `image/class/label`, `image/class/text`): `image/caption` with whole
captions, and `image/class/several` = 1 where an image may show several classes or none.
Layout: tensorflow/core/example/{example,feature}.proto; protobuf's encoding guide for the wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune.data.image_header import ImageFacts
from finetune.data.source import Example

SEVERAL = "image/class/several"
_FORMATS = {"JPEG": b"jpg", "PNG": b"png", "GIF": b"gif", "BMP": b"bmp", "WebP": b"webp"}  # Slim knows jpg and png


def record_of(
    example: Example, image: bytes, facts: ImageFacts, *, name: str, numbers: Mapping[str, int], several: bool
) -> bytes:
    """The data of a record.

    Args:
        name: what the record calls its image.
        numbers: class name → number.
        several: the images of this source have `labels`, not one `label` each.
    """
    features: dict[str, bytes] = {
        "image/encoded": _bytes([image]),
        "image/filename": _bytes([name.encode()]),
        "image/format": _bytes([_FORMATS[facts.format]]),
        "image/height": _integers([facts.height]),
        "image/width": _integers([facts.width]),
    }
    names = example.labels if example.label is None else (example.label,)
    if names:
        features["image/class/label"] = _integers([numbers[each] for each in names])
        features["image/class/text"] = _bytes([each.encode() for each in names])
    if several and example.label is None:
        features[SEVERAL] = _integers([1])
    if example.captions:
        features["image/caption"] = _bytes([each.encode() for each in example.captions])
    entries = (_field(1, _field(1, key.encode()) + _field(2, features[key])) for key in sorted(features))
    return _field(1, b"".join(entries))


def _bytes(values: Sequence[bytes]) -> bytes:
    return _field(1, b"".join(_field(1, value) for value in values))


def _integers(values: Sequence[int]) -> bytes:
    return _field(3, _field(1, b"".join(_varint(value) for value in values)))


def _field(number: int, data: bytes) -> bytes:
    """A field of wire type 2, which says its length."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
