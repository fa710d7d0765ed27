"""The promises of `zoo.store.object_store`, as tests. Every store's own test class inherits these.

No parametrisation here: `test_store_contract.py` calls each method on stores that break a promise on purpose.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zoo.atomic_file import FileTaken
from zoo.errors import InvalidArgument, ZooError
from zoo.file_hash import CHUNK_BYTES, hash_file
from zoo.store.object_store import InvalidKey, ObjectExists, ObjectMissing, ObjectStore

MakeStore = Callable[[], ObjectStore]  # every call gives a handle on the same place, empty at the start of a test

BAD_KEYS = ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.", "a\\b", "a\nb", "a\0b", "a\x7f", "\ud800"]
BAD_KEYS += ["k" * 1001, "é" * 128, ".tmp-1", "a/.tmp-/b", "e\u0301", "a/\u212b/b"]  # the last two aren't in NFC
GOOD_KEYS = ["a", "a b", "ä/ö", "%2F", "a..b", "...", ".a", "x/" * 400 + "x", "s" * 255, "日本/語", "#?&=+", "~"]


class StoreContract:
    """A subclass has the fixture `make_store`, and may make the races smaller where a lost one takes a second."""

    race_writers = 6
    race_rounds = 25
    many = 1_100  # objects; more than a page of any server's listing

    def create(self, store: ObjectStore, key: str, data: bytes) -> None:
        """As `store.create`. Where answers get lost, a subclass settles here whether the object is this call's own."""
        store.create(key, data)

    def create_from_file(self, store: ObjectStore, key: str, path: Path, *, chunks: Sequence[str] = ()) -> None:
        store.create_from_file(key, path, chunks=chunks)

    def leave_unfinished(self, store: ObjectStore, key: str) -> bool:
        """Leaves behind what a write of `key` would when its process is killed; False when a store leaves nothing."""
        return False

    def test_what_was_created_can_be_read(self, make_store: MakeStore) -> None:
        self.create(make_store(), "a/b", b"\0\xffbytes")
        assert make_store().read("a/b") == b"\0\xffbytes"
        self.create(make_store(), "empty", b"")
        assert make_store().read("empty") == b""

    def test_create_never_replaces(self, make_store: MakeStore, tmp_path: Path) -> None:
        store = make_store()
        self.create(store, "a", b"first")
        (tmp_path / "file").write_bytes(b"third")
        with pytest.raises(ObjectExists):
            self.create(store, "a", b"second")
        with pytest.raises(ObjectExists):
            self.create_from_file(store, "a", tmp_path / "file")
        assert store.read("a") == b"first"

    def test_create_from_file(self, make_store: MakeStore, tmp_path: Path) -> None:
        data = bytes(range(256)) * 10_000
        (tmp_path / "file").write_bytes(data)
        self.create_from_file(make_store(), "big/file", tmp_path / "file")
        assert make_store().read("big/file") == data
        assert (tmp_path / "file").read_bytes() == data
        with pytest.raises(ZooError, match="nothing-here"):
            self.create_from_file(make_store(), "other", tmp_path / "nothing-here")
        with pytest.raises(ObjectMissing):
            make_store().stat("other")

    def test_put_replaces(self, make_store: MakeStore) -> None:
        make_store().put("job/progress.json", b"1")
        make_store().put("job/progress.json", b"22")
        assert make_store().read("job/progress.json") == b"22"

    def test_ranges(self, make_store: MakeStore) -> None:
        store = make_store()
        self.create(store, "a", b"0123456789")
        assert store.read("a", start=3) == b"3456789"
        assert store.read("a", start=3, length=4) == b"3456"
        assert store.read("a", length=2) == b"01"
        assert store.read("a", start=8, length=5) == b"89"
        assert store.read("a", start=10) == b""
        assert store.read("a", start=99, length=5) == b""
        assert store.read("a", length=0) == b""
        assert store.read("a", start=4, length=1 << 50) == b"456789"
        assert store.read("a", start=1 << 50) == b""
        for start, length in ((-1, None), (0, -1)):
            with pytest.raises(InvalidArgument):
                store.read("a", start=start, length=length)

    def test_stream(self, make_store: MakeStore) -> None:
        store, data = make_store(), random.Random(1).randbytes(2_500_001)
        self.create(store, "a", data)
        self.create(store, "empty", b"")
        ranges: list[tuple[int, int | None]] = [(0, None), (0, len(data)), (7, None), (7, 1_500_000), (len(data), None)]
        ranges += [(len(data) - 3, 10), (0, 0), (2_000_000, 1 << 50), (1 << 50, 1)]
        for start, length in ranges:
            pieces = list(store.stream("a", start=start, length=length))
            assert b"".join(pieces) == data[start:][:length], (start, length)
            assert all(0 < len(piece) <= 1 << 20 for piece in pieces)
        assert list(store.stream("empty")) == []
        with pytest.raises(ObjectMissing, match="nothing"):
            list(store.stream("nothing"))
        for start, length in ((-1, None), (0, -1)):
            with pytest.raises(InvalidArgument):
                list(store.stream("a", start=start, length=length))

    def test_an_abandoned_stream_harms_nobody(self, make_store: MakeStore) -> None:
        store = make_store()
        self.create(store, "a", bytes(3_000_000))
        for _ in range(20):
            stream = store.stream("a")
            assert len(next(stream)) > 0
            del stream
        store.delete("a")
        assert list(store.list("")) == []

    def test_a_file_of_several_chunks(self, make_store: MakeStore, tmp_path: Path) -> None:
        data = random.Random(2).randbytes(CHUNK_BYTES + 12_345)
        (tmp_path / "file").write_bytes(data)
        store, chunks = make_store(), hash_file(tmp_path / "file").chunks
        assert len(chunks) == 2
        self.create_from_file(store, "blob/known", tmp_path / "file", chunks=chunks)
        self.create_from_file(store, "blob/unknown", tmp_path / "file")
        for key in ("blob/known", "blob/unknown"):
            assert store.read(key) == data
            assert store.read(key, start=CHUNK_BYTES - 2, length=4) == data[CHUNK_BYTES - 2 :][:4]
            assert store.stat(key).size == len(data)
            with pytest.raises(ObjectExists):
                store.create_from_file(key, tmp_path / "file", chunks=chunks)
        (tmp_path / "empty").write_bytes(b"")
        self.create_from_file(store, "blob/empty", tmp_path / "empty")
        assert store.read("blob/empty") == b""
        assert list(store.leftovers("")) == []

    def test_of_racing_files_all_bring_the_same(self, make_store: MakeStore, tmp_path: Path) -> None:
        data = random.Random(3).randbytes(CHUNK_BYTES + 1)
        (tmp_path / "file").write_bytes(data)
        barrier = threading.Barrier(3)

        def race(_: int) -> bool:
            store = make_store()
            barrier.wait(timeout=60)
            try:
                self.create_from_file(store, "blob", tmp_path / "file")
            except ObjectExists:
                return False
            return True

        with ThreadPoolExecutor(3) as pool:
            assert any(pool.map(race, range(3)))
        assert make_store().read("blob") == data

    def test_download(self, make_store: MakeStore, tmp_path: Path) -> None:
        store = make_store()
        self.create(store, "a/b", b"x" * 3_000_000)
        store.download("a/b", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"x" * 3_000_000
        with pytest.raises(FileTaken):  # into a new file, never over one that is there
            store.download("a/b", tmp_path / "copy")
        with pytest.raises(ObjectMissing):
            store.download("a/c", tmp_path / "other")
        assert not (tmp_path / "other").exists()

    def test_stat(self, make_store: MakeStore) -> None:
        self.create(make_store(), "a/b", b"12345")
        info = make_store().stat("a/b")
        assert (info.key, info.size) == ("a/b", 5)
        assert abs(info.modified - time.time()) < 3600  # what a server's clock may be off in a test
        (listed,) = make_store().list("a/")
        assert (listed.key, listed.size) == ("a/b", 5)
        assert abs(listed.modified - info.modified) <= 1.0  # HTTP dates have whole seconds

    def test_what_is_missing(self, make_store: MakeStore) -> None:
        store = make_store()
        self.create(store, "a/b", b"1")
        for key in ("b", "a", "a/b/c", "a/bb"):
            with pytest.raises(ObjectMissing, match=key):
                store.read(key)
            with pytest.raises(ObjectMissing, match=key):
                store.stat(key)
            with pytest.raises(ObjectMissing, match=key):
                next(store.stream(key))

    def test_delete(self, make_store: MakeStore) -> None:
        store = make_store()
        self.create(store, "a/b", b"1")
        self.create(store, "a/c", b"1")
        store.delete("a/b")
        store.delete("a/b")
        store.delete("x/y/z")
        store.delete("a/c/d")
        assert [info.key for info in store.list("")] == ["a/c"]
        self.create(store, "a/b", b"2")
        assert store.read("a/b") == b"2"

    def test_list_shows_every_write_at_once(self, make_store: MakeStore) -> None:
        for number in range(30):
            self.create(make_store(), f"log/{number:03}", b"x" * number)
            listed = list(make_store().list("log/"))
            assert [(info.key, info.size) for info in listed] == [(f"log/{n:03}", n) for n in range(number + 1)]

    def test_list_is_in_code_point_order(self, make_store: MakeStore) -> None:
        keys = ["a/b/c", "a-b", "a.b", "a0", "a/b-c", "a/b.c", "a/b0", "Z", "ä", "~", "a!/x", "\U0001f600", "\uffee/y"]
        for key in keys:
            self.create(make_store(), key, b"")
        assert [info.key for info in make_store().list("")] == sorted(keys)

    def test_list_prefix_is_text_not_a_folder(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in ("ab/c", "ab/d/e", "abc", "b", "ab/cd"):
            self.create(store, key, b"")

        def keys(prefix: str) -> list[str]:
            return [info.key for info in store.list(prefix)]

        assert keys("ab") == ["ab/c", "ab/cd", "ab/d/e", "abc"]
        assert keys("ab/") == ["ab/c", "ab/cd", "ab/d/e"]
        assert keys("ab/c") == ["ab/c", "ab/cd"]
        assert keys("ab/d/") == ["ab/d/e"]
        assert keys("x") == keys("ab/x/") == keys("b/") == []

    def test_list_start_after(self, make_store: MakeStore) -> None:
        store = make_store()
        keys = sorted(["a", "b-", "b/1", "b/2/x", "b/2/y", "b0", "c"])
        for key in keys:
            self.create(store, key, b"")
        for start in [*keys, "", "b/", "b/2", "b/2/xx", "zzz", "A"]:
            expected = [key for key in keys if key > start]
            assert [info.key for info in store.list("", start_after=start)] == expected, start
        assert [info.key for info in store.list("b/", start_after="b/1")] == ["b/2/x", "b/2/y"]

    def test_a_long_listing(self, make_store: MakeStore) -> None:
        store, keys = make_store(), [f"l/{number:05}" for number in range(self.many)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self.create(store, key, b""), random.Random(4).sample(keys, len(keys))))
        assert [info.key for info in store.list("l/")] == keys
        half = len(keys) // 2
        assert [info.key for info in store.list("", start_after=keys[half])] == keys[half + 1 :]

    def test_a_listing_goes_on_beside_writers(self, make_store: MakeStore) -> None:
        store, keys = make_store(), [f"l/{folder}/{number}" for folder in "abcd" for number in range(8)]
        for key in keys:
            self.create(store, key, b"")
        listing = store.list("l/")
        begun = [next(listing).key for _ in range(3)]
        gone = {"l/a/1", "l/b/3", "l/d/0", "l/d/7", *(f"l/c/{number}" for number in range(8))}
        for key in gone:
            store.delete(key)
        self.create(store, "l/b/new", b"")
        listed = [*begun, *(info.key for info in listing)]
        assert listed == sorted(set(listed))
        assert set(keys) - gone <= set(listed) <= {*keys, "l/b/new"}

    def test_folders(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in ("a/c/d", "a/c/e/f", "a/c-d/x", "a/c.d/x", "a/b", "b", "a/\U0001f600/x", "a/\uffee/x", "a/cc/x/y/z"):
            self.create(store, key, b"")
        assert list(make_store().folders("")) == ["a"]
        assert list(make_store().folders("a/")) == ["c", "c-d", "c.d", "cc", "\uffee", "\U0001f600"]
        assert list(make_store().folders("a/cc/")) == ["x"]
        assert list(store.folders("a/c-d/")) == list(store.folders("a/b/")) == list(store.folders("none/")) == []
        self.create(store, "a/new/x", b"")
        assert "new" in list(make_store().folders("a/"))

    def test_good_keys(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in GOOD_KEYS:
            self.create(store, key, key.encode())
        for key in GOOD_KEYS:
            assert store.read(key) == key.encode()
        assert [info.key for info in store.list("")] == sorted(GOOD_KEYS)

    def test_bad_keys(self, make_store: MakeStore, tmp_path: Path) -> None:
        store = make_store()
        (tmp_path / "file").write_bytes(b"x")
        for key in BAD_KEYS:
            for call in (store.read, store.stat, store.delete, store.local_path):
                with pytest.raises(InvalidKey):
                    call(key)
            with pytest.raises(InvalidKey):
                self.create(store, key, b"")
            with pytest.raises(InvalidKey):
                store.put(key, b"")
            with pytest.raises(InvalidKey):
                self.create_from_file(store, key, tmp_path / "file")
            with pytest.raises(InvalidKey):
                store.download(key, tmp_path / "target")
            with pytest.raises(InvalidKey):
                list(store.stream(key))
        for prefix in ("../", "a/../", "/", "a//", "a\\", "./x", "e\u0301/"):
            for listing in (store.list, store.folders, store.leftovers):
                with pytest.raises(InvalidKey):
                    list(listing(prefix))
        with pytest.raises(InvalidKey):
            list(store.folders("a"))  # which names no folder
        assert list(store.list("")) == []

    def test_of_racing_threads_one_wins(self, make_store: MakeStore) -> None:
        writers, rounds = self.race_writers, self.race_rounds
        barrier = threading.Barrier(writers)

        def race(writer: int) -> list[int]:
            store, won = make_store(), []
            for number in range(rounds):
                barrier.wait(timeout=60)
                try:
                    self.create(store, f"race/{number:03}", b"%d" % writer * 1000)
                    won.append(number)
                except ObjectExists:
                    pass
            return won

        with ThreadPoolExecutor(writers) as pool:
            won = list(pool.map(race, range(writers)))
        assert sorted(number for numbers in won for number in numbers) == list(range(rounds))
        for writer, numbers in enumerate(won):
            for number in numbers:
                assert make_store().read(f"race/{number:03}") == b"%d" % writer * 1000

    def test_no_reader_sees_a_part(self, make_store: MakeStore) -> None:
        size, rounds = 400_000, 15
        done = threading.Event()
        parts: list[tuple[str, int]] = []

        def watch() -> None:
            store = make_store()
            while not done.is_set():
                for info in store.list("whole/"):
                    if info.size != size or len(store.read(info.key)) != size:
                        parts.append((info.key, info.size))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for number in range(rounds):
                self.create(make_store(), f"whole/{number}", bytes(size))
                make_store().put("whole/put", bytes([number]) * size)
        finally:
            done.set()
            watcher.join()
        assert parts == []

    def test_many_threads_read(self, make_store: MakeStore, tmp_path: Path) -> None:
        store, size = make_store(), 300_000
        whole = {f"r/{number}": random.Random(number).randbytes(size) for number in range(4)}
        for key, data in whole.items():
            self.create(store, key, data)

        def read(thread: int) -> None:
            choose = random.Random(thread)
            for turn in range(6):
                key, start, length = choose.choice(list(whole)), choose.randrange(size), choose.randrange(1, size)
                expected = whole[key][start : start + length]
                assert store.read(key, start=start, length=length) == expected
                assert b"".join(store.stream(key, start=start, length=length)) == expected
                assert [info.key for info in store.list("r/")] == list(whole)
                store.download(key, tmp_path / f"{thread}-{turn}")
                assert (tmp_path / f"{thread}-{turn}").read_bytes() == whole[key]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))

    def test_local_path(self, make_store: MakeStore) -> None:
        store = make_store()
        self.create(store, "a/b", b"123")
        path = store.local_path("a/b")
        if path is None:  # a store elsewhere
            assert store.local_path("a") is None
        else:
            assert path.read_bytes() == b"123"
            assert store.local_path("a") == path.parent

    def test_what_interrupted_writes_leave(self, make_store: MakeStore, tmp_path: Path) -> None:
        store = make_store()
        (tmp_path / "file").write_bytes(b"12")
        self.create(store, "a/b", b"1")
        self.create_from_file(store, "a/c", tmp_path / "file")
        store.put("a/b2", b"1")
        assert list(store.leftovers("")) == []  # of writes that went well
        if not self.leave_unfinished(store, "a/d/e"):
            return
        (leftover,) = make_store().leftovers("")
        assert abs(leftover.modified - time.time()) < 3600
        assert [info.key for info in store.list("")] == ["a/b", "a/b2", "a/c"]
        with pytest.raises(ObjectMissing):
            store.stat("a/d/e")
        for prefix in ("", "a", "a/", "a/d", "a/d/"):
            assert list(store.leftovers(prefix)) == [leftover], prefix
        for prefix in ("b", "a/b", "a/d/e/", "a/dd"):
            assert list(store.leftovers(prefix)) == [], prefix
        self.create(store, "a/d/e", b"2")
        store.remove_leftover(leftover)
        store.remove_leftover(leftover)
        assert list(store.leftovers("")) == []
        assert store.read("a/d/e") == b"2"
