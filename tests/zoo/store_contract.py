"""The promises of `zoo.store.object_store`, as tests. Every store's own test class inherits these.

No parametrisation here: `test_store_contract.py` calls each method on stores that break a promise on purpose.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zoo.atomic_file import FileTaken
from zoo.errors import InvalidArgument, ZooError
from zoo.store.object_store import InvalidKey, ObjectExists, ObjectMissing, ObjectStore

MakeStore = Callable[[], ObjectStore]  # every call gives a handle on the same place, empty at the start of a test

BAD_KEYS = ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.", "a\\b", "a\nb", "a\0b", "a\x7f", "\ud800"]
BAD_KEYS += ["k" * 1001, "é" * 128, ".tmp-1", "a/.tmp-/b"]
GOOD_KEYS = ["a", "a b", "ä/ö", "%2F", "a..b", "...", ".a", "x/" * 400 + "x", "s" * 255, "日本/語", "#?&=+", "~"]


class StoreContract:
    def test_what_was_created_can_be_read(self, make_store: MakeStore) -> None:
        make_store().create("a/b", b"\0\xffbytes")
        assert make_store().read("a/b") == b"\0\xffbytes"
        make_store().create("empty", b"")
        assert make_store().read("empty") == b""

    def test_create_never_replaces(self, make_store: MakeStore, tmp_path: Path) -> None:
        store = make_store()
        store.create("a", b"first")
        (tmp_path / "file").write_bytes(b"third")
        with pytest.raises(ObjectExists):
            store.create("a", b"second")
        with pytest.raises(ObjectExists):
            store.create_from_file("a", tmp_path / "file")
        assert store.read("a") == b"first"

    def test_create_from_file(self, make_store: MakeStore, tmp_path: Path) -> None:
        data = bytes(range(256)) * 10_000
        (tmp_path / "file").write_bytes(data)
        make_store().create_from_file("big/file", tmp_path / "file")
        assert make_store().read("big/file") == data
        assert (tmp_path / "file").read_bytes() == data
        with pytest.raises(ZooError, match="nothing-here"):
            make_store().create_from_file("other", tmp_path / "nothing-here")
        with pytest.raises(ObjectMissing):
            make_store().stat("other")

    def test_put_replaces(self, make_store: MakeStore) -> None:
        make_store().put("job/progress.json", b"1")
        make_store().put("job/progress.json", b"22")
        assert make_store().read("job/progress.json") == b"22"

    def test_ranges(self, make_store: MakeStore) -> None:
        store = make_store()
        store.create("a", b"0123456789")
        assert store.read("a", start=3) == b"3456789"
        assert store.read("a", start=3, length=4) == b"3456"
        assert store.read("a", length=2) == b"01"
        assert store.read("a", start=8, length=5) == b"89"
        assert store.read("a", start=10) == b""
        assert store.read("a", start=99, length=5) == b""
        assert store.read("a", length=0) == b""
        for start, length in ((-1, None), (0, -1)):
            with pytest.raises(InvalidArgument):
                store.read("a", start=start, length=length)

    def test_download(self, make_store: MakeStore, tmp_path: Path) -> None:
        store = make_store()
        store.create("a/b", b"x" * 3_000_000)
        store.download("a/b", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"x" * 3_000_000
        with pytest.raises(FileTaken):  # into a new file, never over one that is there
            store.download("a/b", tmp_path / "copy")
        with pytest.raises(ObjectMissing):
            store.download("a/c", tmp_path / "other")
        assert not (tmp_path / "other").exists()

    def test_stat(self, make_store: MakeStore) -> None:
        make_store().create("a/b", b"12345")
        info = make_store().stat("a/b")
        assert (info.key, info.size) == ("a/b", 5)
        assert info.modified > 1_600_000_000

    def test_what_is_missing(self, make_store: MakeStore) -> None:
        store = make_store()
        store.create("a/b", b"1")
        for key in ("b", "a", "a/b/c", "a/bb"):
            with pytest.raises(ObjectMissing, match=key):
                store.read(key)
            with pytest.raises(ObjectMissing, match=key):
                store.stat(key)

    def test_delete(self, make_store: MakeStore) -> None:
        store = make_store()
        store.create("a/b", b"1")
        store.create("a/c", b"1")
        store.delete("a/b")
        store.delete("a/b")
        store.delete("x/y/z")
        store.delete("a/c/d")
        assert [info.key for info in store.list("")] == ["a/c"]
        store.create("a/b", b"2")
        assert store.read("a/b") == b"2"

    def test_list_shows_every_write_at_once(self, make_store: MakeStore) -> None:
        for number in range(30):
            make_store().create(f"log/{number:03}", b"x" * number)
            listed = list(make_store().list("log/"))
            assert [(info.key, info.size) for info in listed] == [(f"log/{n:03}", n) for n in range(number + 1)]

    def test_list_is_in_code_point_order(self, make_store: MakeStore) -> None:
        keys = ["a/b/c", "a-b", "a.b", "a0", "a/b-c", "a/b.c", "a/b0", "Z", "ä", "~", "a!/x", "\U0001f600", "\uffee/y"]
        for key in keys:
            make_store().create(key, b"")
        assert [info.key for info in make_store().list("")] == sorted(keys)

    def test_list_prefix_is_text_not_a_folder(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in ("ab/c", "ab/d/e", "abc", "b", "ab/cd"):
            store.create(key, b"")

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
            store.create(key, b"")
        for start in [*keys, "", "b/", "b/2", "b/2/xx", "zzz", "A"]:
            expected = [key for key in keys if key > start]
            assert [info.key for info in store.list("", start_after=start)] == expected, start
        assert [info.key for info in store.list("b/", start_after="b/1")] == ["b/2/x", "b/2/y"]

    def test_good_keys(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in GOOD_KEYS:
            store.create(key, key.encode())
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
                store.create(key, b"")
            with pytest.raises(InvalidKey):
                store.put(key, b"")
            with pytest.raises(InvalidKey):
                store.create_from_file(key, tmp_path / "file")
            with pytest.raises(InvalidKey):
                store.download(key, tmp_path / "target")
        for prefix in ("../", "a/../", "/", "a//", "a\\", "./x"):
            with pytest.raises(InvalidKey):
                list(store.list(prefix))
        assert list(store.list("")) == []

    def test_of_racing_threads_one_wins(self, make_store: MakeStore) -> None:
        writers, rounds = 6, 25
        barrier = threading.Barrier(writers)

        def race(writer: int) -> list[int]:
            store, won = make_store(), []
            for number in range(rounds):
                barrier.wait(timeout=60)
                try:
                    store.create(f"race/{number:03}", b"%d" % writer * 1000)
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
                make_store().create(f"whole/{number}", bytes(size))
                make_store().put("whole/put", bytes([number]) * size)
        finally:
            done.set()
            watcher.join()
        assert parts == []
