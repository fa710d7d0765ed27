"""How many bytes the index of a V2 checkpoint says that each data shard has.

Takes a `.index` file. Gives bytes by shard. Next: `zoo.readers.slim`, which compares them with the files before it
reads a tensor. TensorFlow itself looks at a shard's length only when it comes to a tensor that lies beyond its end.

The file is a table as LevelDB has them (https://github.com/google/leveldb/blob/main/doc/table_format.md): blocks of
sorted keys, an index of blocks, a footer. Keys are tensor names, values are messages `BundleEntryProto` (fields: 3
shard, 4 offset, 5 size); the first key is empty, its value a `BundleHeaderProto` (field 1: number of shards).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zoo.readers.checkpoint import DamagedCheckpoint

_FOOTER_BYTES = 48
_MAX_INDEX_BYTES = 256 << 20
_SHARDS, _SHARD, _OFFSET, _SIZE = 1, 3, 4, 5  # field numbers
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def shard_bytes(index: Path) -> dict[int, int] | None:
    """Shard number → bytes it must have at least. None where blocks are compressed, which TensorFlow never does.

    Raises DamagedCheckpoint.
    """
    size = index.stat().st_size
    if not _FOOTER_BYTES <= size <= _MAX_INDEX_BYTES:
        raise DamagedCheckpoint(f"{index} has {size} bytes, which no index of a checkpoint has")
    data = index.read_bytes()
    try:
        return _shard_bytes(data)
    except (IndexError, ValueError) as error:
        raise DamagedCheckpoint(f"{index} is damaged: {error}") from None


def _shard_bytes(data: bytes) -> dict[int, int] | None:
    footer = data[-_FOOTER_BYTES:]
    _, at = _handle(footer, 0)
    blocks, _ = _handle(footer, at)
    wanted: dict[int, int] = {}
    for _, handle in _entries(data, blocks) or ():
        entries = _entries(data, _handle(handle, 0)[0])
        if entries is None:
            return None
        for key, value in entries:
            fields = dict(_fields(value))
            if not key:
                wanted |= dict.fromkeys(range(fields.get(_SHARDS, 0)), 0)
            elif _SIZE in fields:  # a tensor in slices has an entry without bytes, and one for each slice
                shard = fields.get(_SHARD, 0)
                wanted[shard] = max(wanted.get(shard, 0), fields.get(_OFFSET, 0) + fields[_SIZE])
    if not wanted:
        raise ValueError("it names no shard")
    return wanted


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _entries(data: bytes, handle: tuple[int, int]) -> list[tuple[bytes, bytes]] | None:
    """Keys and values of a block; None when it is compressed. A key leaves out what it shares with the one before."""
    offset, size = handle
    block = data[offset : offset + size]
    if len(block) < size or offset + size >= len(data):
        raise ValueError("a block lies beyond its end")
    if data[offset + size]:
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


def _fields(message: bytes) -> Iterator[tuple[int, int]]:
    """Field number → value of a protobuf message, numbers only."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
        elif wire == _BYTES:
            length, at = _varint(message, at)
            at += length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"a message has the wire type {wire}")


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
