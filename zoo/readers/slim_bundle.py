"""Reads the variables of a V2 checkpoint from its shards, without TensorFlow: importing that takes seconds and half a
gigabyte, more than all there is to read.

Takes the index and the shards. Gives Variables. Next: `zoo.readers.slim`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoo.crc32c import crc32c, unmasked
from zoo.readers.checkpoint import DamagedCheckpoint
from zoo.readers.slim_index import BundleEntry, BundleIndex

# TensorFlow's number of a type (tensorflow/core/framework/types.proto) → NumPy's name. Text and rare ones have none.
_TYPES: Mapping[int, str] = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}


class Bundle:
    """The variables of a checkpoint: a `zoo.readers.slim.Variables`. Raises DamagedCheckpoint when entries contradict
    themselves or the shards; no more memory is asked for than the shards have bytes."""

    def __init__(self, source: Path, index: BundleIndex, shards: tuple[Path, ...]) -> None:
        self._source, self._entries, self._shards = source, index.entries, shards
        self.shapes = {name: entry.shape for name, entry in index.entries.items()}
        self.types = {name: _TYPES.get(entry.type, "other") for name, entry in index.entries.items()}
        claimed, held = sum(entry.size for entry in index.entries.values()), sum(each.stat().st_size for each in shards)
        if claimed > held:  # entries that share bytes, which nobody writes
            raise DamagedCheckpoint(f"{source} claims tensors of {claimed} bytes, its shards have {held}")
        for name, entry in index.entries.items():
            kind = self.types[name]
            if kind != "other" and math.prod(entry.shape) * _bytes_each(kind) != entry.size:
                raise DamagedCheckpoint(
                    f"{source}: variable {name} is {kind} {list(entry.shape)} but has {entry.size} bytes"
                )

    def value(self, name: str) -> np.ndarray:
        """Of a type that has a name; bfloat16 becomes float32."""
        entry, kind = self._entries[name], self.types[name]
        stored = np.uint16 if kind == "bfloat16" else np.dtype(kind)
        value = np.fromfile(self._shards[entry.shard], dtype=stored, count=math.prod(entry.shape), offset=entry.offset)
        self._check(name, entry, value)
        if kind == "bfloat16":  # the upper half of a float32
            value = (value.astype(np.uint32) << 16).view(np.float32)
        return value.reshape(entry.shape)

    def _check(self, name: str, entry: BundleEntry, value: np.ndarray) -> None:
        if value.nbytes != entry.size or crc32c(value) != unmasked(entry.sum):
            raise DamagedCheckpoint(
                f"{self._source}: variable {name} is damaged: the checksum of its {entry.size} bytes in "
                f"{self._shards[entry.shard].name} is not the one that the index has"
            )


def _bytes_each(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize
