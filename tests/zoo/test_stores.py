"""MemoryStore and LocalStore keep the contract; what else a local directory can do to us."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zoo.store_contract import MakeStore, StoreContract
from zoo.atomic_file import TEMPORARY, NoAccess, NoSpace, NotADirectory
from zoo.errors import InvalidArgument
from zoo.store import InvalidStoreUrl, default_store_url, open_store
from zoo.store.faulty import Fate, FaultPlan, FaultyStore
from zoo.store.local import LocalStore, NoHardLinks
from zoo.store.memory import MemoryStore
from zoo.store.object_store import NoAnswer, ObjectExists, ObjectMissing, ObjectStore, StoreBusy
from zoo.store.retrying import RetryingStore, RetryPolicy

MIXED = (Fate.BUSY, Fate.SILENT, Fate.LOST, Fate.CUT, Fate.DUPLICATED)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        store = MemoryStore()
        return lambda: store


class TestLocalStore(StoreContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return lambda: LocalStore(tmp_path / "the store")

    def leave_unfinished(self, store: ObjectStore, key: str) -> bool:
        path = store.local_path(key)
        assert path is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f"{TEMPORARY}half").write_bytes(b"half")
        return True


class TestRetryingStore(StoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        store = RetryingStore(MemoryStore())
        return lambda: store


class TestFaultyStoreWithoutFaults(StoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        store = FaultyStore(MemoryStore(), FaultPlan.none())
        return lambda: store


class TestFaultsOutlasted(StoreContract):
    """A tenth of all calls fail, half an answer or none comes back: with retries, and creates settled by who makes
    them, it is a store like any other."""

    many = 300

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Iterator[MakeStore]:
        stores = [FaultyStore(LocalStore(tmp_path / "faulty"), FaultPlan.mixed(0.1, seed=n)) for n in range(3)]
        patient = RetryPolicy(attempts=20, first_pause=0.0001, longest_pause=0.001)
        handles = itertools.cycle([RetryingStore(store, patient) for store in stores])
        yield lambda: next(handles)
        if sum(sum(store.calls.values()) for store in stores) > 500:
            assert all(store.injected[fate] > 3 for store in stores[:1] for fate in MIXED)

    def create(self, store: ObjectStore, key: str, data: bytes) -> None:
        mine = False  # whether a try of ours may have written it
        while True:
            try:
                return store.create(key, data)
            except StoreBusy:
                continue
            except NoAnswer:
                mine = True
            except ObjectExists:
                if store.read(key) != data:
                    raise
                return None  # no two writers in these tests bring the same
            try:
                found = store.read(key)
            except ObjectMissing:
                continue
            if mine and found == data:
                return None
            raise ObjectExists(key)

    def create_from_file(self, store: ObjectStore, key: str, path: Path, *, chunks: Sequence[str] = ()) -> None:
        try:
            store.create_from_file(key, path, chunks=chunks)
        except ObjectExists:
            if store.read(key) != path.read_bytes():
                raise


RACER = """
import sys, time
from zoo.store import open_store
from zoo.store.object_store import ObjectExists
store, me, start = open_store(sys.argv[1]), sys.argv[2], float(sys.argv[3])
while time.time() < start:
    pass
won = []
for number in range(60):
    try:
        store.create(f"race/{number:03}", me.encode() * 1000)
        won.append(number)
    except ObjectExists:
        pass
