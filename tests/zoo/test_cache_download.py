"""What becomes of downloads that are interrupted, rivalled, too large, or of blobs that several stores have."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from zoo.cache import BlobCache, CacheTooSmall, CorruptBlob, blob_key, download, stamps
from zoo.cache.owner import Owner
from zoo.file_hash import CHUNK_BYTES, FileHash, hash_file
from zoo.store.memory import MemoryStore
from zoo.store.object_store import NoAnswer

CHUNKS = 5


class Counting(MemoryStore):
    """Counts the bytes that were streamed; breaks after `until` of them."""

    def __init__(self, until: int | None = None) -> None:
        super().__init__()
        self.streamed = 0
        self.until = until
        self._guard = threading.Lock()

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        for piece in super().stream(key, start=start, length=length):
            with self._guard:
                if self.until is not None and self.streamed + len(piece) > self.until:
                    raise NoAnswer("the connection broke")
                self.streamed += len(piece)
            yield piece


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> FileHash:
    path = tmp_path_factory.mktemp("blob") / "blob"
    size = (CHUNKS - 1) * CHUNK_BYTES + 1000
    path.write_bytes(np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes())
    return hash_file(path)


def opened(cache: BlobCache, store: MemoryStore, blob: FileHash) -> Path:
    return cache.open_blob(store, blob.digest, size=blob.bytes, chunks=blob.chunks, what="backbone of m@1")


def holding(store: Counting, blob: FileHash) -> Counting:
    store.create_from_file(blob_key(blob.digest), blob.path)
    return store


def test_what_an_interrupted_download_has_is_not_fetched_again(
    tmp_path: Path, blob: FileHash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "THREADS", 1)  # so that it is known which chunks are whole
    with pytest.raises(NoAnswer):
        opened(BlobCache(tmp_path), holding(Counting(until=3 * CHUNK_BYTES), blob), blob)
    sound = holding(Counting(), blob)
    assert opened(BlobCache(tmp_path), sound, blob).read_bytes() == blob.path.read_bytes()
    assert sound.streamed == blob.bytes - 3 * CHUNK_BYTES
    assert list(tmp_path.rglob("*.partial")) == list(tmp_path.rglob("*.lock")) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.zoo.test_cache_download import Counting, blob_key, hash_file, holding, opened
from zoo.cache import BlobCache, download

download.THREADS = 1

class Kills(Counting):
    def stream(self, key, *, start=0, length=None):
        for piece in super().stream(key, start=start, length=length):
            if self.streamed > 3 * (8 << 20):
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece

blob = hash_file(Path(sys.argv[1]))
opened(BlobCache(Path(sys.argv[2])), holding(Kills(), blob), blob)
"""


def test_a_killed_process_leaves_what_it_has_and_its_lock_is_taken_over(tmp_path: Path, blob: FileHash) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(blob.path), str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.rglob("*.lock"))) == 1
    sound = holding(Counting(), blob)
    assert opened(BlobCache(tmp_path), sound, blob).read_bytes() == blob.path.read_bytes()
    assert sound.streamed == blob.bytes - 3 * CHUNK_BYTES
    assert list(tmp_path.rglob("*.partial")) == list(tmp_path.rglob("*.lock")) == []


def test_two_who_want_the_same_fetch_it_once(tmp_path: Path, blob: FileHash) -> None:
    store = holding(Counting(), blob)
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(opened(BlobCache(tmp_path), store, blob))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / blob_key(blob.digest)] * 3
    assert store.streamed == blob.bytes


def test_two_stores_share_one_copy(tmp_path: Path, blob: FileHash) -> None:
    one, two = holding(Counting(), blob), holding(Counting(), blob)
    cache = BlobCache(tmp_path)
    assert opened(cache, one, blob) == opened(cache, two, blob)
    assert (one.streamed, two.streamed) == (blob.bytes, 0)


def test_a_half_uploaded_blob_is_refused(tmp_path: Path, blob: FileHash) -> None:
    store = Counting()
    store.put(blob_key(blob.digest), blob.path.read_bytes()[: 2 * CHUNK_BYTES + 5])
    with pytest.raises(CorruptBlob, match=f"{2 * CHUNK_BYTES + 5} bytes, its manifest says {blob.bytes}"):
        opened(BlobCache(tmp_path), store, blob)
    assert not (tmp_path / blob_key(blob.digest)).exists()


