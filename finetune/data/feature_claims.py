"""Claims: which vectors of a set a process is computing, so that nobody else does; and one who writes at a time.

Takes the digests of images. Gives yes or no. Next: `finetune.data.feature_fill`, `finetune.data.feature_shards`.

A claim is a lock on one byte of a file: the byte's place stands for the image. The system takes locks back from a
process that ends, in whatever way. Claims save work and nothing rests on them: where a file system knows no locks
everything may be claimed by everybody, and what was computed twice is written once, since who writes looks first at
what is there (`ShardFolder.write`). Only where the lock of the writers holds nobody back either may a vector be there
twice; then the one that came first counts.

These locks belong to a process, whose threads are told apart here. They vanish when any descriptor of the file is
closed; so there is one a process, open until its end.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.atomic_file import make_directories

LOCKS = ".locks"  # beside the sets
_WRITER = 1 << 62  # behind the places of all images
_PATIENCE = 60.0  # seconds that one waits for another to write; some MB are written at once
_POLL = 0.02
_registry: dict[Path, Claims] = {}
_registry_lock = threading.Lock()


class Claims:
    """Of one set in this process. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """`path`: of the lock file. Use `claims_of`."""
        self._path = path
        self._guard = threading.Lock()
        self._writing = threading.Lock()
        self._held: set[bytes] = set()
        self._descriptor: int | None = None

    def take(self, digest: bytes) -> bool:
        """Whether nobody, in this process or another, has claimed the vector; it is claimed then."""
        with self._guard:
            if digest in self._held:
                return False
            if not self._lock(_place(digest), fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
            self._held.add(digest)
            return True

    def give_back(self, digests: Iterable[bytes]) -> None:
        with self._guard:
            for digest in digests:
                if digest in self._held:
                    self._held.remove(digest)
                    self._lock(_place(digest), fcntl.LOCK_UN)

    def is_free(self, digest: bytes) -> bool:
        """Whether a claim would be granted now."""
        free = self.take(digest)
        if free:
            self.give_back([digest])
        return free

    @contextmanager
    def one_writer(self) -> Iterator[None]:
        """Waits until nobody else writes to the set, but not for ever: a process may hang in the midst of it."""
        with self._writing:
            deadline = time.monotonic() + _PATIENCE
            while not self._lock(_WRITER, fcntl.LOCK_EX | fcntl.LOCK_NB) and time.monotonic() < deadline:
                time.sleep(_POLL)
            try:
                yield
            finally:
                self._lock(_WRITER, fcntl.LOCK_UN)

    def _lock(self, place: int, operation: int) -> bool:
        """False where somebody else has it. True also where files can't be locked."""
        try:
            if self._descriptor is None:
                make_directories(self._path.parent)
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.lockf(self._descriptor, operation, 1, place)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


def claims_of(folder: Path) -> Claims:
    """The claims of a set; one object for all threads of the process."""
    path = folder.absolute().parent / LOCKS / f"{folder.name}.claims"
    with _registry_lock:
        if path not in _registry:
            _registry[path] = Claims(path)
        return _registry[path]


def _place(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big") >> 2