print(*won)
"""


def test_of_racing_processes_one_wins(tmp_path: Path) -> None:
    import time

    url = (tmp_path / "store").as_uri()
    start = str(time.time() + 1.0)
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, url, me, start], stdout=subprocess.PIPE, text=True)
        for me in "abcd"
    ]
    won = {}
    for me, racer in zip("abcd", racers, strict=True):
        out, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        won |= {int(number): me for number in out.split()}
        assert len(out.split()) == sum(winner == me for winner in won.values())
    assert sorted(won) == list(range(60))
    store = open_store(url)
    assert all(store.read(f"race/{number:03}") == winner.encode() * 1000 for number, winner in won.items())


keys = st.lists(
    st.text(alphabet="a-./0é", min_size=1, max_size=6).filter(
        lambda key: all(part not in ("", ".", "..") for part in key.split("/"))
    ),
    max_size=12,
    unique=True,
)


@given(keys=keys, prefix=st.text(alphabet="a-0", max_size=2), start=st.text(alphabet="a-./0", max_size=4))
@settings(max_examples=60, deadline=None)
def test_both_stores_list_the_same(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], prefix: str, start: str
) -> None:
    local, memory = LocalStore(tmp_path_factory.mktemp("store") / "s"), MemoryStore()
    for key in keys:
        try:
            local.create(key, key.encode())
        except NotADirectory:
            continue  # a key that is the folder of another, which a disk cannot have
        memory.create(key, key.encode())
    expected = [(info.key, info.size) for info in memory.list(prefix, start_after=start)]
    assert [(info.key, info.size) for info in local.list(prefix, start_after=start)] == expected


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("file:///tmp/a%20b", "/tmp/a b"),
            ("file:///tmp/a b", "/tmp/a b"),
            ("file:///tmp/100%", "/tmp/100%"),
            ("file:///tmp/x/../y", "/tmp/y"),
            ("file:///tmp/a?b#c", "/tmp/a?b#c"),
            ("file://localhost/tmp/a", "/tmp/a"),
        ],
    )
    def test_file(self, url: str, path: str) -> None:
        store = open_store(url)
        assert store.local_path("k") == Path(path) / "k"
        assert open_store(store.url).local_path("k") == Path(path) / "k"

    def test_relative_paths_and_the_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/someone")
        assert open_store("file://some/store").local_path("k") == tmp_path / "some/store/k"
        assert open_store("file://./some").local_path("k") == tmp_path / "some/k"
        assert open_store("file://~/zoo").local_path("k") == Path("/home/someone/zoo/k")

    def test_memory_stores_are_shared_by_name(self) -> None:
        open_store("memory://urls").create("a", b"1")
        assert open_store("memory://urls").read("a") == b"1"
        assert list(open_store("memory://urls2").list("")) == []
        assert open_store("memory://urls").local_path("a") is None

    @pytest.mark.parametrize("url", ["", "ftp://x", "file:/tmp/x", "file://", "file://a\0b", "http://x/y", "x"])
    def test_what_is_no_store(self, url: str) -> None:
        with pytest.raises(InvalidStoreUrl):
            open_store(url)

    def test_a_bare_path_is_explained(self) -> None:
        with pytest.raises(InvalidStoreUrl, match="file:///DIR, s3://BUCKET/PREFIX, memory://NAME") as caught:
            open_store("/tmp/store")
        assert caught.value.hint == "--store file:///tmp/store"

    @pytest.mark.parametrize("url", ["s3://bucket/prefix/", "s3://bucket/a b/c", "s3://bucket"])
    def test_buckets(self, url: str) -> None:
        store = open_store(url)  # no request is sent
        assert store.url == url.rstrip("/")
        assert open_store(store.url).url == store.url
        assert store.local_path("k") is None

    @pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://b", "s3://bucket//x", "s3://bucket/../x"])
    def test_what_is_no_bucket(self, url: str) -> None:
        with pytest.raises(InvalidStoreUrl):
            open_store(url)

    def test_the_whole_disk_is_no_store(self) -> None:
        with pytest.raises(InvalidArgument, match="whole disk"):
            open_store("file:///")

    def test_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODELZOO_STORE", "memory://mine")
        assert default_store_url() == "memory://mine"
        monkeypatch.delenv("MODELZOO_STORE")
        monkeypatch.setenv("MODELZOO_HOME", "/data home")
        assert default_store_url() == "file:///data%20home/store"


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class FillsUp(LocalStore):
    """A disk that is full after `room` bytes."""

    room = 1000

    def _write(self, file: BinaryIO, data: bytes) -> None:
        if len(data) > self.room:
            file.write(data[: self.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super()._write(file, data)


class TestDirectories:
    def test_a_full_disk_leaves_nothing(self, tmp_path: Path) -> None:
        store = FillsUp(tmp_path / "store")
        (tmp_path / "source").write_bytes(bytes(5000))
        for write in (
            lambda: store.create("a/b", bytes(5000)),
            lambda: store.put("a/b", bytes(5000)),
            lambda: store.create_from_file("a/b", tmp_path / "source"),
        ):
            with pytest.raises(NoSpace, match="the disk is full") as caught:
                write()
            assert str(tmp_path / "store/a/b") in caught.value.message
        assert files_below(tmp_path / "store") == []
        store.create("a/b", b"fits")
        with pytest.raises(NoSpace):
            store.put("a/b", bytes(5000))
        assert store.read("a/b") == b"fits"

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        place = tmp_path / "small disk"
        place.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
        yield place
        subprocess.run(["umount", str(place)], check=True)

    def test_a_really_full_disk(self, small_disk: Path) -> None:
        store = LocalStore(small_disk / "store")
        store.create("kept", b"kept")
        with pytest.raises(NoSpace, match="the disk is full"):
            store.create("big", bytes(3_000_000))
        assert [path.name for path in files_below(small_disk)] == ["kept"]
        store.create("after", bytes(500_000))
        assert store.read("kept") == b"kept"

    def test_a_read_only_disk(self, small_disk: Path) -> None:
        store = LocalStore(small_disk / "store")
        store.create("kept", b"kept")
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        for write in (lambda: store.create("a", b""), lambda: store.put("a", b""), lambda: store.delete("kept")):
            with pytest.raises(NoAccess, match="read-only") as caught:
                write()
            assert str(small_disk) in caught.value.message
        assert store.read("kept") == b"kept"

    def test_a_directory_without_write_permission(self, tmp_path: Path) -> None:
        (tmp_path / "store").mkdir(mode=0o500)
        # Modes don't stop root, so the attempt is made by a process that gave its rights up.
        code = """
