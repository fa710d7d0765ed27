"""The contract suite proves itself: a sound store passes, and a store that breaks any one promise fails."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.zoo.broken_stores import ChecksThenWrites, ListLags, Overwrites, WalksFolders
from tests.zoo.store_contract import StoreContract
from zoo.file_hash import CHUNK_BYTES
from zoo.store.keys import check_prefix
from zoo.store.memory import MemoryStore
from zoo.store.object_store import Leftover, ObjectExists, ObjectInfo, ObjectMissing, ObjectStore


class ShowsParts(MemoryStore):
    def create(self, key: str, data: bytes) -> None:
        super().create(key, data[: len(data) // 2])
        time.sleep(0.005)
        self.put(key, data)


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


class NoBytesButText(MemoryStore):
    def create(self, key: str, data: bytes) -> None:
        super().create(key, data.decode("utf-8", errors="replace").encode())


class MovesTheFile(MemoryStore):
    def create_from_file(self, key: str, path: Path, *, chunks: Sequence[str] = ()) -> None:
        super().create_from_file(key, path, chunks=chunks)
        path.unlink()


class PutsOnce(MemoryStore):
    def put(self, key: str, data: bytes) -> None:
        with suppress(ObjectExists):
            self.create(key, data)


class DecodesKeys(MemoryStore):
    def create(self, key: str, data: bytes) -> None:
        super().create(unquote(key), data)


class BigRangesFail(MemoryStore):
    """Makes room for as much as was asked for."""

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        if (length or 0) > 1 << 40:
            raise MemoryError
        return super().read(key, start=start, length=length)


class StreamsInOnePiece(MemoryStore):
    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        yield self.read(key, start=start, length=length)


class StreamForgetsLength(MemoryStore):
    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return super().stream(key, start=start)


class StreamOfNothing(MemoryStore):
    """An object that isn't there streams like an empty one."""

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        with suppress(ObjectMissing):
            yield from super().stream(key, start=start, length=length)


class StreamHoldsOn(MemoryStore):
    """What is being streamed can't be deleted, also when nobody reads on."""

    def __init__(self) -> None:
        super().__init__()
        self._streamed: list[Iterator[bytes]] = []

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._streamed.append(super().stream(key, start=start, length=length))
        return self._streamed[-1]

    def delete(self, key: str) -> None:
        if not self._streamed:
            super().delete(key)


