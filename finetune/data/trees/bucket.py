"""A FileTree in a bucket: parallel GETs by whoever reads, and what was read once is kept on the disk, up to a cap.

The listing is made once, when the tree is opened. Of each object sixteen bytes are kept, a hash of its name and one of
its size and time, so that a replaced object isn't taken for what the disk still holds of it.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections.abc import Iterator

import numpy as np

from finetune.data.source import BadRecord
from finetune.data.trees.byte_cache import ByteCache
from finetune.data.trees.ranges import ObjectRanges, Ranges
from finetune.data.trees.tree import NoData, Walk, hidden, unreadable
from zoo.errors import ZooError
from zoo.store.object_store import ObjectInfo, ObjectMissing, ObjectStore


class BucketTree:
    def __init__(self, store: ObjectStore, cache: ByteCache) -> None:
        """Lists nothing yet. The tree's root is the store's."""
        self._store = store
        self._cache = cache
        self._known: tuple[np.ndarray, np.ndarray] | None = None  # hashes of names in order, and of what they hold
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self._store.url

    def walk(self, below: str = "") -> Walk:
        prefix = f"{below}/" if below else ""
        return Walk(lambda walk: self._names(walk, prefix))

    def has(self, name: str) -> bool:
        return self._state(name) is not None

    def has_folder(self, name: str) -> bool:
        return next(iter(self._store.list(f"{name}/")), None) is not None

    def read(self, name: str) -> bytes:
        state = self._state(name)
        try:
            if state is None:  # it has come since, or never was
                return self._store.read(name)
            return self._cache.get(f"{self.url}\0{name}\0{state}", lambda: self._store.read(name))
        except ObjectMissing:
            raise unreadable(name, f"{self.url} has no such object") from None
        except ZooError as error:
            raise unreadable(name, error.message) from error

    def ranges(self, name: str) -> Ranges:
        try:
            return ObjectRanges(self._store, name)
        except ObjectMissing:
            raise NoData(f"{self.url} has no object {name}") from None

    def read_index(self, name: str) -> bytes:
        try:
            return self._store.read(name)
        except ObjectMissing:
            raise NoData(f"{self.url} has no object {name}") from None

    def _names(self, walk: Walk, prefix: str) -> Iterator[str]:
        for info in self._store.list(prefix) if prefix else self._listed():
            name = info.key
            if name.endswith("/"):
                walk.empty.append(name)  # a console's marker of a folder
            elif any(hidden(part) for part in name.removeprefix(prefix).split("/")):
                walk.hidden += 1
            elif "//" in name or name.startswith("/"):
                walk.bad.append(BadRecord(id=name, reason="a part of its name is empty"))
            else:
                yield name

    def _state(self, name: str) -> int | None:
        names, states = self._listing()
        wanted = np.uint64(_hash(name))
        place = int(np.searchsorted(names, wanted))
        return int(states[place]) if place < len(names) and names[place] == wanted else None

    def _listed(self) -> Iterator[ObjectInfo]:
        """All objects; once it has ended, they are known."""
        names, states = array("Q"), array("Q")
        for info in self._store.list(""):
            names.append(_hash(info.key))
            states.append(_hash(_state_of(info)))
            yield info
        hashes = np.frombuffer(names, np.uint64)
        order = np.argsort(hashes)
        self._known = hashes[order], np.frombuffer(states, np.uint64)[order]

    def _listing(self) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if self._known is None:
                for _ in self._listed():
                    pass
            assert self._known is not None
            return self._known


def _state_of(info: ObjectInfo) -> str:
    return f"{info.size} {info.modified}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