def test_only_the_chunks_of_a_range_are_fetched(tmp_path: Path, blob: FileHash) -> None:
    store = holding(Counting(), blob)
    found = BlobCache(tmp_path).read_range(
        store,
        blob.digest,
        size=blob.bytes,
        chunks=blob.chunks,
        start=CHUNK_BYTES + 10,
        length=100,
        what="backbone of m@1",
    )
    assert found == blob.path.read_bytes()[CHUNK_BYTES + 10 : CHUNK_BYTES + 110]
    assert store.streamed == CHUNK_BYTES


def test_a_blob_larger_than_the_cache(tmp_path: Path, blob: FileHash) -> None:
    with pytest.raises(CacheTooSmall, match="backbone of m@1"):
        opened(BlobCache(tmp_path, limit=CHUNK_BYTES), holding(Counting(), blob), blob)


def test_an_owner_is_known_by_its_process(tmp_path: Path) -> None:
    me = Owner.me()
    assert Owner.parse(str(me)) == me
    assert not me.is_dead()
    ended = subprocess.run(
        [sys.executable, "-c", "from zoo.cache.owner import Owner; print(Owner.me())"],
        capture_output=True,
        text=True,
        check=True,
    )
    other = Owner.parse(ended.stdout.strip())
    assert other is not None
    assert other.is_dead()


class Spoils(Counting):
    """Turns one bit of a chunk round, the first `times` that it is asked for."""

    def __init__(self, chunk: int, times: int) -> None:
        super().__init__()
        self.start, self.times = chunk * CHUNK_BYTES, times

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        for number, piece in enumerate(super().stream(key, start=start, length=length)):
            if number == 0 and start == self.start and self.times:
                self.times -= 1
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            yield piece


def test_a_chunk_that_was_spoilt_on_its_way_is_fetched_again(tmp_path: Path, blob: FileHash) -> None:
    store = holding(Spoils(2, times=1), blob)
    assert opened(BlobCache(tmp_path), store, blob).read_bytes() == blob.path.read_bytes()
    assert store.streamed == blob.bytes + CHUNK_BYTES


def test_a_chunk_that_stays_spoilt_is_named_and_nothing_is_kept(tmp_path: Path, blob: FileHash) -> None:
    with pytest.raises(CorruptBlob, match=f"the chunk at byte {2 * CHUNK_BYTES} ") as caught:
        opened(BlobCache(tmp_path), holding(Spoils(2, times=9), blob), blob)
    assert caught.value.details["expected"] == f"sha256:{blob.chunks[2]}"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_chunks_that_are_as_the_manifest_says_do_not_prove_a_digest(tmp_path: Path, blob: FileHash) -> None:
    """A manifest that names one blob's digest and another's chunks would fill the cache for every other manifest."""
    store, digest = Counting(), "sha256:" + "a" * 64
    store.create(blob_key(digest), blob.path.read_bytes())
    with pytest.raises(CorruptBlob, match="every chunk is as its manifest says") as caught:
        BlobCache(tmp_path).open_blob(store, digest, size=blob.bytes, chunks=blob.chunks, what="backbone of m@1")
    assert (caught.value.details["expected"], caught.value.details["found"]) == (digest, blob.digest)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_power_cut_may_have_spoilt_is_hashed_again(
    tmp_path: Path, blob: FileHash, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = holding(Counting(), blob)
    path = opened(BlobCache(tmp_path), store, blob)
    status = path.stat()
    path.write_bytes(bytes(blob.bytes))  # the name and the size outlasted it, the bytes didn't
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert opened(BlobCache(tmp_path), store, blob).read_bytes() == bytes(blob.bytes)  # what a stamp can't see
    boot = tmp_path / "boot"
    boot.write_text("another run of the machine\n")
    monkeypatch.setattr(stamps, "_BOOT_ID", boot)
    assert opened(BlobCache(tmp_path), store, blob).read_bytes() == blob.path.read_bytes()
    assert store.streamed == 2 * blob.bytes


def test_where_runs_of_the_machine_cannot_be_told_apart_a_download_is_synced(
    tmp_path: Path, blob: FileHash, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    opened(BlobCache(tmp_path / "one"), holding(Counting(), blob), blob)
    assert blob.bytes not in synced
    monkeypatch.setattr(stamps, "_BOOT_ID", tmp_path / "nothing")
    opened(BlobCache(tmp_path / "two"), holding(Counting(), blob), blob)
    assert blob.bytes in synced
    [stamp] = (tmp_path / "two/verified").iterdir()
    assert "boot" not in stamp.read_text()
