"""MemoryStore: objects in this process's memory, for tests and for trying things out. Safe to share between threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from zoo.atomic_file import storage_error
from zoo.byte_count import OnBytes, nobody_listens
from zoo.store.keys import check_folder, check_key, check_prefix, check_range
from zoo.store.object_store import Leftover, ObjectExists, ObjectInfo, ObjectMissing

_PIECE = 1 << 20  # bytes

_NAMED: dict[str, MemoryStore] = {}
_NAMED_LOCK = threading.Lock()


class MemoryStore:
    """An ObjectStore that ends with the process."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    @classmethod
    def named(cls, name: str) -> MemoryStore:
        """The one store of that name in this process, as `memory://name` means it."""
        with _NAMED_LOCK:
            return _NAMED.setdefault(name, cls(name))

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    def create(self, key: str, data: bytes) -> None:
        check_key(key)
        with self._lock:
            if key in self._objects:
                raise ObjectExists(f"object {key!r} is already in the store {self.url}", key=key)
            self._objects[key] = (bytes(data), time.time())

    def create_from_file(
        self, key: str, path: Path, *, chunks: Sequence[str] = (), on_bytes: OnBytes = nobody_listens
    ) -> None:
        check_key(key)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise storage_error(error, "read", path) from error
        self.create(key, data)
        on_bytes(len(data))

    def put(self, key: str, data: bytes) -> None:
        check_key(key)
        with self._lock:
            self._objects[key] = (bytes(data), time.time())

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_range(key, start, length)
        data, _ = self._get(key)
        return data[start:] if length is None else data[start : start + length]

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        data = self.read(key, start=start, length=length)
        for at in range(0, len(data), _PIECE):
            yield data[at : at + _PIECE]

    def download(self, key: str, path: Path) -> None:
        data, _ = self._get(key)
        try:
            with path.open("xb") as file:
                file.write(data)
        except OSError as error:
            raise storage_error(error, "write", path) from error

    def stat(self, key: str) -> ObjectInfo:
        data, modified = self._get(key)
        return ObjectInfo(key=key, size=len(data), modified=modified)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            found = [(key, *value) for key, value in self._objects.items() if key.startswith(prefix)]
        return iter(
            [
                ObjectInfo(key=key, size=len(data), modified=modified)
                for key, data, modified in sorted(found)
                if key > start_after
            ]
        )

    def folders(self, prefix: str) -> Iterator[str]:
        check_folder(prefix)
        with self._lock:
            below = [key.removeprefix(prefix) for key in self._objects if key.startswith(prefix)]
        return iter(sorted({key.partition("/")[0] for key in below if "/" in key}))

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def local_path(self, key: str) -> Path | None:
        check_key(key)
        return None

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        check_prefix(prefix)
        return iter(())  # a write is one assignment

    def remove_leftover(self, leftover: Leftover) -> None:
        check_prefix(leftover.key)

    def _get(self, key: str) -> tuple[bytes, float]:
        check_key(key)
        with self._lock:
            value = self._objects.get(key)
        if value is None:
            raise ObjectMissing(f"no object {key!r} in the store {self.url}", key=key)
        return value
