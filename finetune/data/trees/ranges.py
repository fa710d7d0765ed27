"""Bytes at a place, of a local file or of an object in a bucket: what archives and record files are read through."""

from __future__ import annotations

import io
import os
import weakref
from pathlib import Path
from typing import Protocol

from zoo.store.object_store import ObjectStore


class Ranges(Protocol):
    """Safe to read from many threads."""

    @property
    def url(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def changed(self) -> str:
        """Another text once the bytes have changed: with it, what was learnt of them can be kept."""

    def at(self, start: int, length: int) -> bytes:
        """Fewer bytes only at the end. Raises OSError or the store's errors."""


class FileRanges:
    """Of a file that stays open: replacing it meanwhile changes nothing."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        status = os.fstat(self._file)
        self.url = str(path)
        self.size = status.st_size
        self.changed = f"{status.st_size} {status.st_mtime_ns}"

    def at(self, start: int, length: int) -> bytes:
        pieces = []
        while length > 0 and (piece := os.pread(self._file, length, start)):
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class ObjectRanges:
    def __init__(self, store: ObjectStore, key: str) -> None:
        """Raises ObjectMissing."""
        info = store.stat(key)
        self._store, self._key = store, key
        self.url = f"{store.url.rstrip('/')}/{key}"
        self.size = info.size
        self.changed = f"{info.size} {info.modified}"

    def at(self, start: int, length: int) -> bytes:
        return self._store.read(self._key, start=start, length=min(length, max(0, self.size - start)))


class RangedFile(io.RawIOBase):
    """Ranges as a Python file, for libraries that want one; put a BufferedReader round it."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._ranges.size}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._ranges.at(self._place, len(view))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)