import os, pathlib, sys
from zoo.errors import PermissionDenied
from zoo.store.local import LocalStore
if os.geteuid() == 0:
    os.setuid(65534)
try:
    LocalStore(pathlib.Path(sys.argv[1])).create("a", b"")
except PermissionDenied as error:
    print(error.message)
"""
        command = [sys.executable, "-c", code, str(tmp_path / "store")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "permission denied" in done.stdout
        assert str(tmp_path / "store") in done.stdout
        assert files_below(tmp_path / "store") == []

    @pytest.mark.parametrize("below", ["file", "file/store", "file/x/y"])
    def test_a_file_in_the_way(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_bytes(b"mine")
        with pytest.raises(NotADirectory) as caught:
            LocalStore(tmp_path / below)
        assert f"{tmp_path / 'file'} is a file" in caught.value.message
        assert (tmp_path / "file").read_bytes() == b"mine"

    def test_a_file_that_came_later(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        (tmp_path / "store").write_bytes(b"")
        with pytest.raises(NotADirectory, match="not a directory"):
            store.create("a/b", b"")

    def test_reading_makes_nothing(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        assert list(store.list("")) == []
        with pytest.raises(ObjectMissing):
            store.read("a")
        assert not (tmp_path / "store").exists()

    def test_created_objects_are_read_only_files(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        store.create("blob", b"1")
        store.put("job/progress.json", b"1")
        assert (tmp_path / "store/blob").stat().st_mode & 0o222 == 0
        assert (tmp_path / "store/job/progress.json").stat().st_mode & 0o200

    def test_a_file_system_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        with pytest.raises(NoHardLinks, match="hard links"):
            LocalStore(tmp_path / "store").create("a", b"")
        assert files_below(tmp_path / "store") == []

    def test_a_key_that_is_a_folder(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        store.create("a/b", b"1")
        for write in (store.create, store.put):
            with pytest.raises(NotADirectory, match="other keys lie below it"):
                write("a", b"2")
            with pytest.raises(NotADirectory, match="a file, not a directory"):
                write("a/b/c", b"3")
        assert [info.key for info in store.list("")] == ["a/b"]

    def test_left_over_and_foreign_files_are_not_objects(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        store.create("a/b", b"1")
        (tmp_path / "store/a/.tmp-dead").write_bytes(b"half")
        (tmp_path / "store/a/back\\slash").write_bytes(b"?")
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/store/a/\xff")).write_bytes(b"?")
        assert [info.key for info in store.list("")] == ["a/b"]

    def test_a_link_out_of_the_store_is_not_listed(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        store.create("a/b", b"1")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/c").write_bytes(b"2")
        (tmp_path / "store/link").symlink_to(tmp_path / "elsewhere")
        assert [info.key for info in store.list("")] == ["a/b"]

    def test_a_second_writer_that_lost_long_ago_copies_nothing(self, tmp_path: Path) -> None:
        LocalStore(tmp_path / "store").create("a", b"1")
        store = FillsUp(tmp_path / "store")
        with pytest.raises(ObjectExists):
            store.create("a", bytes(5000))
