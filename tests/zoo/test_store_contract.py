"""The contract suite proves itself: a sound store passes, and a store that breaks any one promise fails."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zoo.store_contract import StoreContract
from zoo.store.memory import MemoryStore
from zoo.store.object_store import ObjectExists, ObjectInfo


class Overwrites(MemoryStore):
    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)


class ChecksThenWrites(MemoryStore):
    """Right as long as nobody else writes: the classic race."""

    def create(self, key: str, data: bytes) -> None:
        if any(info.key == key for info in self.list(key)):
            raise ObjectExists(key)
        time.sleep(0.001)
        self.put(key, data)


class ShowsParts(MemoryStore):
    def create(self, key: str, data: bytes) -> None:
        super().create(key, data[: len(data) // 2])
        time.sleep(0.005)
        self.put(key, data)


class ListLags(MemoryStore):
    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        listed = list(super().list(prefix, start_after=start_after))
        return iter(listed[:-1])


class ListUnsorted(MemoryStore):
    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return iter(sorted(super().list(prefix, start_after=start_after), key=lambda info: info.key.split("/")))


class ListsFolders(MemoryStore):
    """Takes the prefix for a folder's name."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        folder = prefix if prefix.endswith("/") or not prefix else prefix + "/"
        return super().list(folder, start_after=start_after)


class StartsAtStartAfter(MemoryStore):
    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return (info for info in super().list(prefix) if info.key >= start_after)


class IgnoresStart(MemoryStore):
    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return super().read(key, length=length)


class DeleteInsists(MemoryStore):
    def delete(self, key: str) -> None:
        self.stat(key)
        super().delete(key)


class DownloadsOver(MemoryStore):
    def download(self, key: str, path: Path) -> None:
        path.write_bytes(self.read(key))


class TakesAnyKey(MemoryStore):
    def put(self, key: str, data: bytes) -> None:
        self._objects[key] = (data, time.time())


class MiscountsBytes(MemoryStore):
    def stat(self, key: str) -> ObjectInfo:
        info = super().stat(key)
        return ObjectInfo(key=info.key, size=info.size + 1, modified=info.modified)


BROKEN = {
    Overwrites: "test_create_never_replaces",
    ChecksThenWrites: "test_of_racing_threads_one_wins",
    ShowsParts: "test_no_reader_sees_a_part",
    ListLags: "test_list_shows_every_write_at_once",
    ListUnsorted: "test_list_is_in_code_point_order",
    ListsFolders: "test_list_prefix_is_text_not_a_folder",
    StartsAtStartAfter: "test_list_start_after",
    IgnoresStart: "test_ranges",
    DeleteInsists: "test_delete",
    DownloadsOver: "test_download",
    TakesAnyKey: "test_bad_keys",
    MiscountsBytes: "test_stat",
}


def failures(kind: type[MemoryStore], folder: Path) -> set[str]:
    """The names of the contract's tests that fail on stores of that kind."""
    failed = set()
    for name, test in inspect.getmembers(StoreContract, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        store, place = kind(), folder / name
        place.mkdir(parents=True)
        given = {"make_store": lambda store=store: store, "tmp_path": place}
        wanted = inspect.signature(test).parameters
        try:
            test(StoreContract(), **{key: value for key, value in given.items() if key in wanted})
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever a broken store does, its test failed
            failed.add(name)
    return failed


def test_a_sound_store_passes(tmp_path: Path) -> None:
    assert failures(MemoryStore, tmp_path) == set()


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_store_fails(kind: type[MemoryStore], tmp_path: Path) -> None:
    assert BROKEN[kind] in failures(kind, tmp_path)
