"""Stores that break one promise each: the contract suite and the probe of buckets must both find them out."""

from __future__ import annotations

import time
from collections.abc import Iterator

from zoo.store.memory import MemoryStore
from zoo.store.object_store import ObjectExists, ObjectInfo


class Overwrites(MemoryStore):
    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)


class ChecksThenWrites(MemoryStore):
    """Refuses a second create, but not in a race: right as long as nobody else writes."""

    def create(self, key: str, data: bytes) -> None:
        if any(info.key == key for info in self.list(key)):
            raise ObjectExists(key)
        time.sleep(0.01)
        self.put(key, data)


class ListLags(MemoryStore):
    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return iter(list(super().list(prefix, start_after=start_after))[:-1])


class WalksFolders(MemoryStore):
    """Lists in the order of a walk, which isn't that of the keys."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return iter(sorted(super().list(prefix, start_after=start_after), key=lambda info: info.key.split("/")))
