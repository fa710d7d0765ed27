"""The index of a V2 checkpoint: what each variable is and where in the shards its bytes lie.

Takes a `.index` file. Gives a BundleIndex. Next: `zoo.readers.slim_bundle`, which reads the bytes.

The file is a table as LevelDB has them (https://github.com/google/leveldb/blob/main/doc/table_format.md): blocks of
sorted keys, each with a sum, an index of blocks, a footer. Keys are names of variables, values are messages
`BundleEntryProto` of tensorflow/core/protobuf/tensor_bundle.proto; the first key is empty, its value a
`BundleHeaderProto`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.crc32c import crc32c, unmasked
from zoo.readers.checkpoint import DamagedCheckpoint

_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # after each block: its compression, its sum
_MAX_INDEX_BYTES = 256 << 20
_SHARDS, _BIG_ENDIAN = 1, 2  # fields of the header
_TYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _SUM, _SLICES = 1, 2, 3, 4, 5, 6, 7  # of an entry
_DIMENSION, _LENGTH = 2, 1  # of a shape, and of its dimensions
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True, kw_only=True)
class BundleEntry:
    """One variable. `type` is TensorFlow's number of its type; `sum` is of its bytes, as the file has it."""

    type: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    sum: int


@dataclass(frozen=True, kw_only=True)
class BundleIndex:
    """`plain` is False where something rare needs TensorFlow itself: variables in slices, big-endian numbers. Then
    `entries` may be of slices too."""

    shards: int
    entries: dict[str, BundleEntry]
    plain: bool

    def shard_bytes(self) -> dict[int, int]:
        """Shard number → bytes it must have at least."""
        wanted = dict.fromkeys(range(self.shards), 0)
        for entry in self.entries.values():
            wanted[entry.shard] = max(wanted.get(entry.shard, 0), entry.offset + entry.size)
        return wanted


def shard_bytes(index: Path) -> dict[int, int] | None:
    """Shard number → bytes it must have at least; None and raises as `read_index`."""
    found = read_index(index)
    return None if found is None else found.shard_bytes()


def read_index(index: Path) -> BundleIndex | None:
    """None where blocks are compressed, which TensorFlow never does by itself. Raises DamagedCheckpoint."""
    size = index.stat().st_size
    if not _FOOTER_BYTES <= size <= _MAX_INDEX_BYTES:
        raise DamagedCheckpoint(f"{index} has {size} bytes, which no index of a checkpoint has")
    try:
        return _index(index.read_bytes())
    except (IndexError, ValueError) as error:
        raise DamagedCheckpoint(f"{index} is damaged: {error}") from None


def _index(data: bytes) -> BundleIndex | None:
    footer = data[-_FOOTER_BYTES:]
    _, at = _handle(footer, 0)
    blocks = _block(data, _handle(footer, at)[0])
    header: dict[int, list[int | bytes]] | None = None
    entries: dict[str, BundleEntry] = {}
    plain = True
    for _, handle in blocks or ():
        block = _block(data, _handle(handle, 0)[0])
        if block is None:
            return None
        for key, value in block:
            fields = _fields(value)
            if not key:
                header = fields
                continue
            plain = plain and _SLICES not in fields
            entries[key.decode("utf-8", "backslashreplace")] = _entry(fields)
    if blocks is None:
        return None
    if header is None or not _number(header, _SHARDS):
        raise ValueError("it has no header that says how many shards there are")
    plain = plain and not _number(header, _BIG_ENDIAN)
    return BundleIndex(shards=_number(header, _SHARDS), entries=entries, plain=plain)


def _entry(fields: dict[int, list[int | bytes]]) -> BundleEntry:
    shape = [
        _number(_fields(dimension), _LENGTH)
        for message in fields.get(_SHAPE, ())
        if isinstance(message, bytes)
        for dimension in _fields(message).get(_DIMENSION, ())
        if isinstance(dimension, bytes)
    ]
    return BundleEntry(
        type=_number(fields, _TYPE),
        shape=tuple(shape),
        shard=_number(fields, _SHARD),
        offset=_number(fields, _OFFSET),
        size=_number(fields, _SIZE),
        sum=_number(fields, _SUM),
    )


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(data: bytes, handle: tuple[int, int]) -> list[tuple[bytes, bytes]] | None:
    """Keys and values of a block; None when it is compressed. A key leaves out what it shares with the one before."""
    offset, size = handle
    block = data[offset : offset + size]
    trailer = data[offset + size : offset + size + _TRAILER_BYTES]
    if len(block) < size or len(trailer) < _TRAILER_BYTES:
        raise ValueError("a block lies beyond its end")
    if crc32c(block + trailer[:1]) != unmasked(int.from_bytes(trailer[1:], "little")):
        raise ValueError("a block's checksum is not that of its bytes")
    if trailer[0]:
        return None
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")  # the places of whole keys, and their number
    entries, key, at = [], b"", 0
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        entries.append((key, block[at + own : at + own + length]))
        at += own + length
    return entries


def _fields(message: bytes) -> dict[int, list[int | bytes]]:
    """Field number → values of a protobuf message, in their order."""
    found: dict[int, list[int | bytes]] = {}
    for number, value in _pairs(message):
        found.setdefault(number, []).append(value)
    return found


def _number(fields: dict[int, list[int | bytes]], number: int) -> int:
    """The last value counts, as in any protobuf message; a field of zero isn't written."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {number} of a message is no number")
    return value


def _pairs(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"a message has the wire type {wire}")
        content = message[at : at + length]
        if len(content) < length:
            raise ValueError("a message is cut short")
        yield tag >> 3, content if wire == _BYTES else int.from_bytes(content, "little")
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
