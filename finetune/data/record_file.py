"""TFRecord files, read at places: length, its checksum, data, its checksum, and the next record.

Takes Ranges of a file. Gives records by offset. Next: `finetune.data.tfrecord`. The format is in
tensorflow/core/lib/io/record_writer.h; checksums are CRC-32C, masked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from finetune.data.trees.ranges import Ranges
from zoo.crc32c import crc32c, masked

_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<I")
_BLOCK = 4 << 20  # bytes read at once while a file is indexed
MAX_RECORD = 1 << 30  # bytes; more is taken for damage


class DamagedRecord(ValueError):
    """`rest`: nothing after it can be found either."""

    def __init__(self, reason: str, *, rest: bool) -> None:
        super().__init__(reason)
        self.rest = rest


class Record(NamedTuple):
    offset: int  # of the record's data
    data: bytes


def records(ranges: Ranges) -> Iterator[Record | DamagedRecord]:
    """All records in order; what is damaged comes as a DamagedRecord in its place."""
    buffered, start, place = b"", 0, 0

    def at(offset: int, length: int) -> bytes:
        nonlocal buffered, start
        if offset < start or offset + length > start + len(buffered):
            buffered, start = ranges.at(offset, max(length, _BLOCK)), offset
        return buffered[offset - start : offset - start + length]

    while place < ranges.size:
        head = at(place, _HEAD.size)
        if len(head) < _HEAD.size:
            yield DamagedRecord("cut short in a record's head: its writer was not closed", rest=True)
            return
        length, checksum = _HEAD.unpack(head)
        if masked_crc(head[:8]) != checksum or length > MAX_RECORD:
            hint = " (a file compressed as a whole can't be read at places)" if head[:2] == b"\x1f\x8b" else ""
            yield DamagedRecord(f"no record begins at byte {place}{hint}", rest=True)
            return
        offset = place + _HEAD.size
        block = at(offset, length + _TAIL.size)
        if len(block) < length + _TAIL.size:
            yield DamagedRecord(f"cut short: a record of {length} bytes begins at byte {offset}", rest=True)
            return
        data = block[:length]
        place = offset + length + _TAIL.size
        if masked_crc(data) == _TAIL.unpack(block[length:])[0]:
            yield Record(offset, data)
        else:
            yield DamagedRecord(f"the record at byte {offset} has another checksum", rest=False)


def read_record(ranges: Ranges, offset: int, length: int) -> bytes:
    """The data of one record. Raises DamagedRecord."""
    block = ranges.at(offset, length + _TAIL.size)
    if len(block) < length + _TAIL.size:
        raise DamagedRecord(f"cut short: {len(block)} bytes of {length + _TAIL.size} at byte {offset}", rest=True)
    data = block[:length]
    if masked_crc(data) != _TAIL.unpack(block[length:])[0]:
        raise DamagedRecord(f"the record at byte {offset} has another checksum", rest=False)
    return data


def framed(data: bytes) -> bytes:
    """A record as it stands in a file."""
    length = struct.pack("<Q", len(data))
    return length + _TAIL.pack(masked_crc(length)) + data + _TAIL.pack(masked_crc(data))


def masked_crc(data: bytes) -> int:
    return masked(crc32c(data))