class SendsWholeChunks(MemoryStore):
    """Leaves the last part out where there are several."""

    def create_from_file(self, key: str, path: Path, *, chunks: Sequence[str] = ()) -> None:
        data = path.read_bytes()
        self.create(key, data[: len(data) // CHUNK_BYTES * CHUNK_BYTES] if len(data) > CHUNK_BYTES else data)


class NeedsTheChunks(MemoryStore):
    """Sends as many chunks as it is given hashes."""

    def create_from_file(self, key: str, path: Path, *, chunks: Sequence[str] = ()) -> None:
        self.create(key, path.read_bytes()[: max(len(chunks), 1) * CHUNK_BYTES])


class FileRacersAppend(MemoryStore):
    def create_from_file(self, key: str, path: Path, *, chunks: Sequence[str] = ()) -> None:
        with suppress(ObjectExists):
            return self.create(key, path.read_bytes())
        if self.stat(key).modified < time.time() - 60:
            raise ObjectExists(key)
        self.put(key, self.read(key) + path.read_bytes())
        return None


class ListsOnePage(MemoryStore):
    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return itertools.islice(super().list(prefix, start_after=start_after), 1000)


class ListForgetsTheTime(MemoryStore):
    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return (dataclasses.replace(info, modified=0) for info in super().list(prefix, start_after=start_after))


class ListsByNumber(MemoryStore):
    """Pages by how many keys were given, so a delete in between makes it leave one out."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        for number in itertools.count():
            info = next(itertools.islice(super().list(prefix, start_after=start_after), number, None), None)
            if info is None:
                return
            yield info


class FoldersByTheirKeys(MemoryStore):
    """In the order in which a bucket lists them, where `c-d/` comes before `c/`."""

    def folders(self, prefix: str) -> Iterator[str]:
        return iter(sorted(super().folders(prefix), key=lambda name: name + "/"))


class FoldersShowObjects(MemoryStore):
    def folders(self, prefix: str) -> Iterator[str]:
        return iter(sorted({info.key.removeprefix(prefix).partition("/")[0] for info in self.list(prefix)}))


class FoldersRepeat(MemoryStore):
    def folders(self, prefix: str) -> Iterator[str]:
        below = [info.key.removeprefix(prefix) for info in self.list(prefix)]
        return iter(sorted(key.partition("/")[0] for key in below if "/" in key))


class FoldersOfAnyPrefix(MemoryStore):
    def folders(self, prefix: str) -> Iterator[str]:
        return super().folders(prefix if prefix.endswith("/") or not prefix else prefix + "/")


class BothFormsOfText(MemoryStore):
    """Takes a key for another one that looks the same."""

    def stat(self, key: str) -> ObjectInfo:
        return super().stat(unicodedata.normalize("NFC", key))


class SharesItsPosition(MemoryStore):
    """One file object for all threads."""

    _at = 0

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self._at = start
        time.sleep(0.0005)
        return super().read(key, start=self._at, length=length)


class LocalPathOfElsewhere(MemoryStore):
    def local_path(self, key: str) -> Path | None:
        return None if "/" in key else Path(key)


class SoundLeavesUploads(MemoryStore):
    """What `LeavesUploads` is when it isn't broken."""

    def __init__(self) -> None:
        super().__init__()
        self.unfinished: dict[str, Leftover] = {}

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        check_prefix(prefix)
        return iter([leftover for key, leftover in self.unfinished.items() if key.startswith(prefix)])

    def remove_leftover(self, leftover: Leftover) -> None:
        self.unfinished.pop(leftover.key, None)


class KeepsLeftovers(SoundLeavesUploads):
    def remove_leftover(self, leftover: Leftover) -> None:
        pass


class RemovesTheObjectToo(SoundLeavesUploads):
    def remove_leftover(self, leftover: Leftover) -> None:
        super().remove_leftover(leftover)
        self.delete(leftover.key)


class LeftoversOfEverything(SoundLeavesUploads):
    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        return super().leftovers("") if check_prefix(prefix) else super().leftovers(prefix)


class InsistsOnLeftovers(SoundLeavesUploads):
    def remove_leftover(self, leftover: Leftover) -> None:
        del self.unfinished[leftover.key]


class ForgetsItsUploads(MemoryStore):
    """A write that went well still shows as unfinished."""

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        for info in self.list(prefix):
            yield Leftover(key=info.key, id="1", size=info.size, modified=info.modified)


BROKEN = {
    NoBytesButText: "test_what_was_created_can_be_read",
    MovesTheFile: "test_create_from_file",
    PutsOnce: "test_put_replaces",
    DecodesKeys: "test_good_keys",
    Overwrites: "test_create_never_replaces",
    ChecksThenWrites: "test_of_racing_threads_one_wins",
    ShowsParts: "test_no_reader_sees_a_part",
    ListLags: "test_list_shows_every_write_at_once",
    WalksFolders: "test_list_is_in_code_point_order",
    ListsFolders: "test_list_prefix_is_text_not_a_folder",
    StartsAtStartAfter: "test_list_start_after",
    IgnoresStart: "test_ranges",
    DeleteInsists: "test_delete",
    DownloadsOver: "test_download",
    TakesAnyKey: "test_bad_keys",
    MiscountsBytes: "test_stat",
    ListForgetsTheTime: "test_stat",
    BigRangesFail: "test_ranges",
    StreamsInOnePiece: "test_stream",
    StreamForgetsLength: "test_stream",
    StreamOfNothing: "test_what_is_missing",
    StreamHoldsOn: "test_an_abandoned_stream_harms_nobody",
    SendsWholeChunks: "test_a_file_of_several_chunks",
    NeedsTheChunks: "test_a_file_of_several_chunks",
    FileRacersAppend: "test_of_racing_files_all_bring_the_same",
    ListsOnePage: "test_a_long_listing",
    ListsByNumber: "test_a_listing_goes_on_beside_writers",
    FoldersByTheirKeys: "test_folders",
    FoldersShowObjects: "test_folders",
    FoldersRepeat: "test_folders",
    FoldersOfAnyPrefix: "test_bad_keys",
    BothFormsOfText: "test_bad_keys",
    SharesItsPosition: "test_many_threads_read",
    LocalPathOfElsewhere: "test_local_path",
    KeepsLeftovers: "test_what_interrupted_writes_leave",
    RemovesTheObjectToo: "test_what_interrupted_writes_leave",
    LeftoversOfEverything: "test_what_interrupted_writes_leave",
    InsistsOnLeftovers: "test_what_interrupted_writes_leave",
    ForgetsItsUploads: "test_what_interrupted_writes_leave",
}


class ProvedContract(StoreContract):
    def leave_unfinished(self, store: ObjectStore, key: str) -> bool:
        if isinstance(store, SoundLeavesUploads):
            store.unfinished[key] = Leftover(key=key, id="1", size=None, modified=time.time())
        return isinstance(store, SoundLeavesUploads)


def failed(kind: type[MemoryStore], name: str, folder: Path) -> bool:
    """Whether the contract's test of that name fails on a store of that kind."""
    store, test = kind(), getattr(ProvedContract(), name)
    given = {"make_store": lambda: store, "tmp_path": folder}
    try:
        test(**{key: given[key] for key in inspect.signature(test).parameters})
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever a broken store does, its test failed
        return True
    return False


PROMISES = [name for name, _ in inspect.getmembers(StoreContract, inspect.isfunction) if name.startswith("test_")]


@pytest.mark.parametrize("kind", [MemoryStore, SoundLeavesUploads], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("promise", PROMISES)
def test_a_sound_store_passes(kind: type[MemoryStore], promise: str, tmp_path: Path) -> None:
    assert not failed(kind, promise, tmp_path)


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_store_fails(kind: type[MemoryStore], tmp_path: Path) -> None:
    assert failed(kind, BROKEN[kind], tmp_path)


def test_every_promise_has_been_broken() -> None:
    assert set(PROMISES) == set(BROKEN.values())
