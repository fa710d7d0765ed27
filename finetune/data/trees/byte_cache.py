"""ByteCache: small files that came from far, kept on the disk up to a cap; the ones not used for longest go first.

Takes a key that names the bytes for ever (a place, its size and time). Gives them. Shared by processes: files are put
in their place whole, and one that another process has just removed is fetched again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from zoo.atomic_file import make_directories, replaced_file
from zoo.cache.blob_cache import default_cache_root
from zoo.cache.eviction import cache_limit

_LOOK_EVERY = 64  # files put between two looks at the whole


class ByteCache:
    """`limit`: bytes, 0 for any number; None means `MODELZOO_CACHE_LIMIT`, else 20 GB."""

    def __init__(self, root: Path | None = None, *, limit: int | None = None) -> None:
        self._root = (default_cache_root() / "images") if root is None else root
        self._limit = cache_limit(os.environ.get("MODELZOO_CACHE_LIMIT")) if limit is None else limit
        self._put = 0
        self._lock = threading.Lock()

    def get(self, key: str, fetch: Callable[[], bytes]) -> bytes:
        """The kept bytes, or those of `fetch`, which are then kept. A disk that is full or can't be written to only
        costs the keeping."""
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        path = self._root / name[:2] / name
        with suppress(OSError):
            data = path.read_bytes()
            with suppress(OSError):
                os.utime(path)
            return data
        data = fetch()
        with suppress(OSError):
            make_directories(path.parent)
            with replaced_file(path) as file:
                file.write(data)
            self._make_room()
        return data

    def _make_room(self) -> None:
        with self._lock:
            self._put += 1
            due = self._put % _LOOK_EVERY == 1
        if not self._limit or not due:
            return
        kept = []
        for folder, _, names in os.walk(self._root):
            for name in names:
                with suppress(FileNotFoundError):
                    status = (Path(folder) / name).stat()
                    kept.append((status.st_mtime, status.st_size, Path(folder) / name))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self._limit:
                return
            with suppress(FileNotFoundError):
                path.unlink()
            total -= size
